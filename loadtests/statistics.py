"""What a finite number of requests allows one to say about a system, and with what confidence.

A level asks that a share of all requests be good. Counting n requests of which t were not, that
share is certified when so few misses would be a surprise (1 - confidence) in a system that only
just fails it: I_share(n - t, t + 1) < 1 - confidence, the regularised incomplete beta function.
MLPerf's LoadGen stops its server runs by the same rule (loadgen/early_stopping.cc). It supposes
that requests are independent. In a queue they are not: whoever waits behind a long one waits
together. So the count is first divided by how many neighbours share one fate (`inflation`), which
LoadGen leaves out.

Pure: knows nothing of rates, searches or I/O.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import StrEnum
from functools import lru_cache

CONFIDENCE = 0.99
BATCHES = 20
_TINY = 1e-300


class Finding(StrEnum):
    """What the counted requests say about a level."""

    KEPT = "kept"
    BROKEN = "broken"
    UNDECIDED = "undecided"


def finding(misses: float, count: float, share: float, confidence: float = CONFIDENCE) -> Finding:
    """Whether `share` of requests are good, where `misses` of `count` independent ones were not.

    Never KEPT with fewer than `minimum_samples`, however good they are. Counts need not be whole.
    """
    _check(share, confidence)
    if not 0 <= misses <= count:
        raise ValueError(f"{misses:g} misses of {count:g} requests: misses lie between 0 and those")
    doubt = 1 - confidence
    if count >= minimum_samples(share, confidence) and at_most(misses, count, 1 - share) < doubt:
        return Finding.KEPT
    if misses > 0 and at_least(misses, count, 1 - share) < doubt:
        return Finding.BROKEN
    return Finding.UNDECIDED


@lru_cache(maxsize=256)
def minimum_samples(share: float, confidence: float = CONFIDENCE) -> int:
    """The fewest requests that certify `share` though one of them missed: 64 for 0.9, 130 for 0.95
    and 662 for 0.99 at 99 % confidence. That no single request decides is LoadGen's floor too.
    """
    _check(share, confidence)
    low, high = 1, 2
    while at_most(1, high, 1 - share) >= 1 - confidence:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        if at_most(1, middle, 1 - share) < 1 - confidence:
            high = middle
        else:
            low = middle
    return high


def certified_percentile(
    values: Sequence[float], share: float, confidence: float = CONFIDENCE
) -> float | None:
    """A value that `share` of all requests, seen and unseen, do not exceed: the t-th highest, with
    the largest t for which I_share(n - t, t + 1) < 1 - confidence. Never below the percentile of
    `values` itself; infinite where so many were never answered (give those as infinity); None with
    fewer than `minimum_samples`. Supposes independent values.
    """
    count = len(values)
    if count < minimum_samples(share, confidence):
        return None
    low, high = 1, count
    while high - low > 1:
        middle = (low + high) // 2
        if at_most(middle, count, 1 - share) < 1 - confidence:
            low = middle
        else:
            high = middle
    return sorted(values, reverse=True)[low - 1]


def inflation(values: Sequence[float], share: float, batches: int = BATCHES) -> float:
    """How many requests, in the order given, weigh as much as one independent one; at least 1.

    From batch means: the worst 1 - share of `values` (a latency; infinity for never) are marked,
    equal ones in equal parts, and the variance of the marks' share between batches is compared with
    what chance would make of independent marks. A backlog that grows piles its marks up in the last
    batches and so weighs nearly nothing, however long the run. 1 where there are too few values to
    tell, or no difference between them.
    """
    size = len(values) // batches
    if size < 2:
        return 1.0
    marks = _worst(values[len(values) - size * batches :], 1 - share)
    mean = math.fsum(marks) / len(marks)
    spread = math.fsum((mark - mean) ** 2 for mark in marks) / len(marks)
    if spread < 1e-12:
        return 1.0
    means = [math.fsum(marks[at : at + size]) / size for at in range(0, len(marks), size)]
    variance = math.fsum((value - mean) ** 2 for value in means) / (batches - 1)
    return max(1.0, size * variance / spread)


def _worst(values: Sequence[float], share: float) -> list[float]:
    """1 for each of the highest `share` of values, 0 for the others; those equal to the lowest that
    counts divide what is left among themselves.
    """
    wanted = share * len(values)
    bound = sorted(values, reverse=True)[min(len(values) - 1, int(wanted))]
    above, equal = sum(v > bound for v in values), sum(v == bound for v in values)
    part = max(0.0, wanted - above) / equal
    return [1.0 if value > bound else part if value == bound else 0.0 for value in values]


def at_most(misses: float, count: float, chance: float) -> float:
    """Probability of `misses` or fewer among `count`, each with `chance`."""
    if misses >= count:
        return 1.0
    return incomplete_beta(count - misses, misses + 1, 1 - chance)


def at_least(misses: float, count: float, chance: float) -> float:
    """Probability of `misses` or more among `count`, each with `chance`."""
    if misses <= 0:
        return 1.0
    return incomplete_beta(misses, count - misses + 1, chance)


def incomplete_beta(a: float, b: float, x: float) -> float:
    """Regularised I_x(a, b), by its continued fraction (Abramowitz and Stegun 26.5.8), evaluated
    from the front by Lentz's method; to about 1e-9.
    """
    if not (a > 0 and b > 0 and 0 <= x <= 1):
        raise ValueError(f"I_x(a, b) has no value at a={a:g}, b={b:g}, x={x:g}")
    if x in (0.0, 1.0):
        return x
    if x > (a + 1) / (a + b + 2):  # the fraction converges quickly on the other side only
        return 1.0 - incomplete_beta(b, a, 1.0 - x)
    front = math.exp(
        math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    )
    return min(1.0, front * _beta_fraction(a, b, x) / a)


def _beta_fraction(a: float, b: float, x: float) -> float:
    """The continued fraction of `incomplete_beta`; needs about sqrt(max(a, b)) rounds."""
    c, d = 1.0, _inverse(1.0 - (a + b) * x / (a + 1))
    value = d
    for m in range(1, 100_000):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for term in (even, odd):
            d = _inverse(1.0 + term * d)
            c = _away_from_zero(1.0 + term / c)
            value *= c * d
        if abs(c * d - 1.0) < 1e-14:
            return value
    raise ArithmeticError(f"I_x(a, b) did not settle at a={a:g}, b={b:g}, x={x:g}")


def _inverse(value: float) -> float:
    return 1.0 / _away_from_zero(value)


def _away_from_zero(value: float) -> float:
    return value if abs(value) > _TINY else _TINY


def _check(share: float, confidence: float) -> None:
    if not (0 < share < 1 and 0.5 <= confidence < 1):
        raise ValueError(
            f"share is {share:g} and confidence {confidence:g}: a share lies between 0 and 1, "
            "a confidence from 0.5 to under 1"
        )
