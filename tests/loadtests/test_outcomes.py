"""Every arrival ends once; levels, validity and percentiles say what they mean."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadtests import outcomes
from loadtests.outcomes import Level, Outcome, Record, RecordsDisagree, Run
from loadtests.schedules import Arrival

LEVEL = Level(within_s=1.0, share=0.9, patience_s=3.0)
times = st.floats(0, 100, allow_nan=False)


def records_for(count: int, **changed: object) -> list[Record]:
    made = []
    for number in range(count):
        due = number / 10
        good = Record(number, "chat", number, Outcome.GOOD, due, sent_s=due, end_s=due + 0.5)
        made.append(replace(good, **changed))  # type: ignore[arg-type]
    return made


def run_of(records: list[Record]) -> Run:
    return Run("m", "http://h", 10.0, len(records) / 10, 1, 1, 0.0, {"chat": LEVEL})


@settings(max_examples=80, deadline=None)
@given(kept=st.lists(st.booleans(), min_size=1, max_size=60), data=st.data())
def test_the_six_outcomes_add_up_to_what_was_scheduled(
    kept: list[bool], data: st.DataObject
) -> None:
    arrivals = [Arrival(n, n / 10, "chat", n) for n in range(len(kept))]
    ended = st.sampled_from([one for one in Outcome if one is not Outcome.UNSENT])
    there = [
        Record(a.number, "chat", a.item, data.draw(ended), a.due_s, sent_s=a.due_s)
        for a, is_there in zip(arrivals, kept, strict=True)
        if is_there
    ]
    settled = outcomes.settled(arrivals, reversed(there))
    assert [record.number for record in settled] == [arrival.number for arrival in arrivals]
    verdict = outcomes.judge(run_of(settled), settled)
    counted = verdict.classes["chat"].outcomes
    assert sum(counted.values()) == len(arrivals)
    assert counted[Outcome.UNSENT] == kept.count(False)
    if not all(kept):
        assert verdict.exit_code == 2
        assert any("lost" in problem for problem in verdict.validity.problems)


def test_records_that_are_not_the_schedules_are_refused() -> None:
    arrivals = [Arrival(0, 0.0, "chat", 0)]
    (record,) = records_for(1)
    with pytest.raises(RecordsDisagree, match="twice"):
        outcomes.settled(arrivals, [record, record])
    with pytest.raises(RecordsDisagree, match="no arrival"):
        outcomes.settled(arrivals, [record, replace(record, number=7)])
    with pytest.raises(RecordsDisagree, match="different mixes"):
        outcomes.settled(arrivals, [replace(record, traffic_class="images")])


@given(st.lists(times, min_size=1, max_size=200), st.floats(0.1, 100))
def test_a_percentile_is_a_value_that_so_many_do_not_exceed(
    values: list[float], percent: float
) -> None:
    found = outcomes.percentile(values, percent)
    assert found in values
    assert sum(value <= found for value in values) >= percent / 100 * len(values) - 1e-6
    assert sum(value < found for value in values) < percent / 100 * len(values) + 1e-6


def test_percentiles_of_hundred_are_their_own_places() -> None:
    assert [outcomes.percentile(range(1, 101), p) for p in (1, 50, 95, 99, 100)] == [
        *(1, 50, 95, 99, 100)
    ]
    assert outcomes.percentile([], 50) is None
    assert outcomes.percentiles([1.0, math.inf])["p99"] is None


@pytest.mark.parametrize(
    ("level", "changed", "outcome"),
    [
        (LEVEL, {"end_s": 1.0}, Outcome.GOOD),
        (LEVEL, {"end_s": 1.01}, Outcome.LATE),
        # Sent late, answered at once: whoever waited does not care whose fault it was.
        (LEVEL, {"sent_s": 1.2, "end_s": 1.3}, Outcome.LATE),
        (replace(LEVEL, first_s=0.2), {"end_s": 0.5, "first_s": 0.2}, Outcome.GOOD),
        (replace(LEVEL, first_s=0.2), {"end_s": 0.5, "first_s": 0.3}, Outcome.LATE),
        (replace(LEVEL, first_s=0.2), {"end_s": 0.5}, Outcome.LATE),
        (replace(LEVEL, tokens_per_s=10), {"tokens": 11, "writing_s": 1.0}, Outcome.GOOD),
        (replace(LEVEL, tokens_per_s=10), {"tokens": 11, "writing_s": 1.1}, Outcome.LATE),
        (replace(LEVEL, tokens_per_s=10), {"tokens": 1}, Outcome.GOOD),
    ],
)
def test_a_level_counts_from_when_a_request_was_due(
    level: Level, changed: dict[str, object], outcome: Outcome
) -> None:
    (record,) = records_for(1, **changed)
    assert outcomes.outcome_of(level, record)[0] is outcome


@pytest.mark.parametrize(("late_ms", "is_valid"), [(4.9, True), (5.1, False)])
def test_a_run_that_sends_late_is_invalid(late_ms: float, is_valid: bool) -> None:
    """Two in a hundred are enough."""
    records = records_for(200)
    for number in range(4):
        due = records[number].due_s
        records[number] = replace(records[number], sent_s=due + late_ms / 1e3)
    assert outcomes.judge(run_of(records), records).is_valid is is_valid


def test_a_run_that_sends_too_few_is_invalid() -> None:
    records = records_for(200)
    for number in (0, 100, 199):
        records[number] = outcomes.unsent(
            Arrival(number, records[number].due_s, "chat", number), "stopped"
        )
    validity = outcomes.validity_of(records)
    assert validity.rate_error == pytest.approx(3 / 200)
    assert len(validity.problems) == 1
    assert outcomes.validity_of(records_for(10, sent_s=None)).rate_error == 1.0


def test_unanswered_requests_count_against_the_level() -> None:
    records = records_for(100)
    for number in range(0, 100, 10):
        records[number] = replace(records[number], outcome=Outcome.REJECTED)
    verdict = outcomes.judge(run_of(records), records)
    assert verdict.is_kept
    assert verdict.exit_code == 0
    assert verdict.goodput == pytest.approx(9.0)
    result = verdict.classes["chat"]
    assert result.latency_s["p95"] == pytest.approx(0.5)
    assert result.latency_of_all_s["p90"] == pytest.approx(0.5)
    assert result.latency_of_all_s["p95"] is None
    records[1] = replace(records[1], outcome=Outcome.FAILED)
    assert outcomes.judge(run_of(records), records).exit_code == 1


def test_slow_tokens_are_at_the_high_percentiles() -> None:
    records = records_for(100)
    for number, record in enumerate(records):
        records[number] = replace(record, tokens=11, writing_s=1.0 if number else 10.0)
    rates = outcomes.judge(run_of(records), records).classes["chat"].tokens_per_s
    assert rates["p50"] == pytest.approx(10.0)
    slowest = outcomes.percentiles(-record.tokens_per_s for record in records)
    assert slowest["p99"] == pytest.approx(-10.0)


@given(
    outcome=st.sampled_from(Outcome),
    numbers=st.lists(st.none() | times, min_size=6, max_size=6),
    reason=st.none() | st.text(max_size=8),
)
def test_a_record_comes_back_from_its_line(
    outcome: Outcome, numbers: list[float | None], reason: str | None
) -> None:
    sent, first, end, retry, service, writing = numbers
    record = Record(
        3, "chat", 2, outcome, 0.5, sent, first, end, 200, reason, retry, service, 5, writing, 1,
        {"verdict": "합격"},
    )  # fmt: skip
    assert Record.from_json(record.as_json()) == record


def test_a_run_comes_back_from_its_folder(tmp_path: Path) -> None:
    records = [*records_for(50), Record(50, "chat", 50, Outcome.UNSENT, 5.0, reason="process lost")]
    verdict = outcomes.judge(run_of(records), records)
    outcomes.write(tmp_path / "deep" / "run", verdict, records)
    assert list(outcomes.read_records(tmp_path / "deep" / "run")) == records
    assert outcomes.read_verdict(tmp_path / "deep" / "run") == verdict
    assert Counter(r.outcome for r in records)[Outcome.UNSENT] == 1
