"""The rules that turn scores into verdicts: nothing passes by default, nothing fails unproven."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from services.evaluation import policy
from services.evaluation.answers import ASKED_AS, ContentAnswer, DeliberationAnswer
from services.evaluation.schemas import (
    CRITERIA,
    ContentStage,
    DeliberationStage,
    Levels,
    Outcome,
    Stage,
    VolumeStage,
)
from services.shared.passages import Passages

PASSAGES = Passages(("제목", "첫 문장.", "둘째 문장."))
LAST = len(PASSAGES.texts)
COMBINATIONS = list(product(Outcome, repeat=3))


def stages(*outcomes: Outcome) -> list[Stage]:
    volume, content, deliberation = outcomes
    return [
        VolumeStage(outcome=volume),
        ContentStage(outcome=content, threshold=65),
        DeliberationStage(outcome=deliberation, limit=2),
    ]


@pytest.mark.parametrize("outcomes", COMBINATIONS)
def test_a_verdict_is_the_worst_outcome(outcomes: tuple[Outcome, Outcome, Outcome]) -> None:
    verdict = policy.decide(stages(*outcomes))
    assert (verdict.outcome is Outcome.PASS) == (set(outcomes) == {Outcome.PASS})
    assert (verdict.outcome is Outcome.FAIL) == (Outcome.FAIL in outcomes)
    assert verdict.outcome is not Outcome.SKIPPED


@pytest.mark.parametrize("outcomes", COMBINATIONS)
def test_the_first_stage_with_the_verdicts_outcome_is_named(
    outcomes: tuple[Outcome, Outcome, Outcome],
) -> None:
    verdict = policy.decide(stages(*outcomes))
    decisive = verdict.outcome if verdict.outcome in outcomes else Outcome.SKIPPED
    names = ("volume", "content", "deliberation")
    expected = next((n for n, o in zip(names, outcomes, strict=True) if o is decisive), None)
    assert verdict.decided_by == (None if verdict.outcome is Outcome.PASS else expected)


@pytest.mark.parametrize("missing", range(3))
def test_without_all_three_stages_nothing_passes(missing: int) -> None:
    passed = stages(Outcome.PASS, Outcome.PASS, Outcome.PASS)
    assert policy.decide(passed[:missing]).outcome is Outcome.REVIEW


def scored(total: int, passage: int = 1) -> ContentAnswer:
    message = min(total, 30)
    target = min(total - message, 30)
    scores = {"message": message, "target": target, "relevance": total - message - target}
    return ContentAnswer.model_validate(
        {n: {"reason": "r", "passage": passage, "score": s} for n, s in scores.items()}
    )


@pytest.mark.parametrize(
    ("total", "threshold", "outcome"),
    [
        (64, 65, Outcome.FAIL),
        (65, 65, Outcome.PASS),
        (66, 65, Outcome.PASS),
        (0, 0, Outcome.PASS),
        (99, 100, Outcome.FAIL),
        (100, 100, Outcome.PASS),
    ],
)
def test_a_total_on_the_threshold_passes(total: int, threshold: int, outcome: Outcome) -> None:
    stage = policy.content_stage(scored(total), PASSAGES, threshold)
    assert (stage.outcome, stage.total, stage.threshold) == (outcome, total, threshold)


@given(st.integers(0, 100), st.integers(0, 100), st.integers(LAST + 1, 60))
def test_an_invented_passage_neither_passes_nor_fails(
    total: int, threshold: int, passage: int
) -> None:
    stage = policy.content_stage(scored(total, passage), PASSAGES, threshold)
    assert (stage.outcome, stage.review_reasons) == (Outcome.REVIEW, ["quote_not_found"])


@pytest.mark.parametrize(
    ("total", "margin", "is_borderline"),
    [
        (59, 5, False),
        (60, 5, True),
        (65, 5, True),
        (70, 5, True),
        (71, 5, False),
        (65, 0, True),
        (64, 0, False),
        (66, 0, False),
        (0, 100, True),
    ],
)
def test_content_is_borderline_up_to_the_margin(
    total: int, margin: int, is_borderline: bool
) -> None:
    stage = policy.content_stage(scored(total), PASSAGES, 65)
    assert policy.is_content_borderline(stage, margin) is is_borderline


def test_doubt_is_not_settled_by_a_second_run() -> None:
    content = policy.content_stage(scored(65, LAST + 1), PASSAGES, 65)
    deliberation = policy.deliberation_stage(claimed({"theme": (0, 2)}), PASSAGES, 2)
    assert content.outcome is deliberation.outcome is Outcome.REVIEW
    assert not policy.is_content_borderline(content, 100)
    assert not policy.is_deliberation_borderline(deliberation)


def claimed(claims: dict[str, tuple[int, int]]) -> DeliberationAnswer:
    """`claims[criterion]` is (passage, level); the others are 0 and 0."""
    body: dict[str, Any] = {}
    for criterion in CRITERIA:
        passage, level = claims.get(criterion, (0, 0))
        body[ASKED_AS.get(criterion, criterion)] = {"passage": passage, "level": level}
    return DeliberationAnswer.model_validate(body)


claims = st.fixed_dictionaries(
    {criterion: st.tuples(st.integers(0, LAST + 2), st.integers(0, 4)) for criterion in CRITERIA}
)
proven_claims = st.fixed_dictionaries(
    {criterion: st.tuples(st.integers(1, LAST), st.integers(0, 4)) for criterion in CRITERIA}
)
limits = st.integers(0, 4)


@given(claims, limits)
def test_the_grade_is_the_highest_level(claims: dict[str, tuple[int, int]], limit: int) -> None:
    stage = policy.deliberation_stage(claimed(claims), PASSAGES, limit)
    assert stage.levels is not None
    assert stage.levels.model_dump() == {c: level for c, (_, level) in claims.items()}
    assert stage.grade == max(level for _, level in claims.values())
    assert stage.confidence is not None
    assert 0 <= stage.confidence <= 1


@given(proven_claims, limits)
def test_what_is_proven_is_decided_by_the_limit(
    claims: dict[str, tuple[int, int]], limit: int
) -> None:
    stage = policy.deliberation_stage(claimed(claims), PASSAGES, limit)
    assert stage.grade is not None
    assert stage.outcome is (Outcome.FAIL if stage.grade > limit else Outcome.PASS)
    assert stage.confidence == 1.0
    assert {e.criterion for e in stage.evidence} == {c for c, (_, n) in claims.items() if n > 0}


@given(claims, limits)
def test_a_claim_without_evidence_keeps_from_passing_and_never_fails(
    claims: dict[str, tuple[int, int]], limit: int
) -> None:
    unproven = {c for c, (passage, level) in claims.items() if level and not 0 < passage <= LAST}
    assume(unproven)
    stage = policy.deliberation_stage(claimed(claims), PASSAGES, limit)
    assert stage.outcome is not Outcome.PASS
    assert not unproven & {e.criterion for e in stage.evidence}
    alone = {c: claims[c] for c in unproven}
    by_itself = policy.deliberation_stage(claimed(alone), PASSAGES, limit)
    assert (by_itself.outcome, by_itself.confidence) == (Outcome.REVIEW, 0.0)


@pytest.mark.parametrize("limit", range(5))
@pytest.mark.parametrize("level", range(5))
def test_the_limit_is_the_highest_grade_that_passes(level: int, limit: int) -> None:
    stage = policy.deliberation_stage(claimed({"drugs": (1, level)}), PASSAGES, limit)
    assert stage.outcome is (Outcome.PASS if level <= limit else Outcome.FAIL)
    at_the_limit = level > 0 and level in (limit, limit + 1)
    assert policy.is_deliberation_borderline(stage) is at_the_limit


outcomes = st.sampled_from([Outcome.PASS, Outcome.FAIL, Outcome.REVIEW])


@given(outcomes, outcomes)
def test_two_runs_pass_or_fail_only_together(one: Outcome, two: Outcome) -> None:
    first, second = (ContentStage(outcome=o, threshold=65, total=65) for o in (one, two))
    settled = policy.settle_content(first, second)
    if one is two:
        assert settled == first
    else:
        assert (settled.outcome, settled.review_reasons) == (Outcome.REVIEW, ["runs_disagree"])


@given(claims, claims, limits)
def test_two_deliberations_pass_or_fail_only_together(
    one: dict[str, tuple[int, int]], two: dict[str, tuple[int, int]], limit: int
) -> None:
    first, second = (policy.deliberation_stage(claimed(c), PASSAGES, limit) for c in (one, two))
    settled = policy.settle_deliberation(first, second)
    agree = first.outcome is second.outcome
    assert settled.outcome is (first.outcome if agree else Outcome.REVIEW)
    assert ("runs_disagree" in settled.review_reasons) is not agree
    assert (settled.grade, settled.evidence) == (first.grade, first.evidence)
    assert settled.confidence is not None
    assert first.confidence is not None
    assert 0 <= settled.confidence <= first.confidence <= 1


def test_confidence_is_the_share_of_raised_levels_that_both_runs_gave() -> None:
    first = policy.deliberation_stage(claimed({"drugs": (1, 2), "theme": (2, 1)}), PASSAGES, 2)
    second = policy.deliberation_stage(claimed({"drugs": (1, 2), "horror": (2, 1)}), PASSAGES, 2)
    assert policy.settle_deliberation(first, second).confidence == pytest.approx(1 / 3)
    assert policy.settle_deliberation(first, first).confidence == 1.0
    blank = DeliberationStage(outcome=Outcome.PASS, limit=2)
    assert policy.settle_deliberation(blank, first).confidence == 0.0


@given(st.integers(0, 4))
def test_levels_reach_the_wire_under_their_own_names(level: int) -> None:
    stage = policy.deliberation_stage(claimed({"language": (1, level)}), PASSAGES, 4)
    assert stage.levels == Levels(**{**dict.fromkeys(CRITERIA, 0), "language": level})
