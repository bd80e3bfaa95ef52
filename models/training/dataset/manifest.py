"""What `dataset prepare` made: `dataset.json`, written last, so that where it is, all is.

Pure but for reading and writing that one file.
"""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from models.training.errors import DatasetUnusable

FILE = "dataset.json"


class Prepared(BaseModel):
    """One picture. Names are paths below the folder, hashes SHA-256 in hexadecimal."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    sha256: str
    original: str
    """Its name in the folder that it was prepared from."""
    original_sha256: str
    size: tuple[int, int]
    """Width and height of the upright original, in pixels."""
    bucket: tuple[int, int]
    """Width and height of the prepared picture, in pixels."""
    caption: str
    captioned_by: str
    """The model that wrote the caption; empty for a person."""
    source: str
    licence: str
    recipe: str
    """Hash of all that the prepared picture and caption depend on."""


class Manifest(BaseModel):
    """A prepared dataset. `pictures` are sorted by name."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1] = 1
    trigger: str
    style_words: str
    resolution: int
    multiple: int
    data_hash: str
    """As `folder.data_hash` computes it over the prepared pictures and captions."""
    licences: tuple[str, ...]
    """Every licence there is, sorted; an empty one for pictures without."""
    pictures: tuple[Prepared, ...]

    def text(self) -> str:
        return self.model_dump_json(indent=2) + "\n"


def read_manifest(folder: Path) -> Manifest | None:
    """None where there is none. Raises DatasetUnusable for one that nobody here wrote."""
    file = folder / FILE
    if not file.is_file():
        return None
    try:
        return Manifest.model_validate_json(file.read_bytes())
    except ValidationError as error:
        where = ".".join(str(part) for part in error.errors()[0]["loc"]) or "its JSON"
        raise DatasetUnusable(
            f"{file} is no manifest of a prepared dataset (at {where}): prepare it again into an "
            "empty folder"
        ) from error
