"""When requests are due: seeded arrival schedules, decided before a run and never moved by it.

A schedule has a shape (how the rate changes over the run) and gaps (how arrivals scatter around
that rate). Gaps are drawn in "expected arrivals", where every shape is flat, and carried back into
seconds through the shape's cumulative curve; so every kind of gap goes with every shape. The number
of arrivals is exactly rate times duration, and each class has exactly its share of them: what
differs between two seeds is when, not how much. A Poisson process with its count given is still
one.

Pure: knows nothing of I/O, clocks or Locust. The same arguments give the same schedule anywhere,
so every process of a run works it out for itself and takes its part (`part_of`).
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from random import Random
from typing import Literal, TypeVar, get_args

T = TypeVar("T")
Gaps = Literal["poisson", "gamma", "even"]
GAPS: tuple[Gaps, ...] = get_args(Gaps)
MAX_ARRIVALS = 5_000_000
# Share of a day's requests by hour, from midnight: a quiet night, a peak at lunch and one at nine.
# A made curve, for want of a published one of a creator platform; a mix may give its own.
DAY = (
    *(0.030, 0.019, 0.012, 0.009, 0.008, 0.009, 0.014, 0.024),
    *(0.035, 0.042, 0.047, 0.051, 0.058, 0.055, 0.050, 0.049),
    *(0.050, 0.052, 0.054, 0.060, 0.070, 0.078, 0.072, 0.052),
)


class ScheduleError(ValueError):
    """No schedule can be made of this; the message names the value and the fix."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request that is due. `number` counts over the run, `item` within the class: it picks the
    text and the seed. `due_s` is seconds from the start of the run.
    """

    number: int
    due_s: float
    traffic_class: str
    item: int


@dataclass(frozen=True)
class Shape:
    """How the rate changes: straight lines between points.

    `points` are (share of the duration, weight), from 0 to 1. Only the ratio of weights matters:
    the rate of a run is its mean. Two points at the same share are a jump.
    """

    points: tuple[tuple[float, float], ...]

    def __post_init__(self) -> None:
        places = [place for place, _ in self.points]
        if len(places) < 2 or places[0] != 0 or places[-1] != 1:
            raise ScheduleError(f"points go from 0 to 1, not {places}: give the first and the last")
        if places != sorted(places):
            raise ScheduleError(f"points are {places}: put them in order of time")
        if any(not math.isfinite(weight) or weight < 0 for _, weight in self.points):
            raise ScheduleError(f"weights are {self.points}: none may be negative")
        if self._areas[-1] <= 0:
            raise ScheduleError("every weight is 0: give the shape some traffic")

    @property
    def _areas(self) -> list[float]:
        """Area under the curve up to each point."""
        pieces = ((b - a) * (v + w) / 2 for (a, v), (b, w) in pairwise(self.points))
        return list(accumulate(pieces, initial=0.0))

    def places(self, shares: Sequence[float]) -> list[float]:
        """For each share of all arrivals (ascending or not), the share of the duration by which so
        many have come.
        """
        areas = self._areas
        return [self._place(share * areas[-1], areas) for share in shares]

    def _place(self, area: float, areas: list[float]) -> float:
        piece = min(bisect_right(areas, area), len(areas) - 1) - 1
        (start, first), (end, last) = self.points[piece], self.points[piece + 1]
        left = max(0.0, area - areas[piece])
        slope = (last - first) / (end - start) if end > start else 0.0
        # The root of slope/2 x^2 + first x = left that stays exact when slope is near 0.
        root = math.sqrt(max(0.0, first * first + 2 * slope * left))
        divisor = first + root
        return min(end, start + (2 * left / divisor if divisor > 0 else 0.0))


FLAT = Shape(((0.0, 1.0), (1.0, 1.0)))


def ramp(first: float, last: float) -> Shape:
    """From one weight to another in a straight line."""
    return Shape(((0.0, first), (1.0, last)))


def spike(times: float, starts_at: float, lasts: float) -> Shape:
    """Even traffic, and `times` as much from `starts_at` for `lasts`, both shares of the run."""
    if not 0 <= starts_at < starts_at + lasts <= 1:
        raise ScheduleError(
            f"a spike from {starts_at:g} for {lasts:g} leaves the run: both are shares of it, "
            "and their sum is at most 1"
        )
    ends = starts_at + lasts
    return Shape(((0, 1), (starts_at, 1), (starts_at, times), (ends, times), (ends, 1), (1, 1)))


def day(hours: Sequence[float] = DAY) -> Shape:
    """The run is one day, from midnight; `hours` are weights in the middle of equal parts of it."""
    if len(hours) < 2:
        raise ScheduleError(f"hours has {len(hours)} values: give one for each part of the day")
    middle = [((index + 0.5) / len(hours), weight) for index, weight in enumerate(hours)]
    midnight = (hours[0] + hours[-1]) / 2
    return Shape(((0.0, midnight), *middle, (1.0, midnight)))


def schedule(
    shares: Mapping[str, float],
    *,
    rate: float,
    duration_s: float,
    seed: int,
    shape: Shape = FLAT,
    gaps: Gaps = "poisson",
    burstiness: float = 1.0,
) -> list[Arrival]:
    """Arrivals in order of time. `rate` is the mean, a second, of all classes together; `shares`
    are weights by class. `burstiness` is the gamma's shape: 1 is Poisson, under 1 comes in bursts,
    over 1 is more even. Raises ScheduleError.
    """
    count = arrivals_in(rate, duration_s)
    places = shape.places(_shares_of_all(count, gaps, burstiness, Random(f"{seed}/gaps")))
    classes = _classes(shares, count, Random(f"{seed}/classes"))
    return _numbered([place * duration_s for place in places], classes)


def arrivals_in(rate: float, duration_s: float) -> int:
    """How many arrivals a run schedules. Raises ScheduleError when that is none, or too many."""
    for name, value in (("rate", rate), ("duration_s", duration_s)):
        if not math.isfinite(value) or value <= 0:
            raise ScheduleError(f"{name} is {value:g}: it has to be over 0")
    count = round(rate * duration_s)
    if count < 1:
        raise ScheduleError(
            f"{rate:g} a second for {duration_s:g} s is no request at all: raise rate or duration_s"
        )
    if count > MAX_ARRIVALS:
        raise ScheduleError(
            f"{rate:g} a second for {duration_s:g} s is {count:,} requests, over {MAX_ARRIVALS:,}: "
            "lower rate or duration_s, or make several runs"
        )
    return count


def replay(
    trace: Sequence[tuple[float, str | None]],
    shares: Mapping[str, float],
    *,
    rate: float | None = None,
    seed: int,
) -> list[Arrival]:
    """Arrivals as they were recorded: (seconds, class or None for one drawn by share).

    `rate` stretches or squeezes time to that mean; None keeps it. Raises ScheduleError.
    """
    if len(trace) < 2:
        raise ScheduleError(f"the trace has {len(trace)} arrivals: it takes two to have a rate")
    ordered = sorted(trace, key=lambda arrival: arrival[0])
    begin, span_s = ordered[0][0], ordered[-1][0] - ordered[0][0]
    if span_s <= 0:
        raise ScheduleError("every arrival of the trace has the same time: give them in seconds")
    unknown = sorted({name for _, name in ordered if name is not None} - set(shares))
    if unknown:
        raise ScheduleError(f"the trace names {unknown}: the mix has only {sorted(shares)}")
    if rate is not None and rate <= 0:
        raise ScheduleError(f"rate is {rate:g}: it has to be over 0")
    stretch = 1.0 if rate is None else (len(ordered) - 1) / rate / span_s
    drawn = _classes(shares, len(ordered), Random(f"{seed}/classes"))
    classes = [name or by_share for (_, name), by_share in zip(ordered, drawn, strict=True)]
    return _numbered([(at - begin) * stretch for at, _ in ordered], classes)


def part_of(arrivals: Sequence[Arrival], index: int, processes: int) -> Sequence[Arrival]:
    """Every `processes`-th arrival: what process `index` sends. All parts together are all."""
    if not 0 <= index < processes:
        raise ScheduleError(f"process {index} of {processes}: they count from 0")
    return arrivals[index::processes]


def dealt(weights: Mapping[T, float], count: int) -> list[T]:
    """`count` values, each as often as its weight asks for, by the largest remainder; unshuffled.

    Raises ScheduleError.
    """
    total = sum(weights.values())
    if any(not math.isfinite(w) or w < 0 for w in weights.values()) or total <= 0:
        raise ScheduleError(f"the shares are {dict(weights)}: none negative, and one over 0")
    exact = {value: count * weight / total for value, weight in weights.items()}
    given = {value: math.floor(amount) for value, amount in exact.items()}
    by_remainder = sorted(exact, key=lambda value: given[value] - exact[value])
    for value in by_remainder[: count - sum(given.values())]:
        given[value] += 1
    return [value for value, times in given.items() for _ in range(times)]


def _shares_of_all(count: int, gaps: Gaps, burstiness: float, random: Random) -> list[float]:
    """Between 0 and 1, ascending: by how much of all traffic each arrival is preceded."""
    if gaps not in GAPS:
        raise ScheduleError(f"gaps is {gaps!r}: it is one of {', '.join(GAPS)}")
    if gaps == "even":
        return [(index + 0.5) / count for index in range(count)]
    if gaps == "gamma" and not 0.01 <= burstiness <= 100:
        raise ScheduleError(f"burstiness is {burstiness:g}: it lies between 0.01 and 100")
    shape = 1.0 if gaps == "poisson" else burstiness
    drawn = list(accumulate(random.gammavariate(shape, 1 / shape) for _ in range(count + 1)))
    return [at / drawn[-1] for at in drawn[:-1]]


def _classes(shares: Mapping[str, float], count: int, random: Random) -> list[str]:
    classes = dealt(shares, count)
    random.shuffle(classes)
    return classes


def _numbered(due_s: Sequence[float], classes: Sequence[str]) -> list[Arrival]:
    items: dict[str, int] = {}
    arrivals = []
    for number, (due, name) in enumerate(zip(due_s, classes, strict=True)):
        item = items.get(name, 0)
        items[name] = item + 1
        arrivals.append(Arrival(number, due, name, item))
    return arrivals
