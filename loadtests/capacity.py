"""The highest rate at which every class keeps its level, and how sure that is.

The search doubles the rate until a level breaks and then halves the gap (in ratio) until the rate
known to hold and the lowest one not known to are within 3 % of each other. What is asked for is one
`probe`: run that rate for that long and tell, request by request, what was good. A probe decides by
`loadtests.statistics`: KEPT and BROKEN are each certified at the search's confidence; where neither
is, the run is made again, longer. Longer, not more of the same: a short run starts with empty
queues and cannot see a backlog that grows by two per cent. What is still undecided at the longest
counts as not held, so the answer errs to the low side.

At the end the rate that holds is run once more, at the longest: of many rates the highest that
held may have been lucky.

Pure over its probe: knows nothing of Locust, processes or files but the floor's.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loadtests.outcomes import Level
from loadtests.statistics import CONFIDENCE, Finding, finding, inflation, minimum_samples

BRACKET = 1.03
LOOKS = 4
"""Lengths that a run of one rate may have, from the shortest that can decide to the longest."""
WARM_UP = 0.2
"""Share of a run that does not count: its queues were empty when it began."""
LEVELS_PER_RUN = 10.0
"""A run lasts at least this many times its longest level: half a minute cannot show 20 s."""


class FloorError(ValueError):
    """The floor file cannot be used; the message names the key and the fix."""


class CannotBelieve(Exception):
    """A run's client did not do what its schedule asked: it says nothing about the server."""


@dataclass(frozen=True)
class Trial:
    """One run to be made. `only` is the class to send alone; None: the whole mix."""

    rate: float
    duration_s: float
    seed: int
    only: str | None = None


@dataclass(frozen=True)
class Seen:
    """Requests of one class after the warm-up, in the order that they were due: `latency_s` of each
    (infinite where it was never answered), and whether it was good.
    """

    latency_s: Sequence[float]
    is_good: Sequence[bool]


Probe = Callable[[Trial], Mapping[str, Seen]]
"""Makes a run and tells what was seen, by class. Raises CannotBelieve."""


@dataclass(frozen=True)
class Judged:
    """One class in one run. `independent` is what its `requests` weigh as independent ones."""

    finding: Finding
    requests: int
    misses: int
    independent: float


@dataclass(frozen=True)
class Step:
    """One run of the search and what it showed; `finding` is of all classes together."""

    trial: Trial
    finding: Finding
    classes: Mapping[str, Judged]


@dataclass(frozen=True)
class Capacity:
    """`holds` requests a second are certified to hold; `breaks` are not, and lie within the bracket
    above. `holds` is 0 where nothing was found to; `breaks` is None where the search met its
    highest rate, or the end of what the load generator can send (`problem` says so).
    """

    only: str | None
    holds: float
    breaks: float | None
    confidence: float
    steps: Sequence[Step]
    problem: str | None = None

    @property
    def bracket(self) -> float | None:
        """`breaks` over `holds`, less 1; None while one of them is not known."""
        return self.breaks / self.holds - 1 if self.breaks and self.holds else None

    @property
    def limited_by(self) -> tuple[str, ...]:
        """The classes that do not keep their level at `breaks`."""
        at_break = [step for step in self.steps if step.trial.rate == self.breaks]
        if not at_break:
            return ()
        classes = at_break[-1].classes.items()
        return tuple(name for name, judged in classes if judged.finding is not Finding.KEPT)


@dataclass(frozen=True)
class Bounds:
    """Where to look. Rates are of all classes together, a second. `longest_s` bounds one run."""

    first: float = 1.0
    lowest: float = 0.01
    highest: float = 10_000.0
    longest_s: float = 600.0
    runs: int = 60

    def __post_init__(self) -> None:
        if not 0 < self.lowest <= self.first <= self.highest:
            raise ValueError(
                f"rates are {self.lowest:g}, {self.first:g} and {self.highest:g}: lowest, first "
                "and highest go up from over 0"
            )


def search(
    probe: Probe,
    levels: Mapping[str, Level],
    shares: Mapping[str, float],
    *,
    bounds: Bounds | None = None,
    only: str | None = None,
    seed: int = 1,
    bracket: float = BRACKET,
    confidence: float = CONFIDENCE,
    told: Callable[[Step], None] = lambda _: None,
) -> Capacity:
    """The capacity for the mix, or for one class alone. `shares` are weights of requests by class;
    `told` hears of each run as it ends.
    """
    asked = _Asked(levels, shares, only, confidence)
    search = _Search(probe, asked, bounds or Bounds(), bracket=bracket, seed=seed, told=told)
    return search.run()


def each_alone(
    probe: Probe, levels: Mapping[str, Level], shares: Mapping[str, float], **options: Any
) -> dict[str, Capacity]:
    """`search` for every class by itself."""
    return {name: search(probe, levels, shares, only=name, **options) for name in levels}


def judged(seen: Seen, level: Level, confidence: float) -> Judged:
    """What one run says about one class."""
    requests, misses = len(seen.is_good), seen.is_good.count(False)
    weight = inflation(_badness(seen), level.share)
    found = finding(misses / weight, requests / weight, level.share, confidence)
    return Judged(found, requests, misses, requests / weight)


def _badness(seen: Seen) -> list[float]:
    """Latencies, those of requests that were not good above all others."""
    worst = max((s for s in seen.latency_s if math.isfinite(s)), default=0.0)
    pairs = zip(seen.latency_s, seen.is_good, strict=True)
    return [latency if good else worst + latency for latency, good in pairs]


@dataclass(frozen=True)
class Floor:
    """What the capacity has to be at least, requests a second: of the whole mix, and of classes
    sent alone. The gate of a release.
    """

    mix: str | None = None
    rate: float | None = None
    classes: Mapping[str, float] = field(default_factory=dict)

    def short(self, found: Iterable[Capacity]) -> list[str]:
        """What falls short, in words; empty when the floor is met. What was not searched is."""
        holds = {capacity.only: capacity.holds for capacity in found}
        wanted: dict[str | None, float] = {None: self.rate} if self.rate is not None else {}
        wanted |= self.classes.items()
        return [
            f"{only or 'the mix'} has to hold {rate:g} a second, not {holds.get(only, 0.0):.3g}"
            for only, rate in wanted.items()
            if holds.get(only, 0.0) < rate
        ]


def read_floor(path: Path) -> Floor:
    """TOML: `mix` (its name), `rate`, and a table `classes` of rates by class; one rate at least.

    Raises FloorError.
    """
    try:
        keys = tomllib.loads(path.read_text("utf-8"))
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise FloorError(f"{path}: {error}") from None
    unknown = sorted(set(keys) - {"mix", "rate", "classes"})
    if unknown:
        raise FloorError(f"{path}: {unknown[0]} is not known; there are mix, rate and classes")
    rates = {"rate": keys.get("rate"), **_table(path, keys)}
    for name, rate in rates.items():
        if rate is not None and not (type(rate) in (int, float) and 0 < rate < math.inf):
            raise FloorError(f"{path}: {name} is {rate!r}: give requests a second, over 0")
    whole = rates.pop("rate")
    if whole is None and not rates:
        raise FloorError(f"{path}: asks for nothing: give rate, or a rate under [classes]")
    return Floor(keys.get("mix"), whole, rates)


def _table(path: Path, keys: Mapping[str, Any]) -> Mapping[str, Any]:
    table = keys.get("classes", {})
    if not isinstance(table, dict):
        raise FloorError(f"{path}: classes is {table!r}: make it a table of rates by class")
    return table


def exit_code(found: Sequence[Capacity], floor: Floor | None) -> int:
    """0: the floor is met, or without one every search found a rate that holds. 1: it is not. 2: it
    is not, and a search ended before it could tell.
    """
    missed = floor.short(found) if floor else [c.only for c in found if not c.holds]
    if not missed:
        return 0
    return 2 if any(capacity.problem for capacity in found) else 1


class _Asked:
    """Which classes are judged, how long that takes and how sure it has to be."""

    def __init__(
        self,
        levels: Mapping[str, Level],
        shares: Mapping[str, float],
        only: str | None,
        confidence: float,
    ) -> None:
        names = [only] if only is not None else [name for name in levels if shares.get(name, 0) > 0]
        if not names or not set(names) <= set(levels):
            raise ValueError(f"no level is given for {names}: there are {sorted(levels)}")
        whole = [name for name in names if levels[name].share >= 1]
        if whole:
            raise ValueError(f"{whole} allow no miss at all: no number of requests certifies that")
        self.only = only
        self.levels = {name: levels[name] for name in names}
        total = sum(shares[name] for name in names) if only is None else 1.0
        self.shares = {only: 1.0} if only else {name: shares[name] / total for name in names}
        # Each look is a chance to be wrong.
        self.confidence = 1 - (1 - confidence) / LOOKS
        self.overall = confidence

    def shortest_s(self, rate: float) -> float:
        """So long a run must be for every class to have the samples that its level takes."""
        samples = (
            minimum_samples(level.share, self.confidence) / (rate * self.shares[name])
            for name, level in self.levels.items()
        )
        levels = (LEVELS_PER_RUN * level.within_s for level in self.levels.values())
        return max(*samples, *levels) / (1 - WARM_UP)

    def step(self, trial: Trial, seen: Mapping[str, Seen]) -> Step:
        nothing = Seen((), ())
        classes = {
            name: judged(seen.get(name, nothing), level, self.confidence)
            for name, level in self.levels.items()
        }
        findings = {judged.finding for judged in classes.values()}
        worst = next(f for f in (Finding.BROKEN, Finding.UNDECIDED, Finding.KEPT) if f in findings)
        return Step(trial, worst, classes)


class _Search:
    """One search; `run` is called once."""

    def __init__(
        self,
        probe: Probe,
        asked: _Asked,
        bounds: Bounds,
        *,
        bracket: float,
        seed: int,
        told: Callable[[Step], None],
    ) -> None:
        self._probe, self._asked, self._bounds = probe, asked, bounds
        self._bracket, self._seed, self._told = bracket, seed, told
        self._steps: list[Step] = []
        self._kept: list[float] = []  # ascending
        self._breaks: float | None = None
        self._is_confirmed = False

    def run(self) -> Capacity:
        problem = None
        try:
            while (rate := self._next()) is not None:
                self._learn(rate, self._is_kept(rate))
        except CannotBelieve as doubt:
            problem = str(doubt)
        asked = self._asked
        holds = self._kept[-1] if self._kept else 0.0
        return Capacity(asked.only, holds, self._breaks, asked.overall, self._steps, problem)

    def _next(self) -> float | None:
        """The rate to try; the one that holds once more when the gap is closed; None then."""
        holds, breaks, bounds = self._kept[-1] if self._kept else 0.0, self._breaks, self._bounds
        if breaks is None and not holds:
            return bounds.first
        if breaks is None and holds < bounds.highest:
            return min(2 * holds, bounds.highest)
        if breaks is not None and not holds:
            return max(breaks / 2, bounds.lowest) if breaks > bounds.lowest else None
        if breaks is not None and breaks / holds > self._bracket:
            return math.sqrt(holds * breaks)
        return None if self._is_confirmed else holds

    def _learn(self, rate: float, is_kept: bool) -> None:
        is_again = rate in self._kept
        self._is_confirmed = is_again and is_kept
        if not is_kept:
            self._breaks = rate
            self._kept = [kept for kept in self._kept if kept < rate]
        elif not is_again:
            self._kept.append(rate)

    def _is_kept(self, rate: float) -> bool:
        """Raises CannotBelieve, also where the search has made all the runs it may."""
        durations_s = self._durations_s(rate)
        for duration_s in durations_s[-1:] if rate in self._kept else durations_s:
            step = self._step(rate, duration_s)
            if step.finding is not Finding.UNDECIDED:
                break
        return step.finding is Finding.KEPT

    def _durations_s(self, rate: float) -> list[float]:
        """LOOKS of them at most, from the shortest that can decide to the longest allowed."""
        shortest_s, longest_s = self._asked.shortest_s(rate), self._bounds.longest_s
        if shortest_s > longest_s:
            raise CannotBelieve(
                f"at {rate:g} a second a run takes {shortest_s:.0f} s to have the requests that "
                f"its levels need, and {longest_s:g} s is the longest allowed: raise that, or the "
                "rate to begin with"
            )
        factor = max(2.0, (longest_s / shortest_s) ** (1 / (LOOKS - 1)))
        looks = (shortest_s * factor**look for look in range(LOOKS - 1))
        return [*(duration_s for duration_s in looks if duration_s < 0.9 * longest_s), longest_s]

    def _step(self, rate: float, duration_s: float) -> Step:
        """A run that cannot be believed is made once more: a machine may hiccup."""
        trial = self._trial(rate, duration_s)
        try:
            seen = self._probe(trial)
        except CannotBelieve:
            trial = self._trial(rate, duration_s)
            seen = self._probe(trial)
        step = self._asked.step(trial, seen)
        self._steps.append(step)
        self._told(step)
        return step

    def _trial(self, rate: float, duration_s: float) -> Trial:
        if len(self._steps) >= self._bounds.runs:
            raise CannotBelieve(f"the search was not over after {self._bounds.runs} runs")
        self._seed += 1
        return Trial(rate, duration_s, self._seed, self._asked.only)
