"""Figures over time in bounded memory.

All series share one list of times. When that is full every second moment is given up, and from
then on only every second one is taken, so any length of run fits, always evenly. Of two values that
become one a gauge keeps the higher, a counter the later. Pure.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal

MAX_MOMENTS = 1_200
MAX_SERIES = 600

Kind = Literal["gauge", "counter"]


@dataclass(frozen=True)
class Sample:
    """One value now. `source` is whose it is, such as a service; `labels` tell equals apart."""

    source: str
    name: str
    kind: Kind
    value: float
    labels: str = ""

    @property
    def key(self) -> tuple[str, str, str]:
        return self.source, self.name, self.labels


@dataclass
class Series:
    """None where it was not seen."""

    source: str
    name: str
    labels: str
    kind: Kind
    values: list[float | None]

    def points(self, times: list[float]) -> list[tuple[float, float]]:
        pairs = zip(times, self.values, strict=True)
        return [(at, value) for at, value in pairs if value is not None]

    def grown(self, times: list[float], begin: float, end: float) -> float:
        """By how much a counter grew from `begin` to `end`; its restarts at 0 are counted in."""
        points = self.points(times)
        at = [time for time, _ in points]
        first, last = max(0, bisect_right(at, begin) - 1), bisect_right(at, end)
        values = [value for _, value in points[first : last + 1]]
        steps = pairwise(values)
        return sum(later - earlier if later >= earlier else later for earlier, later in steps)


@dataclass
class Recording:
    """Times are Unix time. `left_out` counts series that came when there was no room for more."""

    max_moments: int = MAX_MOMENTS
    max_series: int = MAX_SERIES
    times: list[float] = field(default_factory=list)
    series: dict[tuple[str, str, str], Series] = field(default_factory=dict)
    left_out: set[tuple[str, str, str]] = field(default_factory=set)
    stride: int = 1
    _seen: int = 0

    def add(self, at: float, samples: Iterable[Sample]) -> None:
        """One moment, later than the last."""
        self._seen += 1
        if (self._seen - 1) % self.stride:
            return
        self.times.append(at)
        for series in self.series.values():
            series.values.append(None)
        for sample in samples:
            if (known := self._of(sample)) is not None:
                known.values[-1] = sample.value
        if len(self.times) >= self.max_moments:
            self._thin()

    def _of(self, sample: Sample) -> Series | None:
        series = self.series.get(sample.key)
        if series is None and len(self.series) < self.max_series:
            before: list[float | None] = [None] * len(self.times)
            series = Series(sample.source, sample.name, sample.labels, sample.kind, before)
            self.series[sample.key] = series
        elif series is None and len(self.left_out) < self.max_series:
            self.left_out.add(sample.key)
        return series

    def _thin(self) -> None:
        last = self._seen - 1
        self.times = self.times[1::2]
        for series in self.series.values():
            pairs = zip(series.values[::2], series.values[1::2], strict=False)
            series.values = [_one_of(series.kind, *pair) for pair in pairs]
        self.stride *= 2
        # The next moment that is taken is one stride after the last that is kept.
        self._seen -= last % self.stride

    def as_json(self) -> dict[str, Any]:
        rows = [vars(series) for series in self.series.values()]
        return {"times": self.times, "series": rows, "left_out": len(self.left_out)}

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Recording:
        recording = cls(times=list(row["times"]))
        for one in row["series"]:
            series = Series(**one)
            recording.series[series.source, series.name, series.labels] = series
        return recording


def _one_of(kind: Kind, earlier: float | None, later: float | None) -> float | None:
    known = [value for value in (earlier, later) if value is not None]
    if not known:
        return None
    return max(known) if kind == "gauge" else known[-1]
