"""One training loop for every stage: a budget in steps and minutes, checkpoints, a log line.

A stage is a `Task`. Its schedule follows the share of the budget that is spent, whichever of steps
and minutes is further on, so that the decay happens inside the budget on a machine of any speed.
All randomness comes from `Task.step`'s number, so a resumed run repeats an unbroken one exactly as
long as steps set its schedule. Knows nothing of models.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from rich.console import Console
from rich.progress import Progress

LOG_EVERY_STEPS = 50
CHECKPOINT_EVERY_S = 60.0


@dataclass(frozen=True)
class Budget:
    """What a stage may spend; `minutes` counts training time, also over restarts."""

    steps: int
    minutes: float | None = None

    def share(self, step: int, elapsed_s: float) -> float:
        """The spent part, 0 to 1."""
        spent = step / self.steps
        if self.minutes is not None:
            spent = max(spent, elapsed_s / (60 * self.minutes))
        return min(spent, 1.0)


class Task(Protocol):
    """A stage of training."""

    def step(self, number: int, share: float) -> dict[str, float]:
        """Train one step and return what to log; `share` of the budget is spent."""

    def state(self) -> dict[str, Any]:
        """Everything that `restore` needs to go on exactly."""

    def restore(self, state: dict[str, Any]) -> None: ...


def train(
    task: Task,
    budget: Budget,
    checkpoint: Path,
    *,
    on_checkpoint: Callable[[int], None] | None = None,
    checkpoint_every_s: float = CHECKPOINT_EVERY_S,
    console: Console | None = None,
) -> None:
    """Spend what is left of the budget, from the checkpoint if there is one."""
    console = console or Console()
    step, elapsed_s = _resume(task, checkpoint)
    saved = time.monotonic()
    started = saved - elapsed_s
    sums: dict[str, float] = {}
    with Progress(console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task(checkpoint.stem, total=1.0)
        while (share := budget.share(step, time.monotonic() - started)) < 1.0:
            for name, value in task.step(step, share).items():
                sums[name] = sums.get(name, 0.0) + value / LOG_EVERY_STEPS
            step += 1
            now = time.monotonic()
            progress.update(bar, completed=share)
            if step % LOG_EVERY_STEPS == 0:
                console.log(_line(checkpoint.stem, step, share, now - started, sums))
                sums = {}
            if now - saved > checkpoint_every_s:
                _save(task, step, now - started, checkpoint)
                if on_checkpoint:
                    on_checkpoint(step)
                saved = time.monotonic()
    _save(task, step, time.monotonic() - started, checkpoint)
    if on_checkpoint:
        on_checkpoint(step)


def trapezoid(share: float, warmup: float = 0.02, decay_from: float = 0.6) -> float:
    """A learning rate's factor: linear warm-up, a plateau, then linear decay to zero."""
    if share < warmup:
        return max(share / warmup, 0.02)
    return 1.0 if share < decay_from else max((1.0 - share) / (1.0 - decay_from), 0.0)


def mixed_precision(device: str) -> torch.autocast:
    """bfloat16 on a GPU. On two AVX512 cores float32 was measured to be the faster one."""
    return torch.autocast(device, torch.bfloat16, enabled=device == "cuda")


def generator(seed: int, step: int) -> torch.Generator:
    """A CPU generator that depends on the stage's seed and the step, and nothing else."""
    return torch.Generator().manual_seed(seed * 1_000_003 + step)


def _resume(task: Task, checkpoint: Path) -> tuple[int, float]:
    if not checkpoint.exists():
        return 0, 0.0
    saved = torch.load(checkpoint, weights_only=True)
    task.restore(saved["task"])
    return int(saved["step"]), float(saved["elapsed_s"])


def _save(task: Task, step: int, elapsed_s: float, checkpoint: Path) -> None:
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    partial = checkpoint.with_suffix(".part")
    torch.save({"task": task.state(), "step": step, "elapsed_s": elapsed_s}, partial)
    partial.replace(checkpoint)


def _line(name: str, step: int, share: float, elapsed_s: float, sums: dict[str, float]) -> str:
    values = " ".join(f"{key} {value:.4f}" for key, value in sums.items())
    return f"{name} step {step} ({share:.0%}, {elapsed_s:.0f} s): {values}"
