"""Runs that are killed, stopped, broken or changed. Children are forked: real processes."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from models.training.__main__ import cli
from models.training.errors import CheckpointUnusable, ConfigRefused
from models.training.flux.loop import _alone_in
from tests.models.training.flux.conftest import WriteConfig, curve, train

LONG = {
    "train.steps": 14,
    "save.save_every": 3,
    "train.ema_config": {"use_ema": True, "ema_decay": 0.9},
    "train.lr_scheduler": "cosine",
    "network.dropout": 0.2,
    "datasets.caption_dropout_rate": 0.3,
}
DEADLINE_S = 60.0


def in_child(config: Path) -> int:
    """The pid of a process that runs `train CONFIG`; its exit status is the command's."""
    pid = os.fork()
    if pid:
        return pid
    try:
        torch.set_num_threads(1)
        cli(["train", str(config), "--models-dir", "none"], standalone_mode=True)
        os._exit(0)
    except SystemExit as left:
        os._exit(left.code if isinstance(left.code, int) else 1)
    finally:
        os._exit(70)


def wait_until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not is_so():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.002)


def steps_done(folder: Path) -> int:
    file = folder / "metrics.jsonl"
    return file.read_bytes().count(b"\n") if file.exists() else 0


def ended(pid: int) -> int | None:
    """The exit status, or None while it runs."""
    done, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if done else None


def furthest(some: Path, other: Path) -> float:
    left, right = load_file(some), load_file(other)
    assert left.keys() == right.keys()
    return max((left[key] - right[key]).abs().max().item() for key in left)


def test_killed_at_random_it_ends_in_the_same_weights_by_the_same_curve(
    write_config: WriteConfig,
) -> None:
    undisturbed = train(write_config("undisturbed", **LONG)).lora
    assert undisturbed is not None
    config = write_config("killed", **LONG)
    folder = undisturbed.parents[1] / "killed"
    luck = random.Random()  # real kills come at any moment
    kills = 0
    while not (folder / "killed.safetensors").exists():
        pid = in_child(config)
        goal = min(steps_done(folder), 9) + luck.randint(1, 4) if kills < 3 else 99
        status: list[int | None] = [None]

        def is_over(pid: int = pid, goal: int = goal, status: list[int | None] = status) -> bool:
            status[0] = ended(pid)
            return status[0] is not None or steps_done(folder) >= goal

        wait_until(is_over)
        if status[0] is None:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            kills += 1
        else:
            assert status[0] == 0
    assert kills >= 1
    assert furthest(undisturbed, folder / "killed.safetensors") < 1e-4
    first, second = curve(undisturbed.parent), curve(folder)
    assert [line["step"] for line in second] == list(range(1, 15))
    for one, other in zip(first, second, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], abs=1e-4)
        assert one["lr"] == other["lr"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_leaves_with_its_number(
    write_config: WriteConfig, number: signal.Signals
) -> None:
    config = write_config("stopped", **LONG | {"save.save_every": 1000, "train.steps": 400})
    folder = config.parent / "out" / "stopped"
    pid = in_child(config)
    wait_until(lambda: steps_done(folder) >= 2)
    os.kill(pid, number)
    status: list[int | None] = [None]

    def is_over() -> bool:
        status[0] = ended(pid)
        return status[0] is not None

    wait_until(is_over)
    assert status[0] == 128 + number
    (state,) = (folder / "state").iterdir()
    assert int(state.stem) == len(curve(folder))
    assert not (folder / "stopped.safetensors").exists()


def test_the_newest_whole_state_is_used(write_config: WriteConfig) -> None:
    config = write_config(**{"train.steps": 4})
    lora = train(config).lora
    assert lora is not None
    whole = load_file(lora)
    states = sorted((lora.parent / "state").iterdir())
    assert [state.stem for state in states] == ["000000002", "000000004"]
    newest = states[-1].read_bytes()
    for broken in (newest[: len(newest) // 2], newest[:-2000] + b"x" * 2000, b""):
        lora.unlink()
        states[-1].write_bytes(broken)
        train(config)
        assert all(torch.equal(value, whole[key]) for key, value in load_file(lora).items())


def test_with_no_whole_state_it_says_so(write_config: WriteConfig) -> None:
    config = write_config()
    lora = train(config).lora
    assert lora is not None
    for state in (lora.parent / "state").iterdir():
        state.write_bytes(b"broken")
    with pytest.raises(CheckpointUnusable, match="delete it to begin anew"):
        train(config)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"train.batch_size": 1}, "train.batch_size was 2 and is 1"),
        ({"network.linear": 8, "network.linear_alpha": 8}, "network.linear was 4 and is 8"),
        ({"training_seed": 8}, "training_seed was 7 and is 8"),
        ({"datasets.resolution": 32}, r"datasets\[0\].resolution was 64 and is 32"),
    ],
)
def test_another_configuration_does_not_go_on(
    write_config: WriteConfig, change: dict[str, object], named: str
) -> None:
    train(write_config(**{"train.steps": 2}))
    with pytest.raises(CheckpointUnusable, match=named):
        train(write_config(**{"train.steps": 4} | change))


def test_what_changes_no_weight_may_change(write_config: WriteConfig) -> None:
    first = train(write_config(**{"train.steps": 2}))
    longer = train(
        write_config(
            **{
                "train.steps": 4,
                "save.save_every": 1,
                "train.cache_text_embeddings": False,
                "train.gradient_checkpointing": True,
            }
        )
    )
    assert (first.step, longer.step) == (2, 4)
    fresh = train(write_config("fresh", **{"train.steps": 4}))
    assert furthest(longer.lora, fresh.lora) < 1e-4
    with pytest.raises(ConfigRefused, match=r"train\.steps is 3"):
        train(write_config(**{"train.steps": 3}))


def test_a_finished_run_is_left_alone(write_config: WriteConfig) -> None:
    config = write_config()
    lora = train(config).lora
    before = lora.stat().st_mtime_ns
    assert train(config).lora == lora
    assert lora.stat().st_mtime_ns == before


def test_so_many_saves_stay_and_other_runs_saves_too(write_config: WriteConfig) -> None:
    config = write_config(
        **{"train.steps": 6, "save.save_every": 1, "save.max_step_saves_to_keep": 2}
    )
    folder = config.parent / "out" / "run"
    folder.mkdir(parents=True)
    neighbour = folder / "run_two_000000001.safetensors"
    neighbour.write_bytes(b"")
    train(config)
    saves = sorted(file.name for file in folder.glob("*.safetensors"))
    assert saves == [
        "run.safetensors",
        "run_000000004.safetensors",
        "run_000000005.safetensors",
        neighbour.name,
    ]
    with safe_open(folder / "run_000000004.safetensors", "pt") as save:
        assert save.metadata()["steps"] == "4"


def test_two_processes_do_not_train_in_one_folder(write_config: WriteConfig) -> None:
    config = write_config()
    with (
        _alone_in(config.parent / "out" / "run"),
        pytest.raises(CheckpointUnusable, match="another process"),
    ):
        train(config)
