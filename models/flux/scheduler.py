"""Which jobs are drawn at the next step, and which are taken in at all.

Pure: no torch, no clock (`now` is an argument), no I/O, no locks. The engine asks three things
at every step boundary: `schedule`, run what it said, `commit`.

 - Jobs go by due time, earliest first: the deadline, or for a job without one its arrival plus a
   multiple of its own time alone. A job's due time never changes once others depend on it, so
   order is stable (no two jobs take turns in one place), short jobs overtake long ones, and every
   job ages into the front: whatever arrives after its due time is due later.
 - The most urgent job decides which size is drawn; the batch is filled with the next of that size
   up to the token budget. Who had a row and has none now is parked: its latents wait.
 - What a boundary does is one pure function, `plan`. Admission runs that same function forward
   over copies of all work, so an ETA is what will happen, and a deadline is kept or refused.
 - Decoding and encoding between steps take no longer than a step of the batch that waits for them
   (at least one each time, or nothing would ever end).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from models.flux.costs import Costs
from models.flux.errors import (
    Cancelled,
    DeadlinePassed,
    DeadlineTooShort,
    DeadlineUnmeetable,
    FluxError,
    QueueFull,
)
from models.flux.request import ImageRequest, Job, JobState, Work, preview_steps

LIVE = (JobState.WAITING, JobState.RUNNING, JobState.PARKED)
ENDED = (JobState.FINISHED, JobState.FAILED, JobState.CANCELLED)


@dataclass(frozen=True)
class BatchLimits:
    """What one batch may hold."""

    max_rows: int
    token_budget: int
    """Of a batch with more than one row; a single row is always allowed."""
    lora_slots: int


@dataclass(frozen=True)
class Boundary:
    """What happens next, in this order: decode, encode, then one step of `rows`."""

    decode: tuple[Work, ...]
    """Drawn, or with a preview due."""
    encode: tuple[Work, ...]
    """Joining with this step; their prompts are encoded first."""
    rows: tuple[Work, ...]

    @property
    def is_empty(self) -> bool:
        return not (self.decode or self.rows)

    def side_s(self, costs: Costs) -> float:
        """Seconds before the step begins."""
        return sum(costs.decode_s(work.tokens) for work in self.decode) + costs.encode_s * len(
            self.encode
        )

    def duration_s(self, costs: Costs) -> float:
        return self.side_s(costs) + _step_s(self.rows, costs)


def plan(work: Sequence[Work], limits: BatchLimits, costs: Costs) -> Boundary:
    """The next boundary for `work`, which is in order of due time. Changes nothing."""
    batch = _fill([w for w in work if not w.is_drawn], limits)
    going = [w for w in batch if w.is_encoded]
    room_s = _step_s(going, costs) if going else math.inf  # nobody waits for an empty batch
    drawn = [w for w in work if w.is_drawn]
    ripe = drawn + [w for w in work if w.is_preview_due and not w.is_drawn]
    decode, room_s = _within(ripe, lambda w: costs.decode_s(w.tokens), room_s, at_least_one=True)
    joining = [w for w in batch if not w.is_encoded]
    encode, _ = _within(joining, lambda _: costs.encode_s, room_s, at_least_one=not decode)
    joined = {w.order for w in encode}
    rows = tuple(w for w in batch if w.is_encoded or w.order in joined)
    return Boundary(decode, encode, rows)


def _fill(drawing: Sequence[Work], limits: BatchLimits) -> list[Work]:
    """The most urgent job and those that can be drawn beside it."""
    rows: list[Work] = []
    loras: set[str] = set()
    for work in drawing:
        if work.tokens != drawing[0].tokens:
            continue
        if len(rows) == limits.max_rows or (
            rows and (len(rows) + 1) * work.tokens > limits.token_budget
        ):
            break
        with_this = loras | {work.lora} if work.lora else loras
        if len(with_this) > limits.lora_slots:
            continue  # its LoRA waits for a slot; the next one's may be there already
        rows.append(work)
        loras = with_this
    return rows


def _within(
    candidates: Iterable[Work],
    cost_s: Callable[[Work], float],
    room_s: float,
    *,
    at_least_one: bool,
) -> tuple[tuple[Work, ...], float]:
    """The first candidates that fit into `room_s`, and the room that is left."""
    taken: list[Work] = []
    for work in candidates:
        cost = cost_s(work)
        if cost > room_s and (taken or not at_least_one):
            break
        taken.append(work)
        room_s -= cost
    return tuple(taken), max(room_s, 0.0)


def _step_s(rows: Sequence[Work], costs: Costs) -> float:
    return costs.step_s(len(rows), rows[0].tokens) if rows else 0.0


@dataclass(frozen=True)
class Admitted:
    """`eta_s` seconds until the picture is there, if nothing more urgent comes."""

    job: Job
    eta_s: float


class Scheduler:
    """Holds every live job. One caller at a time: the engine's lock sees to that."""

    def __init__(
        self,
        limits: BatchLimits,
        costs: Costs,
        *,
        max_waiting: int,
        text_tokens: int = 0,
        patience: float = 6.0,
        safety: float = 1.25,
    ) -> None:
        """`text_tokens` of every row; `patience` and `safety` as in config.py."""
        self.limits = limits
        self.costs = costs
        self.ended = dict.fromkeys(ENDED, 0)
        self._max_waiting = max_waiting
        self._text_tokens = text_tokens
        self._patience = patience
        self._safety = safety
        self._jobs: dict[JobState, dict[int, Job]] = {state: {} for state in LIVE}
        self._admitted = 0
        self._boundary: Boundary | None = None
        self._boundary_began_s = 0.0

    # --- what there is ----------------------------------------------------------------------------

    def jobs(self, *states: JobState) -> list[Job]:
        """Live jobs in these states (all, when none is named), most urgent first."""
        found = [job for state in states or LIVE for job in self._jobs[state].values()]
        return sorted(found, key=lambda job: _urgency(job.work))

    def count(self, state: JobState) -> int:
        """Jobs in a live state now, or that ever ended in the other ones."""
        return self.ended[state] if state in ENDED else len(self._jobs[state])

    @property
    def is_idle(self) -> bool:
        return not any(self._jobs.values())

    # --- admission --------------------------------------------------------------------------------

    def admit(
        self,
        request: ImageRequest,
        *,
        image_tokens: int,
        now: float,
        lora: str | None = None,
        is_encoded: bool = False,
    ) -> Admitted:
        """Takes a job in, or raises: QueueFull, DeadlineUnmeetable (both say when to try again),
        or DeadlineTooShort. `lora` is the digest of its file; `is_encoded` that its prompt is
        cached.
        """
        if self.count(JobState.WAITING) >= self._max_waiting:
            told = f"{self._max_waiting} images are waiting already; try again later"
            raise QueueFull(told, self._until_a_place_is_free_s())
        work = Work(
            order=self._admitted,
            tokens=image_tokens + self._text_tokens,
            lora=lora,
            steps_left=request.steps,
            preview_at=preview_steps(request.steps, request.previews),
            is_encoded=is_encoded,
        )
        self._set_due(work, request.deadline_s, now)
        finish_s = self._foresee_without_harm(work, now)
        job = Job(request, work)
        self._admitted += 1
        self._jobs[JobState.WAITING][job.id] = job
        return Admitted(job, finish_s - now)

    def alone_s(self, work: Work) -> float:
        """Seconds that it takes when nothing else is drawn."""
        side = self.costs.encode_s * (not work.is_encoded)
        side += self.costs.decode_s(work.tokens) * (1 + len(work.preview_at))
        return side + work.steps_left * self.costs.step_s(1, work.tokens)

    def _set_due(self, work: Work, deadline_s: float | None, now: float) -> None:
        alone_s = self.alone_s(work)
        if deadline_s is None:
            work.due_s = now + self._patience * alone_s
            return
        if alone_s * self._safety > deadline_s:
            told = f"of {deadline_s:g} s is too short: this image alone takes {alone_s:.1f} s here"
            raise DeadlineTooShort("deadline_s", told)
        work.due_s = work.deadline_at_s = now + deadline_s

    def _foresee_without_harm(self, work: Work, now: float) -> float:
        """When `work` will be finished. Raises DeadlineUnmeetable if that, or what was promised to
        others, would be too late. A job without a deadline steps behind those with one first.
        """
        finish_s = self.foresee(now, work)
        if work.deadline_at_s is None and (harmed := self._harmed(finish_s, now)):
            work.due_s = max(work.due_s, *(other.due_s for other in harmed))
            finish_s = self.foresee(now, work)
        own_s = finish_s[work.order]
        if work.deadline_at_s is not None and own_s > work.deadline_at_s:
            wait_s = own_s - work.deadline_at_s
            told = f"the deadline cannot be met: this image would be {wait_s:.1f} s late"
            raise DeadlineUnmeetable(told, wait_s)
        if self._harmed(finish_s, now):
            told = "images admitted earlier would miss their deadlines; try again later"
            raise DeadlineUnmeetable(told, max(0.0, min(finish_s.values()) - now))
        return own_s

    def _harmed(self, finish_s: dict[int, float], now: float) -> list[Work]:
        """Jobs that would miss their deadlines with these times, and would not as things are."""
        late = _late(self._work(), finish_s)
        if not late:
            return []
        late_anyway = {work.order for work in _late(self._work(), self.foresee(now))}
        return [work for work in late if work.order not in late_anyway]

    def _until_a_place_is_free_s(self) -> float:
        left = [j.work.steps_left for j in self.jobs(JobState.RUNNING, JobState.PARKED)] or [1]
        boundary = self._boundary or plan(self._work(), self.limits, self.costs)
        return min(left) * max(boundary.duration_s(self.costs), 0.0)

    def foresee(self, now: float, newcomer: Work | None = None) -> dict[int, float]:
        """When each live job, and `newcomer`, will be finished: order -> seconds on the clock.

        Every time is multiplied by the safety factor. Costs about 2 plans for each job.
        """
        work = [copy.copy(w) for w in (*self._work(), *([newcomer] if newcomer else ()))]
        work.sort(key=_urgency)
        finish_s: dict[int, float] = {}
        clock = now
        if self._boundary is not None:  # the one that is being run ends first
            by_order = {w.order: w for w in work}
            clock = max(now, self._boundary_began_s + self._padded_s(self._boundary))
            for gone in _advance(self._boundary, by_order, 1):
                finish_s[gone] = clock
        work = [w for w in work if w.order not in finish_s]
        while work:
            boundary = plan(work, self.limits, self.costs)
            by_order = {w.order: w for w in work}
            steps = _steady_steps(boundary)
            clock += self._padded_s(boundary) + (steps - 1) * self._safety * _step_s(
                boundary.rows, self.costs
            )
            for gone in _advance(boundary, by_order, steps):
                finish_s[gone] = clock
            work = [w for w in work if w.order not in finish_s]
        return finish_s

    def _padded_s(self, boundary: Boundary) -> float:
        return self._safety * boundary.duration_s(self.costs)

    # --- the step ---------------------------------------------------------------------------------

    def schedule(self, now: float) -> Boundary:
        """What to do at this boundary. Jobs past their deadline fail here; those that get a row
        run, those that lose it are parked. Must be followed by `commit` or `retract`.
        """
        assert self._boundary is None, "commit the last boundary first"
        for job in self.jobs():
            if job.work.deadline_at_s is not None and job.work.deadline_at_s < now:
                self.fail(job, DeadlinePassed("the deadline came before the picture was finished"))
        boundary = plan(self._work(), self.limits, self.costs)
        in_batch = {work.order for work in boundary.rows}
        for job in self.jobs():
            if job.id in in_batch:
                self._move(job, JobState.RUNNING)
            elif job.state is JobState.RUNNING and not job.work.is_drawn:
                self._move(job, JobState.PARKED)
        self._boundary, self._boundary_began_s = boundary, now
        return boundary

    def decoded(self, now: float) -> None:
        """The decoding of this boundary was done: that stands, whatever becomes of its step."""
        assert self._boundary is not None, "nothing was scheduled"
        done = replace(self._boundary, encode=(), rows=())
        self._boundary, self._boundary_began_s = replace(self._boundary, decode=()), now
        self._settle(done)

    def commit(self) -> list[Job]:
        """The boundary was run. Returns the jobs that are finished by it. Jobs that were failed or
        cancelled meanwhile are left as they are.
        """
        assert self._boundary is not None, "nothing was scheduled"
        boundary, self._boundary = self._boundary, None
        return self._settle(boundary)

    def _settle(self, boundary: Boundary) -> list[Job]:
        live = {job.id: job.work for job in self.jobs()}
        finished = [self._find(order) for order in _advance(boundary, live, 1)]
        for job in finished:
            self._move(job, JobState.FINISHED)
        return finished

    def retract(self) -> list[Job]:
        """The boundary at hand, if there is one, could not be run: nothing of it counts. Returns
        its live jobs. Joiners that were encoded already are encoded again, from the cache.
        """
        boundary, self._boundary = self._boundary, None
        if boundary is None:
            return []
        part = {work.order for work in (*boundary.decode, *boundary.rows)}
        return [job for job in self.jobs() if job.id in part]

    def halve_budget(self) -> None:
        """The rows of the boundary at hand were too many: half of their tokens is the budget from
        now on, and the boundary is retracted. Raises ValueError for a single row.
        """
        assert self._boundary is not None, "nothing was scheduled"
        rows = self._boundary.rows
        if len(rows) <= 1:
            raise ValueError("one row is the least")
        budget = len(rows) * rows[0].tokens // 2
        self.limits = replace(self.limits, token_budget=budget)
        self.retract()

    def cancel(self, order: int) -> Job | None:
        """Ends a live job; None when there is none of that number. Its row goes unused from the
        next boundary on.
        """
        job = next((jobs[order] for jobs in self._jobs.values() if order in jobs), None)
        if job is not None:
            job.error = Cancelled("cancelled")
            self._move(job, JobState.CANCELLED)
        return job

    def fail(self, job: Job, error: FluxError) -> None:
        job.error = error
        self._move(job, JobState.FAILED)

    # --- books ------------------------------------------------------------------------------------

    def check_integrity(self) -> None:
        """Raises AssertionError unless every admitted job is in exactly one state."""
        held = [(state, order) for state, jobs in self._jobs.items() for order in jobs]
        assert len({order for _, order in held}) == len(held), "a job is in two states"
        for state, order in held:
            job = self._jobs[state][order]
            assert (job.state, job.id) == (state, order), f"job {order} is filed wrongly"
            assert job.work.steps_left >= 0, f"job {order} was drawn too far"
        total = len(held) + sum(self.ended.values())
        assert total == self._admitted, f"{self._admitted} admitted, {total} accounted for"

    def _work(self) -> list[Work]:
        return [job.work for job in self.jobs()]

    def _find(self, order: int) -> Job:
        return next(jobs[order] for jobs in self._jobs.values() if order in jobs)

    def _move(self, job: Job, state: JobState) -> None:
        del self._jobs[job.state][job.id]
        job.state = state
        if state in ENDED:
            self.ended[state] += 1
        else:
            self._jobs[state][job.id] = job


def _urgency(work: Work) -> tuple[float, int]:
    return work.due_s, work.order


def _late(work: Iterable[Work], finish_s: dict[int, float]) -> list[Work]:
    return [w for w in work if w.deadline_at_s is not None and finish_s[w.order] > w.deadline_at_s]


def _steady_steps(boundary: Boundary) -> int:
    """Steps that the next boundaries will repeat unchanged, this one included."""
    if boundary.decode or boundary.encode or not boundary.rows:
        return 1
    return min(work.steps_to_event() for work in boundary.rows)


def _advance(boundary: Boundary, live: dict[int, Work], steps: int) -> Iterator[int]:
    """Writes what `boundary` did into `live` work; gives the orders that it finished."""
    finished = []
    for work in (live[w.order] for w in boundary.decode if w.order in live):
        if work.is_drawn:
            finished.append(work.order)
        work.is_preview_due = False
    for work in (live[w.order] for w in boundary.encode if w.order in live):
        work.is_encoded = True
    for work in (live[w.order] for w in boundary.rows if w.order in live):
        work.advance(steps)
    return iter(finished)
