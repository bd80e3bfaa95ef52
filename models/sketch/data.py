"""Panels in bulk, as arrays that training reads.

Panel `i` of a set is a function of the set's first seed and `i`, so a set needs no storage to be
drawn again.
"""

import random
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial

import numpy as np
from numpy.typing import NDArray

from models.sketch.panels import draw
from models.sketch.scene import Aspect, Scene, random_scene

HELD_OUT_SEED = 50_000_000
"""Seeds from here on are never trained on."""

Pixels = NDArray[np.uint8]


def scene_of(seed: int, aspect: Aspect) -> Scene:
    return random_scene(random.Random(seed), aspect)  # noqa: S311  (data, no secret)


def draw_many(
    seeds: Sequence[int], aspect: Aspect, styles: Sequence[str] = ("sketch",), workers: int = 2
) -> Pixels:
    """(panels, height, width, 3); panel i is in style i modulo the number of styles."""
    jobs = [(seed, styles[i % len(styles)]) for i, seed in enumerate(seeds)]
    if workers <= 1 or len(jobs) < 256:
        return np.stack([_pixels(aspect, job) for job in jobs])
    with ProcessPoolExecutor(workers) as pool:
        return np.stack(list(pool.map(partial(_pixels, aspect), jobs, chunksize=64)))


def _pixels(aspect: Aspect, job: tuple[int, str]) -> Pixels:
    seed, style = job
    return np.asarray(draw(scene_of(seed, aspect), seed, style))
