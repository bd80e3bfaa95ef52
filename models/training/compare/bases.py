"""The models to draw with: which folder a name means, and what its makers draw with by default.

Asks no network: what is not here is said with the command that fetches it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from models.catalog import Catalog, HubSource, ImageReference, ImageRow, load_catalog
from models.errors import UnknownModel
from models.flux.config import ModelSpec
from models.training.errors import BaseUnusable
from models.weights import locate_image

_USUAL_STEPS, _USUAL_GUIDANCE, _USUAL_SIDE_PX = 28, 3.5, 1024
_SEQUENCE_LENGTH = {True: 512, False: 256}
"""Prompt tokens of FLUX.1-dev, which has a guidance embedding, and of schnell, which has none."""


@dataclass(frozen=True)
class DrawingModel:
    """One FluxPipeline folder. Sizes are pixels."""

    name: str
    spec: ModelSpec
    has_guidance: bool
    steps: int
    guidance: float | None
    width: int
    height: int
    licence: str = ""
    hub_id: str = ""
    """Where it comes from, for a model card; empty for what lies in a folder only."""
    trigger: str = ""
    vocabulary: str | None = None


def find_model(reference: str, root: Path, catalog: Catalog | None = None) -> DrawingModel:
    """A catalog row, folder or hub id; `root` is where pulled weights lie. Raises BaseUnusable."""
    catalog = catalog or load_catalog()
    try:
        meant = catalog.find_image(reference)
    except UnknownModel as unknown:
        raise BaseUnusable(str(unknown)) from unknown
    row = _row_of(meant, catalog, root)
    folder = (row and locate_image(row, root)) or locate_image(meant, root)
    if folder is None:
        raise BaseUnusable(
            f"{reference} is not here yet, or no pipeline: run `python -m models pull {reference}`"
        )
    has_guidance = _has_guidance(folder)
    return _of_row(row, folder, has_guidance) if row else _of_folder(meant, folder, has_guidance)


def _row_of(meant: ImageReference, catalog: Catalog, root: Path) -> ImageRow | None:
    """The row that a reference means by its name, its repository or its folder."""
    if isinstance(meant, ImageRow):
        return meant
    for row in catalog.images:
        if isinstance(meant, Path):
            if (folder := locate_image(row, root)) and folder.resolve() == meant.resolve():
                return row
        elif isinstance(row.source, HubSource) and row.source.id == meant.id:
            return row
    return None


def _of_row(row: ImageRow, folder: Path, has_guidance: bool) -> DrawingModel:
    spec = ModelSpec(
        row.name,
        folder,
        max_sequence_length=row.max_sequence_length,
        max_steps=row.max_steps,
        max_pixels=row.max_pixels,
        min_side_px=row.min_side_px,
    )
    return DrawingModel(
        name=row.name,
        spec=spec,
        has_guidance=has_guidance,
        steps=row.steps,
        guidance=row.guidance if has_guidance else None,
        width=row.width,
        height=row.height,
        licence=row.licence,
        hub_id=row.source.id if isinstance(row.source, HubSource) else "",
        trigger=row.trigger,
        vocabulary=row.vocabulary,
    )


def _of_folder(meant: HubSource | Path | ImageRow, folder: Path, guided: bool) -> DrawingModel:
    name = meant.id if isinstance(meant, HubSource) else folder.name
    return DrawingModel(
        name=name,
        spec=ModelSpec(name, folder, max_sequence_length=_SEQUENCE_LENGTH[guided]),
        has_guidance=guided,
        steps=_USUAL_STEPS,
        guidance=_USUAL_GUIDANCE if guided else None,
        width=_USUAL_SIDE_PX,
        height=_USUAL_SIDE_PX,
        hub_id=meant.id if isinstance(meant, HubSource) else "",
    )


def _has_guidance(folder: Path) -> bool:
    """What the transformer's configuration says. Raises BaseUnusable."""
    file = folder / "transformer" / "config.json"
    try:
        config = json.loads(file.read_text("utf-8"))
        return bool(config.get("guidance_embeds", False))
    except (OSError, ValueError, AttributeError) as missing:
        raise BaseUnusable(f"{file} cannot be read: name a FluxPipeline folder") from missing
