"""What the analytic server is said to do follows from what it is."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadtests.analytic import Behaviour

# Fractions that floats hold exactly: who comes as another is done is then no matter of rounding.
ticks = st.integers(1, 32).map(lambda number: number / 64)
moments = st.integers(0, 320).map(lambda number: number / 64)
behaviours = st.builds(
    Behaviour,
    service_s=ticks,
    stall_every_s=st.floats(5, 20),
    stall_s=st.floats(0.5, 4),
    servers=st.integers(1, 4),
    queue=st.integers(0, 30),
)


@settings(deadline=None, max_examples=50)
@given(behaviours, st.floats(50, 99.5))
def test_the_formula_of_stalls_is_what_arrivals_meet(behaviour: Behaviour, percent: float) -> None:
    count = 5_000
    met = sorted(
        behaviour.stalled_s(behaviour.stall_every_s * number / count) for number in range(count)
    )
    at = met[min(count - 1, int(percent / 100 * count))]
    step_s = behaviour.stall_every_s / count
    assert at == pytest.approx(behaviour.stalled_percentile_s(percent), abs=3 * step_s)
    limit_s = 0.5
    share = sum(took <= limit_s for took in met) / count
    assert share == pytest.approx(behaviour.stalled_share_within(limit_s), abs=1e-3)


@settings(deadline=None, max_examples=50)
@given(behaviours, st.lists(moments, min_size=1, max_size=60).map(sorted))
def test_the_line_serves_in_order_and_no_more_than_it_can(
    behaviour: Behaviour, at_s: list[float]
) -> None:
    took = behaviour.queued_s(at_s)
    served = [(at, at + t) for at, t in zip(at_s, took, strict=True) if t is not None]
    ends = [end for _, end in served]
    assert ends == sorted(ends)
    for at, end in served:
        begin = end - behaviour.service_s
        assert begin >= at - 1e-9
        # Who waits does so because all servers are busy.
        if begin > at + 1e-9:
            assert sum(e - behaviour.service_s <= at < e for e in ends) >= behaviour.servers
        assert sum(e - behaviour.service_s <= begin + 1e-9 < e - 1e-6 for e in ends) <= (
            behaviour.servers
        )
    for at, t in zip(at_s, took, strict=True):
        if t is None:
            waiting = sum(a <= at < e - behaviour.service_s - 1e-12 for a, e in served)
            assert waiting >= behaviour.queue


def test_a_line_that_is_asked_less_than_it_can_refuses_nobody() -> None:
    behaviour = Behaviour(service_s=0.125, servers=2, queue=0)
    assert behaviour.capacity == 16
    assert behaviour.queued_s([number / 16 for number in range(200)]) == [0.125] * 200
    refused = behaviour.queued_s([number / 32 for number in range(200)]).count(None)
    assert refused == pytest.approx(100, abs=1)
