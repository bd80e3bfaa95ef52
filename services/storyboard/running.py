"""Running the graph for one lease: from where its checkpoint stands, through to the end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

import structlog
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import BaseCheckpointSaver

from services.shared.language_model import LanguageModel
from services.storyboard import policy
from services.storyboard.checkpoints import LeasedCheckpoints
from services.storyboard.errors import ArtifactMissing, CheckpointStale
from services.storyboard.following import Following
from services.storyboard.graph import RECURSION_LIMIT, build_graph
from services.storyboard.patience import Patience
from services.storyboard.ports import Artifacts, Change, JobStore, Lease, Painter, Screen
from services.storyboard.schemas import Storyboard
from services.storyboard.settings import StoryboardSettings
from services.storyboard.state import State, Work
from services.storyboard.texts import Texts

log = structlog.get_logger()


@dataclass(frozen=True)
class Runner:
    settings: StoryboardSettings
    store: JobStore
    checkpointer: BaseCheckpointSaver[str]
    writer: LanguageModel
    screen: Screen
    painter: Painter
    artifacts: Artifacts
    following: Following

    async def run(self, lease: Lease) -> None:
        """Returns when the job is finished. Raises JobFailed, LeaseLost, StorageUnavailable;
        TimeoutError past the deadline.
        """
        patience = Patience(self._left_s(lease))
        async with asyncio.timeout(patience.left_s):
            try:
                await self._go_on(lease, patience)
            except (CheckpointStale, ArtifactMissing) as error:
                log.warning("begun again", reason=str(error))
                await self.checkpointer.adelete_thread(lease.job_id)
                await self._go_on(lease, patience)

    async def _go_on(self, lease: Lease, patience: Patience) -> None:
        async def require_lease() -> None:
            await self.store.renew(lease, self.settings.lease_s)

        graph = build_graph(LeasedCheckpoints(self.checkpointer, require_lease))
        config: RunnableConfig = {
            "configurable": {"thread_id": lease.job_id},
            "recursion_limit": RECURSION_LIMIT,
        }
        reached = await graph.aget_state(config)
        if reached.values and not reached.next:
            raise CheckpointStale("the graph was at its end, and the storyboard is not")
        await graph.ainvoke(
            None if reached.next else State(settled={}),
            config,
            context=self._work(lease, patience),
            durability="sync",
        )

    def _work(self, lease: Lease, patience: Patience) -> Work:
        request, settings = lease.request, self.settings
        proposal = request.proposal

        async def record(change: Callable[[Storyboard], Change]) -> Storyboard:
            now = await patience.wait_for(lambda: self.store.record(lease, change))
            self.following.nudge(lease.job_id)
            return now

        return Work(
            job_id=lease.job_id,
            request=request,
            seed=lease.storyboard.seed,
            scenes=policy.scenes_wanted(request.scenes, proposal.media_type),
            length_s=lease.storyboard.duration_s,
            tries=settings.tries,
            texts=Texts(proposal.answer_language),
            record=record,
            writer=self.writer,
            model=settings.llm_model,
            prompt_version=lease.storyboard.prompt_version,
            screen=self.screen,
            painter=self.painter,
            artifacts=self.artifacts,
            patience=patience,
            writing=asyncio.Semaphore(settings.writing_at_once),
            drawing=asyncio.Semaphore(settings.drawing_at_once),
        )

    def _left_s(self, lease: Lease) -> float:
        """Seconds until the storyboard has taken as long as it may."""
        age_s = (datetime.now(UTC) - lease.created_at).total_seconds()
        return max(0.0, self.settings.deadline_s - age_s)
