"""Which model a name means, in a configuration or on the command line, and where it lies.

Asks no network: what is not here is said with the command that fetches it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from models.catalog import Catalog, HubSource, ImageReference, ImageRow, load_catalog
from models.errors import UnknownModel
from models.training.errors import BaseUnusable
from models.weights import locate_image

SEQUENCE_LENGTH = {True: 512, False: 256}
"""Prompt tokens of FLUX.1-dev, which has a guidance embedding, and of schnell, which has none."""


@dataclass(frozen=True)
class Found:
    """A FluxPipeline folder."""

    name: str
    """A catalog row's name where there is one, else the repository's or the folder's."""
    folder: Path
    row: ImageRow | None
    hub_id: str
    """Where it comes from, empty for what lies in a folder only."""
    has_guidance: bool


def find(reference: str, root: Path, catalog: Catalog | None = None) -> Found:
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
    source = row.source if row else meant
    hub_id = source.id if isinstance(source, HubSource) else ""
    name = row.name if row else hub_id or folder.name
    return Found(name, folder, row, hub_id, _has_guidance(folder))


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


def _has_guidance(folder: Path) -> bool:
    """What the transformer's configuration says. Raises BaseUnusable."""
    file = folder / "transformer" / "config.json"
    try:
        config = json.loads(file.read_text("utf-8"))
        return bool(config.get("guidance_embeds", False))
    except (OSError, ValueError, AttributeError) as missing:
        raise BaseUnusable(f"{file} cannot be read: name a FluxPipeline folder") from missing
