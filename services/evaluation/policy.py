"""The rules that turn scores and levels into outcomes. Pure: no model, no clock, no I/O.

A verdict is computed here and nowhere else. Whatever is missing or does not add up becomes
`review`; nothing becomes `pass` by default.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from services.evaluation.answers import ContentAnswer, DeliberationAnswer
from services.evaluation.schemas import (
    CRITERIA,
    ContentStage,
    DeliberationStage,
    Evidence,
    Levels,
    Outcome,
    Reason,
    Stage,
    StageName,
)
from services.shared.passages import Passages

# The second run of a borderline stage must be able to differ from the first, which is greedy.
SECOND_RUN_TEMPERATURE = 0.7
SECOND_RUN_SEED = 2


def content_stage(answer: ContentAnswer, passages: Passages, threshold: int) -> ContentStage:
    """The stage that one answer amounts to. A reason that rests on no passage is kept: a missing
    audience has no sentence to quote. A passage that does not exist is `quote_not_found`.
    """
    judged = answer.judged()
    total = sum(part.score for part in judged.values())
    invented = any(part.passage > len(passages.texts) for part in judged.values())
    return ContentStage(
        outcome=Outcome.REVIEW if invented else _passes(total >= threshold),
        message=answer.message.score,
        target=answer.target.score,
        relevance=answer.relevance.score,
        total=total,
        threshold=threshold,
        reasons=[
            Reason(criterion=name, reason=part.reason, quote=passages.quote(part.passage))
            for name, part in judged.items()
        ],
        review_reasons=["quote_not_found"] if invented else [],
    )


def deliberation_stage(
    answer: DeliberationAnswer, passages: Passages, limit: int
) -> DeliberationStage:
    """The stage that one answer amounts to. The grade is the highest of the seven levels, as
    KMRB computes it (so did 99.9 % of its published decisions, crawled from its public API).

    A level above 0 without a passage is a claim without evidence: it can never fail a proposal,
    and it keeps it from passing.
    """
    claims = answer.claims()
    raised = {c: claim for c, claim in claims.items() if claim.level > 0}
    held = {c: claim for c, claim in raised.items() if passages.quote(claim.passage)}
    grade = max((claim.level for claim in claims.values()), default=0)
    proven = max((claim.level for claim in held.values()), default=0)
    if proven > limit:
        outcome, review = Outcome.FAIL, []
    elif len(held) < len(raised):
        outcome, review = Outcome.REVIEW, ["quote_not_found"]
    else:
        outcome, review = Outcome.PASS, []
    return DeliberationStage(
        outcome=outcome,
        levels=Levels(**{c: claims[c].level for c in CRITERIA}),
        grade=grade,
        limit=limit,
        evidence=[
            Evidence(criterion=c, quote=passages.quote(claim.passage) or "", level=claim.level)
            for c, claim in held.items()
        ],
        confidence=len(held) / len(raised) if raised else 1.0,
        review_reasons=review,
    )


def is_content_borderline(stage: ContentStage, margin: int) -> bool:
    """True when the total is so close to the threshold that one run does not decide."""
    return (
        stage.outcome is not Outcome.REVIEW
        and stage.total is not None
        and abs(stage.total - stage.threshold) <= margin
    )


def is_deliberation_borderline(stage: DeliberationStage) -> bool:
    """True when the grade is the last that passes or the first that fails, and not 0."""
    return (
        stage.outcome is not Outcome.REVIEW
        and stage.grade is not None
        and stage.grade > 0
        and stage.grade in (stage.limit, stage.limit + 1)
    )


def settle_content(first: ContentStage, second: ContentStage) -> ContentStage:
    """The first run, or `review` when the second came to another outcome."""
    if first.outcome == second.outcome:
        return first
    return first.model_copy(update={"outcome": Outcome.REVIEW, "review_reasons": ["runs_disagree"]})


def settle_deliberation(first: DeliberationStage, second: DeliberationStage) -> DeliberationStage:
    """As settle_content; confidence becomes the share of raised levels on which both agree."""
    agreed = _agreement(first.levels, second.levels)
    update: dict[str, object] = {"confidence": min(first.confidence or 0.0, agreed)}
    if first.outcome != second.outcome:
        update |= {"outcome": Outcome.REVIEW, "review_reasons": ["runs_disagree"]}
    return first.model_copy(update=update)


def _agreement(first: Levels | None, second: Levels | None) -> float:
    if first is None or second is None:
        return 0.0
    one, two = first.model_dump(), second.model_dump()
    raised = [c for c in CRITERIA if one[c] or two[c]]
    return sum(one[c] == two[c] for c in raised) / len(raised) if raised else 1.0


@dataclass(frozen=True)
class Verdict:
    outcome: Outcome
    decided_by: StageName | None


def decide(stages: Sequence[Stage]) -> Verdict:
    """One failure fails; else one doubt is a review; else, when all three passed, it passes.

    The stage named is the first, in the order of the stages, that has the verdict's outcome.
    """
    for outcome in (Outcome.FAIL, Outcome.REVIEW):
        for stage in stages:
            if stage.outcome is outcome:
                return Verdict(outcome, stage.name)
    if len(stages) == 3 and all(stage.outcome is Outcome.PASS for stage in stages):
        return Verdict(Outcome.PASS, None)
    missing = next((stage.name for stage in stages if stage.outcome is Outcome.SKIPPED), None)
    return Verdict(Outcome.REVIEW, missing)


def _passes(condition: bool) -> Outcome:
    return Outcome.PASS if condition else Outcome.FAIL
