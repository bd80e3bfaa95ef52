"""What JOING_IMAGE_MODEL means: a folder, and what a request gets that leaves things out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from models.catalog import Catalog, ImageReference, ImageRow, LoraRow, load_catalog
from models.errors import WeightsMissing
from models.flux.config import Dtype, ModelSpec
from models.sketch.scene import phrases
from models.weights import locate_image
from services.images.settings import ImagesSettings

# A folder or a hub id says nothing of itself: it is drawn with as FLUX.1-dev is.
USUAL_STEPS, USUAL_GUIDANCE = 28, 3.5
USUAL_WIDTH, USUAL_HEIGHT = 1024, 1024


@dataclass(frozen=True)
class ChosenModel:
    """A pipeline on this disk. Sizes are pixels."""

    spec: ModelSpec
    dtype: Dtype
    steps: int
    guidance: float | None
    """For a model that has guidance; which ones do is known when they are loaded."""
    width: int
    height: int
    loras: tuple[LoraRow, ...]
    """What the catalog has for it."""
    trigger: str = ""
    vocabulary: dict[str, list[str]] | None = None
    """Phrases that it understands, by the slot of a prompt; None: any English."""


def choose_model(settings: ImagesSettings, catalog: Catalog | None = None) -> ChosenModel:
    """Asks no network. Raises UnknownModel, or WeightsMissing with the command that fetches it."""
    catalog = catalog or load_catalog()
    found = catalog.find_image(settings.model)
    folder = locate_image(found, settings.models_dir)
    if folder is None:
        raise WeightsMissing(
            f"{settings.model} is not fetched: run `python -m models pull {settings.model}`"
        )
    row = found if isinstance(found, ImageRow) else None
    return ChosenModel(
        spec=_spec(found, folder, settings),
        dtype=settings.dtype or (row.dtype if row else "auto"),
        steps=settings.steps or (row.steps if row else USUAL_STEPS),
        guidance=_guidance(row, settings),
        width=settings.width or (row.width if row else USUAL_WIDTH),
        height=settings.height or (row.height if row else USUAL_HEIGHT),
        loras=catalog.loras_of(row.name) if row else (),
        trigger=row.trigger if row else "",
        vocabulary=phrases() if row and row.vocabulary == "sketch" else None,
    )


def _spec(found: ImageReference, folder: Path, settings: ImagesSettings) -> ModelSpec:
    """The engine's own defaults where neither the operator nor the catalog says anything."""
    row = found if isinstance(found, ImageRow) else None
    said = {
        name: value
        for name in ("max_sequence_length", "max_steps", "max_pixels", "min_side_px")
        if (value := getattr(settings, name, None) or getattr(row, name, None)) is not None
    }
    return ModelSpec(_name(found), folder, **said)


def _name(found: ImageReference) -> str:
    if isinstance(found, Path):
        return found.name
    return found.name if isinstance(found, ImageRow) else found.id


def _guidance(row: ImageRow | None, settings: ImagesSettings) -> float | None:
    if settings.guidance is not None:
        return settings.guidance
    return row.guidance if row else USUAL_GUIDANCE
