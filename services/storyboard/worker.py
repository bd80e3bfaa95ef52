"""Takes jobs up, works on them while their leases last, and gives them back when it stops.

What happens to a job between these lines is in the graph; what a crash leaves, another worker (or
this one, started again) takes up when the lease has run out.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial

import structlog

from services.shared.storage import StorageUnavailable
from services.storyboard import telling
from services.storyboard.errors import JobFailed, LeaseLost
from services.storyboard.ports import Change, JobStore, Lease
from services.storyboard.schemas import Failure, Storyboard
from services.storyboard.settings import StoryboardSettings
from services.storyboard.texts import Texts

RENEWALS_A_LEASE = 3
LONGEST_RENEWAL_S = 1.0
"""A job that was cancelled at another replica is let go within this time."""
SURE_OF_LEASE = 0.8
"""Share of a lease after which a worker that could not renew it stops by itself."""
AFTER_A_FAULT_S = 2.0
log = structlog.get_logger()


@dataclass
class Worker:
    """Works on up to `max_running` jobs. `work_on` returns when the job is finished; it raises
    JobFailed, TimeoutError past the deadline, LeaseLost, StorageUnavailable.
    """

    store: JobStore
    settings: StoryboardSettings
    work_on: Callable[[Lease], Awaitable[None]]
    finished: Callable[[str], Awaitable[None]] | None = None
    """Told of every job that this worker brought to an end."""
    _jobs: dict[str, asyncio.Task[None]] = field(default_factory=dict)
    _wake: asyncio.Event = field(default_factory=asyncio.Event)

    def nudge(self) -> None:
        """There may be something to do."""
        self._wake.set()

    def let_go(self, job_id: str) -> None:
        """Stops work on a job that was cancelled here; another replica's stops by itself."""
        if (job := self._jobs.get(job_id)) is not None:
            job.cancel()

    async def run(self) -> None:
        """Until cancelled; then every job is given back."""
        try:
            while True:
                self._wake.clear()
                await self._take_up_jobs()
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._wake.wait(), self.settings.poll_s)
        finally:
            await self._give_back()

    async def _take_up_jobs(self) -> None:
        while len(self._jobs) < self.settings.max_running:
            try:
                lease = await self.store.claim(
                    self.settings.worker(),
                    self.settings.lease_s,
                    max_running=self.settings.max_running_per_key,
                )
            except StorageUnavailable as error:
                log.warning("no jobs can be had", reason=str(error))
                return
            if lease is None:
                return
            job = asyncio.create_task(self._hold(lease))
            self._jobs[lease.job_id] = job
            job.add_done_callback(partial(self._ended, lease.job_id))

    def _ended(self, job_id: str, _job: asyncio.Task[None]) -> None:
        self._jobs.pop(job_id, None)
        self.nudge()

    async def _give_back(self) -> None:
        jobs = list(self._jobs.values())
        for job in jobs:
            job.cancel()
        if jobs:
            await asyncio.wait(jobs)

    async def _hold(self, lease: Lease) -> None:
        """Works on one job. Never raises: what is left of it is for the next claim."""
        structlog.contextvars.bind_contextvars(storyboard_id=lease.job_id)
        log.info("storyboard taken up", attempt=lease.attempts, state=lease.storyboard.state)
        working = asyncio.ensure_future(self._worked(lease))
        renewing = asyncio.ensure_future(self._renewed(lease))
        try:
            await asyncio.wait({working, renewing}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            working.cancel()
            renewing.cancel()
            await asyncio.wait({working, renewing})
            with suppress(StorageUnavailable):
                await self.store.release(lease)
            log.info("storyboard let go")

    async def _worked(self, lease: Lease) -> None:
        try:
            if lease.attempts > self.settings.max_claims:
                texts = Texts(lease.storyboard.language)
                raise texts.failure("worker_crashed")
            await self.work_on(lease)
        except LeaseLost:
            log.info("another has the storyboard, or it was cancelled")
            return
        except (JobFailed, TimeoutError) as error:
            await self._fail(lease, error)
        except StorageUnavailable as error:
            log.warning("the database is away", reason=str(error))
            await asyncio.sleep(AFTER_A_FAULT_S)
            return
        except Exception as error:
            log.error("unexpected error", exc_info=error)
            await asyncio.sleep(AFTER_A_FAULT_S)
            return
        if self.finished is not None:
            await self.finished(lease.job_id)

    async def _fail(self, lease: Lease, error: JobFailed | TimeoutError) -> None:
        texts = Texts(lease.storyboard.language)
        failed = error if isinstance(error, JobFailed) else texts.failure("deadline")
        log.warning("storyboard failed", code=failed.code, reason=str(error))

        def end(now: Storyboard) -> Change:
            failure = Failure(code=failed.code, message=str(failed))
            ended = now.model_copy(update={"state": "failed", "error": failure})
            return Change(ended, (telling.error(ended),))

        with suppress(LeaseLost, StorageUnavailable):  # the next claim fails it again
            await self.store.record(lease, end)

    async def _renewed(self, lease: Lease) -> None:
        """Returns when the lease is lost, or when nobody can tell whether it is."""
        lease_s = self.settings.lease_s
        sure_until = time.monotonic() + SURE_OF_LEASE * lease_s
        while True:
            await asyncio.sleep(min(lease_s / RENEWALS_A_LEASE, LONGEST_RENEWAL_S))
            began = time.monotonic()
            try:
                async with asyncio.timeout(max(0.1, sure_until - began)):
                    await self.store.renew(lease, lease_s)
                sure_until = began + SURE_OF_LEASE * lease_s
            except LeaseLost:
                log.info("the lease is lost")
                return
            except (StorageUnavailable, TimeoutError) as error:
                if time.monotonic() >= sure_until:
                    log.warning("the lease may be lost", reason=str(error))
                    return
