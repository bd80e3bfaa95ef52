"""The scheduler over random traces. No model, no clock: time is what the cost model says."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from models.flux.costs import Costs, token_budget
from models.flux.errors import DeadlineTooShort, DeadlineUnmeetable, QueueFull, Refused
from models.flux.request import ImageRequest, Job, JobState, preview_steps
from models.flux.scheduler import BatchLimits, Boundary, Scheduler, plan

TEXT_TOKENS = 32
SIZES = (64, 84, 256)
TRACES = 10_000  # over the first three properties


def costs() -> Costs:
    return Costs(
        step_curve=((96, 0.020), (400, 0.045), (1_600, 0.150)),
        encode_s=0.006,
        decode_s_per_token=0.0002,
    )


def request(steps: int = 8, *, deadline_s: float | None = None, previews: int = 0) -> ImageRequest:
    return ImageRequest(
        "a street", 192, 112, steps, 0, guidance=3.0, deadline_s=deadline_s, previews=previews
    )


@dataclass
class Simulated:
    """The engine's loop around a scheduler, on a clock that the cost model moves."""

    scheduler: Scheduler
    now: float = 0.0
    began_s: float = 0.0
    boundary: Boundary | None = None
    finished_s: dict[int, float] = field(default_factory=dict)
    jobs: dict[int, Job] = field(default_factory=dict)

    def admit(self, wanted: ImageRequest, image_tokens: int, **about: object) -> Job | None:
        try:
            admitted = self.scheduler.admit(
                wanted, image_tokens=image_tokens, now=self.now, **about
            )
        except (Refused, DeadlineTooShort):
            return None
        self.jobs[admitted.job.id] = admitted.job
        return admitted.job

    def run_until(self, until_s: float) -> None:
        """Boundaries that begin before `until_s`; the last one may still be under way after."""
        while True:
            if self.boundary is None:
                if self.now >= until_s or self.scheduler.is_idle:
                    self.now = max(self.now, until_s) if math.isfinite(until_s) else self.now
                    return
                self.began_s = self.now
                self.boundary = self.scheduler.schedule(self.now)
                self._check(self.boundary)
            ends_s = self.began_s + self.boundary.duration_s(self.scheduler.costs)
            if ends_s > until_s:
                self.now = max(self.now, until_s)
                return
            self.now, self.boundary = ends_s, None
            for job in self.scheduler.commit():
                self.finished_s[job.id] = self.now
            self.scheduler.check_integrity()

    def finish(self) -> None:
        self.run_until(math.inf)

    def _check(self, boundary: Boundary) -> None:
        limits = self.scheduler.limits
        rows = boundary.rows
        assert len({work.tokens for work in rows}) <= 1
        assert len(rows) <= limits.max_rows
        assert len(rows) <= 1 or sum(work.tokens for work in rows) <= limits.token_budget
        assert len({work.lora for work in rows if work.lora}) <= limits.lora_slots
        assert not boundary.is_empty or self.scheduler.is_idle
        going = [w for w in rows if w not in boundary.encode]
        if going and len(boundary.decode) + len(boundary.encode) > 1:
            step_s = self.scheduler.costs.step_s(len(going), going[0].tokens)
            assert boundary.side_s(self.scheduler.costs) <= step_s + 1e-9


def simulated(*, max_waiting: int = 64, budget: int = 600, slots: int = 2) -> Simulated:
    limits = BatchLimits(max_rows=8, token_budget=budget, lora_slots=slots)
    return Simulated(
        Scheduler(limits, costs(), max_waiting=max_waiting, text_tokens=TEXT_TOKENS, safety=1.0)
    )


arrivals = st.tuples(
    st.floats(0.0, 0.4),  # seconds after the one before
    st.integers(1, 20),  # steps
    st.sampled_from(SIZES),
    st.sampled_from([None, None, 0.3, 1.0, 3.0, 10.0]),  # deadline
    st.sampled_from([None, "a", "b", "c"]),  # lora
    st.integers(0, 2),  # previews
    st.booleans(),  # prompt cached
)
traces = st.lists(arrivals, min_size=1, max_size=12)
many = settings(
    max_examples=TRACES // 3 + 1, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)


def play(run: Simulated, trace: list[tuple]) -> None:
    for gap_s, steps, tokens, deadline_s, lora, previews, cached in trace:
        run.run_until(run.now + gap_s)
        run.admit(
            request(steps, deadline_s=deadline_s, previews=previews),
            tokens,
            lora=lora,
            is_encoded=cached,
        )


@many
@given(traces, st.sampled_from([200, 600, 2_000]))
def test_every_admitted_job_is_finished_and_every_promise_is_kept(trace, budget):
    run = simulated(budget=budget)
    play(run, trace)
    run.finish()
    assert set(run.finished_s) == set(run.jobs)
    assert all(job.state is JobState.FINISHED for job in run.jobs.values())
    for order, job in run.jobs.items():
        if job.work.deadline_at_s is not None:
            assert run.finished_s[order] <= job.work.deadline_at_s + 1e-6


@many
@given(traces, st.data())
def test_cancelled_jobs_leave_and_the_books_still_balance(trace, data):
    run = simulated(max_waiting=6)
    for arrival in trace:
        play(run, [arrival])
        if run.jobs and data.draw(st.booleans()):
            run.scheduler.cancel(data.draw(st.sampled_from(sorted(run.jobs))))
            run.scheduler.check_integrity()
    run.finish()
    ended = [run.scheduler.count(state) for state in JobState if not state.is_live]
    assert sum(ended) == len(run.jobs)
    assert all(not job.state.is_live for job in run.jobs.values())
    late = [j for j in run.jobs.values() if j.state is JobState.FINISHED and j.work.deadline_at_s]
    assert all(run.finished_s[j.id] <= j.work.deadline_at_s + 0.5 for j in late)


@many
@given(traces)
def test_the_eta_on_admission_is_when_the_last_one_is_finished(trace):
    run = simulated()
    *before, (gap_s, steps, tokens, _, lora, previews, cached) = trace
    play(run, before)
    run.run_until(run.now + gap_s)
    expected_s = run.now
    try:
        admitted = run.scheduler.admit(
            request(steps, previews=previews), image_tokens=tokens, now=run.now, lora=lora,
            is_encoded=cached,
        )  # fmt: skip
    except DeadlineUnmeetable:
        assume(False)
    expected_s += admitted.eta_s
    run.finish()
    assert run.finished_s[admitted.job.id] == pytest.approx(expected_s, abs=1e-6)


@settings(many, max_examples=200)
@given(st.integers(8, 20), st.sampled_from([64, 256]), st.lists(st.integers(1, 6), min_size=5))
def test_a_long_job_is_finished_however_many_short_ones_keep_coming(steps, tokens, shorts):
    run = simulated(max_waiting=500)
    long = run.admit(request(steps), tokens)
    assert long is not None
    load = 0
    while long.state.is_live:
        run.admit(request(shorts[load % len(shorts)]), 84)
        load += 1
        run.run_until(run.now + 0.05)
        assert load < 5_000, "starved"
    more_urgent = [j for j in run.jobs.values() if j.work.due_s < long.work.due_s]
    backlog_s = len(more_urgent) * run.scheduler.costs.step_s(1, 116) * max(shorts)
    assert run.finished_s[long.id] <= long.work.due_s + backlog_s + 1.0


def test_one_row_is_drawn_even_above_the_budget():
    run = simulated(budget=100)
    job = run.admit(request(2), 256)
    run.finish()
    assert job.state is JobState.FINISHED


def test_earlier_due_goes_first_and_the_other_is_parked_not_redone():
    run = simulated(budget=100)
    slow = run.admit(request(40), 84)
    run.run_until(0.3)
    done = slow.work.steps_left
    assert 0 < done < 40
    quick = run.admit(request(2), 84)
    run.run_until(run.now + 0.05)
    assert (slow.state, quick.state) == (JobState.PARKED, JobState.RUNNING)
    assert slow.work.steps_left in (done, done - 1)
    run.finish()
    assert run.finished_s[quick.id] < run.finished_s[slow.id]


def test_a_full_queue_says_when_to_come_back():
    run = simulated(max_waiting=1)
    assert run.admit(request(), 84)
    with pytest.raises(QueueFull) as refused:
        run.scheduler.admit(request(), image_tokens=84, now=0.0)
    assert refused.value.retry_after_s > 0
    assert refused.value.reason == "queue_full"


def test_an_impossible_deadline_is_told_apart_from_a_busy_engine():
    run = simulated()
    with pytest.raises(DeadlineTooShort) as too_short:
        run.scheduler.admit(request(40, deadline_s=0.1), image_tokens=84, now=0.0)
    assert too_short.value.field == "deadline_s"
    for _ in range(20):
        run.admit(request(40, deadline_s=30.0), 256)
    with pytest.raises(DeadlineUnmeetable) as busy:
        run.scheduler.admit(request(8, deadline_s=0.25), image_tokens=84, now=0.0)
    assert 0 < busy.value.retry_after_s < 60


def test_a_job_without_deadline_steps_behind_the_promised_ones():
    run = simulated(budget=100)
    promised = run.admit(request(20, deadline_s=0.5), 84)
    patient = run.admit(request(2), 84)
    assert patient.work.due_s >= promised.work.due_s
    run.finish()
    assert run.finished_s[promised.id] <= 0.5


def test_a_promise_that_the_engine_broke_ends_as_a_failure():
    run = simulated()
    job = run.admit(request(8, deadline_s=1.0), 84)
    run.now = 2.0
    run.scheduler.schedule(run.now)
    assert job.state is JobState.FAILED
    assert "deadline" in str(job.error)


def test_halving_the_budget_takes_the_boundary_back():
    run = simulated(budget=2_000)
    jobs = [run.admit(request(4), 84) for _ in range(4)]
    boundary = run.scheduler.schedule(0.0)
    assert len(boundary.rows) == 4
    run.scheduler.halve_budget()
    assert all(job.work.steps_left == 4 for job in jobs)
    assert len(run.scheduler.schedule(0.0).rows) == 2
    run.scheduler.halve_budget()
    assert len(run.scheduler.schedule(0.0).rows) == 1
    with pytest.raises(ValueError, match="one row"):
        run.scheduler.halve_budget()


def test_planning_changes_nothing():
    run = simulated()
    for _ in range(5):
        run.admit(request(9, previews=2), 84)
    work = [job.work for job in run.scheduler.jobs()]
    before = [repr(w) for w in work]
    plan(work, run.scheduler.limits, run.scheduler.costs)
    run.scheduler.foresee(0.0)
    assert [repr(w) for w in work] == before


def test_previews_are_spread_evenly():
    assert preview_steps(28, 3) == {21, 14, 7}
    assert preview_steps(2, 3) == {1}
    assert preview_steps(1, 3) == frozenset()


def test_the_budget_is_the_knee():
    assert token_budget({1: 10.0, 2: 12.0, 4: 20.0, 8: 39.5}, 100) == 400
    assert token_budget({1: 10.0, 2: 20.0}, 4_608) == 4_608
    assert token_budget({1: 10.0, 2: 30.0, 4: 20.0, 8: 38.5}, 100) == 400  # one bad sample
    with pytest.raises(ValueError, match="timed"):
        token_budget({}, 100)


def test_steps_seen_move_the_cost_of_that_size_only():
    seen = costs()
    before = seen.step_s(4, 116), seen.step_s(1, 288)
    for _ in range(60):
        seen.observe_step(4, 116, 2 * before[0])
    assert seen.step_s(4, 116) == pytest.approx(2 * before[0], rel=0.01)
    assert seen.step_s(1, 288) == before[1]
