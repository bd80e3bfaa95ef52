"""The HTML report: one file that holds its pictures, asks for nothing and runs no script.

Pictures are embedded as small WebP files. The page is for looking; the figures stand beside it in
compare.json.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import jinja2
from PIL import Image

from models.training.compare.drawing import Cell, Cells
from models.training.compare.features import GROUPS
from models.training.compare.figures import ColumnFigures, Comparison, Trained

TEMPLATE = "report.html"
_THUMB_PX, _PAIRS, _TRAINED_SHOWN = 300, 4, 12
_QUALITY = 85


def html(comparison: Comparison, cells: Cells, trained: Trained | None) -> str:
    """The page. `cells` are the pictures that `comparison` was measured from."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["figure"] = _figure
    environment.filters["percent"] = _percent
    return environment.get_template(TEMPLATE).render(
        comparison=comparison,
        groups=GROUPS,
        rows=[_row(cells, prompt) for prompt in comparison.prompts],
        pairs=_pairs(comparison.columns, cells, trained),
        trained=_shown(trained),
        best=_best(comparison.columns),
    )


def _row(cells: Cells, prompt: str) -> list[list[tuple[int, str]]]:
    """For each column, the seed and picture of each of the prompt's cells."""
    return [
        [(cell.seed, _uri(cell)) for cell in drawn if cell.prompt == prompt]
        for drawn in cells.values()
    ]


def _pairs(
    columns: Sequence[ColumnFigures], cells: Cells, trained: Trained | None
) -> list[tuple[str, list[dict[str, object]]]]:
    """For each column its pictures that are nearest to a training picture, beside that one."""
    if trained is None:
        return []
    index = dict(zip(trained.names, trained.images, strict=True))
    found = []
    for column in columns:
        files = {cell.file.name: cell for cell in cells[column.label]}
        shown: list[dict[str, object]] = [
            {
                "likeness": copy,
                "drawn": _uri(files[copy.drawn]),
                "trained": _data(index[copy.trained]),
            }
            for copy in column.copies[:_PAIRS]
        ]
        found.append((column.label, shown))
    return found


def _shown(trained: Trained | None) -> list[str]:
    if trained is None:
        return []
    every = max(1, len(trained.images) // _TRAINED_SHOWN)
    return [_data(image) for image in trained.images[::every][:_TRAINED_SHOWN]]


def _best(columns: Sequence[ColumnFigures]) -> dict[str, str]:
    """Figure -> label of the column that has the best one, where several were measured."""
    style = {c.label: -c.style["all"] for c in columns if c.style}
    follows = {c.label: c.following.mean for c in columns if c.following}
    varied = {c.label: c.diversity for c in columns if c.diversity is not None}
    quick = {c.label: -c.seconds for c in columns if c.seconds is not None}
    named = {"style": style, "following": follows, "diversity": varied, "seconds": quick}
    return {name: max(of, key=of.__getitem__) for name, of in named.items() if len(of) > 1}


def _figure(value: float | None, digits: int = 2) -> str:
    return "not measured" if value is None else f"{value:.{digits}f}"


def _percent(value: float | None) -> str:
    return "not measured" if value is None else f"{100 * value:.0f} %"


def _uri(cell: Cell) -> str:
    return _uri_of(cell.file)


@cache
def _uri_of(file: Path) -> str:
    with Image.open(file) as image:
        return _data(image.convert("RGB"))


def _data(image: Image.Image) -> str:
    small = image.copy()
    small.thumbnail((_THUMB_PX, _THUMB_PX), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    small.save(file, "WEBP", quality=_QUALITY)
    return f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode('ascii')}"
