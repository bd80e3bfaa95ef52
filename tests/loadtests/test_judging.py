"""The judging benchmark's figures, and its way from labels to verdicts through the real graph."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import httpx
import pytest

from loadtests.benchmarks import judging
from loadtests.benchmarks.judging import Way, answered, ask, compared, read_split, stratified
from loadtests.benchmarks.judging_scores import (
    Judged,
    Share,
    accuracy,
    balanced,
    calibration_error,
    confusion,
    majority,
    reliability,
    reviews,
)
from services.evaluation.settings import EvaluationSettings
from tests.fakes.scripted_llm import CLEAN, Act, ScriptedLLM, served

WAY = Way("zero-shot", "1", "scripted", "identity")


def judged(label: str, told: str, total: int | None = 50) -> Judged:
    return Judged("id", {"content": label}, {"content": told}, total)


@pytest.mark.parametrize(
    ("hits", "number", "low", "high"),
    [(0, 10, 0, 0.2775), (5, 10, 0.2366, 0.7634), (10, 10, 0.7225, 1), (81, 263, 0.2553, 0.3662)],
)
def test_intervals_are_wilson_s(hits: int, number: int, low: float, high: float) -> None:
    """The last is R. G. Newcombe's worked example (Statistics in Medicine 17, 1998)."""
    assert Share(hits, number).interval == pytest.approx((low, high), abs=5e-5)


def test_a_review_is_no_right_answer() -> None:
    told = [judged("pass", "pass"), judged("pass", "review"), judged("fail", "pass")]
    assert accuracy(told, "content") == Share(1, 3)
    assert reviews(told, "content") == Share(1, 3)
    assert majority(told, "content") == Share(2, 3)
    assert balanced(told, "content") == pytest.approx((0.5 + 0.0) / 2)
    assert confusion(told, "content") == {
        "fail": Counter({"pass": 1}),
        "pass": Counter({"pass": 1, "review": 1}),
    }


def test_a_stage_that_did_not_run_is_not_counted() -> None:
    skipped = Judged("id", {"content": "pass"}, {}, None)
    assert accuracy([skipped, judged("pass", "pass")], "content") == Share(1, 1)
    assert math.isnan(accuracy([skipped], "content").value)


def test_calibration_is_0_when_points_are_the_share_that_passes_and_1_when_they_are_opposite() -> (
    None
):
    honest = [judged("pass", "pass", 75)] * 3 + [judged("fail", "pass", 75)]
    assert calibration_error(honest) == pytest.approx(0.0)
    wrong = [judged("pass", "fail", 0), judged("fail", "pass", 100)]
    assert calibration_error(wrong) == pytest.approx(1.0)
    bins = reliability([*wrong, judged("pass", "review", None)])
    assert [b is not None for b in bins] == [True, *[False] * 8, True]


def test_a_subset_has_each_stratum_s_share() -> None:
    everyone = read_split("test", EvaluationSettings())
    some = stratified(everyone, 40)
    assert len({one.proposal.id for one in some}) == 40
    shares = Counter(one.stratum for one in everyone)
    for stratum, number in Counter(one.stratum for one in some).items():
        assert abs(number - 40 * shares[stratum] / len(everyone)) <= 1
    assert [o.proposal.id for o in stratified(everyone, 40)] == [o.proposal.id for o in some]
    assert len(stratified(everyone, 10_000)) == len(everyone)


async def test_answers_are_kept_and_compared(tmp_path: Path) -> None:
    """A judge that finds drugs of level 3 everywhere is right where the label fails as well."""
    labelled = stratified(read_split("test", EvaluationSettings()), 6)
    file = tmp_path / "answers.jsonl"
    with served(ScriptedLLM()) as llm:
        llm.script["DeliberationAnswer"] = Act({**CLEAN, "drugs": {"passage": 1, "level": 3}})
        async with httpx.AsyncClient(base_url=llm.base_url) as client:
            await ask(WAY, labelled[:4], file, client)
            await ask(WAY, judging.unanswered(WAY, file, labelled), file, client)
        assert not llm.calls_for("SummaryAnswer")
        assert not llm.calls_for("FeedbackAnswer")
    there = answered(WAY, file)
    assert there.keys() == {one.proposal.id for one in labelled}
    assert answered(Way("zero-shot", "1", "scripted", "another"), file) == {}
    for one in labelled:
        told = compared(one, there[one.proposal.id])
        assert told.told["deliberation"] == "fail"
        assert told.told["grade"] == "3"
        assert told.told["verdict"] == "fail"
        assert told.label["deliberation"] == one.stages[1].outcome
