"""Which pictures are the same, or nearly. Pure: knows hashes, no file.

Two pictures are near-duplicates when their perceptual hashes differ in a few bits and their grey
squares agree: the hash alone takes some line drawings on white for each other. Every pair's hashes
are compared, a row at a time: 10,000 pictures take about a second.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from models.training.dataset.pictures import Look

MAX_BITS = 6
"""Of 64: re-encoding, scaling and small retouches change this many at most."""

MAX_GREY = 6.0
"""Mean difference of the grey squares, of 255 levels."""


class Pair(NamedTuple):
    """`later` is like `first`, which comes before it by name."""

    later: str
    first: str


def duplicates(looks: Mapping[str, Look]) -> list[Pair]:
    """Files of the same bytes, each with the first of them."""
    firsts: dict[str, str] = {}
    return [
        Pair(name, first)
        for name in sorted(looks)
        if (first := firsts.setdefault(looks[name].sha256, name)) != name
    ]


def near_duplicates(looks: Mapping[str, Look]) -> list[Pair]:
    """Pictures that look like one before them, with the first such; blanks and copies left out."""
    copies = {pair.later for pair in duplicates(looks)}
    names = sorted(name for name in looks if not (looks[name].is_blank or name in copies))
    hashes = np.array([looks[name].phash for name in names], np.uint64)
    greys = [np.frombuffer(looks[name].tiny, np.uint8).astype(np.int16) for name in names]
    pairs = []
    for later in range(1, len(names)):
        bits = np.bitwise_count(hashes[:later] ^ hashes[later])
        for first in np.flatnonzero(bits <= MAX_BITS):
            if np.abs(greys[first] - greys[later]).mean() <= MAX_GREY:
                pairs.append(Pair(names[later], names[first]))
                break
    return pairs
