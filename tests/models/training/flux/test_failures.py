"""Memory, disk and numbers that give out: a clear sentence, and what was saved stays good."""

from __future__ import annotations

import resource
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from models.training.errors import (
    BaseUnusable,
    ConfigRefused,
    DatasetUnusable,
    OutOfDisk,
    OutOfMemory,
    TrainingDiverged,
)
from models.training.flux.trainer import Trainer
from models.training.memory import memory_errors
from models.training.storage import PARTIAL, write_whole
from tests.models.training.flux.conftest import WriteConfig, train


def goes_on_to_the_same_end(config: Path, whole: Path) -> bool:
    lora = train(config).lora
    assert lora is not None
    left, right = load_file(lora), load_file(whole)
    return all((left[key] - right[key]).abs().max() < 1e-4 for key in right)


def no_partial_files(folder: Path) -> bool:
    return not list(folder.rglob(f"*{PARTIAL}"))


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """What the system writes no further: the fault of a full disk, without one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of a MiB. Needs the right to mount."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(place)]
    if subprocess.run(command, capture_output=True, timeout=10, check=False).returncode:
        pytest.skip("file systems may not be mounted here")
    yield place
    subprocess.run(["umount", str(place)], timeout=10, check=True)


def test_a_full_disk_leaves_the_last_state(write_config: WriteConfig, small_disk: Path) -> None:
    whole = train(write_config("whole")).lora
    config = write_config(training_folder=str(small_disk))
    filler = small_disk / "filler"
    saved = Trainer.state

    def full_at_the_second_save(self: Trainer, step: int, identity: dict[str, str]):
        if step == 4:
            filler.write_bytes(b"x" * (shutil.disk_usage(small_disk).free - 4096))
        return saved(self, step, identity)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "state", full_at_the_second_save)
        with pytest.raises(OutOfDisk, match="run the same command again"):
            train(config)
    assert no_partial_files(small_disk)
    assert [f.name for f in (small_disk / "run" / "state").iterdir()] == ["000000002.pt"]
    filler.unlink()
    assert goes_on_to_the_same_end(config, whole)


def test_a_file_that_does_not_fit_leaves_the_one_before(tmp_path: Path) -> None:
    file = tmp_path / "state.pt"
    write_whole(file, b"before")
    with largest_file(1000), pytest.raises(OutOfDisk, match=r"state\.pt"):
        write_whole(file, b"x" * 2000)
    assert file.read_bytes() == b"before"
    assert no_partial_files(tmp_path)


def test_a_state_that_does_not_fit_ends_the_run(write_config: WriteConfig) -> None:
    whole = train(write_config("whole")).lora
    config = write_config()
    with largest_file(60_000), pytest.raises(OutOfDisk, match="free some space"):
        train(config)
    assert no_partial_files(config.parent / "out" / "run")
    assert goes_on_to_the_same_end(config, whole)


def test_memory_that_gives_out_leaves_the_last_state(
    write_config: WriteConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More is allocated than there is: torch's own refusal, at a moment of our choice."""
    whole = train(write_config("whole")).lora
    config = write_config()
    step = Trainer.step

    def too_much(self: Trainer, number: int):
        if number == 3:
            torch.empty(2**48)
        return step(self, number)

    monkeypatch.setattr(Trainer, "step", too_much)
    with pytest.raises(OutOfMemory, match=r"train\.batch_size"):
        train(config)
    monkeypatch.undo()
    assert goes_on_to_the_same_end(config, whole)


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError()], ids=["cuda", "python"]
)
def test_every_way_of_running_out_of_memory_is_known(error: Exception) -> None:
    with pytest.raises(OutOfMemory), memory_errors("lower something"):
        raise error


def test_other_faults_are_not_taken_for_memory() -> None:
    with pytest.raises(RuntimeError, match="shapes"), memory_errors("lower something"):
        raise RuntimeError("shapes do not match")


def test_weights_that_are_no_numbers_are_never_saved(write_config: WriteConfig) -> None:
    """Adam without epsilon divides nothing by nothing: lora_A has no gradient in the first step."""
    config = write_config(
        **{"train.optimizer_params": {"eps": 0.0, "fused": False}, "save.save_every": 1}
    )
    with pytest.raises(TrainingDiverged, match="at step 1"):
        train(config)
    folder = config.parent / "out" / "run"
    assert not list(folder.rglob("*.pt")) + list(folder.glob("*.safetensors"))


def test_a_loss_that_is_no_number_ends_the_run(write_config: WriteConfig) -> None:
    config = write_config(
        **{"train.optimizer_params": {"eps": 0.0, "fused": False}, "save.save_every": 100}
    )
    with pytest.raises(TrainingDiverged, match=r"the loss is no number at step 2: lower train\.lr"):
        train(config)


@pytest.mark.parametrize(
    ("changes", "error", "named"),
    [
        ({"model.name_or_path": "./nowhere"}, BaseUnusable, "nowhere"),
        ({"model.name_or_path": "flux.1-dev"}, BaseUnusable, "python -m models pull flux.1-dev"),
        ({"model.assistant_lora_path": "nobody/nothing"}, BaseUnusable, "hf download"),
        ({"datasets.folder_path": "nowhere"}, DatasetUnusable, "nowhere"),
        ({"datasets.bucket_tolerance": 12}, ConfigRefused, "multiples of 8"),
        ({"datasets.mask_path": "masks"}, DatasetUnusable, "has no mask"),
        ({"device": "cuda:0"}, ConfigRefused, "device is cuda:0"),
        ({"train.dtype": "fp16"}, ConfigRefused, "fp16"),
        ({"train.optimizer": "adamw8bit"}, ConfigRefused, "use adamw"),
        (
            {"network.network_kwargs": {"only_if_contains": ["nothing"]}},
            ConfigRefused,
            "leaves no layer",
        ),
    ],
    ids=str,
)
def test_what_is_missing_is_named(
    write_config: WriteConfig, changes: dict[str, object], error: type[Exception], named: str
) -> None:
    with pytest.raises(error, match=named):
        train(write_config(**changes))
