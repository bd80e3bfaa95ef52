"""What one training run left behind: its checkpoints in order, and what it was trained on.

A run is named by its configuration, or by its folder. A folder without a configuration is a set of
LoRA files, each one a checkpoint: what they say of themselves in their headers is all there is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from models.training.config.reading import read_config
from models.training.config.schema import Process, SampleItem, TrainingFile
from models.training.dataset.folder import Example, file_hash, read_examples
from models.training.errors import CheckpointUnusable, ConfigRefused, DatasetUnusable

CONFIG = "config.yaml"
_STEP = re.compile(r"_(\d{9})$")
_CONFIG_SUFFIXES = (".yaml", ".yml", ".json")


@dataclass(frozen=True)
class Checkpoint:
    """One LoRA file. `metadata` is its header's."""

    label: str
    file: Path
    digest: str
    """SHA-256 of its bytes, hex: what the image service calls it."""
    step: int | None
    """Optimiser steps; None for the final one that does not say."""
    metadata: Mapping[str, str]
    is_final: bool = False


@dataclass(frozen=True)
class Run:
    name: str
    folder: Path
    base: str
    """A catalog row, a folder or a hub id."""
    checkpoints: tuple[Checkpoint, ...]
    """By steps, the final one last."""
    examples: tuple[Example, ...] = ()
    trigger: str = ""
    samples: tuple[SampleItem, ...] = ()
    """The configuration's sample pictures, nothing left out."""
    config: TrainingFile | None = None
    config_file: Path | None = None


def find_run(target: Path) -> Run:
    """Raises ConfigRefused, CheckpointUnusable, DatasetUnusable, each with what to do."""
    if target.suffix.lower() in _CONFIG_SUFFIXES:
        return _configured(target, None)
    if not target.is_dir():
        raise CheckpointUnusable(f"{target} is no configuration and no folder")
    if (target / CONFIG).is_file():
        return _configured(target / CONFIG, target)
    return _bare(target)


def read_checkpoint(file: Path, label: str = "", final_step: int | None = None) -> Checkpoint:
    """Reads the header and hashes the file. Raises CheckpointUnusable."""
    try:
        with safe_open(file, "pt") as opened:
            metadata = dict(opened.metadata() or {})
    except (OSError, SafetensorError) as broken:
        raise CheckpointUnusable(f"{file} is no readable .safetensors file: {broken}") from broken
    numbered = _STEP.search(file.stem)
    told = metadata.get("steps", "")
    step = int(numbered[1]) if numbered else int(told) if told.isdecimal() else final_step
    return Checkpoint(
        label=label or (f"step {step}" if numbered else file.stem),
        file=file,
        digest=file_hash(file),
        step=step,
        metadata=metadata,
        is_final=numbered is None,
    )


def _configured(file: Path, folder: Path | None) -> Run:
    if not file.is_file():
        raise ConfigRefused(f"{file} is no file")
    config = read_config(file)
    process, name = config.process, config.config.name
    folder = folder or Path(process.training_folder) / name
    found = _checkpoints(folder, name, process.train.steps)
    if not found:
        raise CheckpointUnusable(
            f"{folder} holds no {name}*.safetensors: run `python -m models.training train {file}`"
        )
    trigger = process.trigger_word or _first(found, "trigger")
    return Run(
        name=name,
        folder=folder,
        base=process.model.name_or_path,
        checkpoints=found,
        examples=_examples(process),
        trigger=trigger,
        samples=_samples(process, trigger),
        config=config,
        config_file=file,
    )


def _checkpoints(folder: Path, name: str, steps: int) -> tuple[Checkpoint, ...]:
    own = re.compile(rf"{re.escape(name)}_\d{{9}}\.safetensors")
    there = sorted(folder.iterdir()) if folder.is_dir() else []
    found = [read_checkpoint(file) for file in there if own.fullmatch(file.name)]
    if (final := folder / f"{name}.safetensors").is_file():
        last = read_checkpoint(final, final_step=steps)
        found.append(read_checkpoint(final, f"final, step {last.step}", steps))
    return tuple(found)


def _bare(folder: Path) -> Run:
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise CheckpointUnusable(f"{folder} holds no {CONFIG} and no .safetensors file")
    found = tuple(read_checkpoint(file) for file in files)
    bases = {one.metadata.get("base", "") for one in found}
    if len(bases) != 1 or "" in bases:
        raise CheckpointUnusable(
            f"{folder}: its files name {', '.join(sorted(bases - {''})) or 'no base'} as their "
            f"base, and without a {CONFIG} all of them have to name the same one"
        )
    return Run(folder.name, folder, bases.pop(), found, trigger=_first(found, "trigger"))


def _first(checkpoints: tuple[Checkpoint, ...], key: str) -> str:
    """What all of them say; empty where they differ, or say nothing."""
    told = {one.metadata.get(key, "") for one in checkpoints}
    return told.pop() if len(told) == 1 else ""


def _examples(process: Process) -> tuple[Example, ...]:
    """Of all data sets but regularisation. None where a folder is gone: pictures can be drawn
    without it, and the report says what could not be measured.
    """
    found: list[Example] = []
    for dataset in process.datasets:
        folder = Path(dataset.folder or "")
        if dataset.is_reg or not folder.is_dir():
            continue
        found += read_examples(
            folder, caption_ext=dataset.caption_ext, default_caption=dataset.default_caption or ""
        )
    return tuple(found)


def read_data(folder: Path) -> tuple[Example, ...]:
    """Pictures that somebody named by hand; captions are not needed. Raises DatasetUnusable."""
    examples = tuple(read_examples(folder, default_caption=""))
    if len(examples) < 2:
        raise DatasetUnusable(f"{folder} holds one picture, and a style shows in two or more")
    return examples


def _samples(process: Process, trigger: str) -> tuple[SampleItem, ...]:
    """With `[trigger]` replaced, as AI-Toolkit does."""
    filled = [process.sample.filled(n) for n in range(len(process.sample.items))]
    return tuple(
        item.model_copy(update={"prompt": item.prompt.replace("[trigger]", trigger)})
        for item in filled
    )
