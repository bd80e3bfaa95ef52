"""The LoRA to publish: which file is meant, and all that it takes along.

What it takes along comes from its header first, then from the configuration beside it, then from
the model that it was trained on: its licence is the base's.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from models.catalog import Catalog, ImageRow
from models.flux.errors import LoraRefused
from models.training.compare.bases import DrawingModel, find_model
from models.training.compare.runs import CONFIG, Checkpoint, Run, find_run, read_checkpoint
from models.training.errors import BaseUnusable, CheckpointUnusable, PublishRefused, TrainingError

NAME = r"^[a-z0-9][a-z0-9._-]{0,63}$"
"""What the image service takes as a LoRA's name (PUT /v1/loras/NAME)."""
TEXT = r"^[^\x00-\x1f\x7f]{1,200}$"
"""What it takes as a trigger and as a licence."""
_UNKNOWN = ("", "unknown")
_MAX_RANK = 512


@dataclass(frozen=True)
class Chosen:
    """One file under the name that it will be drawn by."""

    name: str
    checkpoint: Checkpoint
    base: str
    """As the image service and the catalog call it; empty where nothing says."""
    model: DrawingModel | None
    """The base, where it is on this machine."""
    trigger: str
    licence: str
    run: Run | None

    @property
    def file(self) -> Path:
        return self.checkpoint.file

    @property
    def digest(self) -> str:
        """SHA-256 of the file, hex."""
        return self.checkpoint.digest


def choose(
    name: str,
    source: Path,
    step: int | None,
    *,
    trigger: str | None,
    licence: str | None,
    catalog: Catalog,
    models_dir: Path,
) -> Chosen:
    """`source` is a configuration, a run's folder or a .safetensors file; `step` None: the final
    one. `trigger` and `licence` are what the caller says in place of what the file says.

    Raises PublishRefused for a name, trigger or licence that nobody takes; CheckpointUnusable.
    """
    require_name(name)
    checkpoint, run = _find(source, step)
    told = checkpoint.metadata
    reference = told.get("base", "") or (run.base if run else "")
    model = _model(reference, models_dir, catalog)
    chosen = Chosen(
        name=name,
        checkpoint=checkpoint,
        base=model.name if model else reference,
        model=model,
        trigger=_first(trigger, told.get("trigger"), run.trigger if run else None),
        licence=_first(licence, told.get("license"), _licence_of(reference, model, catalog)),
        run=run,
    )
    if chosen.licence == "":
        raise PublishRefused(
            f"{chosen.file} names no licence and its base is no row of the catalog: --licence says "
            "what its base allows"
        )
    _require_text("--trigger", chosen.trigger or "-")
    _require_text("--licence", chosen.licence)
    return chosen


def require_name(name: str) -> None:
    """Raises PublishRefused with the rule."""
    if not re.match(NAME, name) or "\n" in name:
        raise PublishRefused(
            f"{name!r} cannot be a LoRA's name: 1 to 64 of a-z, 0-9, '.', '_' and '-', beginning "
            "with a letter or a digit"
        )


def require_fits(chosen: Chosen) -> None:
    """Reads the whole file as the image runner will, against the base's layers.

    Raises PublishRefused with the runner's own words; passes where the base is not here.
    """
    if chosen.model is None:
        return
    import torch
    from diffusers import FluxTransformer2DModel

    from models.flux.lora_files import linear_shapes, read_lora

    config = FluxTransformer2DModel.load_config(
        chosen.model.spec.folder, subfolder="transformer", local_files_only=True
    )
    with torch.device("meta"):
        transformer = FluxTransformer2DModel.from_config(config)
    try:
        read_lora(chosen.file, linears=linear_shapes(transformer), max_rank=_MAX_RANK)
    except LoraRefused as refused:
        raise PublishRefused(f"{chosen.file} would not be drawn with: {refused}") from refused


def _find(source: Path, step: int | None) -> tuple[Checkpoint, Run | None]:
    if source.suffix == ".safetensors":
        if step is not None:
            raise CheckpointUnusable(f"--step is for a run; {source} is one file already")
        return read_checkpoint(source), _run_around(source)
    run = find_run(source)
    finals = [one for one in run.checkpoints if one.is_final]
    if step is None and run.config is not None and finals:
        return finals[-1], run
    found = [one for one in run.checkpoints if step is not None and one.step == step]
    if found:
        return found[0], run
    there = ", ".join(str(one.step or one.file.name) for one in run.checkpoints)
    wanted = f"no checkpoint of step {step}" if step is not None else "no final LoRA"
    raise CheckpointUnusable(f"{run.folder} has {wanted}; --step chooses from: {there}")


def _run_around(file: Path) -> Run | None:
    """The run whose folder the file lies in; a broken configuration takes nothing away."""
    if not (file.parent / CONFIG).is_file():
        return None
    try:
        return find_run(file.parent)
    except TrainingError:
        return None


def _model(reference: str, models_dir: Path, catalog: Catalog) -> DrawingModel | None:
    try:
        return find_model(reference, models_dir, catalog) if reference else None
    except BaseUnusable:
        return None


def _licence_of(reference: str, model: DrawingModel | None, catalog: Catalog) -> str:
    """The base's own, which a LoRA inherits; a row has it even where its weights are not here."""
    if model is not None:
        return model.licence
    rows: tuple[ImageRow, ...] = catalog.images
    return next((row.licence for row in rows if row.name == reference), "")


def _first(*told: str | None) -> str:
    return next((text for text in told if text not in (None, *_UNKNOWN)), None) or ""


def _require_text(option: str, text: str) -> None:
    if not re.match(TEXT, text) or "\n" in text:
        raise PublishRefused(f"{option} must be one line of 1 to 200 characters, not {text!r:.80}")
