"""What a fault cost the clients, from the records of a run alone. Pure.

A request is hit by a fault when it was under way or due between the fault's beginning and the
recovery. Recovery is the first instant after the cause is gone from which on requests, for CALM_S,
are no worse than before the first fault; "no worse" is a count that chance alone would give in one
of ten such stretches (statistics.at_least), so a system that misses a level now and then is
still seen to recover.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from loadtests.faults.timeline import Mark
from loadtests.outcomes import Outcome, Record
from loadtests.statistics import at_least

CALM_S = 5.0
CALM_REQUESTS = 5
CHANCE = 0.1
NOTICED = 0.01


@dataclass(frozen=True)
class Effect:
    """One fault's. Times of `began_s` and `ended_s` are seconds of the run.

    `hit` requests were under way or due until recovery, of these `lost` were not answered rightly
    (refused, failed, given up, never sent) and `late` were. `detected_s` after it began, clients
    had seen more go wrong than is usual (None: never); `recovered_s` after it ended, all was as
    before (None: not until the run ended, 0: at once). `availability` is the good share of `hit`.
    """

    name: str
    began_s: float
    ended_s: float
    hit: int
    lost: int
    late: int
    outcomes: Mapping[Outcome, int]
    detected_s: float | None
    recovered_s: float | None
    problem: str | None = None

    @property
    def availability(self) -> float | None:
        return self.outcomes[Outcome.GOOD] / self.hit if self.hit else None


def effects(
    marks: Sequence[Mark], records: Sequence[Record], started_at: float, calm_s: float = CALM_S
) -> list[Effect]:
    """In the order that faults began. `started_at` is the run's instant 0 in Unix time. What a
    fault is charged with ends where the next one begins.
    """
    due = sorted(records, key=lambda record: record.due_s)
    ordered = sorted(marks, key=lambda mark: mark.began_at)
    begins = [mark.began_at - started_at for mark in ordered]
    usual = _usual_share(due, min(begins, default=0.0))
    return [
        _effect(mark, started_at, due, usual, until_s, calm_s)
        for mark, until_s in zip(ordered, [*begins[1:], float("inf")], strict=False)
    ]


def _usual_share(due: Sequence[Record], before_s: float) -> float:
    """Of requests that are not good without a fault."""
    ended = [r for r in due if r.due_s < before_s and (r.end_s is None or r.end_s < before_s)]
    misses = sum(not _is_good(record) for record in ended)
    return misses / len(ended) if ended else 0.0


def _effect(  # noqa: PLR0917
    mark: Mark,
    started_at: float,
    due: Sequence[Record],
    usual: float,
    until_s: float,
    calm_s: float,
) -> Effect:
    began_s, ended_s = mark.began_at - started_at, mark.ended_at - started_at
    recovered_at = _recovery(due, min(ended_s, until_s), until_s, usual, calm_s)
    over_s = min(until_s, recovered_at if recovered_at is not None else float("inf"))
    hit = [r for r in due if r.due_s < over_s and _end_s(r) >= began_s]
    counted = Counter(record.outcome for record in hit)
    noticed_at = _noticed(hit, usual)
    answered = counted[Outcome.GOOD] + counted[Outcome.LATE]
    return Effect(
        name=mark.name,
        began_s=began_s,
        ended_s=ended_s,
        hit=len(hit),
        lost=len(hit) - answered,
        late=counted[Outcome.LATE],
        outcomes={outcome: counted[outcome] for outcome in Outcome},
        detected_s=None if noticed_at is None else noticed_at - began_s,
        recovered_s=None if recovered_at is None else max(0.0, recovered_at - ended_s),
        problem=mark.problem,
    )


def _noticed(hit: Sequence[Record], usual: float) -> float | None:
    """When so many of those that had ended were not good as chance would not make them."""
    misses = 0
    for ended, record in enumerate(sorted(hit, key=_end_s), 1):
        misses += not _is_good(record)
        if not _is_good(record) and at_least(misses, ended, usual) < NOTICED:
            return _end_s(record)
    return None


def _recovery(
    due: Sequence[Record], from_s: float, until_s: float, usual: float, calm_s: float
) -> float | None:
    """The first instant from `from_s` on that begins a calm stretch; None where none is seen whole
    before the run, or this fault's time, ends.
    """
    times = [record.due_s for record in due]
    first, last = bisect_left(times, from_s), bisect_left(times, until_s)
    starts = [from_s, *(times[at] for at in range(first, last) if not _is_good(due[at]))]
    for number, start in enumerate(starts):
        # A stretch that begins with a miss begins just after it.
        begin = first if number == 0 else bisect_left(times, start) + 1
        end = max(bisect_left(times, start + calm_s), begin + CALM_REQUESTS)
        if end > last:
            return None
        misses = sum(not _is_good(record) for record in due[begin:end])
        if misses == 0 or at_least(misses, end - begin, usual) > CHANCE:
            return start if begin == first else times[begin]
    return None


def _is_good(record: Record) -> bool:
    return record.outcome is Outcome.GOOD


def _end_s(record: Record) -> float:
    return record.due_s if record.end_s is None else record.end_s
