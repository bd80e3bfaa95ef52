"""How alike two pictures are in what they show: for variety, and for what was learnt by heart.

Two measures that fail differently. A `form` is a 32 x 32 picture of lightness at mean 0 and
length 1; the distance of two is sqrt(1 - their correlation): 0 for copies, however bright or
pale, about 1 for strangers. A perceptual hash (the 64 signs of low DCT frequencies: Zauner, 2010;
the package imagehash) counts differing bits: copies that were scaled, sharpened or compressed stay
within about 10 of 64, strangers differ in about half.

Whether a picture was learnt by heart cannot be said from a distance alone, since pictures of one
style lie close together. As Carlini and others do (Extracting Training Data from Diffusion Models,
2023) and Somepalli and others (Diffusion Art or Digital Forgery?, 2023), a distance is put beside
those among the training pictures themselves. Mirrored copies count: trainers mirror. Crops that
differ much, and parts that were copied into another picture, are not found: look at the pairs.

Knows numpy, Pillow and imagehash.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import imagehash
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

SIDE = 32
HASH_BITS = 64
SAME_BITS = 10
"""Of the hash: copies of one picture differ in no more (imagehash's documentation, and Zauner)."""
SUSPECT_RATIO = 0.5
"""A drawn picture half as far from a training picture as those are from each other."""
_FLAT = 1e-3  # deviation of lightness, of 255, below which a picture has no form


@dataclass(frozen=True)
class Shape:
    """What is compared of one picture."""

    form: NDArray[np.float64]
    """(SIDE * SIDE,), of length 1; zeros for a picture of one tone."""
    mirrored: NDArray[np.float64]
    bits: NDArray[np.bool_]
    mirrored_bits: NDArray[np.bool_]


@dataclass(frozen=True)
class Nearest:
    """The training picture that a drawn one resembles most."""

    index: int
    distance: float
    bits: int
    """Of the hash, that differ."""


def shape_of(image: Image.Image, aspect: float | None = None) -> Shape:
    """`aspect` is width over height: the picture's centre of that shape is taken, as trainers crop.

    None: the whole picture.
    """
    grey = image.convert("L")
    if aspect is not None:
        grey = ImageOps.fit(grey, _size_of(aspect), Image.Resampling.LANCZOS)
    mirrored = ImageOps.mirror(grey)
    return Shape(_form(grey), _form(mirrored), _hash(grey), _hash(mirrored))


def distances(one: Sequence[Shape], other: Sequence[Shape]) -> NDArray[np.float64]:
    """(one, other): of forms, the smaller one of straight and mirrored."""
    left = np.stack([shape.form for shape in one])
    straight = _apart(left, np.stack([shape.form for shape in other]))
    return np.minimum(straight, _apart(left, np.stack([shape.mirrored for shape in other])))


def nearest(drawn: Sequence[Shape], trained: Sequence[Shape]) -> list[Nearest]:
    """For each drawn picture, by form."""
    apart = distances(drawn, trained)
    found = []
    for row, shape in zip(apart, drawn, strict=True):
        index = int(row.argmin())
        found.append(Nearest(index, float(row[index]), differing_bits(shape, trained[index])))
    return found


def neighbour_distances(trained: Sequence[Shape]) -> NDArray[np.float64]:
    """For each training picture, how far the nearest other one is; empty below two."""
    if len(trained) < 2:
        return np.zeros(0)
    apart = distances(trained, trained)
    np.fill_diagonal(apart, np.inf)
    nearest_ones: NDArray[np.float64] = apart.min(1)
    return nearest_ones


def is_suspect(found: Nearest, neighbours: NDArray[np.float64]) -> bool:
    """True: someone should look whether the drawn picture is a copy. Both measures must agree."""
    if found.bits > SAME_BITS:
        return False
    usual = float(np.median(neighbours)) if len(neighbours) else 1.0
    return found.distance < SUSPECT_RATIO * usual


def differing_bits(one: Shape, other: Shape) -> int:
    """0 to 64, the fewer of straight and mirrored."""
    return int(min((one.bits ^ other.bits).sum(), (one.bits ^ other.mirrored_bits).sum()))


def diversity(shapes: Sequence[Shape]) -> tuple[float, float] | None:
    """Of pictures of one prompt: the mean over pairs of the form's distance, and of the share of
    differing bits. Nothing is mirrored here. None for fewer than two pictures.
    """
    pairs = list(combinations(shapes, 2))
    if not pairs:
        return None
    forms = [float(_apart(a.form[None], b.form[None])[0, 0]) for a, b in pairs]
    bits = [float((a.bits ^ b.bits).mean()) for a, b in pairs]
    return float(np.mean(forms)), float(np.mean(bits))


def _size_of(aspect: float) -> tuple[int, int]:
    """Pixels of a picture of that shape, enough for the hash."""
    longer = 4 * SIDE
    return (longer, round(longer / aspect)) if aspect >= 1 else (round(longer * aspect), longer)


def _form(grey: Image.Image) -> NDArray[np.float64]:
    small = grey.resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    values = np.asarray(small, dtype=np.float64).ravel()
    values = values - values.mean()
    if values.std() < _FLAT:
        return np.zeros_like(values)
    form: NDArray[np.float64] = values / np.sqrt((values**2).sum())
    return form


def _hash(grey: Image.Image) -> NDArray[np.bool_]:
    bits: NDArray[np.bool_] = imagehash.phash(grey).hash.ravel()
    return bits


def _apart(one: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.float64]:
    """sqrt((|a|^2 + |b|^2) / 2 - a b), which is sqrt(1 - correlation) of two that have a form."""
    lengths = (one**2).sum(1)[:, None] + (other**2).sum(1)[None]
    apart: NDArray[np.float64] = np.sqrt(np.maximum(lengths / 2 - one @ other.T, 0.0))
    return apart
