"""The wire types of evaluations; a proposal itself is in services/shared/proposals.py."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from services.shared.language_model import Message, Usage
from services.shared.proposals import Wire

StageName = Literal["volume", "content", "deliberation"]
ReplayStage = Literal["volume", "content", "deliberation", "writing"]
Criterion = Literal["theme", "sexuality", "violence", "horror", "language", "drugs", "imitation"]
Aspect = Literal["message", "target", "relevance"]
CRITERIA: tuple[Criterion, ...] = (
    "theme", "sexuality", "violence", "horror", "language", "drugs", "imitation",
)  # fmt: skip


class Outcome(StrEnum):
    """What a stage or an evaluation came to. `review` means that a person has to look."""

    PASS = "pass"
    FAIL = "fail"
    REVIEW = "review"
    SKIPPED = "skipped"


class _Stage(Wire):
    outcome: Outcome
    duration_ms: float = Field(0.0, ge=0, description="Milliseconds, model calls included.")
    review_reasons: list[str] = Field(
        default_factory=list,
        description="Why a person has to look: stable names such as `timeout`, `truncated`, "
        "`invalid_answer`, `quote_not_found`, `runs_disagree`. Empty unless outcome is review.",
    )


class VolumeStage(_Stage):
    """Is there enough substance to judge? Decided without a model."""

    name: Literal["volume"] = "volume"
    characters: int | None = Field(None, ge=0, description="Characters of content, normalised.")
    distinct_ratio: float | None = Field(
        None, ge=0, le=1, description="Share of what is written that is not repetition, 0-1."
    )
    sentences: int | None = Field(None, ge=0)
    problems: list[str] = Field(default_factory=list, description="Stable names; empty on pass.")


class Reason(Wire):
    """Why a criterion of the content stage got its score."""

    criterion: Aspect
    reason: str = Field(description="At most 200 characters, in the proposal's language.")
    quote: str | None = Field(description="The sentence of the proposal that it rests on.")


class ContentStage(_Stage):
    """Does the plan hold together? Scores by a model, outcome by code."""

    name: Literal["content"] = "content"
    message: int | None = Field(None, ge=0, le=30, description="Points for a clear message.")
    target: int | None = Field(None, ge=0, le=30, description="Points for a defined audience.")
    relevance: int | None = Field(
        None, ge=0, le=40, description="Points for title, content and format fitting together."
    )
    total: int | None = Field(None, ge=0, le=100, description="Sum of the three, by code.")
    threshold: int = Field(ge=0, le=100, description="Total from which the stage passes.")
    reasons: list[Reason] = Field(default_factory=list)


class Levels(Wire):
    """KMRB's seven considerations; 0 all ages, 1 12+, 2 15+, 3 19+, 4 restricted."""

    theme: int = Field(ge=0, le=4)
    sexuality: int = Field(ge=0, le=4)
    violence: int = Field(ge=0, le=4)
    horror: int = Field(ge=0, le=4)
    language: int = Field(ge=0, le=4)
    drugs: int = Field(ge=0, le=4)
    imitation: int = Field(ge=0, le=4)


class Evidence(Wire):
    """One passage of the proposal that raises one criterion above 0."""

    criterion: Criterion
    quote: str = Field(description="Verbatim from the normalised proposal.")
    level: int = Field(ge=1, le=4)


class DeliberationStage(_Stage):
    """Which age rating would this video get? Levels by a model, grade and outcome by code."""

    name: Literal["deliberation"] = "deliberation"
    levels: Levels | None = None
    grade: int | None = Field(None, ge=0, le=4, description="The highest level, by code.")
    limit: int = Field(ge=0, le=4, description="Highest grade that passes.")
    evidence: list[Evidence] = Field(default_factory=list)
    confidence: float | None = Field(
        None, ge=0, le=1,
        description="Share of the model's claims that hold: a quote found in the text, and, "
        "where a second run was made, the same level in both.",
    )  # fmt: skip


Stage = Annotated[VolumeStage | ContentStage | DeliberationStage, Field(discriminator="name")]


class Suggestion(Wire):
    """One change that would help."""

    about: str = Field(description="What part of the proposal, at most 40 characters.")
    change: str = Field(description="What to do, at most 200 characters.")


class Feedback(Wire):
    """What to change, in the proposal's language."""

    text: str
    suggestions: list[Suggestion]
    violations: list[str] = Field(description="Deliberation criteria over the limit, with level.")


class Summary(Wire):
    """A proposal in brief, in its language."""

    title: str
    text: str
    keywords: list[str] = Field(min_length=4, max_length=8)


class Evaluation(Wire):
    """One proposal, evaluated. `feedback` comes with fail and review, `summary` with pass."""

    id: str
    parent_id: str | None = Field(None, description="The evaluation that this one replays.")
    created_at: datetime
    verdict: Literal["pass", "fail", "review"]
    decided_by: StageName | None = Field(
        description="The first stage that gave the verdict; null when every stage passed."
    )
    stages: list[Stage]
    feedback: Feedback | None
    summary: Summary | None
    model: str = Field(
        description="The served model's name. Where a stage was put to another, its step says so."
    )
    prompt_version: str = Field(description="The same holds for it.")
    usage: Usage
    duration_ms: float = Field(ge=0)


class Deliberation(Wire):
    """The deliberation of any text, without the other stages."""

    stage: DeliberationStage
    model: str = Field(description="The served model's name.")
    prompt_version: str
    usage: Usage


class Step(Wire):
    """What one node of the graph did."""

    node: str
    attempt: int = Field(ge=1, description="2 is the second run of a borderline stage.")
    started_at: datetime
    duration_ms: float
    input: dict[str, Any] = Field(description="What the node was given.")
    output: dict[str, Any] | None = Field(description="What it gave back; null if it failed.")
    messages: list[Message] = Field(description="Sent to the model; empty for a node without one.")
    reply: str | None = Field(description="The model's raw text.")
    finish_reason: str | None
    usage: Usage
    model: str | None
    prompt: str | None = Field(description="Name and version of the prompt, `content@2`.")
    error: str | None


class Steps(Wire):
    evaluation_id: str
    request_id: str = Field(description="The id under which every log line was written.")
    steps: list[Step]


class Replay(Wire):
    """Run an evaluation again from a stage, changing what is given here and nothing else."""

    from_stage: ReplayStage = Field(
        description="Stages before it keep their results; `writing` rewrites feedback or summary."
    )
    model: str | None = Field(None, min_length=1, max_length=200, description="Another model name.")
    prompt_version: str | None = Field(None, min_length=1, max_length=40)
    content_threshold: int | None = Field(None, ge=0, le=100)
    deliberation_limit: int | None = Field(None, ge=0, le=4)

    @model_validator(mode="after")
    def _writing_has_no_thresholds(self) -> Self:
        if self.from_stage == "writing" and (
            self.content_threshold is not None or self.deliberation_limit is not None
        ):
            raise ValueError("thresholds need from_stage `deliberation` or earlier")
        return self
