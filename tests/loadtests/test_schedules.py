"""A schedule has the rate, the shares and the scatter that were asked for, the same anywhere."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from statistics import fmean, pstdev
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadtests import schedules
from loadtests.schedules import DAY, FLAT, GAPS, Arrival, ScheduleError, Shape

SHARES = {"chat": 0.5, "images": 0.3, "vetting": 0.2}
points = st.lists(st.tuples(st.floats(0.01, 0.99), st.floats(0, 10)), min_size=0, max_size=5).map(
    lambda inner: ((0.0, 1.0), *sorted(inner), (1.0, 2.0))
)


def made(**changed: object) -> list[Arrival]:
    asked = {"rate": 20.0, "duration_s": 50.0, "seed": 1, **changed}
    return schedules.schedule(SHARES, **asked)  # type: ignore[arg-type]


@settings(max_examples=60, deadline=None)
@given(
    asked=st.fixed_dictionaries(
        {
            "rate": st.floats(0.5, 40),
            "duration_s": st.floats(5, 60),
            "seed": st.integers(0, 2**32),
            "shape": points.map(Shape),
            "gaps": st.sampled_from(GAPS),
            "burstiness": st.floats(0.05, 20),
        }
    )
)
def test_what_was_asked_for_is_what_is_scheduled(asked: dict[str, Any]) -> None:
    arrivals, duration_s = made(**asked), asked["duration_s"]
    due = [arrival.due_s for arrival in arrivals]
    assert len(arrivals) == round(asked["rate"] * duration_s)
    assert due == sorted(due)
    assert all(0 <= at <= duration_s for at in due)
    assert [arrival.number for arrival in arrivals] == list(range(len(arrivals)))
    counted = Counter(arrival.traffic_class for arrival in arrivals)
    for name, share in SHARES.items():
        assert abs(counted[name] - share * len(arrivals)) < 1
        items = [arrival.item for arrival in arrivals if arrival.traffic_class == name]
        assert items == list(range(counted[name]))
    assert arrivals == made(**asked)


@given(seed=st.integers(0, 10**6))
def test_another_seed_is_another_schedule(seed: int) -> None:
    assert made(seed=seed) != made(seed=seed + 1)


@settings(max_examples=40, deadline=None)
@given(count=st.integers(1, 400), processes=st.integers(1, 9))
def test_parts_together_are_the_whole_once(count: int, processes: int) -> None:
    arrivals = made(rate=float(count), duration_s=1.0)
    parts = [schedules.part_of(arrivals, index, processes) for index in range(processes)]
    numbers = sorted(arrival.number for part in parts for arrival in part)
    assert numbers == [arrival.number for arrival in arrivals]
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize(
    ("gaps", "burstiness", "variation"),
    [("poisson", 1.0, 1.0), ("gamma", 0.25, 2.0), ("gamma", 4.0, 0.5), ("even", 1.0, 0.0)],
)
def test_gaps_scatter_as_their_kind_says(gaps: str, burstiness: float, variation: float) -> None:
    """The coefficient of variation of a gamma's gaps is one over the root of its shape."""
    due = [a.due_s for a in made(rate=400.0, gaps=gaps, burstiness=burstiness)]
    found = [later - earlier for earlier, later in pairwise(due)]
    assert pstdev(found) / fmean(found) == pytest.approx(variation, rel=0.06, abs=0.01)


@settings(max_examples=60, deadline=None)
@given(shape=points.map(Shape), share=st.floats(0, 1))
def test_a_place_is_where_so_much_has_come(shape: Shape, share: float) -> None:
    """Against the area under the curve, summed in small steps."""
    (place,) = shape.places([share])
    assert area(shape, place) / area(shape, 1.0) == pytest.approx(share, abs=2e-3)


def area(shape: Shape, until: float) -> float:
    total = 0.0
    for (a, v), (b, w) in pairwise(shape.points):
        end = min(b, until)
        if end > a:
            at_end = v + (w - v) * (end - a) / (b - a)
            total += (end - a) * (v + at_end) / 2
    return total


def test_a_spike_is_as_much_thicker_as_it_says() -> None:
    arrivals = made(rate=100.0, shape=schedules.spike(9.0, 0.5, 0.1), gaps="even")
    inside = sum(25.0 <= arrival.due_s < 30.0 for arrival in arrivals)
    before = sum(15.0 <= arrival.due_s < 20.0 for arrival in arrivals)
    assert inside / before == pytest.approx(9.0, rel=0.02)


def test_a_ramp_from_nothing_has_a_quarter_in_its_first_half() -> None:
    arrivals = made(rate=100.0, shape=schedules.ramp(0, 1), gaps="even")
    assert sum(a.due_s < 25 for a in arrivals) / len(arrivals) == pytest.approx(0.25, abs=1e-3)


def test_a_day_peaks_when_its_hours_do() -> None:
    arrivals = made(rate=200.0, duration_s=24.0, shape=schedules.day(), gaps="even")
    by_hour = Counter(int(arrival.due_s) for arrival in arrivals)
    assert max(by_hour, key=by_hour.__getitem__) == max(range(24), key=DAY.__getitem__)
    assert sum(DAY) == pytest.approx(1.0)


@settings(max_examples=40, deadline=None)
@given(
    times=st.lists(st.floats(0, 1_000), min_size=2, max_size=60, unique=True),
    rate=st.floats(0.1, 100),
)
def test_a_trace_keeps_its_pattern_at_any_rate(times: list[float], rate: float) -> None:
    arrivals = schedules.replay([(at, None) for at in times], SHARES, rate=rate, seed=1)
    due = [arrival.due_s for arrival in arrivals]
    assert (len(due) - 1) / due[-1] == pytest.approx(rate)
    ordered = sorted(times)
    span = ordered[-1] - ordered[0]
    for at, recorded in zip(due, ordered, strict=True):
        assert at / due[-1] == pytest.approx((recorded - ordered[0]) / span, abs=1e-6)


def test_a_trace_keeps_its_classes() -> None:
    trace = [(0.0, "chat"), (1.0, "images"), (2.0, "chat")]
    found = schedules.replay(trace, SHARES, seed=1)
    assert [(a.due_s, a.traffic_class, a.item) for a in found] == [
        (0.0, "chat", 0),
        (1.0, "images", 0),
        (2.0, "chat", 1),
    ]


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"rate": 0.0}, "rate"),
        ({"rate": float("nan")}, "rate"),
        ({"duration_s": -1.0}, "duration_s"),
        ({"rate": 0.001}, "raise rate"),
        ({"rate": 1e6, "duration_s": 1e3}, "lower rate"),
        ({"gaps": "weibull"}, "gaps"),
        ({"gaps": "gamma", "burstiness": 0.0}, "burstiness"),
    ],
)
def test_what_makes_no_schedule_is_named(changed: dict[str, object], named: str) -> None:
    with pytest.raises(ScheduleError, match=named):
        made(**changed)


def test_shapes_that_are_none_are_refused() -> None:
    for wrong in [((0, 1),), ((0, 1), (0.5, 1)), ((0, 1), (1, -1)), ((0, 0), (1, 0))]:
        with pytest.raises(ScheduleError):
            Shape(wrong)
    with pytest.raises(ScheduleError, match="sum"):
        schedules.spike(2, 0.9, 0.2)
    with pytest.raises(ScheduleError, match="count from 0"):
        schedules.part_of([], 1, 1)
    with pytest.raises(ScheduleError, match="brew"):
        schedules.replay([(0, "brew"), (1, "chat")], SHARES, seed=1)
    assert FLAT.places([0.25]) == [0.25]
