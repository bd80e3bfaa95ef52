"""The loop: a step, a note of it, a checkpoint now and then.

    HOME/state.safetensors          what a broken run goes on from
    HOME/checkpoints/NAME_000000040 the adapter after 40 steps, the last few
    HOME/NAME                       the adapter at the end
    HOME/metrics.jsonl, tensorboard/

What happens in step n depends on the configuration, the data and n, never on how often the run
was broken off before it.
"""

import json
import math
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from models.training.errors import TrainingDiverged
from models.training.judge.adapter import write_adapter
from models.training.judge.base import Base, Judge, find_base, load_tokenizer
from models.training.judge.chats import (
    Chat,
    batches,
    chats_of_step,
    data_hash,
    read_chats,
)
from models.training.judge.config import JudgeConfig, TrainingTable
from models.training.judge.states import load_state, restore, save_state
from models.training.memory import memory_errors
from models.training.storage import full_disk

STATE, METRICS, CHECKPOINTS, TENSORBOARD = (
    "state.safetensors",
    "metrics.jsonl",
    "checkpoints",
    "tensorboard",
)


@dataclass(frozen=True)
class Progress:
    """After a step. `loss` is the mean over its chats, in nats a token (weighted)."""

    step: int
    steps: int
    loss: float
    lr: float
    tokens: int
    seconds: float
    development_loss: float | None = None


Tell = Callable[[Progress], None]


def train(config: JudgeConfig, tell: Tell = lambda _: None, root: Path | None = None) -> Path:
    """Train to the end, from where an earlier run was broken off; the adapter's folder.

    Raises TrainingError in its kinds and UnknownModel. Whatever it raises, the last checkpoint is
    whole. `root` is where the base was pulled to.
    """
    run = _Run(config, root)
    with _clear_about_space(config.home, config.training):
        for progress in run.steps():
            run.note(progress)
            tell(progress)
    return run.finish()


def steps_of(training: TrainingTable, chats: int) -> int:
    """How many steps `epochs` over `chats` are."""
    return max(1, math.ceil(training.epochs * chats / training.chats_per_step))


def lr_at(step: int, steps: int, training: TrainingTable) -> float:
    """Of step `step` (from 0): linear warm-up, then constant, or a cosine that ends near 0."""
    warm = min(1.0, (step + 1) / (training.warmup_steps + 1))
    if training.schedule == "constant":
        return training.lr * warm
    after = max(0.0, (step - training.warmup_steps) / max(1, steps - training.warmup_steps))
    return training.lr * warm * 0.5 * (1 + math.cos(math.pi * after))


class _Run:
    def __init__(self, config: JudgeConfig, root: Path | None) -> None:
        self._config, self._training = config, config.training
        self._base: Base = find_base(config, root)
        tokenizer = load_tokenizer(self._base)
        self._chats = self._read(config.train, tokenizer)
        self._development = self._read(config.development, tokenizer) if config.development else []
        self._data = {"train": data_hash(config.train)}
        self._judge = Judge(
            self._base,
            config.lora,
            precision=self._training.precision,
            seed=self._training.seed,
        )
        self._parameters = self._judge.parameters
        self._optimizer = torch.optim.AdamW(
            self._parameters.values(),
            lr=self._training.lr,
            weight_decay=self._training.weight_decay,
        )
        self._steps = steps_of(self._training, len(self._chats))
        config.home.mkdir(parents=True, exist_ok=True)
        self._done = self._resume()
        self._board: Any = None

    def _read(self, files: tuple[Path, ...], tokenizer: Any) -> list[Chat]:
        return read_chats(
            files,
            tokenizer,
            number_weight=self._training.number_weight,
            max_tokens=self._training.max_tokens,
        )

    def steps(self) -> Iterator[Progress]:
        """The steps that are left. A checkpoint is on disk before its step is told."""
        save = self._config.save
        self._judge.peft.train()
        for step in range(self._done, self._steps):
            started = time.perf_counter()
            loss, tokens, lr = self._step(step)
            seconds = time.perf_counter() - started
            done, is_last = step + 1, step + 1 == self._steps
            evaluated = None
            if self._development and (done % save.evaluate_every_steps == 0 or is_last):
                evaluated = self._evaluate()
            if done % save.every_steps == 0 or is_last:
                self._checkpoint(done)
            yield Progress(done, self._steps, loss, lr, tokens, seconds, evaluated)

    def finish(self) -> Path:
        folder = self._config.home / self._config.name
        self._write_adapter(folder, self._steps)
        if self._board is not None:
            self._board.close()
        return folder

    def note(self, progress: Progress) -> None:
        """In metrics.jsonl and for TensorBoard."""
        from torch.utils.tensorboard import SummaryWriter

        told = {"step": progress.step, "loss": progress.loss, "lr": progress.lr}
        told |= {"tokens": progress.tokens, "seconds": round(progress.seconds, 3)}
        if progress.development_loss is not None:
            told["development_loss"] = progress.development_loss
        with (self._config.home / METRICS).open("a") as file:
            file.write(json.dumps(told) + "\n")
        if self._board is None:
            self._board = SummaryWriter(str(self._config.home / TENSORBOARD))
        for name, value in told.items():
            if name != "step":
                self._board.add_scalar(name, value, progress.step)

    def _step(self, step: int) -> tuple[float, int, float]:
        """Loss, tokens and learning rate of one step of the optimizer."""
        training = self._training
        torch.manual_seed(training.seed * 1_000_003 + step)  # dropout
        which = chats_of_step(
            step, chats=len(self._chats), per_step=training.chats_per_step, seed=training.seed
        )
        chosen = [self._chats[index] for index in which]
        lr = lr_at(step, self._steps, training)
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        total, tokens = 0.0, 0
        for batch in batches(chosen, training.batch_tokens):
            loss = self._judge.loss(batch.ids_BL, batch.mask_BL, batch.weight_BL) / len(chosen)
            loss.backward()
            total, tokens = total + loss.item(), tokens + int(batch.mask_BL.sum())
        if not math.isfinite(total):
            raise TrainingDiverged(
                f"step {step + 1}: the loss is {total}; lower training.lr ({training.lr:g})"
            )
        torch.nn.utils.clip_grad_norm_(self._parameters.values(), training.max_grad_norm)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return total, tokens, lr

    @torch.no_grad()
    def _evaluate(self) -> float:
        """Mean loss over the development chats."""
        self._judge.peft.eval()
        losses = (
            self._judge.loss(batch.ids_BL, batch.mask_BL, batch.weight_BL).item()
            for batch in batches(self._development, self._training.batch_tokens)
        )
        total = float(sum(losses))
        self._judge.peft.train()
        return total / len(self._development)

    def _checkpoint(self, done: int) -> None:
        config, home = self._config, self._config.home
        folder = home / CHECKPOINTS
        if config.save.keep:
            self._write_adapter(folder / f"{config.name}_{done:09d}", done)
        save_state(home / STATE, done, self._parameters, self._optimizer, self._identity())
        for old in sorted(folder.glob(f"{config.name}_*"))[: -config.save.keep or None]:
            shutil.rmtree(old)

    def _write_adapter(self, folder: Path, step: int) -> None:
        write_adapter(
            self._judge.peft,
            folder,
            base=self._base,
            config=self._config,
            step=step,
            data=self._data,
        )

    def _resume(self) -> int:
        """Steps that an earlier run has done; its weights and moments are taken over."""
        state = load_state(self._config.home / STATE, self._identity())
        done = 0
        if state is not None:
            restore(state, self._parameters, self._optimizer)
            done = state.step
        _drop_after(self._config.home / METRICS, done)
        return done

    def _identity(self) -> str:
        """Everything that the weights depend on."""
        return json.dumps(
            {
                "base": self._base.name,
                "lora": self._config.lora.model_dump(),
                "training": self._training.model_dump(),
                "data": self._data["train"],
            },
            sort_keys=True,
        )


def _drop_after(metrics: Path, step: int) -> None:
    """Steps that were told but not saved are done again, and told again. A line is one write, so
    none is half.
    """
    if metrics.exists():
        kept = metrics.read_text().splitlines()[:step]
        metrics.write_text("".join(f"{line}\n" for line in kept))


@contextmanager
def _clear_about_space(home: Path, training: TrainingTable) -> Iterator[None]:
    """Turns what torch raises on a CPU and on a GPU without memory into OutOfMemory, and a disk
    that fills up under the metrics into OutOfDisk.
    """
    advice = (
        f"out of memory: lower training.batch_tokens ({training.batch_tokens}); "
        "the last checkpoint is intact"
    )
    with full_disk(home), memory_errors(advice):
        yield
