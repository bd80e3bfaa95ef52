"""The models to draw with, and what their makers draw with by default."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from models.catalog import Catalog, ImageRow
from models.flux.config import ModelSpec
from models.training import bases

_USUAL_STEPS, _USUAL_GUIDANCE, _USUAL_SIDE_PX = 28, 3.5, 1024


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
    found = bases.find(reference, root, catalog)
    return _of_row(found, found.row) if found.row else _of_folder(found)


def _of_row(found: bases.Found, row: ImageRow) -> DrawingModel:
    spec = ModelSpec(
        row.name,
        found.folder,
        max_sequence_length=row.max_sequence_length,
        max_steps=row.max_steps,
        max_pixels=row.max_pixels,
        min_side_px=row.min_side_px,
    )
    return DrawingModel(
        name=row.name,
        spec=spec,
        has_guidance=found.has_guidance,
        steps=row.steps,
        guidance=row.guidance if found.has_guidance else None,
        width=row.width,
        height=row.height,
        licence=row.licence,
        hub_id=found.hub_id,
        trigger=row.trigger,
        vocabulary=row.vocabulary,
    )


def _of_folder(found: bases.Found) -> DrawingModel:
    length = bases.SEQUENCE_LENGTH[found.has_guidance]
    return DrawingModel(
        name=found.name,
        spec=ModelSpec(found.name, found.folder, max_sequence_length=length),
        has_guidance=found.has_guidance,
        steps=_USUAL_STEPS,
        guidance=_USUAL_GUIDANCE if found.has_guidance else None,
        width=_USUAL_SIDE_PX,
        height=_USUAL_SIDE_PX,
        hub_id=found.hub_id,
    )
