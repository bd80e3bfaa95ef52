"""A run learns, goes on where it was broken off, and leaves what PEFT and vLLM can open."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from models.training import storage
from models.training.errors import (
    CheckpointUnusable,
    ConfigRefused,
    OutOfDisk,
    OutOfMemory,
    TrainingDiverged,
)
from models.training.judge import trainer
from models.training.judge.base import Base, Judge, find_base, load_tokenizer
from models.training.judge.chats import batches, read_chats
from models.training.judge.config import JudgeConfig, TrainingTable, read_config
from models.training.judge.proposals import FOLDER
from models.training.judge.trainer import Progress, lr_at, train

STATE = "state.safetensors"


class BrokenOffError(Exception):
    pass


def with_training(config: JudgeConfig, **changes: Any) -> JudgeConfig:
    training = config.training.model_copy(update=changes)
    return config.model_copy(update={"training": training})


def break_off_after(step: int) -> Any:
    def tell(progress: Progress) -> None:
        if progress.step == step:
            raise BrokenOffError

    return tell


def weights_of(config: JudgeConfig) -> dict[str, torch.Tensor]:
    """What is trained, in full precision."""
    tensors: dict[str, torch.Tensor] = load_file(config.home / STATE)
    return tensors


def test_one_chat_is_learnt_by_heart(config: JudgeConfig, tmp_path: Path) -> None:
    alone = tmp_path / "alone.jsonl"
    alone.write_text(config.train[0].read_text().splitlines()[2] + "\n")
    told: list[float] = []
    one = with_training(config, epochs=100, chats_per_step=1, lr=3e-2, schedule="constant")
    train(one.model_copy(update={"train": (alone,)}), lambda p: told.append(p.loss))
    assert told[-1] < 0.1 * told[0]


@pytest.mark.parametrize("step", [1, 3, 4])
def test_a_run_that_was_broken_off_ends_as_one_that_was_not(
    config: JudgeConfig, tmp_path: Path, step: int
) -> None:
    train(config)
    broken = config.model_copy(update={"folder": tmp_path / "broken"})
    with pytest.raises(BrokenOffError):
        train(broken, break_off_after(step))
    told: list[int] = []
    train(broken, lambda progress: told.append(progress.step))
    assert told[0] == step - step % config.save.every_steps + 1
    whole, again = weights_of(config), weights_of(broken)
    assert whole.keys() == again.keys()
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    steps = [json.loads(line)["step"] for line in (broken.home / "metrics.jsonl").open()]
    assert steps == list(range(1, 7))


def test_a_killed_process_goes_on(config: JudgeConfig, tmp_path: Path) -> None:
    """SIGKILL at whatever it is doing, twice."""
    train(config)
    killed = config.model_copy(update={"folder": tmp_path / "killed"})
    file = tmp_path / "killed.json"
    file.write_text(killed.model_dump_json())
    program = (
        "import sys, pathlib\n"
        "from models.training.judge.config import JudgeConfig\n"
        "from models.training.judge.trainer import train\n"
        "train(JudgeConfig.model_validate_json(pathlib.Path(sys.argv[1]).read_text()))\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program, str(file)])
    until = time.monotonic() + 90
    while not (killed.home / STATE).exists() and process.poll() is None:
        assert time.monotonic() < until
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    train(killed)
    whole, again = weights_of(config), weights_of(killed)
    assert all(torch.equal(whole[name], again[name]) for name in whole)


def test_another_configuration_does_not_go_on(config: JudgeConfig) -> None:
    with pytest.raises(BrokenOffError):
        train(config, break_off_after(3))
    with pytest.raises(CheckpointUnusable, match="another training"):
        train(with_training(config, lr=1e-3))
    (config.home / STATE).write_bytes(b"half")
    with pytest.raises(CheckpointUnusable, match="cannot be read"):
        train(config)


def test_gradients_do_not_depend_on_how_a_step_is_batched(config: JudgeConfig) -> None:
    base = find_base(config)
    chats = read_chats(config.train, load_tokenizer(base), number_weight=3.0, max_tokens=512)
    judge = Judge(
        base, config.lora.model_copy(update={"dropout": 0.0}), precision="float32", seed=1
    )

    def gradients(batch_tokens: int) -> list[torch.Tensor]:
        for batch in batches(chats, batch_tokens):
            judge.loss(batch.ids_BL, batch.mask_BL, batch.weight_BL).backward()
        found = [p.grad.clone() for p in judge.parameters.values() if p.grad is not None]
        judge.peft.zero_grad()
        return found

    one_by_one, together = gradients(64), gradients(10_000)
    assert len(one_by_one) == len(together) == len(judge.parameters)
    for a, b in zip(one_by_one, together, strict=True):
        assert torch.allclose(a, b, atol=1e-5)


def test_what_is_told_is_the_mean_over_the_step_s_chats(config: JudgeConfig) -> None:
    """Before anything is learnt; all eight chats are in the first step."""
    told: list[float] = []
    whole = with_training(config, epochs=1, chats_per_step=8)
    quiet = whole.model_copy(update={"lora": config.lora.model_copy(update={"dropout": 0.0})})
    train(quiet, lambda progress: told.append(progress.loss))
    base = find_base(config)
    chats = read_chats(config.train, load_tokenizer(base), number_weight=1.0, max_tokens=512)
    judge = Judge(base, quiet.lora, precision="float32", seed=3)
    with torch.no_grad():
        losses = [
            judge.loss(batch.ids_BL, batch.mask_BL, batch.weight_BL).item()
            for chat in chats
            for batch in batches([chat], 512)
        ]
    assert told == [pytest.approx(sum(losses) / 8, rel=1e-5)]


def test_the_loss_is_the_model_s_own(config: JudgeConfig) -> None:
    """Of one chat: what transformers computes with labels, where only the answer is labelled."""
    base = find_base(config)
    chat = read_chats(config.train, load_tokenizer(base), number_weight=1.0, max_tokens=512)[0]
    judge = Judge(base, config.lora, precision="float32", seed=1)
    judge.peft.eval()
    (batch,) = batches([chat], 512)
    labels = batch.ids_BL.masked_fill(batch.weight_BL == 0, -100)
    with torch.no_grad():
        theirs = judge.peft(input_ids=batch.ids_BL, labels=labels).loss
        ours = judge.loss(batch.ids_BL, batch.mask_BL, batch.weight_BL)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)


def test_the_folder_opens_in_peft_and_says_where_it_comes_from(
    config: JudgeConfig, tiny_base: Path
) -> None:
    folder = train(config)
    base = AutoModelForCausalLM.from_pretrained(tiny_base)
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        before = base(ids).logits
        after = PeftModel.from_pretrained(base, folder)(ids).logits
    assert (before - after).abs().max() > 1e-3
    with safe_open(folder / "adapter_model.safetensors", framework="pt") as file:
        metadata = file.metadata()
    assert (metadata["base"], metadata["license"], metadata["rank"]) == ("tiny", "MIT", "4")
    assert metadata["steps"] == "6"
    assert len(metadata["train_sha256"]) == 64
    assert "Licence: MIT" in (folder / "README.md").read_text()
    written = (folder / "adapter_config.json").read_text()
    assert str(tiny_base.parent) not in written
    assert [f.name for f in (config.home / "checkpoints").iterdir()] == ["judge_000000006"]
    assert any((config.home / "tensorboard").iterdir())


def test_only_the_last_blocks_when_asked(config: JudgeConfig, tiny_base: Path) -> None:
    lora = config.lora.model_copy(update={"last_layers": 1})
    judge = Judge(Base(tiny_base, "tiny", "MIT"), lora, precision="float32", seed=1)
    assert judge.parameters
    assert all("layers.1." in name for name in judge.parameters)


def test_learning_rates() -> None:
    constant = TrainingTable(lr=1.0, schedule="constant", warmup_steps=3)
    assert [lr_at(step, 10, constant) for step in (0, 1, 2, 3, 9)] == [0.25, 0.5, 0.75, 1.0, 1.0]
    cosine = TrainingTable(lr=1.0, schedule="cosine", warmup_steps=0)
    rates = [lr_at(step, 10, cosine) for step in range(10)]
    assert rates[0] == 1.0
    assert rates == sorted(rates, reverse=True)
    assert 0 < rates[-1] < 0.1


def test_a_full_disk_leaves_the_last_checkpoint(
    config: JudgeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(BrokenOffError):
        train(config, break_off_after(2))
    before = (config.home / STATE).read_bytes()

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(storage.os, "fsync", full)
    with pytest.raises(OutOfDisk, match="free some space"):
        train(config)
    assert (config.home / STATE).read_bytes() == before
    assert not list(config.home.glob(f"*{storage.PARTIAL}"))


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), OutOfMemory),
        (torch.OutOfMemoryError("CUDA out of memory"), OutOfMemory),
        (RuntimeError("shapes differ"), RuntimeError),
    ],
)
def test_no_memory_is_told_as_such(
    config: JudgeConfig,
    monkeypatch: pytest.MonkeyPatch,
    raised: Exception,
    expected: type[Exception],
) -> None:
    def fails(*_: Any) -> None:
        raise raised

    monkeypatch.setattr(trainer.Judge, "loss", fails)
    with pytest.raises(expected) as caught:
        train(config)
    assert (expected is RuntimeError) == ("batch_tokens" not in str(caught.value))


def test_a_loss_that_is_no_number_stops_the_run(
    config: JudgeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def diverges(judge: Judge, *_: Any) -> torch.Tensor:
        return next(iter(judge.parameters.values())).sum() * float("nan")

    monkeypatch.setattr(trainer.Judge, "loss", diverges)
    with pytest.raises(TrainingDiverged, match=r"training\.lr"):
        train(config)
    assert not (config.home / STATE).exists()


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("name = 'Judge'", "name"),
        ("name = 'j'\nbase = 'b'\ntrain = ['t']\nfolder = 'f'\n[lora]\nrnk = 1", r"lora\.rnk"),
        ("name = 'j'\nbase = 'b'\ntrain = []\nfolder = 'f'", "train"),
        ("name = ", "judge.toml"),
    ],
)  # fmt: skip
def test_a_faulty_configuration_is_refused_by_key(tmp_path: Path, text: str, names: str) -> None:
    file = tmp_path / "judge.toml"
    file.write_text(text)
    with pytest.raises(ConfigRefused, match=names):
        read_config(file)


def test_a_base_without_a_licence_or_such_layers_is_refused(config: JudgeConfig) -> None:
    with pytest.raises(ConfigRefused, match="licence"):
        train(config.model_copy(update={"licence": None}))
    lora = config.lora.model_copy(update={"targets": ("c_attn",)})
    with pytest.raises(ConfigRefused, match=r"lora\.targets"):
        train(config.model_copy(update={"lora": lora}))


@pytest.mark.parametrize("file", sorted(FOLDER.with_name("configs").glob("*.toml")))
def test_shipped_configurations_are_read(file: Path) -> None:
    assert read_config(file).train
