"""What a run says of itself: a progress bar, TensorBoard, and a line of JSON for every step.

`metrics.jsonl` is the loss curve: after a kill, the lines beyond the state that the run goes on
from are cut, since those steps are trained again.
"""

import json
import resource
import time
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)

from models.training.storage import full_disk, write_whole

CURVE = "metrics.jsonl"
_MEMORY = 0.9
"""Weight of the past in the speed that is shown."""


@dataclass(frozen=True)
class StepReport:
    """One step. `step` counts from 1; `grad_norm` is before clipping."""

    step: int
    loss: float
    lr: float
    grad_norm: float


class Metrics(AbstractContextManager["Metrics"]):
    """Open while training; `begin` at which step."""

    def __init__(
        self,
        folder: Path,
        tensorboard: Path,
        *,
        name: str,
        steps: int,
        report_every: int = 0,
        console: Console | None = None,
    ) -> None:
        """`report_every` steps a line stays on the terminal; 0: none does."""
        self._curve = folder / CURVE
        self._tensorboard = tensorboard
        self._name, self._steps, self._report_every = name, steps, report_every
        self._console = console or Console()
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TaskProgressColumn(),
            TextColumn("loss {task.fields[loss]:.4f}, {task.fields[speed]:.2f} steps/s, left"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._writer: Any = None
        self._seconds_per_step: float | None = None
        self._last = time.perf_counter()

    def begin(self, step: int) -> None:
        """Cuts what was written about later steps than `step`."""
        from torch.utils.tensorboard import SummaryWriter

        write_whole(self._curve, self._lines_until(step))
        with full_disk(self._tensorboard):
            self._writer = SummaryWriter(str(self._tensorboard), purge_step=step + 1)
            self._lines = self._curve.open("a", encoding="utf-8")
        self._task = self._progress.add_task(
            self._name, total=self._steps, completed=step, loss=0.0, speed=0.0
        )
        self._progress.start()
        self._last = time.perf_counter()

    def note(self, report: StepReport, device: torch.device) -> None:
        """Raises OutOfDisk."""
        now = time.perf_counter()
        taken, self._last = now - self._last, now
        past = self._seconds_per_step
        self._seconds_per_step = taken if past is None else _MEMORY * past + (1 - _MEMORY) * taken
        speed = 1 / self._seconds_per_step
        values = asdict(report) | {"steps_per_s": speed, "memory_gib": memory_gib(device)}
        with full_disk(self._curve):
            self._lines.write(json.dumps(asdict(report)) + "\n")
            self._lines.flush()
            for key in values.keys() - {"step"}:
                self._writer.add_scalar(f"train/{key}", values[key], report.step)
        self._progress.update(self._task, advance=1, loss=report.loss, speed=speed)
        if self._report_every and report.step % self._report_every == 0:
            self.say(
                f"step {report.step}: loss {report.loss:.4f}, {speed:.2f} steps/s, "
                f"{values['memory_gib']:.1f} GiB"
            )

    def say(self, text: str) -> None:
        self._progress.console.print(text, highlight=False)

    def paused(self) -> None:
        """What is done now is no step: its time does not count."""
        self._last = time.perf_counter()

    def _lines_until(self, step: int) -> bytes:
        """Whole lines only: a killed process may have left half of one."""
        kept = []
        for line in self._curve.read_text("utf-8").splitlines() if self._curve.exists() else ():
            try:
                is_kept = json.loads(line)["step"] <= step
            except (ValueError, KeyError, TypeError):
                is_kept = False
            if is_kept:
                kept.append(line + "\n")
        return "".join(kept).encode()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """A second fault while closing does not hide the first one."""
        self._progress.stop()
        if self._writer is None:
            return
        try:
            with full_disk(self._curve):
                self._lines.close()
                self._writer.close()
        except Exception:
            if error is None:
                raise


def memory_gib(device: torch.device) -> float:
    """The most that was held so far: by tensors on a GPU, by the process on a CPU."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device)) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
