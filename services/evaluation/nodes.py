"""The nodes of the graph: each reads the state, does one thing, returns what it adds.

A node turns what its model could not do into a `review`; only an unreachable model leaves the
graph as an error, because then there is nothing to look at and everything to try again.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, NotRequired, TypedDict, TypeVar

from langgraph.config import get_stream_writer
from langgraph.runtime import Runtime
from pydantic import BaseModel

from services.evaluation import policy
from services.evaluation.answers import (
    ContentAnswer,
    DeliberationAnswer,
    FeedbackAnswer,
    SummaryAnswer,
)
from services.evaluation.journal import Journal
from services.evaluation.judging import Interviewer
from services.evaluation.schemas import (
    ContentStage,
    DeliberationStage,
    Feedback,
    Outcome,
    Stage,
    StageName,
    Suggestion,
    Summary,
    VolumeStage,
)
from services.evaluation.texts import Texts
from services.evaluation.volume import VolumeMeter, VolumeThresholds, judge
from services.shared.language_model import AnswerInvalid, ModelError, ModelRefused, ModelTimedOut
from services.shared.passages import Passages, cut, whole_sentences
from services.shared.proposals import MediaType, Proposal

S = TypeVar("S", ContentStage, DeliberationStage)
STAGES: dict[StageName, type[BaseModel]] = {
    "volume": VolumeStage,
    "content": ContentStage,
    "deliberation": DeliberationStage,
}


class Plan(TypedDict):
    """What one run is to use; part of the state, so that a replay starts from it."""

    model: str
    prompt_version: str
    content_threshold: int
    borderline_margin: int
    deliberation_limit: int
    judging: str
    models: NotRequired[dict[str, str]]
    """By stage, where a stage is not put to `model`."""
    prompt_versions: NotRequired[dict[str, str]]
    """The same for `prompt_version`."""


def model_for(plan: Plan, name: str) -> str:
    """The model that prompt `name` is put to."""
    return plan.get("models", {}).get(name, plan["model"])


def version_for(plan: Plan, name: str) -> str:
    """The version of prompt `name`."""
    return plan.get("prompt_versions", {}).get(name, plan["prompt_version"])


class State(TypedDict):
    """The graph's state: plain JSON, so that a checkpoint holds nothing but data."""

    proposal: dict[str, Any]
    plan: Plan
    volume: NotRequired[dict[str, Any]]
    content: NotRequired[dict[str, Any]]
    deliberation: NotRequired[dict[str, Any]]
    verdict: NotRequired[str]
    decided_by: NotRequired[str | None]
    feedback: NotRequired[dict[str, Any]]
    summary: NotRequired[dict[str, Any]]


@dataclass(frozen=True)
class Work:
    """What the nodes work with; handed to the graph with every run, never stored."""

    interviewer: Interviewer
    meter: VolumeMeter
    thresholds: Mapping[MediaType, VolumeThresholds]
    texts: Texts
    journal: Journal


Update = dict[str, Any]


async def volume(state: State, runtime: Runtime[Work]) -> Update:
    """Substance without a model."""
    proposal = _proposal(state)
    _announce("volume", "started")
    started = time.perf_counter()
    with runtime.context.journal.step("volume", {"proposal": state["proposal"]}) as entry:
        reading = runtime.context.meter.measure(proposal.title, proposal.content)
        judgement = judge(reading, runtime.context.thresholds[proposal.media_type])
        stage = VolumeStage(
            outcome=Outcome.PASS if judgement.is_enough else Outcome.FAIL,
            duration_ms=_since(started),
            characters=reading.characters,
            distinct_ratio=round(reading.distinct_ratio, 4),
            sentences=reading.sentences,
            problems=[str(problem) for problem in judgement.problems],
        )
        entry.output = stage.model_dump(mode="json")
    _announce("volume", stage.outcome)
    return {"volume": stage.model_dump(mode="json")}


async def content(state: State, runtime: Runtime[Work]) -> Update:
    """Does it hold together?"""
    return await _announced("content", judge_content(state, runtime.context))


async def judge_content(state: State, work: Work) -> ContentStage:
    """The stage by itself. A second run settles a borderline total. Raises ModelUnavailable."""
    plan = state["plan"]
    doubt = ContentStage(outcome=Outcome.REVIEW, threshold=plan["content_threshold"])

    async def run(attempt: int) -> ContentStage:
        answer, passages = await _ask(state, work, "content", ContentAnswer, attempt)
        return policy.content_stage(answer, passages, plan["content_threshold"])

    return await _judge(
        doubt,
        run,
        is_borderline=lambda s: policy.is_content_borderline(s, plan["borderline_margin"]),
        settle=policy.settle_content,
    )


async def deliberation(state: State, runtime: Runtime[Work]) -> Update:
    """Which rating would it get?"""
    return await _announced("deliberation", deliberate(state, runtime.context))


async def deliberate(state: State, work: Work) -> DeliberationStage:
    """The stage by itself. A second run settles a grade at the limit. Raises ModelUnavailable."""
    limit = state["plan"]["deliberation_limit"]
    doubt = DeliberationStage(outcome=Outcome.REVIEW, limit=limit)

    async def run(attempt: int) -> DeliberationStage:
        answer, passages = await _ask(state, work, "deliberation", DeliberationAnswer, attempt)
        return policy.deliberation_stage(answer, passages, limit)

    return await _judge(
        doubt,
        run,
        is_borderline=policy.is_deliberation_borderline,
        settle=policy.settle_deliberation,
    )


async def decide(state: State, runtime: Runtime[Work]) -> Update:
    """The verdict, computed."""
    with runtime.context.journal.step("decide", {}) as entry:
        verdict = policy.decide(stages_of(state))
        entry.output = {"verdict": verdict.outcome.value, "decided_by": verdict.decided_by}
    return entry.output


async def write_summary(state: State, runtime: Runtime[Work]) -> Update:
    """The proposal in brief. A pass without its summary is not complete: it becomes a review."""
    proposal = _proposal(state)
    try:
        answer = await _write(state, runtime, "summary", SummaryAnswer, ())
    except (AnswerInvalid, ModelTimedOut, ModelRefused):
        feedback = runtime.context.texts.review_feedback(proposal.answer_language)
        return {
            "verdict": Outcome.REVIEW.value,
            "decided_by": None,
            "feedback": feedback.model_dump(mode="json"),
        }
    return {"summary": summary_of(proposal, answer).model_dump(mode="json")}


async def write_feedback(state: State, runtime: Runtime[Work]) -> Update:
    """What to change. Volume and review need no model; a model that fails is not needed either."""
    work, language = runtime.context, _proposal(state).answer_language
    stages = stages_of(state)
    if state.get("verdict") == Outcome.REVIEW:
        return _say(work.texts.review_feedback(language))
    if state.get("decided_by") == "volume":
        return _say(work.texts.volume_feedback(VolumeStage(**state["volume"]), language))
    findings = tuple(work.texts.findings(stages, language))
    try:
        answer = await _write(state, runtime, "feedback", FeedbackAnswer, findings)
    except ModelError:
        return _say(work.texts.plain_feedback(stages, language))
    feedback = Feedback(
        text=whole_sentences(answer.text),
        suggestions=[Suggestion(**s.model_dump()) for s in answer.suggestions],
        violations=work.texts.violations(stages, language),
    )
    return {"feedback": feedback.model_dump(mode="json")}


def stages_of(state: State) -> list[Stage]:
    """The three stages in order; those that did not run are `skipped`."""
    plan = state["plan"]
    skipped: dict[StageName, Stage] = {
        "volume": VolumeStage(outcome=Outcome.SKIPPED),
        "content": ContentStage(outcome=Outcome.SKIPPED, threshold=plan["content_threshold"]),
        "deliberation": DeliberationStage(
            outcome=Outcome.SKIPPED, limit=plan["deliberation_limit"]
        ),
    }
    stages: list[Stage] = []
    for name, kind in STAGES.items():
        found = state.get(name)
        stages.append(kind.model_validate(found) if found else skipped[name])  # type: ignore[arg-type]
    return stages


def passages_of(proposal: Proposal) -> Passages:
    return cut(proposal.title, proposal.content, proposal.additional_features)


def summary_of(proposal: Proposal, answer: SummaryAnswer) -> Summary:
    return Summary(
        title=proposal.title, text=whole_sentences(answer.text), keywords=answer.keywords
    )


async def _judge(
    doubt: S,
    run: Callable[[int], Awaitable[S]],
    *,
    is_borderline: Callable[[S], bool],
    settle: Callable[[S, S], S],
) -> S:
    started = time.perf_counter()
    try:
        stage = await run(1)
        if is_borderline(stage):
            stage = settle(stage, await run(2))
    except (AnswerInvalid, ModelTimedOut, ModelRefused) as error:
        stage = doubt.model_copy(update={"review_reasons": [_review_reason(error)]})
    return stage.model_copy(update={"duration_ms": _since(started)})


async def _announced(
    name: StageName, judging: Awaitable[ContentStage | DeliberationStage]
) -> Update:
    _announce(name, "started")
    stage = await judging
    _announce(name, stage.outcome)
    return {name: stage.model_dump(mode="json")}


def _review_reason(error: ModelError) -> str:
    match error:
        case AnswerInvalid():
            return error.reason
        case ModelTimedOut():
            return "timeout"
        case _:
            return "refused_by_model_server"


A = TypeVar("A", bound=BaseModel)


async def _ask(
    state: State, work: Work, name: str, answer: type[A], attempt: int
) -> tuple[A, Passages]:
    plan, proposal = state["plan"], _proposal(state)
    passages = passages_of(proposal)
    with work.journal.step(name, {"proposal": state["proposal"]}, attempt) as entry:
        call = work.interviewer.call(
            name,
            version_for(plan, name),
            proposal,
            passages,
            entry,
            call_id=f"{work.journal.request_id}-{name}-{attempt}",
            model=model_for(plan, name),
        )
        return await work.interviewer.ask(call, answer, entry), passages


async def _write(
    state: State, runtime: Runtime[Work], name: str, answer: type[A], findings: tuple[str, ...]
) -> A:
    """Emits the answer's text as `token` events while it is written."""
    work, plan, proposal = runtime.context, state["plan"], _proposal(state)
    emit = get_stream_writer()
    given = {"proposal": state["proposal"], "findings": list(findings)}
    with work.journal.step(name, given) as entry:
        call = work.interviewer.call(
            name,
            version_for(plan, name),
            proposal,
            passages_of(proposal),
            entry,
            call_id=f"{work.journal.request_id}-{name}",
            model=model_for(plan, name),
            findings=findings,
        )
        async for piece in work.interviewer.stream(call, answer, entry):
            if not isinstance(piece, str):
                return piece
            emit({"event": "token", "text": piece})
    raise AnswerInvalid("empty_answer", "The model answered nothing.")


def _say(feedback: Feedback) -> Update:
    get_stream_writer()({"event": "token", "text": feedback.text})
    return {"feedback": feedback.model_dump(mode="json")}


def _announce(stage: StageName, state: str) -> None:
    get_stream_writer()({"event": "stage", "name": stage, "state": str(state)})


def _proposal(state: State) -> Proposal:
    return Proposal.model_validate(state["proposal"])


def _since(started: float) -> float:
    return round((time.perf_counter() - started) * 1000, 3)
