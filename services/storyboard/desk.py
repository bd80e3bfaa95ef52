"""What a caller may do with storyboards: ask for one, look at it, cancel it, forget it.

Knows nothing of HTTP, and nothing of how a storyboard is made.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal
from uuid import uuid4

import structlog
from langgraph.checkpoint.base import BaseCheckpointSaver

from services.shared.storage import StorageUnavailable
from services.storyboard import policy, telling
from services.storyboard.errors import ArtifactMissing, StillRunning
from services.storyboard.following import Following
from services.storyboard.metrics import Metrics
from services.storyboard.ports import Artifacts, JobStore, NewJob
from services.storyboard.schemas import MAX_SCENES, Storyboard, StoryboardRequest
from services.storyboard.settings import StoryboardSettings
from services.storyboard.worker import Worker

CHANCE_SEEDS = 2**32 - MAX_SCENES
"""Seeds that we choose are below it."""
EXPIRED_AT_ONCE = 50
log = structlog.get_logger()


@dataclass(frozen=True)
class Desk:
    settings: StoryboardSettings
    store: JobStore
    artifacts: Artifacts
    checkpointer: BaseCheckpointSaver[str]
    worker: Worker
    following: Following
    metrics: Metrics

    async def ask(
        self, owner: str, request: StoryboardRequest, idempotency_key: str | None
    ) -> tuple[Storyboard, bool]:
        """The storyboard, and True when it is new. Raises KeyReused, TooManyJobs."""
        job = NewJob(
            owner=owner,
            request=request,
            storyboard=_queued(request, self.settings),
            body_hash=_hash(request),
            idempotency_key=idempotency_key,
        )
        storyboard, is_new = await self.store.create(
            job, max_unfinished=self.settings.max_unfinished_per_key
        )
        if is_new:
            self.worker.nudge()
        return storyboard, is_new

    async def cancel(self, owner: str, job_id: str) -> Storyboard | None:
        """As it is then; None when there is none."""
        storyboard = await self.store.cancel(owner, job_id)
        if storyboard is not None:
            self.worker.let_go(job_id)
            self.following.nudge(job_id)
            await self.forget_checkpoints(job_id)
        return storyboard

    async def purge(self, owner: str, job_id: str) -> bool:
        """Cancels it where it is not finished, then deletes all of it; False when there is none."""
        if await self.cancel(owner, job_id) is None:
            return False
        return await self._delete(owner, job_id)

    async def frame(self, storyboard: Storyboard, n: int) -> bytes:
        """The PNG of scene `n`. Raises ArtifactMissing while there is none."""
        frame = policy.frame_of(storyboard, n)
        if frame is None or frame.state != "done":
            raise ArtifactMissing(f"frame {n} is not drawn")
        return await self.artifacts.get(telling.frame_path(storyboard.id, n))

    async def sheet(self, storyboard: Storyboard, form: Literal["png", "pdf"]) -> bytes:
        """Raises ArtifactMissing until the storyboard is done."""
        if storyboard.state != "done":
            raise ArtifactMissing(f"the storyboard is {storyboard.state}")
        return await self.artifacts.get(telling.sheet_path(storyboard.id, form))

    async def delete_expired(self) -> int:
        """Storyboards past their time, with everything of them. Returns how many."""
        deleted = 0
        for job_id in await self.store.expired(EXPIRED_AT_ONCE):
            deleted += await self._delete(None, job_id)
        return deleted

    async def finished(self, job_id: str) -> None:
        """Our worker brought this job to an end."""
        self.following.nudge(job_id)
        await self.forget_checkpoints(job_id)
        if (storyboard := await self.store.get(None, job_id)) is not None:
            self.metrics.ended(storyboard)

    async def forget_checkpoints(self, job_id: str) -> None:
        """A finished job is not gone on with."""
        try:
            await self.checkpointer.adelete_thread(job_id)
        except (StorageUnavailable, OSError) as error:
            log.warning("checkpoints are left behind", storyboard_id=job_id, reason=str(error))

    async def _delete(self, owner: str | None, job_id: str) -> bool:
        """Pictures first: a row without pictures is found again, pictures without a row never."""
        await self.forget_checkpoints(job_id)
        await self.artifacts.delete_all(job_id)
        try:
            return await self.store.delete(owner, job_id)
        except StillRunning:
            return False


def _queued(request: StoryboardRequest, settings: StoryboardSettings) -> Storyboard:
    now = datetime.now(UTC)
    proposal = request.proposal
    return Storyboard(
        id=uuid4().hex,
        state="queued",
        progress=0.0,
        created_at=now,
        updated_at=now,
        expires_at=now + timedelta(seconds=settings.keep_s),
        title=proposal.title,
        language=proposal.answer_language,
        style=request.style,
        width=None,
        height=None,
        seed=secrets.randbelow(CHANCE_SEEDS) if request.seed is None else request.seed,
        duration_s=settings.length_s(proposal.media_type),
        cast=[],
        settings=[],
        scenes=[],
        frames=[],
        notes=[],
        sheet_url=None,
        error=None,
        model=None,
        prompt_version=settings.prompt_version,
    )


def _hash(request: StoryboardRequest) -> str:
    """The same for requests that mean the same, whatever order their fields came in."""
    plain = json.dumps(request.model_dump(mode="json"), sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(plain.encode()).hexdigest()
