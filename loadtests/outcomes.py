"""What became of every scheduled request, and whether a run may be believed.

Each arrival of the schedule ends in exactly one outcome, sent or not, so the six add up to what was
scheduled; `settled` sees to it. Latency counts from the instant that a request was due, never from
when it was sent. Percentiles are exact: a run keeps every record anyway (the sum is checked against
them), and sorting a million floats takes a second; a histogram would only add its error.

On disk a run is a folder: `run.json` (Run), `records.jsonl` (a Record a line, by number) and
`verdict.json` (Verdict). Knows nothing of Locust, HTTP or schedules.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol

MAX_LAG_P99_S = 0.005
MAX_RATE_ERROR = 0.01
RUN, RECORDS, VERDICT = "run.json", "records.jsonl", "verdict.json"
PERCENTILES = (50, 90, 95, 99)


class Outcome(StrEnum):
    """How a scheduled request ended."""

    GOOD = "good"  # answered rightly, within its level
    LATE = "late"  # answered rightly, outside its level
    REJECTED = "rejected"  # refused: 429 or 503
    FAILED = "failed"  # any other status, a broken connection, an answer that is not right
    CANCELLED = "cancelled"  # given up by the client: its patience or the run ended
    UNSENT = "unsent"  # never sent: the run ended, or the client had no room or died


class RecordsDisagree(ValueError):
    """The records are not those of the schedule: one is missing, foreign or there twice."""


class Scheduled(Protocol):
    """What is due: schedules.Arrival, or anything like it."""

    @property
    def number(self) -> int: ...
    @property
    def due_s(self) -> float: ...
    @property
    def traffic_class(self) -> str: ...
    @property
    def item(self) -> int: ...


@dataclass(frozen=True)
class Level:
    """What a class was promised. Seconds count from when a request was due.

    `share` of all scheduled requests have to be answered rightly within `within_s`; where given,
    with the first event or token within `first_s` and at least `tokens_per_s` after it. The client
    gives up after `patience_s`.
    """

    within_s: float
    share: float
    patience_s: float
    first_s: float | None = None
    tokens_per_s: float | None = None


@dataclass(frozen=True)
class Run:
    """What a run was asked to do. `started_at` is Unix time of its instant 0; `rate` the mean, a
    second, of all classes.
    """

    mix: str
    url: str
    rate: float
    duration_s: float
    seed: int
    processes: int
    started_at: float
    levels: Mapping[str, Level]


@dataclass(frozen=True, slots=True)
class Record:
    """One arrival and its end. Times are seconds from the start of the run, None where it never
    came to that.

    `first_s` is when the first event, token or frame came, as the class counts it; `status` the
    last HTTP status; `reason` why it is not good, from a small set of words; `service_s` what the
    server says the work took; `tokens` were written within `writing_s` of the first; `process` sent
    it; `detail` is the class's own.
    """

    number: int
    traffic_class: str
    item: int
    outcome: Outcome
    due_s: float
    sent_s: float | None = None
    first_s: float | None = None
    end_s: float | None = None
    status: int | None = None
    reason: str | None = None
    retry_after_s: float | None = None
    service_s: float | None = None
    tokens: int | None = None
    writing_s: float | None = None
    process: int | None = None
    detail: Mapping[str, Any] = field(default_factory=dict)

    @property
    def latency_s(self) -> float | None:
        return None if self.end_s is None else self.end_s - self.due_s

    @property
    def first_latency_s(self) -> float | None:
        return None if self.first_s is None else self.first_s - self.due_s

    @property
    def lag_s(self) -> float | None:
        """How long after it was due it was sent: the client's own fault."""
        return None if self.sent_s is None else self.sent_s - self.due_s

    @property
    def tokens_per_s(self) -> float | None:
        """Tokens after the first one, by the time that they took."""
        if self.tokens is None or self.tokens < 2 or self.writing_s is None:
            return None
        return (self.tokens - 1) / max(1e-6, self.writing_s)

    @property
    def is_answered(self) -> bool:
        return self.outcome in (Outcome.GOOD, Outcome.LATE)

    def as_judged(self, outcome: Outcome, reason: str | None) -> Record:
        return replace(self, outcome=outcome, reason=reason)

    def as_json(self) -> dict[str, Any]:
        """Without what is None or empty."""
        whole = asdict(self)
        return {key: value for key, value in whole.items() if value is not None and value != {}}

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Record:
        return cls(**{**row, "outcome": Outcome(row["outcome"])})


def settled(arrivals: Iterable[Scheduled], records: Iterable[Record]) -> list[Record]:
    """A record for every arrival, by number; those that left none were lost with their process and
    count as unsent. Raises RecordsDisagree when a record is foreign or there twice.
    """
    by_number: dict[int, Record] = {}
    for record in records:
        if record.number in by_number:
            raise RecordsDisagree(f"request {record.number} ended twice: a process sent it again")
        by_number[record.number] = record
    whole = []
    for arrival in arrivals:
        record = by_number.get(arrival.number) or unsent(arrival, "process lost")
        if record.traffic_class != arrival.traffic_class:
            raise RecordsDisagree(
                f"request {arrival.number} was to be {arrival.traffic_class}, not "
                f"{record.traffic_class}: the processes read different mixes"
            )
        whole.append(record)
    if foreign := set(by_number) - {record.number for record in whole}:
        raise RecordsDisagree(f"{len(foreign)} records belong to no arrival: {min(foreign)}...")
    return whole


def unsent(arrival: Scheduled, reason: str, process: int | None = None) -> Record:
    return Record(
        arrival.number,
        arrival.traffic_class,
        arrival.item,
        Outcome.UNSENT,
        arrival.due_s,
        reason=reason,
        process=process,
    )


@dataclass(frozen=True)
class ClassResult:
    """One class of a run. Percentiles are seconds by name ("p95"): `latency_s` and `first_s` of
    what was answered, `latency_of_all_s` of everything scheduled, None where more than the rest
    never was. `tokens_per_s` counts from the slow side: its p95 is what 95 % exceed.
    """

    scheduled: int
    outcomes: Mapping[Outcome, int]
    reasons: Mapping[str, int]
    level: Level
    good_share: float
    is_kept: bool
    latency_s: Mapping[str, float | None]
    latency_of_all_s: Mapping[str, float | None]
    first_s: Mapping[str, float | None]
    tokens_per_s: Mapping[str, float | None]


@dataclass(frozen=True)
class Validity:
    """Whether the client did what the schedule asked. `problems` says what it did not; empty when
    the run may be believed.
    """

    lag_p50_s: float | None
    lag_p99_s: float | None
    rate_error: float
    problems: tuple[str, ...]


@dataclass(frozen=True)
class Verdict:
    """A run's result. `goodput` is good requests a second of the run's duration."""

    run: Run
    classes: Mapping[str, ClassResult]
    validity: Validity
    goodput: float

    @property
    def is_valid(self) -> bool:
        return not self.validity.problems

    @property
    def is_kept(self) -> bool:
        return all(result.is_kept for result in self.classes.values())

    @property
    def exit_code(self) -> int:
        """0: every class keeps its level. 1: one does not. 2: the run may not be believed."""
        return 2 if not self.is_valid else 0 if self.is_kept else 1


def judge(run: Run, records: Sequence[Record]) -> Verdict:
    """`records` is what `settled` gives: one for every arrival."""
    by_class: dict[str, list[Record]] = {name: [] for name in run.levels}
    for record in records:
        by_class[record.traffic_class].append(record)
    classes = {name: _judge_class(run.levels[name], own) for name, own in by_class.items() if own}
    assert sum(sum(c.outcomes.values()) for c in classes.values()) == len(records)
    good = sum(result.outcomes[Outcome.GOOD] for result in classes.values())
    return Verdict(run, classes, validity_of(records), good / run.duration_s)


def validity_of(records: Sequence[Record]) -> Validity:
    lags = [record.lag_s for record in records if record.lag_s is not None]
    p99 = percentile(lags, 99)
    error = rate_error(records)
    problems = []
    if p99 is None:
        problems.append("nothing was sent: see the reasons of the unsent requests")
    elif p99 > MAX_LAG_P99_S:
        problems.append(
            f"the client sent late (p99 {1e3 * p99:.1f} ms, at most {1e3 * MAX_LAG_P99_S:g}): give "
            "it more processes, a lower rate or a processor of its own"
        )
    if error > MAX_RATE_ERROR:
        problems.append(
            f"the rate was off by {error:.1%} (at most {MAX_RATE_ERROR:.0%}): look at the unsent"
        )
    lost = sum(record.reason == "process lost" for record in records)
    if lost:
        problems.append(f"{lost} requests were lost with a process of the client: run again")
    return Validity(percentile(lags, 50), p99, error, tuple(problems))


def rate_error(records: Sequence[Record]) -> float:
    """Share by which the rate of sending was off what the schedule asked."""
    due = [record.due_s for record in records]
    sent = [record.sent_s for record in records if record.sent_s is not None]
    if len(due) < 2 or not sent:
        return 0.0 if len(sent) == len(due) else 1.0
    planned_s, took_s = max(due) - min(due), max(sent) - min(sent)
    if planned_s <= 0:
        return abs(len(sent) / len(due) - 1)
    # What was sent in less time than planned was not more: the rest was never sent.
    return abs(len(sent) / len(due) * planned_s / max(planned_s, took_s) - 1)


def outcome_of(level: Level, record: Record) -> tuple[Outcome, str | None]:
    """Good, or late and why, of an arrival that was answered rightly."""
    if record.latency_s is None or record.latency_s > level.within_s:
        return Outcome.LATE, "late"
    if level.first_s is not None:
        first = record.first_latency_s
        if first is None or first > level.first_s:
            return Outcome.LATE, "first late"
    if level.tokens_per_s is not None:
        rate = record.tokens_per_s
        if rate is not None and rate < level.tokens_per_s:
            return Outcome.LATE, "tokens slow"
    return Outcome.GOOD, None


def percentile(values: Iterable[float], percent: float) -> float | None:
    """The smallest value that `percent` of them do not exceed (nearest rank); None of none."""
    ordered = sorted(values)
    if not ordered:
        return None
    return ordered[max(0, math.ceil(percent / 100 * len(ordered) - 1e-9) - 1)]


def percentiles(values: Iterable[float]) -> dict[str, float | None]:
    """None where it is infinite: never answered."""
    ordered = sorted(values)
    found = {f"p{percent}": percentile(ordered, percent) for percent in PERCENTILES}
    return {name: v if v is not None and math.isfinite(v) else None for name, v in found.items()}


def _judge_class(level: Level, records: Sequence[Record]) -> ClassResult:
    counted = Counter(record.outcome for record in records)
    answered = [record for record in records if record.is_answered]
    latencies = [record.latency_s for record in answered if record.latency_s is not None]
    never = [math.inf] * (len(records) - len(latencies))
    rates = (record.tokens_per_s for record in answered)
    good_share = counted[Outcome.GOOD] / len(records)
    return ClassResult(
        scheduled=len(records),
        outcomes={outcome: counted[outcome] for outcome in Outcome},
        reasons=dict(Counter(r.reason for r in records if r.reason).most_common()),
        level=level,
        good_share=good_share,
        is_kept=good_share >= level.share,
        latency_s=percentiles(latencies),
        latency_of_all_s=percentiles(latencies + never),
        first_s=percentiles(r.first_latency_s for r in answered if r.first_latency_s is not None),
        tokens_per_s={
            name: None if value is None else -value
            for name, value in percentiles(-rate for rate in rates if rate is not None).items()
        },
    )


def write(folder: Path, verdict: Verdict, records: Iterable[Record]) -> None:
    """The run's three files; the folder is made."""
    folder.mkdir(parents=True, exist_ok=True)
    _write_json(folder / RUN, asdict(verdict.run))
    with (folder / RECORDS).open("w", encoding="utf-8") as lines:
        for record in records:
            lines.write(json.dumps(record.as_json(), ensure_ascii=False) + "\n")
    told = asdict(verdict) | {
        "is_valid": verdict.is_valid,
        "is_kept": verdict.is_kept,
        "exit_code": verdict.exit_code,
    }
    _write_json(folder / VERDICT, told)


def read_run(folder: Path) -> Run:
    row = json.loads((folder / RUN).read_text("utf-8"))
    levels = {name: Level(**level) for name, level in row["levels"].items()}
    return Run(**{**row, "levels": levels})


def read_records(folder: Path) -> Iterator[Record]:
    with (folder / RECORDS).open(encoding="utf-8") as lines:
        for line in lines:
            yield Record.from_json(json.loads(line))


def read_verdict(folder: Path) -> Verdict:
    """Worked out again from the records."""
    return judge(read_run(folder), list(read_records(folder)))


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", "utf-8")
