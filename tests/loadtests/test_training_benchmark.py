"""The training benchmark's turns and ratios. Nothing is trained, and no time is asserted."""

from __future__ import annotations

import threading
from contextlib import suppress
from multiprocessing import Pipe
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from loadtests.benchmarks import training
from loadtests.benchmarks.training import KEPT, OURS, STOCK, Case, Measured, Pacer, findings
from models.training.config.reading import read_config
from models.training.flux.honoured import require_honoured

PARAMETERS = SimpleNamespace(
    param_groups=[{"params": [SimpleNamespace(numel=lambda: 3)]}, {"params": []}]
)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Time that passes only when a test lets it."""
    at = SimpleNamespace(now=0.0)
    monkeypatch.setattr(training.time, "perf_counter", lambda: at.now)
    monkeypatch.setattr(training.time, "process_time", lambda: at.now / 2)
    return at


def test_turn_leaves_out_warm_up_waiting_and_its_own_first_step(clock: SimpleNamespace) -> None:
    ours, its = Pipe()
    pacer = Pacer(its)
    for steps in (2, 3, 0):
        ours.send(steps)

    def step(seconds: float) -> None:
        clock.now += seconds
        pacer(PARAMETERS)

    for _ in range(training.WARM_UP):
        step(100.0)
    for seconds in (50.0, 1.0, 3.0, 50.0, 4.0, 5.0):
        step(seconds)
    with pytest.raises(SystemExit):
        step(6.0)

    told = [ours.recv() for _ in range(4)]
    assert told[:3] == [3, (2.0, 1.0), (5.0, 2.5)]
    assert told[3] > 0  # MiB


def test_no_step_is_taken_between_turns() -> None:
    ours, its = Pipe()
    pacer = Pacer(its)
    taken: list[int] = []

    def train() -> None:
        with suppress(SystemExit):
            while True:
                taken.append(len(taken))
                pacer(PARAMETERS)

    process = threading.Thread(target=train, daemon=True)
    process.start()
    assert ours.recv() == 3
    assert len(taken) == training.WARM_UP
    ours.send(1)
    ours.recv()
    assert len(taken) == training.WARM_UP + 2
    ours.send(0)
    process.join(10.0)
    assert not process.is_alive()


def test_speed_is_how_often_the_script_takes_our_time_round_by_round() -> None:
    found = findings(
        Case(2, checkpointing=True),
        {
            OURS: Measured([0.1, 0.2, 0.1], [0.1, 0.1, 0.1], 100.0),
            KEPT: Measured([0.2, 0.2, 0.3], [0.1, 0.3, 0.3], 200.0),
            STOCK: Measured([0.4, 0.4, 0.4], [0.9, 0.9, 0.9], 400.0),
        },
    )
    assert {name: finding.value for name, finding in found.items()} == pytest.approx(
        {
            "threads_2_checkpointing": 2.0,
            "threads_2_checkpointing_vs_stock": 4.0,
            "threads_2_checkpointing_cpu": 3.0,
            "threads_2_checkpointing_memory": 0.25,
        }
    )
    assert found["threads_2_checkpointing"].repetitions == "3 rounds, middle half 1.00 to 3.00"


def test_text_is_encoded_once_where_it_is_kept() -> None:
    asked: list[object] = []
    module = ModuleType("example")
    module.encode_prompt = lambda encoders, tokenizers, prompt, length: asked.append(prompt)  # type: ignore[attr-defined]
    training._keep_texts(module)
    for prompt in ("a", ["a"], "a", ["a"], ["a", "a"]):
        module.encode_prompt(None, None, prompt, 32)
    assert asked == ["a", ["a"], ["a", "a"]]


@pytest.mark.parametrize("checkpointing", [False, True])
def test_our_configuration_is_one_that_the_trainer_does(
    checkpointing: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "PICTURES", 1)
    bench = training.Bench(tmp_path / "script.py", tmp_path)
    config = tmp_path / "ours.json"
    config.write_text(training.json.dumps(bench._config(Case(1, checkpointing), tmp_path)), "utf-8")
    file = read_config(config)
    require_honoured(file)
    assert file.process.train.gradient_checkpointing is checkpointing
    assert file.process.network.lora_rank == training.RANK
