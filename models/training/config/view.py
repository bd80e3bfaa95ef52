"""A configuration as the rules see it: its text, its meaning, its base model and its pictures.

The meaning is there even where the schema refuses parts: what is refused is left out, so that one
mistyped number does not hide ten other mistakes. Reads catalog, folders and picture headers, when
asked; writes nothing.
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from PIL import Image
from pydantic import ValidationError

from models.catalog import Catalog, HubSource, ImageRow, load_catalog
from models.training.config.documents import Document, KeyPath
from models.training.config.keys import without_elsewhere
from models.training.config.reading import Violation, refusals, violations, with_name
from models.training.config.schema import Dataset, Process, TrainingFile
from models.training.dataset.folder import caption_file, list_folder
from models.training.errors import DatasetUnusable

PROCESS: KeyPath = ("config", "process", 0)

_MAX_PICTURES = 2000
_MAX_CAPTION_BYTES = 64 * 1024
_REPAIRS = 12
_STAND_INS: Mapping[str, Any] = {
    "job": "extension",
    "config": {},
    "name": "unnamed",
    "process": ({},),
    "type": "sd_trainer",
    "network": {},
    "datasets": ({},),
    "model": {},
    "name_or_path": "black-forest-labs/FLUX.1-dev",
    "prompt": "",
}
"""For required keys that are not there, so that the rest can be read."""


@dataclass(frozen=True)
class Survey:
    """What lies in a data set's folder. Pictures beyond the first 2000 are counted, not read."""

    pictures: int
    sizes: tuple[tuple[int, int], ...]
    """Width and height in pixels of those that can be read."""
    captions: tuple[tuple[Path, str], ...]
    """Each caption that is there, with its picture."""


class View:
    """One document, looked at from every side. Everything is computed once, on demand."""

    def __init__(self, document: Document, catalog: Catalog | None = None) -> None:
        self.document = document
        self._catalog = catalog
        self._surveys: dict[int, Survey | None] = {}

    @cached_property
    def violations(self) -> list[Violation]:
        """What the schema refuses."""
        return violations(self.document.root, self.document.plain())

    @cached_property
    def _file(self) -> TrainingFile | None:
        plain = with_name(self.document.plain())
        if not isinstance(plain, dict):
            return None
        tree = _thawed(plain)
        for _ in range(_REPAIRS):
            try:
                return TrainingFile.model_validate(without_elsewhere(_frozen(tree)))
            except ValidationError as invalid:
                for error in refusals(invalid):
                    _repair(tree, error["loc"], error["type"])
        return None

    @property
    def has_meaning(self) -> bool:
        """Whether enough can be read for rules that compare keys."""
        return self._file is not None

    @property
    def file(self) -> TrainingFile:
        """The configuration, without what the schema refuses."""
        if self._file is None:
            raise ValueError("has_meaning is False: there is no configuration to look at")
        return self._file

    @property
    def process(self) -> Process:
        return self.file.process

    def is_written(self, *path: str | int) -> bool:
        """Whether the process says it, rather than leaving it at its default."""
        return self.document.at((*PROCESS, *path)) is not None

    @cached_property
    def catalog(self) -> Catalog:
        return self._catalog or load_catalog()

    @cached_property
    def row(self) -> ImageRow | None:
        """The base's row, found by its name or by its hub id."""
        wanted = self.process.model.name_or_path
        for row in self.catalog.images:
            source = row.source
            if row.name == wanted or (isinstance(source, HubSource) and source.id == wanted):
                return row
        return None

    @property
    def is_schnell(self) -> bool:
        """Whether the base is the one that was distilled to four steps."""
        return "schnell" in self.process.model.name_or_path.lower()

    def survey(self, index: int) -> Survey | None:
        """The folder of data set `index`; None where there is no such folder here."""
        if index not in self._surveys:
            self._surveys[index] = _survey(self.process.datasets[index])
        return self._surveys[index]

    @property
    def surveys(self) -> list[tuple[int, Dataset, Survey]]:
        """The data sets whose folders are on this machine."""
        return [
            (index, dataset, survey)
            for index, dataset in enumerate(self.process.datasets)
            if (survey := self.survey(index)) is not None
        ]


def _survey(dataset: Dataset) -> Survey | None:
    folder = Path(dataset.folder or "").expanduser()
    if not dataset.folder or not folder.is_dir():
        return None
    try:
        pictures = list_folder(folder, caption_ext=dataset.caption_ext).pictures
    except (DatasetUnusable, OSError):
        return None
    read = pictures[:_MAX_PICTURES]
    sizes = tuple(size for picture in read if (size := _size(picture)) is not None)
    captions = tuple(
        (picture, text) for picture in read if (text := _caption(picture, dataset)) is not None
    )
    return Survey(len(pictures), sizes, captions)


def _size(picture: Path) -> tuple[int, int] | None:
    """From the header alone; None for what is no picture (`dataset check` names those)."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(picture) as opened:
                return (opened.width, opened.height)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None


def _caption(picture: Path, dataset: Dataset) -> str | None:
    try:
        file = caption_file(picture, dataset.caption_ext)
        if file is None:
            return dataset.default_caption
        with file.open("rb") as stream:
            return stream.read(_MAX_CAPTION_BYTES).decode("utf-8", errors="replace")
    except OSError:
        return None


def _thawed(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _thawed(inner) for key, inner in value.items()}
    return [_thawed(item) for item in value] if isinstance(value, tuple) else value


def _frozen(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _frozen(inner) for key, inner in value.items()}
    return tuple(_frozen(item) for item in value) if isinstance(value, list) else value


def _repair(tree: Any, location: tuple[str | int, ...], kind: str) -> None:
    """Takes out what is refused, or puts a stand-in for what is missing. Modifies `tree`.

    An item of a list takes the list's key with it. A place that an earlier repair took is left.
    """
    holder: Any = None
    key: str | None = None
    node = tree
    for step in location:
        if isinstance(node, dict) and isinstance(step, str):
            if step not in node and kind != "missing":
                break
            holder, key = node, step
            node = node.get(step)
        elif isinstance(node, list) and isinstance(step, int) and step < len(node):
            node = node[step]
    if holder is None or key is None:
        return
    if kind == "missing":
        holder.setdefault(key, _thawed(_STAND_INS.get(key)))
    else:
        holder.pop(key, None)
