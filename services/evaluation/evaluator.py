"""The use case: runs the graph for a proposal, within bounds, and keeps what it did.

Knows nothing of HTTP. Everything it needs arrives in the constructor.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, cast
from uuid import uuid4

import structlog
from langchain_core.runnables import RunnableConfig

from services.evaluation.answers import SummaryAnswer
from services.evaluation.graph import FORGOTTEN, RECURSION_LIMIT, RESUME_AFTER, Graph
from services.evaluation.journal import Journal
from services.evaluation.judging import Interviewer
from services.evaluation.nodes import (
    Plan,
    State,
    Work,
    deliberate,
    model_for,
    passages_of,
    stages_of,
    summary_of,
    version_for,
)
from services.evaluation.ports import EvaluationStore
from services.evaluation.schemas import Deliberation, Evaluation, Replay, Steps, Summary
from services.evaluation.settings import EvaluationSettings
from services.evaluation.texts import Texts
from services.evaluation.volume import VolumeMeter
from services.shared.language_model import ModelUnavailable
from services.shared.proposals import Proposal
from services.shared.streaming import Event, told

JUDGES = ("content", "deliberation")
log = structlog.get_logger()


class Busy(Exception):
    """As many evaluations run as are allowed; nothing was started."""


class NothingToReplay(Exception):
    """The evaluation has no checkpoint, or not the stages that the replay builds on."""


@dataclass(frozen=True)
class _Run:
    """One evaluation under way. `state` is the graph's input; None resumes a prepared thread."""

    id: str
    parent_id: str | None
    state: State | None
    plan: Plan
    journal: Journal
    created_at: datetime
    started: float


class Evaluator:
    def __init__(
        self,
        settings: EvaluationSettings,
        *,
        graph: Graph,
        interviewer: Interviewer,
        meter: VolumeMeter,
        store: EvaluationStore,
    ) -> None:
        self._settings = settings
        self._graph = graph
        self._interviewer = interviewer
        self._meter = meter
        self._store = store
        self._texts = Texts()
        self._running = 0

    async def evaluate(self, proposal: Proposal, request_id: str) -> Evaluation:
        """Raises Busy, ModelUnavailable, StorageUnavailable; TimeoutError past the deadline."""
        async with self._admitted():
            run = await self._begin(proposal, request_id)
            return await self._finish(run)

    def stream(self, proposal: Proposal, request_id: str) -> AsyncIterator[Event]:
        """Events as they happen; the last is {"event": "result", "evaluation": Evaluation}.

        Raises as `evaluate` does. Closing the iterator ends the evaluation and its model calls.
        """

        async def run(emit: Callable[[Event], None]) -> Evaluation:
            async with self._admitted():
                return await self._finish(await self._begin(proposal, request_id), emit)

        return told(run, "evaluation")

    async def replay(self, evaluation_id: str, replay: Replay, request_id: str) -> Evaluation:
        """Runs `evaluation_id` again from a stage. Raises NothingToReplay, UnknownPrompt."""
        async with self._admitted():
            run = await self._resume(evaluation_id, replay, request_id)
            return await self._finish(run)

    async def summarize(self, proposal: Proposal, request_id: str) -> Summary:
        """The summary alone, without a verdict. Raises the ModelError family."""
        async with self._admitted(), asyncio.timeout(self._settings.deadline_s):
            journal = Journal(request_id)
            with journal.step("summary", {}) as entry:
                call = self._interviewer.call(
                    "summary",
                    self._settings.prompt_version,
                    proposal,
                    passages_of(proposal),
                    entry,
                    call_id=f"{request_id}-summary",
                    model=self._settings.llm_model,
                )
                answer = await self._interviewer.ask(call, SummaryAnswer, entry)
            return summary_of(proposal, answer)

    async def deliberate(self, proposal: Proposal, request_id: str) -> Deliberation:
        """The deliberation alone, of any text in a proposal's shape; nothing is stored.

        Raises Busy, ModelUnavailable; TimeoutError past the deadline.
        """
        async with self._admitted(), asyncio.timeout(self._settings.deadline_s):
            journal, plan = Journal(request_id), await self._plan()
            state = State(proposal=proposal.model_dump(mode="json"), plan=plan)
            return Deliberation(
                stage=await deliberate(state, self._work(journal)),
                model=model_for(plan, "deliberation"),
                prompt_version=version_for(plan, "deliberation"),
                usage=journal.usage,
            )

    @asynccontextmanager
    async def _admitted(self) -> AsyncIterator[None]:
        if self._running >= self._settings.max_concurrent:
            raise Busy
        self._running += 1
        try:
            yield
        finally:
            self._running -= 1

    async def _plan(self) -> Plan:
        settings = self._settings
        model = settings.llm_model or await self._interviewer.model.default_model()
        return Plan(
            model=model,
            prompt_version=settings.prompt_version,
            models={name: settings.model_for(name) or model for name in JUDGES},
            prompt_versions={name: settings.version_for(name) for name in JUDGES},
            content_threshold=self._settings.content_threshold,
            borderline_margin=self._settings.borderline_margin,
            deliberation_limit=self._settings.deliberation_limit,
            judging=self._settings.judging,
        )

    async def _begin(self, proposal: Proposal, request_id: str) -> _Run:
        state = State(proposal=proposal.model_dump(mode="json"), plan=await self._plan())
        return _new_run(None, state, request_id)

    async def _resume(self, parent_id: str, replay: Replay, request_id: str) -> _Run:
        parent = await self._graph.aget_state(_config(parent_id))
        if not parent.values:
            raise NothingToReplay(f"Evaluation {parent_id} left no checkpoint to start from.")
        plan = _changed(parent.values["plan"], replay)
        self._interviewer.library.get(plan["prompt_version"], "content")
        kept = {
            key: value
            for key, value in parent.values.items()
            if key not in FORGOTTEN[replay.from_stage]
        }
        state = State(**{**kept, "plan": plan})  # type: ignore[typeddict-item]
        run = _new_run(parent_id, state, request_id)
        if replay.from_stage == "volume":
            return run
        if state["volume"]["outcome"] == "fail" and replay.from_stage != "writing":
            raise NothingToReplay(
                f"Evaluation {parent_id} ended at volume; replay it from_stage volume."
            )
        await self._graph.aupdate_state(_config(run.id), dict(state), as_node=RESUME_AFTER)
        return replace(run, state=None)

    def _work(self, journal: Journal) -> Work:
        return Work(
            interviewer=self._interviewer,
            meter=self._meter,
            thresholds=self._settings.volume_thresholds(),
            texts=self._texts,
            journal=journal,
        )

    async def _finish(self, run: _Run, emit: Any = None) -> Evaluation:
        log.info("evaluation started", evaluation_id=run.id, parent_id=run.parent_id)
        state: dict[str, Any] = {}
        async with asyncio.timeout(self._settings.deadline_s):
            async for mode, data in self._graph.astream(
                run.state,
                _config(run.id),
                context=self._work(run.journal),
                stream_mode=["custom", "values"],
                durability="exit",
            ):
                if mode == "values":
                    state = cast(dict[str, Any], data)
                elif emit is not None:
                    emit(data)
            evaluation = _evaluation(run, state)
            steps = Steps(
                evaluation_id=run.id, request_id=run.journal.request_id, steps=run.journal.steps
            )
            await self._store.save(evaluation, steps)
        log.info(
            "evaluation finished",
            evaluation_id=run.id,
            verdict=evaluation.verdict,
            decided_by=evaluation.decided_by,
            duration_ms=evaluation.duration_ms,
            **evaluation.usage.model_dump(),
        )
        return evaluation


def _new_run(parent_id: str | None, state: State, request_id: str) -> _Run:
    return _Run(
        id=uuid4().hex,
        parent_id=parent_id,
        state=state,
        plan=state["plan"],
        journal=Journal(request_id),
        created_at=datetime.now(UTC),
        started=time.perf_counter(),
    )


def _config(thread_id: str) -> RunnableConfig:
    """The thread is the evaluation's id, which only the server chooses."""
    return {"configurable": {"thread_id": thread_id}, "recursion_limit": RECURSION_LIMIT}


def _changed(plan: Plan, replay: Replay) -> Plan:
    """`plan` with what the replay gives; another model or prompt version is for every stage."""
    given = replay.model_dump(exclude={"from_stage"}, exclude_none=True)
    by_stage: dict[str, Any] = {"models": {}} if replay.model else {}
    by_stage |= {"prompt_versions": {}} if replay.prompt_version else {}
    return cast(Plan, {**plan, **given, **by_stage})


def _evaluation(run: _Run, state: Any) -> Evaluation:
    if "verdict" not in state:
        raise ModelUnavailable("The graph ended without a verdict.")
    return Evaluation.model_validate(
        {
            "id": run.id,
            "parent_id": run.parent_id,
            "created_at": run.created_at,
            "verdict": state["verdict"],
            "decided_by": state.get("decided_by"),
            "stages": stages_of(state),
            "feedback": state.get("feedback"),
            "summary": state.get("summary"),
            "model": run.plan["model"],
            "prompt_version": run.plan["prompt_version"],
            "usage": run.journal.usage,
            "duration_ms": round((time.perf_counter() - run.started) * 1000, 3),
        }
    )
