"""The table of rules: what it gives, and what may never change it."""

from __future__ import annotations

import itertools
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.shared.prompt_files import LANGUAGES
from services.vetting.policy import (
    FEW_UPLOADS,
    RULES,
    SURE,
    Case,
    Dated,
    decide,
    level_of,
    rating_level,
)
from services.vetting.schemas import HARMS, Finding, Unseen
from services.vetting.texts import Texts

TODAY = datetime(2026, 11, 24, tzinfo=UTC)
GRAVITY = {"pass": 0, "review": 1, "fail": 2}


def videos(*days_ago: float) -> list[Dated]:
    return [Dated(f"v{n}", TODAY - timedelta(days=days)) for n, days in enumerate(days_ago)]


def found(video: int | None, category: str, level: int, **other: Any) -> Finding:
    return Finding(
        **{
            "video_id": None if video is None else f"v{video}",
            "source": "channel" if video is None else "title",
            "category": category,
            "level": level,
            "quote": "…",
            "box": None,
            "confidence": 1.0,
            **other,
        }
    )


def case(findings: list[Finding], days_ago: tuple[float, ...] = (1, 8, 15, 22)) -> Case:
    return Case(videos=videos(*days_ago), findings=findings)


def outcome(judged: Case) -> tuple[str, str]:
    verdict, applied = decide(judged)
    return verdict, applied[0].code


@pytest.mark.parametrize(
    ("findings", "expected"),
    [
        ([], ("pass", "nothing_found")),
        ([found(0, "violence", 1)], ("pass", "nothing_found")),
        ([found(0, "violence", 2)], ("review", "moderate")),
        ([found(None, "gambling", 2)], ("review", "moderate")),
        ([found(0, "language", 3)], ("review", "strong")),
        ([found(n, "language", 3) for n in range(2)], ("review", "strong")),
        ([found(n, "language", 3) for n in range(3)], ("fail", "sustained")),
        # Three kinds of it are no practice of one kind.
        (
            [found(n, c, 3) for n, c in enumerate(("language", "horror", "drugs"))],
            ("review", "strong"),
        ),
        # One place, however often, can be one mistake.
        ([found(0, "hate", 4), found(0, "hate", 4, source="tags")], ("review", "strong")),
        ([found(0, "hate", 4), found(1, "fraud", 4)], ("fail", "grave")),
        ([found(0, "hate", 4), found(None, "hate", 4)], ("fail", "grave")),
        ([found(n, "age_restricted", 3) for n in range(2)], ("review", "age_restricted")),
        ([found(n, "age_restricted", 3) for n in range(3)], ("fail", "mostly_age_restricted")),
        ([found(0, "content_rating", 1)], ("pass", "nothing_found")),
        ([found(0, "content_rating", 3)], ("review", "moderate")),
        ([found(0, "made_for_kids", 0)], ("pass", "nothing_found")),
        ([found(None, "made_for_kids", 0)], ("review", "made_for_kids")),
        ([found(n, "synthetic_media", 0) for n in range(2)], ("pass", "nothing_found")),
        ([found(n, "synthetic_media", 0) for n in range(3)], ("review", "mostly_synthetic")),
        ([found(n, "paid_placement", 0) for n in range(4)], ("pass", "nothing_found")),
        ([found(None, "hidden_statistics", 0)], ("pass", "nothing_found")),
        ([found(None, "few_uploads", 0)], ("review", "few_uploads")),
    ],
)
def test_the_table(findings: list[Finding], expected: tuple[str, str]) -> None:
    assert outcome(case(findings)) == expected


def test_one_moderate_video_in_many_says_nothing() -> None:
    many = tuple(float(n) for n in range(20))
    assert outcome(case([found(n, "drugs", 2) for n in range(3)], many))[0] == "pass"
    assert outcome(case([found(n, "drugs", 2) for n in range(4)], many))[0] == "review"


@pytest.mark.parametrize("doubt", [{"confidence": SURE - 0.01}, {"confidence": 0.0}])
def test_what_is_not_sure_fails_nobody(doubt: dict[str, float]) -> None:
    graves = [found(n, "hate", 4, **doubt) for n in range(4)]
    assert outcome(case(graves)) == ("review", "strong")


def test_what_is_old_fails_nobody_who_went_on() -> None:
    graves = [found(n, "hate", 4) for n in (2, 3)]
    assert outcome(case(graves, (1, 30, 367, 400))) == ("review", "strong")
    # Who went silent is judged by the last year that there was.
    assert outcome(case(graves, (701, 730, 900, 1000))) == ("fail", "grave")


def test_what_is_reported_is_15_at_most() -> None:
    assert [level_of(level, is_reported=True) for level in range(5)] == [0, 1, 2, 2, 2]
    assert [level_of(level, is_reported=False) for level in range(5)] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("what", ["video:v0", "uploads", "text:v0", "thumbnail:v3"])
def test_what_was_not_looked_at_is_a_review(what: str) -> None:
    unseen = [Unseen(what=what, why="anything")]
    for may_lack_vision in (False, True):
        judged = Case(videos(1, 2, 3, 4), [], not_looked_at=unseen, may_lack_vision=may_lack_vision)
        assert outcome(judged) == ("review", "not_looked_at")


def test_only_the_operator_lets_pictures_go_unseen() -> None:
    blind = replace(case([]), not_looked_at=[Unseen(what="thumbnails", why="no_vision_model")])
    assert outcome(blind) == ("review", "no_vision_model")
    assert outcome(replace(blind, may_lack_vision=True)) == ("pass", "nothing_found")


def test_looks_that_disagree_are_a_review() -> None:
    assert outcome(replace(case([]), disagreements=["text:v0"])) == ("review", "looks_disagree")


findings = st.lists(
    st.builds(
        found,
        st.one_of(st.none(), st.integers(0, 4)),
        st.sampled_from([*HARMS, "age_restricted", "content_rating", "made_for_kids"]),
        st.integers(0, 4),
        confidence=st.sampled_from([0.0, 0.5, 0.95, 1.0]),
    ),
    max_size=8,
)
cases = st.builds(
    Case,
    videos=st.lists(st.floats(0, 2000), min_size=5, max_size=5).map(lambda days: videos(*days)),
    findings=findings,
    not_looked_at=st.lists(
        st.builds(Unseen, what=st.just("text:v0"), why=st.just("t")), max_size=1
    ),
    disagreements=st.lists(st.just("text:v1"), max_size=1),
    may_lack_vision=st.booleans(),
)


@given(cases, findings)
def test_more_evidence_never_helps(judged: Case, more: list[Finding]) -> None:
    worse = replace(judged, findings=[*judged.findings, *more])
    assert GRAVITY[decide(worse)[0]] >= GRAVITY[decide(judged)[0]]


@given(cases)
def test_a_gap_never_helps(judged: Case) -> None:
    gap = replace(judged, not_looked_at=[Unseen(what="video:x", why="timeout")])
    assert decide(gap)[0] != "pass"
    assert GRAVITY[decide(gap)[0]] >= GRAVITY[decide(judged)[0]]


@given(cases)
def test_the_gravest_reason_is_told_first_and_decides(judged: Case) -> None:
    verdict, applied = decide(judged)
    gravities = [GRAVITY[rule.verdict] for rule in applied]
    assert gravities == sorted(gravities, reverse=True)
    assert applied[0].verdict == verdict


@given(cases)
def test_every_reason_has_a_sentence_in_both_languages(judged: Case) -> None:
    texts = Texts()
    for language, rule in itertools.product(LANGUAGES, decide(judged)[1]):
        sentence = texts.reason(language, rule.code, rule.values)
        assert sentence
        assert "{" not in sentence


def test_no_rule_lacks_its_sentence() -> None:
    values = dict.fromkeys(
        ("videos", "of", "places", "findings", "needed", "categories", "category"), 1
    )
    for language, code in itertools.product(
        LANGUAGES, [*(rule.code for rule in RULES), "nothing_found"]
    ):
        assert Texts().reason(language, code, values)


def test_ratings() -> None:
    assert rating_level("kmrbTeenr") == 3
    assert rating_level("kmrbAll") == 0
    assert rating_level("kmrbUnrated") == 0
    # A body whose grades nobody mapped is for a person, where it is many videos.
    assert rating_level("someboardX") == 2


def test_few_uploads_are_fewer_than_the_first_backend_took() -> None:
    assert FEW_UPLOADS == 4
