"""The figures of a comparison: measured from pictures, written as compare.json, read for reports.

None, wherever a figure may be, says that it was not measured; `missing` says why. Knows no model:
pictures come drawn, prompts are text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image
from pydantic import BaseModel, ConfigDict

from models.training.compare import features, likeness
from models.training.compare.drawing import Cell, Cells, Column
from models.training.compare.following import Scorer
from models.training.compare.likeness import Shape
from models.training.dataset.folder import Example

_RESAMPLES = 2_000
_SEED = 6


class _Figures(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Following(_Figures):
    """The mean over pictures, and where it lies with 95 % confidence (bootstrap over pictures)."""

    mean: float
    low: float
    high: float
    pictures: int


class Copy(_Figures):
    """One drawn picture and the training picture that is nearest to it."""

    drawn: str
    """A file's name."""
    prompt: str
    seed: int
    trained: str
    """A path below the data's folder."""
    distance: float
    bits: int
    """Of a perceptual hash of 64, that differ."""
    closer_share: float
    """Of the training pictures, those with another one at most this near."""
    is_suspect: bool


class Picture(_Figures):
    """One drawn picture; `file` lies in `pictures` beside compare.json."""

    file: str
    prompt: str
    seed: int


class ColumnFigures(_Figures):
    label: str
    model: str
    lora_digest: str | None
    lora_scale: float
    steps: int
    guidance: float | None
    size: str
    style: dict[str, float] | None
    """Energy distances to the training pictures, `all` groups of features and each; units of
    features.py."""
    style_error: float | None
    """Standard error of `all`: differences below it are chance."""
    way_to_style: float | None
    """The share of the base's distance that is gone: 0 the base, 1 the style."""
    following: Following | None
    diversity: float | None
    """Mean distance of forms between the seeds of a prompt: 0 all the same, about 1 strangers."""
    diversity_bits: float | None
    """Mean share of hash bits that differ: 0 all the same, about 0.5 strangers."""
    copies: tuple[Copy, ...]
    """Nearest first; of every drawn picture the nearest training picture."""
    suspects: int | None
    seconds: float | None
    """Median of the pictures that this run drew, each alone, from encoded prompt to pixels."""
    seconds_of: int
    pictures: tuple[Picture, ...]


class TrainingFigures(_Figures):
    """What the training pictures are like among themselves: what figures are to be held against."""

    pictures: int
    halves: float | None
    """Style distance between two halves of them."""
    nearest: tuple[float, float, float] | None
    """Distance to the nearest other one: the smallest, the median, the largest."""


class Comparison(_Figures):
    version: Literal[1] = 1
    title: str
    kind: Literal["checkpoints", "models"]
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    columns: tuple[ColumnFigures, ...]
    training: TrainingFigures | None
    scorer: str | None
    scorer_unit: str | None
    scorer_best: float | None
    missing: dict[str, str]
    """Figure -> why it was not measured."""
    device: str


@dataclass(frozen=True)
class Trained:
    """The training pictures, measured once."""

    names: tuple[str, ...]
    images: tuple[Image.Image, ...]
    styles: dict[str, features.Vectors]

    def shapes(self, aspect: float) -> list[Shape]:
        return [likeness.shape_of(image, aspect) for image in self.images]


def read_trained(examples: Sequence[Example], most: int) -> Trained | None:
    """At most `most` of them, evenly spread over the list; None for fewer than two."""
    if len(examples) < features.FEWEST:
        return None
    chosen = [examples[n * len(examples) // most] for n in range(most)]
    chosen = chosen if len(examples) > most else list(examples)
    images = tuple(_opened(example) for example in chosen)
    names = tuple(f"{e.picture.parent.name}/{e.picture.name}" for e in chosen)
    return Trained(names, images, features.vectors(images))


def _opened(example: Example) -> Image.Image:
    from PIL import ImageOps

    with Image.open(example.picture) as opened:
        return ImageOps.exif_transpose(opened).convert("RGB")


def measure(
    columns: Sequence[Column],
    cells: Cells,
    trained: Trained | None,
    scorer: Scorer | None,
) -> tuple[ColumnFigures, ...]:
    """The first column is the one that the way to the style is measured from."""
    styles = [_style(cells[column.label], trained) for column in columns]
    start = styles[0].distances if styles[0] else None
    return tuple(
        _column_figures(column, cells[column.label], trained, scorer, style=style, start=start)
        for column, style in zip(columns, styles, strict=True)
    )


def training_figures(trained: Trained | None, aspect: float) -> TrainingFigures | None:
    if trained is None:
        return None
    neighbours = likeness.neighbour_distances(trained.shapes(aspect))
    smallest, median, largest = (float(np.percentile(neighbours, p)) for p in (0, 50, 100))
    return TrainingFigures(
        pictures=len(trained.images),
        halves=features.halves_distance(trained.styles),
        nearest=(smallest, median, largest),
    )


def _column_figures(
    column: Column,
    cells: Sequence[Cell],
    trained: Trained | None,
    scorer: Scorer | None,
    *,
    style: _Style | None,
    start: dict[str, float] | None,
) -> ColumnFigures:
    images = [cell.open() for cell in cells]
    shapes = [likeness.shape_of(image) for image in images]
    varied = _diversity(cells, shapes)
    copies = _copies(cells, shapes, trained, column.width / column.height)
    seconds = [cell.seconds for cell in cells if cell.seconds is not None]
    return ColumnFigures(
        label=column.label,
        model=column.model.name,
        lora_digest=column.lora_digest,
        lora_scale=column.lora_scale,
        steps=column.steps,
        guidance=column.guidance if column.model.has_guidance else None,
        size=f"{column.width}x{column.height}",
        style=style.distances if style else None,
        style_error=style.error if style else None,
        way_to_style=_way(style.distances if style else None, start),
        following=_following(images, cells, scorer),
        diversity=varied and varied[0],
        diversity_bits=varied and varied[1],
        copies=copies,
        suspects=sum(copy.is_suspect for copy in copies) if trained else None,
        seconds=float(np.median(seconds)) if seconds else None,
        seconds_of=len(seconds),
        pictures=tuple(Picture(file=c.file.name, prompt=c.prompt, seed=c.seed) for c in cells),
    )


@dataclass(frozen=True)
class _Style:
    distances: dict[str, float]
    error: float | None


def _style(cells: Sequence[Cell], trained: Trained | None) -> _Style | None:
    if trained is None or len(cells) < features.FEWEST:
        return None
    drawn = features.vectors([cell.open() for cell in cells])
    return _Style(
        features.style_distance(drawn, trained.styles),
        features.distance_error(drawn, trained.styles),
    )


def _way(style: dict[str, float] | None, start: dict[str, float] | None) -> float | None:
    """None where the base is as near as can be told: there was no way to go."""
    if style is None or start is None or start["all"] <= 0:
        return None
    return 1 - style["all"] / start["all"]


def _diversity(cells: Sequence[Cell], shapes: Sequence[Shape]) -> tuple[float, float] | None:
    """Means over the prompts."""
    by_prompt: dict[str, list[Shape]] = {}
    for cell, shape in zip(cells, shapes, strict=True):
        by_prompt.setdefault(cell.prompt, []).append(shape)
    found = [one for alike in by_prompt.values() if (one := likeness.diversity(alike))]
    if not found:
        return None
    forms, bits = np.mean(found, axis=0)
    return float(forms), float(bits)


def _copies(
    cells: Sequence[Cell], shapes: Sequence[Shape], trained: Trained | None, aspect: float
) -> tuple[Copy, ...]:
    if trained is None:
        return ()
    theirs = trained.shapes(aspect)
    neighbours = likeness.neighbour_distances(theirs)
    found = [
        Copy(
            drawn=cell.file.name,
            prompt=cell.prompt,
            seed=cell.seed,
            trained=trained.names[near.index],
            distance=near.distance,
            bits=near.bits,
            closer_share=float((neighbours <= near.distance).mean()),
            is_suspect=likeness.is_suspect(near, neighbours),
        )
        for cell, near in zip(cells, likeness.nearest(shapes, theirs), strict=True)
    ]
    return tuple(sorted(found, key=lambda copy: (not copy.is_suspect, copy.distance)))


def _following(
    images: Sequence[Image.Image], cells: Sequence[Cell], scorer: Scorer | None
) -> Following | None:
    if scorer is None:
        return None
    told = scorer.score(images, [cell.prompt for cell in cells])
    scores = np.array([score for score in told if score is not None])
    if not len(scores):
        return None
    dice = np.random.default_rng(_SEED)
    means = dice.choice(scores, (_RESAMPLES, len(scores))).mean(1)
    low, high = np.percentile(means, (2.5, 97.5))
    return Following(
        mean=float(scores.mean()), low=float(low), high=float(high), pictures=len(scores)
    )
