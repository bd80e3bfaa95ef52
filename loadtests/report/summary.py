"""A run's records, faults, capacity and server figures as one JSON-like structure: the report.

Times are seconds from the start of the run. Pure.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from itertools import pairwise
from statistics import fmean
from typing import Any

from loadtests.faults.effects import effects
from loadtests.faults.timeline import Mark
from loadtests.outcomes import Outcome, Record, Run, Verdict, judge, percentile
from loadtests.report.series import Recording, Series
from loadtests.report.watching import CPU, GPU
from loadtests.statistics import CONFIDENCE, certified_percentile

MAX_BINS = 180
LATENCY_BINS = 60
SPECTRUM = (0, 25, 50, 75, 90, 95, 99, 99.9)
STEPS_S = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 1_800, 3_600)
SLOWEST = 0.05

Report = Mapping[str, Any]


def report(
    run: Run,
    records: Sequence[Record],
    *,
    marks: Sequence[Mark] = (),
    capacity: Sequence[Mapping[str, Any]] = (),
    server: Recording | None = None,
) -> Report:
    """Everything that report.json holds."""
    verdict = judge(run, records)
    length_s = max([run.duration_s, *(r.end_s for r in records if r.end_s is not None)])
    return {
        "run": asdict(run),
        "length_s": length_s,
        "verdict": _verdict(verdict),
        "classes": [_class(name, verdict, records) for name in verdict.classes],
        "timeline": _timeline(records, length_s),
        "latency": {name: _latencies(name, records, run) for name in verdict.classes},
        "faults": [_effect(effect) for effect in effects(marks, records, run.started_at)],
        "capacity": list(capacity),
        "server": _server(server, run, length_s) if server else None,
        "cost": _cost(server, run, length_s, verdict) if server else None,
    }


def _verdict(verdict: Verdict) -> dict[str, Any]:
    return {
        "exit_code": verdict.exit_code,
        "is_valid": verdict.is_valid,
        "is_kept": verdict.is_kept,
        "goodput": verdict.goodput,
        **asdict(verdict.validity),
    }


def _class(name: str, verdict: Verdict, records: Sequence[Record]) -> dict[str, Any]:
    """`certified_s`: with 99 % confidence no more than the level's share takes longer. `spectrum`
    counts every scheduled request; None where it was never answered.
    """
    result, level = verdict.classes[name], verdict.classes[name].level
    own = [record for record in records if record.traffic_class == name]
    every = [r.latency_s if r.is_answered and r.latency_s is not None else math.inf for r in own]
    bound = certified_percentile(every, level.share) if level.share < 1 else None
    return {
        **asdict(result),
        "name": name,
        "certified_s": _finite(bound),
        "confidence": CONFIDENCE,
        "spectrum": [(p, _finite(percentile(every, p))) for p in SPECTRUM],
        "parts": _parts([r for r in own if r.is_answered]),
    }


def _parts(answered: Sequence[Record]) -> dict[str, dict[str, float]]:
    """Mean seconds of where time went: `lag` (the client's), then `queueing` and `service` where
    the server says what its work took, else `first` and `rest`, until and after the first event or
    token, else `answer`. Of all, and of the slowest twentieth.
    """
    ordered = sorted(answered, key=lambda record: record.latency_s or 0.0)
    slowest = ordered[-max(1, math.ceil(SLOWEST * len(ordered))) :]
    return {
        name: _mean_parts(some) for name, some in (("all", ordered), ("slowest", slowest)) if some
    }


def _mean_parts(records: Sequence[Record]) -> dict[str, float]:
    rows = [_parts_of(record) for record in records]
    names = list(dict.fromkeys(name for row in rows for name in row))
    return {name: fmean(row.get(name, 0.0) for row in rows) for name in names}


def _parts_of(record: Record) -> dict[str, float]:
    latency, lag = record.latency_s or 0.0, max(0.0, record.lag_s or 0.0)
    left = max(0.0, latency - lag)
    if record.service_s is not None:
        service = min(left, record.service_s)
        return {"lag": lag, "queueing": left - service, "service": service}
    if record.first_latency_s is not None:
        first = min(left, max(0.0, record.first_latency_s - lag))
        return {"lag": lag, "first": first, "rest": left - first}
    return {"lag": lag, "answer": left}


def step_s(length_s: float, bins: int) -> float:
    """Of so many bins at most, the roundest."""
    return next((s for s in STEPS_S if length_s / s <= bins), math.ceil(length_s / bins))


def _timeline(records: Sequence[Record], length_s: float) -> dict[str, Any]:
    """Requests a second by bin: `due`, and each outcome when it came."""
    step = step_s(length_s, MAX_BINS)
    count = max(1, math.ceil(length_s / step))
    due = Counter(_bin(record.due_s, step, count) for record in records)
    ended = Counter((r.outcome, _bin(_end_s(r), step, count)) for r in records)
    return {
        "step_s": step,
        "due": [due[at] / step for at in range(count)],
        "outcomes": {
            str(outcome): [ended[outcome, at] / step for at in range(count)] for outcome in Outcome
        },
    }


def _latencies(name: str, records: Sequence[Record], run: Run) -> dict[str, Any]:
    """Of what was answered, by when it was due: median and 95th percentile of each bin."""
    step = step_s(run.duration_s, LATENCY_BINS)
    count = max(1, math.ceil(run.duration_s / step))
    bins: list[list[float]] = [[] for _ in range(count)]
    for record in records:
        if record.traffic_class == name and record.is_answered and record.latency_s is not None:
            bins[_bin(record.due_s, step, count)].append(record.latency_s)
    return {
        "step_s": step,
        "p50": [percentile(values, 50) for values in bins],
        "p95": [percentile(values, 95) for values in bins],
    }


def _bin(at_s: float, step: float, count: int) -> int:
    return min(count - 1, max(0, int(at_s / step)))


def _end_s(record: Record) -> float:
    return record.due_s if record.end_s is None else record.end_s


def _effect(effect: Any) -> dict[str, Any]:
    return {**asdict(effect), "availability": effect.availability}


def _server(server: Recording, run: Run, length_s: float) -> list[dict[str, Any]]:
    """What moved during the run: gauges as they are, counters as growth a second, and a
    histogram's sum by its count: seconds of each.
    """
    begin, end = run.started_at, run.started_at + length_s
    inside = [begin - 1 <= at <= end + 1 for at in server.times]
    times = [at - begin for at, is_in in zip(server.times, inside, strict=True) if is_in]
    rows = []
    for series in _with_means(server.series.values()):
        kept = zip(series.values, inside, strict=True)
        values = [value for value, is_in in kept if is_in]
        points = _rates(times, values) if series.kind == "counter" else _known(times, values)
        if len({round(value, 12) for _, value in points}) > 1:
            rows.append(
                {
                    "source": series.source,
                    "name": series.name,
                    "labels": series.labels,
                    "unit": "/s" if series.kind == "counter" else "",
                    "points": points,
                }
            )
    return rows


def _with_means(series: Iterable[Series]) -> list[Series]:
    """Sum and count of a histogram become one gauge, their ratio between two looks."""
    found = {(one.source, one.name, one.labels): one for one in series}
    shown = []
    for (source, name, labels), one in found.items():
        base = name.removesuffix("_sum")
        count = found.get((source, f"{base}_count", labels))
        if name.endswith("_sum") and count is not None:
            shown.append(Series(source, f"{base}_mean", labels, "gauge", _ratios(one, count)))
        elif not (name.endswith("_count") and (source, f"{name[:-6]}_sum", labels) in found):
            shown.append(one)
    return shown


def _ratios(total: Series, count: Series) -> list[float | None]:
    pairs = list(zip(total.values, count.values, strict=True))
    ratios: list[float | None] = [None]
    for (sum_0, count_0), (sum_1, count_1) in pairwise(pairs):
        if None in (sum_0, count_0, sum_1, count_1) or count_1 <= count_0:  # type: ignore[operator]
            ratios.append(None)
        else:
            ratios.append((sum_1 - sum_0) / (count_1 - count_0))  # type: ignore[operator]
    return ratios[: len(pairs)]


def _known(times: Sequence[float], values: Sequence[float | None]) -> list[tuple[float, float]]:
    pairs = zip(times, values, strict=True)
    return [(at, v) for at, v in pairs if v is not None and math.isfinite(v)]


def _rates(times: Sequence[float], values: Sequence[float | None]) -> list[tuple[float, float]]:
    known = _known(times, values)
    pairs = pairwise(known)
    return [
        (at, max(0.0, later - earlier if later >= earlier else later) / (at - before))
        for (before, earlier), (at, later) in pairs
        if at > before
    ]


def _cost(server: Recording, run: Run, length_s: float, verdict: Verdict) -> dict[str, Any]:
    """Seconds of processors and GPUs from the run's start until its last answer, by source, and
    for each good request; None where there was none.
    """
    begin, end = run.started_at, run.started_at + length_s
    good = sum(result.outcomes[Outcome.GOOD] for result in verdict.classes.values())
    spent: dict[str, dict[str, float]] = {"cpu": {}, "gpu": {}}
    for series in server.series.values():
        for kind, name in (("cpu", CPU), ("gpu", GPU)):
            if series.name == name:
                label = " ".join(filter(None, (series.source, series.labels)))
                spent[kind][label] = series.grown(server.times, begin, end)
    per_good = {
        kind: sum(seconds.values()) / good if good and seconds else None
        for kind, seconds in spent.items()
    }
    return {"good": good, "seconds": spent, "per_good": per_good}


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
