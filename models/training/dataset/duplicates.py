"""Which pictures are the same, or nearly. Pure: knows hashes, no file.

Two pictures are near-duplicates when their perceptual hashes differ in a few bits and their grey
squares go together: the hash alone takes some line drawings for each other. Every pair's hashes are
compared, a row at a time: tenths of a second for 10,000 pictures.

Both bounds stand between what was measured on 1,000 of the sketch model's black and white panels:
their lossy copies at 70 % of the size differ in 4 bits at most and correlate with 0.981 at least;
of different panels, those within 16 bits correlate with 0.958 at most.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from models.training.dataset.pictures import Look

MAX_BITS = 6
"""Of 64: re-encoding, scaling and small retouches change this many at most."""

MIN_CORRELATION = 0.97
"""Of the grey squares' values: brightness and contrast do not matter."""


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
    greys = [_normed(looks[name].tiny) for name in names]
    pairs = []
    for later in range(1, len(names)):
        bits = np.bitwise_count(hashes[:later] ^ hashes[later])
        for first in np.flatnonzero(bits <= MAX_BITS):
            if greys[first] @ greys[later] >= MIN_CORRELATION:
                pairs.append(Pair(names[later], names[first]))
                break
    return pairs


def _normed(tiny: bytes) -> npt.NDArray[np.float32]:
    """With mean 0 and length 1, so that a product is a correlation; zeros for one even grey."""
    grey = np.frombuffer(tiny, np.uint8).astype(np.float32)
    grey -= grey.mean()
    return grey / max(float(np.linalg.norm(grey)), 1.0)
