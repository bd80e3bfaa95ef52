"""From verdicts and labels to figures: accuracy with intervals, confusion, calibration. Pure.

A `review` where the label says pass or fail is counted as wrong: the judge did not know.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

Z_95 = 1.959963984540054
BINS = 10
OUTCOMES = ("pass", "fail", "review")
TASKS = ("content", "deliberation", "grade", "verdict")


@dataclass(frozen=True)
class Judged:
    """One proposal: `label` and `told` by task, where the stage ran; `total` is the content points
    that the judge gave, 0 to 100, None without an answer.
    """

    id: str
    label: Mapping[str, str]
    told: Mapping[str, str]
    total: int | None


@dataclass(frozen=True)
class Share:
    """`hits` of `number`, with Wilson's 95 % interval."""

    hits: int
    number: int

    @property
    def value(self) -> float:
        return self.hits / self.number if self.number else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """E. B. Wilson, 1927: holds for small numbers and for shares near 0 and 1."""
        n, p, z = self.number, self.value, Z_95
        if not n:
            return (0.0, 1.0)
        middle = p + z * z / (2 * n)
        half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        scale = 1 + z * z / n
        return (max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale))

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.value:.1%} ({low:.0%}-{high:.0%})"


@dataclass(frozen=True)
class Bin:
    """Proposals whose content points fell into one tenth of the scale."""

    number: int
    points: float
    """Mean of points / 100."""
    passes: float
    """Share whose label passes."""


def accuracy(judged: Sequence[Judged], task: str) -> Share:
    ran = [one for one in judged if task in one.told]
    return Share(sum(one.told[task] == one.label[task] for one in ran), len(ran))


def majority(judged: Sequence[Judged], task: str) -> Share:
    """What saying the commonest label every time would score."""
    labels = Counter(one.label[task] for one in judged if task in one.told)
    return Share(max(labels.values(), default=0), labels.total())


def balanced(judged: Sequence[Judged], task: str) -> float:
    """Mean over the labels of the share got right: 1 / number of labels for a constant answer."""
    labels = {one.label[task] for one in judged if task in one.told}
    return fmean(
        accuracy([one for one in judged if one.label[task] == label], task).value
        for label in labels
    )


def reviews(judged: Sequence[Judged], task: str) -> Share:
    ran = [one for one in judged if task in one.told]
    return Share(sum(one.told[task] == "review" for one in ran), len(ran))


def confusion(judged: Sequence[Judged], task: str) -> dict[str, Counter[str]]:
    """By label, how often each outcome was told."""
    rows: dict[str, Counter[str]] = {}
    for one in judged:
        if task in one.told:
            rows.setdefault(one.label[task], Counter())[one.told[task]] += 1
    return dict(sorted(rows.items()))


def reliability(judged: Sequence[Judged]) -> list[Bin | None]:
    """Content points against labels that pass, in BINS equal bins; None for an empty one."""
    bins: list[list[Judged]] = [[] for _ in range(BINS)]
    for one in judged:
        if one.total is not None:
            bins[min(BINS - 1, one.total * BINS // 100)].append(one)
    return [_bin(members) if members else None for members in bins]


def calibration_error(judged: Sequence[Judged]) -> float:
    """Expected calibration error: |points - passes| of each bin, weighed by its proposals."""
    bins = [b for b in reliability(judged) if b is not None]
    number = sum(b.number for b in bins)
    return sum(b.number * abs(b.points - b.passes) for b in bins) / number if number else math.nan


def _bin(members: Sequence[Judged]) -> Bin:
    return Bin(
        number=len(members),
        points=fmean((one.total or 0) / 100 for one in members),
        passes=fmean(one.label["content"] == "pass" for one in members),
    )
