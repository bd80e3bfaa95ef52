"""What a style changes in a picture, as numbers, and how far apart two sets of pictures are.

Four groups of statistics of one picture, none of which knows what is drawn where: colours (means
and deviations in CIELAB, after Reinhard and others, Color Transfer between Images, 2001), the
cumulative histogram of lightness (its differences are an earth mover's distance: Rubner and others,
2000), shares of edges of several strengths, and power in octaves of spatial frequency (Torralba and
Oliva, Statistics of natural image categories, 2003). Each is counted in units of a plainly visible
change, fixed here, so that figures of different reports can be compared.

Sets are compared by the energy distance (Szekely and Rizzo, 2013): it needs no covariance, which a
few dozen pictures cannot give and FID would have to invert, and it takes out how much the pictures
of one set differ among themselves, which is their content. Unbiased: around 0 for two sets of one
style, and as often a little below it.

F features, N and M pictures. Knows numpy and Pillow; no torch, no network.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Vectors = NDArray[np.float64]
"""(pictures, F)."""

SIDE_PX = 128
"""Pictures are brought to as many pixels as a square of this side has: a larger copy of a picture
has the same features."""
FEWEST = 2
"""Pictures that a set must have: within one there is no distance."""

_SHARES = np.arange(10, 100, 10, dtype=np.float64)  # of L*, where its histogram is read
_EDGES = (5.0, 10.0, 20.0, 40.0)  # change of L* from pixel to pixel
_OCTAVES = tuple(2.0**-n for n in range(7, 0, -1))  # cycles a pixel: 1/128 to 1/2
_POWER_FLOOR = 1e-4  # of L* squared: below it there is nothing but rounding

_UNITS = {"colour": 10.0, "lightness": 0.1, "edges": 0.05, "frequencies": 0.3}
"""Group and what counts as 1: ten of CIELAB's steps, a tenth of the pixels, a twentieth of them, a
doubling of power (0.3 of a power of ten)."""
GROUPS = tuple(_UNITS)

_TO_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750],
     [0.0193339, 0.1191920, 0.9503041]]
)  # fmt: skip
_WHITE = np.array([0.95047, 1.0, 1.08883])  # D65


def features(image: Image.Image) -> dict[str, NDArray[np.float64]]:
    """The picture's statistics by group, in units."""
    lab = lab_of(_at_common_size(image))
    lightness = lab[..., 0]
    found = {
        "colour": _colour(lab),
        "lightness": (lightness[..., None] < _SHARES).mean((0, 1)),
        "edges": _edges(lightness),
        "frequencies": _frequencies(lightness),
    }
    return {group: values / _UNITS[group] for group, values in found.items()}


def vectors(images: Sequence[Image.Image]) -> dict[str, Vectors]:
    """Features of many by group; a group's distance is a root mean square, whatever its length."""
    each = [features(image) for image in images]
    return {
        group: np.stack([one[group] for one in each]) / math.sqrt(len(each[0][group]))
        for group in GROUPS
    }


def style_distance(drawn: dict[str, Vectors], trained: dict[str, Vectors]) -> dict[str, float]:
    """Energy distances between two sets: `all` groups together, and each by itself.

    Raises ValueError when a set has fewer than two pictures.
    """
    apart = {group: energy_distance(drawn[group], trained[group]) for group in GROUPS}
    together = energy_distance(_joined(drawn), _joined(trained))
    return {"all": together, **apart}


def energy_distance(one_NF: Vectors, other_MF: Vectors) -> float:
    """2 E|X - Y| - E|X - X'| - E|Y - Y'|, without pairing a picture with itself."""
    if min(len(one_NF), len(other_MF)) < FEWEST:
        raise ValueError(f"a set of pictures needs {FEWEST} to be compared")
    between = _distances(one_NF, other_MF).mean()
    return float(2 * between - _within(one_NF) - _within(other_MF))


def distance_error(drawn: dict[str, Vectors], trained: dict[str, Vectors]) -> float | None:
    """The standard error of `all`, for other prompts and seeds might have been drawn: a jackknife
    over the drawn pictures (Arvesen, Jackknifing U-statistics, 1969). None below three.
    """
    one, other = _joined(drawn), _joined(trained)
    count = len(one)
    if count <= FEWEST:
        return None
    without = [energy_distance(np.delete(one, n, axis=0), other) for n in range(count)]
    return float(np.sqrt((count - 1) * np.var(without)))


def halves_distance(trained: dict[str, Vectors]) -> float | None:
    """Between every other picture of a set and the rest: what no difference of style looks like.

    None below four pictures.
    """
    joined = _joined(trained)
    if len(joined) < 2 * FEWEST:
        return None
    return energy_distance(joined[::2], joined[1::2])


def lab_of(image: Image.Image) -> NDArray[np.float64]:
    """(H, W, 3): CIELAB of an sRGB picture, L* from 0 to 100."""
    encoded = np.asarray(image.convert("RGB"), dtype=np.float64) / 255
    linear = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
    relative = linear @ _TO_XYZ.T / _WHITE
    bent = np.where(
        relative > (6 / 29) ** 3, np.cbrt(relative), relative / (3 * (6 / 29) ** 2) + 4 / 29
    )
    x, y, z = np.moveaxis(bent, -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


def _at_common_size(image: Image.Image) -> Image.Image:
    scale = SIDE_PX / math.sqrt(image.width * image.height)
    size = max(8, round(image.width * scale)), max(8, round(image.height * scale))
    return image.convert("RGB").resize(size, Image.Resampling.LANCZOS)


def _colour(lab: NDArray[np.float64]) -> NDArray[np.float64]:
    """Means and deviations of a* and b*, and the mean chroma."""
    ab = lab[..., 1:]
    chroma = np.hypot(ab[..., 0], ab[..., 1]).mean()
    return np.concatenate([ab.mean((0, 1)), ab.std((0, 1)), [chroma]])


def _edges(lightness: NDArray[np.float64]) -> NDArray[np.float64]:
    down, right = np.gradient(lightness)
    strength = np.hypot(down, right)
    return np.array([(strength > least).mean() for least in _EDGES])


def _frequencies(lightness: NDArray[np.float64]) -> NDArray[np.float64]:
    """log10 of the mean power of L* in each octave. A Hann window keeps the borders out of it."""
    height, width = lightness.shape
    window = np.outer(np.hanning(height), np.hanning(width))
    shown = (lightness - lightness.mean()) * window
    power = np.abs(np.fft.fft2(shown)) ** 2 / (window**2).sum()
    radius = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None])
    bands = [
        power[(radius >= low) & (radius < 2 * low)] for low in _OCTAVES[:-1]
    ]  # the last octave would lie beyond what pixels hold
    return np.log10([(band.mean() if band.size else 0.0) + _POWER_FLOOR for band in bands])


def _joined(groups: dict[str, Vectors]) -> Vectors:
    return np.concatenate([groups[group] for group in GROUPS], axis=1)


def _within(set_NF: Vectors) -> float:
    count = len(set_NF)
    return float(_distances(set_NF, set_NF).sum() / (count * (count - 1)))


def _distances(one_NF: Vectors, other_MF: Vectors) -> NDArray[np.float64]:
    distances: NDArray[np.float64] = np.stack(
        [np.sqrt(((row - other_MF) ** 2).sum(1)) for row in one_NF]
    )
    return distances
