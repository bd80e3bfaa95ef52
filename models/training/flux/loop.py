"""A run from its file to its LoRA: what `python -m models.training train CONFIG` does.

    FOLDER = training_folder/NAME
    FOLDER/config.yaml                  the file as it was read
    FOLDER/NAME_000000250.safetensors   after 250 steps; `max_step_saves_to_keep` of them stay
    FOLDER/NAME.safetensors             after the last step: the run is finished
    FOLDER/state/                       to go on from
    FOLDER/samples/                     pictures drawn meanwhile
    FOLDER/tensorboard/, metrics.jsonl  the loss curve

Running the same file again goes on where the run stands, to the same end. One process at a time.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout
from rich.console import Console

from models.flux.memory import keep_freed_memory
from models.training.config.reading import read_config
from models.training.config.schema import TrainingFile
from models.training.errors import CheckpointUnusable, ConfigRefused
from models.training.flux.adapter import DTYPES, lora_bytes, metadata_of
from models.training.flux.honoured import require_honoured
from models.training.flux.metrics import Metrics
from models.training.flux.preparation import Prepared, prepare
from models.training.flux.samples import SAMPLES, draw, save_samples
from models.training.flux.state import load_state, save_state
from models.training.flux.stopping import Stop
from models.training.memory import memory_errors
from models.training.storage import write_whole

STATE, TENSORBOARD = "state", "tensorboard"


@dataclass(frozen=True)
class Outcome:
    """How a call of `train` ended."""

    step: int
    lora: Path | None
    """The finished LoRA; None when a signal came first."""
    signal: int | None = None


def train(config: Path, *, models_dir: Path, console: Console | None = None) -> Outcome:
    """Trains until the last step or a signal; raises TrainingError.

    `models_dir` is where pulled weights lie.
    """
    file = read_config(config)
    require_honoured(file)
    folder = Path(file.process.training_folder).expanduser() / file.config.name
    console = console or Console()
    with _alone_in(folder), memory_errors(_memory_advice(folder)):
        write_whole(folder / "config.yaml", config.read_bytes())
        keep_freed_memory()
        return Run(file, folder, prepare(file, models_dir, console), console).go()


class Run:
    """One file's run, everything loaded."""

    def __init__(
        self, file: TrainingFile, folder: Path, prepared: Prepared, console: Console
    ) -> None:
        self._process, self._name, self._meta = file.process, file.config.name, file.meta
        self._folder, self._prepared = folder, prepared
        self._trainer = prepared.trainer
        self._metrics = Metrics(
            folder,
            Path(self._process.log_dir or folder / TENSORBOARD),
            name=self._name,
            steps=self._process.train.steps,
            report_every=self._process.performance_log_every,
            console=console,
        )

    @property
    def _finished(self) -> Path:
        return self._folder / f"{self._name}.safetensors"

    def go(self) -> Outcome:
        """From where the run stands to its last step, or to the first signal."""
        steps = self._process.train.steps
        step = self._resume(steps)
        if step == steps and self._finished.exists():
            self._metrics.say(f"{self._finished} is finished: {steps} steps")
            return Outcome(step, self._finished)
        with self._metrics, Stop() as stop:
            self._metrics.begin(step)
            self._draw_if_due(step)
            while step < steps:
                self._metrics.note(self._trainer.step(step), self._trainer.device)
                step += 1
                if stop.signal is not None and step < steps:
                    return self._stopped(step, stop.signal)
                self._save_if_due(step)
                self._draw_if_due(step)
            self._write_lora(self._finished, step)
        self._metrics.say(f"{self._finished}: {steps} steps")
        return Outcome(step, self._finished)

    def _resume(self, steps: int) -> int:
        """Steps that were done before."""
        state = load_state(self._folder / STATE, self._prepared.identity)
        if state is None:
            return 0
        if state.step > steps:
            raise ConfigRefused(
                f"train.steps is {steps}, and {self._folder} has done {state.step}: name at least "
                "as many, or give config.name another name"
            )
        try:
            self._trainer.restore(state)
        except (KeyError, RuntimeError, ValueError) as other:
            raise CheckpointUnusable(
                f"the newest state in {self._folder / STATE} is not this run's ({other}): delete "
                "it to begin anew"
            ) from other
        return state.step

    def _stopped(self, step: int, signal: int) -> Outcome:
        save_state(self._folder / STATE, self._trainer.state(step, self._prepared.identity))
        self._metrics.say(f"stopped after step {step}: run the same command to go on")
        return Outcome(step, None, signal)

    def _save_if_due(self, step: int) -> None:
        """The LoRA first: a state says that the steps before it have their files.

        Raises OutOfDisk, and TrainingDiverged before weights that are none are written.
        """
        is_last = step == self._process.train.steps
        if step % self._process.save.save_every and not is_last:
            return
        state = self._trainer.state(step, self._prepared.identity)
        if not is_last:
            self._write_lora(self._folder / f"{self._name}_{step:09d}.safetensors", step)
        save_state(self._folder / STATE, state)
        for old in self._step_saves()[self._process.save.max_step_saves_to_keep or None :]:
            old.unlink(missing_ok=True)
        self._metrics.paused()

    def _step_saves(self) -> list[Path]:
        """Newest first; of this run alone, whatever other names begin with its name."""
        own = re.compile(rf"{re.escape(self._name)}_\d{{9}}\.safetensors")
        return sorted((f for f in self._folder.iterdir() if own.fullmatch(f.name)), reverse=True)

    def _write_lora(self, file: Path, step: int) -> None:
        base = self._prepared.base
        metadata = metadata_of(
            name=self._name,
            base=base.name,
            licence=base.licence,
            trigger=self._prepared.trigger,
            rank=self._trainer.adapter.rank,
            step=step,
            epoch=self._trainer.epoch(step),
            dataset_sha256=self._prepared.dataset_sha256,
            meta=self._meta,
        )
        dtype = DTYPES[self._process.save.dtype]
        write_whole(file, lora_bytes(self._trainer.best_weights, dtype, metadata))

    def _draw_if_due(self, step: int) -> None:
        """Also after a kill between saving and drawing. Nothing random of the training is used."""
        schedule = self._prepared.schedule
        first = self._folder / SAMPLES / f"{step:09d}_0.{schedule.suffix}"
        if not schedule.is_due(step) or first.exists():
            return
        with self._trainer.adapter.drawing_with(self._trainer.best_weights):
            pictures = draw(
                self._prepared.pipeline, schedule.items, self._prepared.sample_embeddings
            )
            save_samples(self._folder, step, schedule.suffix, pictures)
        self._metrics.paused()


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Raises CheckpointUnusable while another process trains there."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / ".lock", timeout=0):
            yield
    except Timeout as taken:
        raise CheckpointUnusable(
            f"another process is training in {folder}: wait for it, or give config.name another "
            "name"
        ) from taken


def _memory_advice(folder: Path) -> str:
    return (
        f"the device's memory is full. What was saved in {folder} is intact; lower "
        "train.batch_size (train.gradient_accumulation makes up for it) or datasets.resolution, or "
        "turn on train.gradient_checkpointing and train.cache_text_embeddings"
    )
