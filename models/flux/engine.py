"""The engine: images are asked for from any thread, and drawn by one.

`step()` is the whole of it: schedule, run, commit. Between two steps the batch may be composed
anew; what joins, leaves or waits is the scheduler's decision (scheduler.py), tensors are the
runner's affair (runner.py), and names of LoRAs the library's (library.py).

Who may do what: the owner thread alone touches the runner. The scheduler is guarded by a lock that
is held for bookkeeping only, never while the model runs; so a request is admitted or refused at
once, and a cancel takes effect at the next boundary. Listeners and futures are called by the owner
thread, without the lock; they must not block.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol

from models.flux.config import EngineConfig, ModelSpec
from models.flux.errors import (
    Draining,
    EngineBroken,
    EngineStopped,
    FluxError,
    JobFailed,
    LoraInUse,
    NotFinite,
    OutOfMemory,
    Refused,
    Unexplained,
)
from models.flux.library import LoraEntry, LoraLibrary
from models.flux.request import ImageRequest, Job, JobState, Work
from models.flux.scheduler import BatchLimits, Boundary, Scheduler

if TYPE_CHECKING:
    from PIL.Image import Image

    from models.flux.lora_files import LoraWeights
    from models.flux.runner import Row, Runner

IDLE_CHECK_S = 1.0
BREAKS_AFTER = 3
DRAIN_POLL_S = 0.05
DRAIN_RETRY_AFTER_S = 10.0
log = logging.getLogger(__name__)


class Progress(StrEnum):
    STEP = "step"
    PREVIEW = "preview"


@dataclass(frozen=True, slots=True)
class Event:
    """Something happened to one image. `image` only for a preview."""

    kind: Progress
    steps_done: int
    steps: int
    image: Image | None = None


Listener = Callable[[Event], None]


@dataclass(frozen=True, slots=True)
class Ticket:
    """One admitted image. The future gives the picture, or raises JobFailed or Cancelled."""

    id: int
    request: ImageRequest
    lora: LoraEntry | None
    """What the request's LoRA meant when it was admitted: this file is drawn with."""
    eta_s: float
    """Seconds from admission, if nothing more urgent comes."""
    image: Future[Image]


class Observer(Protocol):
    """What the engine tells whoever counts. Called by the owner thread, or on admission."""

    def stepped(self, rows: int, seconds: float) -> None: ...

    def ended(self, state: JobState, seconds: float) -> None:
        """`seconds` since it was admitted."""

    def refused(self, reason: str) -> None: ...


class Unobserved:
    def stepped(self, rows: int, seconds: float) -> None: ...
    def ended(self, state: JobState, seconds: float) -> None: ...
    def refused(self, reason: str) -> None: ...


@dataclass(frozen=True)
class Snapshot:
    """Counts at one moment."""

    waiting: int
    running: int
    parked: int
    resident_loras: frozenset[str]
    """Digests."""
    token_budget: int
    is_draining: bool
    is_broken: bool


@dataclass(slots=True)
class _Watched:
    """What belongs to a live job besides the scheduler's view of it."""

    job: Job
    ticket: Ticket
    lora: LoraEntry | None
    listener: Listener | None
    admitted_s: float
    row: Row | None = None


class Engine:
    """Draws with one runner. `start` it, `submit` to it, `drain` and `stop` it."""

    def __init__(
        self,
        runner: Runner,
        library: LoraLibrary,
        scheduler: Scheduler,
        *,
        observer: Observer | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.runner = runner
        self.library = library
        self._scheduler = scheduler
        self._observer: Observer = observer or Unobserved()
        self._clock = clock
        self._watched: dict[int, _Watched] = {}
        self._lock = threading.RLock()
        self._woken = threading.Condition(self._lock)
        self._thread: threading.Thread | None = None
        self._is_draining = False
        self._is_stopping = False
        self._broken: BaseException | None = None
        self._failures = 0  # boundaries that failed, one after another

    # --- from any thread --------------------------------------------------------------------------

    def submit(
        self, requests: Sequence[ImageRequest], listener: Listener | None = None
    ) -> list[Ticket]:
        """Takes all of `requests` in, or none. `listener` hears of each one's steps and previews.

        Raises InvalidRequest, UnknownLora, DeadlineTooShort; or Refused, which says when to come
        back: QueueFull, DeadlineUnmeetable, Draining, EngineBroken.
        """
        found = [(request, self._check(request)) for request in requests]
        with self._lock:
            self._refuse_if_closed()
            admitted: list[_Watched] = []
            try:
                for request, lora in found:
                    admitted.append(self._admit(request, lora, listener))
            except FluxError as error:
                for watched in admitted:
                    self._scheduler.cancel(watched.job.id)
                    self._end(watched)
                if isinstance(error, Refused):
                    self._observer.refused(error.reason)
                raise
            self._woken.notify_all()
            return self._tickets(admitted)

    def cancel(self, tickets: Iterable[Ticket]) -> None:
        """Ends those that are still live; their rows are free from the next boundary on. A picture
        that was given out is finished, even before its boundary has been settled.
        """
        with self._lock:
            gone = [
                self._watched[ticket.id]
                for ticket in tickets
                if ticket.id in self._watched
                and not _is_given_out(ticket)
                and self._scheduler.cancel(ticket.id)
            ]
        for watched in gone:
            self._end(watched)

    def remove_lora(self, name: str) -> LoraEntry:
        """Takes the name out of the library. Raises UnknownLora; LoraInUse while a live job uses
        the file it stands for.
        """
        with self._lock:
            entry = self.library.find(name)
            if entry.digest in self.loras_in_use():
                raise LoraInUse(f"LoRA {name!r} is used by images that are waiting or being drawn")
            return self.library.remove(name)

    def loras_in_use(self) -> frozenset[str]:
        """Digests of the LoRAs of live jobs."""
        with self._lock:
            return frozenset(w.lora.digest for w in self._watched.values() if w.lora)

    def snapshot(self) -> Snapshot:
        with self._lock:
            return Snapshot(
                waiting=self._scheduler.count(JobState.WAITING),
                running=self._scheduler.count(JobState.RUNNING),
                parked=self._scheduler.count(JobState.PARKED),
                resident_loras=self.runner.bank.resident,
                token_budget=self._scheduler.limits.token_budget,
                is_draining=self._is_draining,
                is_broken=self._broken is not None,
            )

    @property
    def is_ready(self) -> bool:
        """True while new images are taken."""
        return self._thread is not None and not self._is_draining and self._broken is None

    def start(self) -> None:
        """Starts the owner thread."""
        assert self._thread is None, "started already"
        self._thread = threading.Thread(target=self._own, name="flux-engine", daemon=True)
        self._thread.start()

    def drain(self, within_s: float) -> None:
        """Takes nothing in any more, fails what has not begun, and returns when the rest is drawn,
        at the latest after `within_s`; what is left then is failed.
        """
        with self._lock:
            self._is_draining = True
            waiting = self._scheduler.jobs(JobState.WAITING)
        told = EngineStopped("this server is shutting down; ask again")
        self._fail_all(waiting, told)
        until = self._clock() + within_s
        while self._live_jobs() and self._clock() < until and self._broken is None:
            time.sleep(DRAIN_POLL_S)
        self._fail_all(self._live_jobs(), told)

    def stop(self, within_s: float = 30.0) -> None:
        """Ends the owner thread after the step at hand; what is live is failed."""
        with self._lock:
            self._is_draining = self._is_stopping = True
            self._woken.notify_all()
        if self._thread is not None:
            self._thread.join(within_s)
        self._fail_all(self._live_jobs(), EngineStopped("this server is shutting down; ask again"))

    # --- the owner thread -------------------------------------------------------------------------

    def step(self) -> bool:
        """One boundary: schedule, run, commit. False when there was nothing to do."""
        boundary = self._schedule()
        if boundary.is_empty:
            return False
        if self._run(boundary):
            self._commit(boundary)
        return True

    def _own(self) -> None:
        try:
            while not self._is_stopping and self._broken is None:
                if not self.step():
                    self._rest()
        except AssertionError as wrong:  # the books do not balance: nothing may be promised
            self._break(wrong)

    def _rest(self) -> None:
        """Nothing to do: checks the books, and waits for work."""
        with self._woken:
            if not self._scheduler.is_idle:
                return
            self.runner.forget_batch()
            self.check_integrity()
            self._woken.wait_for(
                lambda: self._is_stopping or not self._scheduler.is_idle, IDLE_CHECK_S
            )

    def _schedule(self) -> Boundary:
        with self._lock:
            boundary = self._scheduler.schedule(self._clock())
            if boundary.is_empty:
                self._scheduler.retract()
        self._tell_of_the_ended()
        return boundary

    def _run(self, boundary: Boundary) -> bool:
        """Decode, encode, step. False when something broke, and the boundary does not count."""
        try:
            self._decode(boundary.decode)
            with self._lock:
                self._scheduler.decoded(self._clock())
            self._tell_of_the_ended()
            self._begin(boundary.rows)
            self._step(boundary)
        except OutOfMemory as full:
            self.runner.free_memory()
            self._shrink(full)
            return False
        except Exception as bug:  # noqa: BLE001  (nobody may wait for ever, whatever it is)
            self._isolate(bug)
            return False
        self._failures = 0
        return True

    def _decode(self, ripe: Sequence[Work]) -> None:
        for work in ripe:
            if (watched := self._live(work)) is None or watched.row is None:
                continue
            try:
                if work.is_drawn:
                    self._deliver(watched, self.runner.finish(watched.row))
                else:
                    image = self.runner.preview(watched.row)
                    self._tell(watched, Progress.PREVIEW, image)
            except NotFinite as broken:
                self._fail(watched, broken)

    def _begin(self, drawn: Sequence[Work]) -> None:
        """Rows for those that have none yet. A LoRA that vanished fails its own jobs."""
        ready: list[tuple[_Watched, LoraWeights | None]] = []
        for work in drawn:
            if (watched := self._live(work)) is None or watched.row is not None:
                continue
            try:
                ready.append((watched, self._weights(watched)))
            except JobFailed as vanished:
                self._fail(watched, vanished)
        if ready:
            rows = self.runner.begin(
                [watched.ticket.request for watched, _ in ready], [lora for _, lora in ready]
            )
            for (watched, _), row in zip(ready, rows, strict=True):
                watched.row = row

    def _step(self, boundary: Boundary) -> None:
        drawn = [w for work in boundary.rows if (w := self._with_row(work)) is not None]
        if not drawn:
            return
        began = self._clock()
        self.runner.step([watched.row for watched in drawn if watched.row is not None])
        seconds = self._clock() - began
        with self._lock:
            self._scheduler.costs.observe_step(len(drawn), boundary.rows[0].tokens, seconds)
        self._observer.stepped(len(drawn), seconds)
        for watched in drawn:
            self._tell(watched, Progress.STEP)

    def _commit(self, boundary: Boundary) -> None:
        with self._lock:
            self._scheduler.commit()
        self._tell_of_the_ended()

    def _shrink(self, full: OutOfMemory) -> None:
        """Half the budget; a row that does not fit alone fails."""
        try:
            with self._lock:
                self._scheduler.halve_budget()
        except ValueError:
            self._fail_all(self._retract(), OutOfMemory(f"this image alone is too much: {full}"))

    def _isolate(self, bug: Exception) -> None:
        """Nobody knows what this is: the boundary's jobs fail, the others go on. When it happens
        again and again it is not the jobs.
        """
        log.error("a boundary failed", exc_info=bug)
        self._fail_all(self._retract(), Unexplained("the image engine failed on this image"))
        self.runner.free_memory()
        self._failures += 1
        if self._failures >= BREAKS_AFTER:
            self._break(bug)

    def _break(self, bug: BaseException) -> None:
        """Everybody is told, and nothing is taken in any more; the operator restarts it."""
        log.critical("the image engine stopped", exc_info=bug)
        self._broken = bug
        self._retract()
        self._fail_all(self._live_jobs(), Unexplained("the image engine broke down"))

    def _retract(self) -> list[Job]:
        with self._lock:
            return self._scheduler.retract()

    # --- one job ----------------------------------------------------------------------------------

    def _check(self, request: ImageRequest) -> LoraEntry | None:
        self.runner.limits.check(request)
        return self.library.find(request.lora) if request.lora is not None else None

    def _refuse_if_closed(self) -> None:
        if self._is_draining:
            self._observer.refused(Draining.reason)
            raise Draining("this server is shutting down", DRAIN_RETRY_AFTER_S)
        if self._broken is not None:
            self._observer.refused(EngineBroken.reason)
            raise EngineBroken("the image engine broke down", DRAIN_RETRY_AFTER_S)

    def _admit(
        self, request: ImageRequest, lora: LoraEntry | None, listener: Listener | None
    ) -> _Watched:
        now = self._clock()
        admitted = self._scheduler.admit(
            request,
            image_tokens=self.runner.limits.image_tokens(request.width, request.height),
            now=now,
            lora=lora.digest if lora else None,
            is_encoded=self.runner.is_encoded(request.prompt),
        )
        ticket = Ticket(admitted.job.id, request, lora, admitted.eta_s, Future())
        watched = _Watched(admitted.job, ticket, lora, listener, now)
        self._watched[admitted.job.id] = watched
        return watched

    def _tickets(self, admitted: Sequence[_Watched]) -> list[Ticket]:
        """Of one call; the ETA of each image knows of those that were taken in after it."""
        if len(admitted) > 1:
            now = self._clock()
            finish_s = self._scheduler.foresee(now)
            for watched in admitted:
                eta_s = finish_s[watched.job.id] - now
                watched.ticket = replace(watched.ticket, eta_s=eta_s)
        return [watched.ticket for watched in admitted]

    def _weights(self, watched: _Watched) -> LoraWeights | None:
        return self.library.weights(watched.lora) if watched.lora is not None else None

    def _live(self, work: Work) -> _Watched | None:
        return self._watched.get(work.order)

    def _with_row(self, work: Work) -> _Watched | None:
        watched = self._live(work)
        return watched if watched is not None and watched.row is not None else None

    def _deliver(self, watched: _Watched, image: Image) -> None:
        if watched.ticket.image.set_running_or_notify_cancel():
            watched.ticket.image.set_result(image)

    def _tell(self, watched: _Watched, kind: Progress, image: Image | None = None) -> None:
        if watched.listener is not None and watched.row is not None:
            done = watched.row.step
            watched.listener(Event(kind, done, watched.ticket.request.steps, image))

    # --- endings ----------------------------------------------------------------------------------

    def _tell_of_the_ended(self) -> None:
        """Settles everybody whose job the scheduler has ended."""
        with self._lock:
            over = [w for w in self._watched.values() if not w.job.state.is_live]
        for watched in over:
            self._end(watched)

    def _end(self, watched: _Watched) -> None:
        """Forgets a job that is over; whoever waits for it and was told nothing yet hears why."""
        with self._lock:
            if self._watched.pop(watched.job.id, None) is None:
                return
        self._observer.ended(watched.job.state, self._clock() - watched.admitted_s)
        error = watched.job.error
        image = watched.ticket.image
        if error is not None and not image.done() and image.set_running_or_notify_cancel():
            image.set_exception(error)

    def _fail(self, watched: _Watched, error: FluxError) -> None:
        with self._lock:
            if watched.job.state.is_live:
                self._scheduler.fail(watched.job, error)
        self._end(watched)

    def _fail_all(self, jobs: Sequence[Job], error: FluxError) -> None:
        for job in jobs:
            with self._lock:
                watched = self._watched.get(job.id)
            if watched is not None:
                self._fail(watched, error)

    def _live_jobs(self) -> list[Job]:
        with self._lock:
            return self._scheduler.jobs()

    # --- books ------------------------------------------------------------------------------------

    def check_integrity(self) -> None:
        """Raises AssertionError unless every job is in exactly one state and nothing is held for
        one that is over. Owner thread, or a stopped engine.
        """
        with self._lock:
            self._scheduler.check_integrity()
            live = {job.id for job in self._scheduler.jobs()}
            assert set(self._watched) == live, (
                "somebody waits for a job that is over, or nobody does"
            )
        self.runner.bank.check_integrity()


def _is_given_out(ticket: Ticket) -> bool:
    return ticket.image.done() and not ticket.image.cancelled()


def open_engine(
    spec: ModelSpec,
    config: EngineConfig,
    *,
    width: int,
    height: int,
    observer: Observer | None = None,
) -> Engine:
    """Loads the model, measures it at its usual size in pixels, and returns an engine to `start`.

    Takes seconds on a laptop, minutes for a compiled 12B model. Raises ModelUnusable.
    """
    from models.flux.lora_files import read_lora
    from models.flux.runner import Runner

    runner = Runner(spec, config)
    if config.compile:
        runner.warm_up(width, height)
    costs, budget = runner.calibrate(width, height, max_rows=config.max_rows)
    limits = BatchLimits(config.max_rows, config.token_budget or budget, config.lora_slots)
    scheduler = Scheduler(
        limits,
        costs,
        max_waiting=config.max_waiting,
        text_tokens=spec.max_sequence_length,
        patience=config.patience,
        safety=config.safety,
    )
    library = LoraLibrary(
        lambda file: read_lora(file, linears=runner.linears, max_rank=config.lora_max_rank),
        cache_bytes=config.lora_cache_bytes,
    )
    return Engine(runner, library, scheduler, observer=observer)
