"""A model that misbehaves: the answer is `review` or a 503, never `pass`, never a trace."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from tests.fakes.scripted_llm import CLEAN, GOOD_CONTENT, Act, ScriptedLLM, hang_up

FENCED = "```json\n" + json.dumps(GOOD_CONTENT, ensure_ascii=False) + "\n```"


def over(criterion: str, **change: Any) -> dict[str, Any]:
    return {**GOOD_CONTENT, criterion: {**GOOD_CONTENT[criterion], **change}}


CONTENT_FAULTS = {
    "the string false": (Act('"false"'), "invalid_answer"),
    "false as a field": (Act({**GOOD_CONTENT, "message": "false"}), "invalid_answer"),
    "code fences": (Act(FENCED), "invalid_answer"),
    "score out of range": (Act(over("message", score=31)), "invalid_answer"),
    "negative score": (Act(over("target", score=-1)), "invalid_answer"),
    "score as text": (Act(over("target", score="30")), "invalid_answer"),
    "score as a fraction": (Act(over("target", score=29.5)), "invalid_answer"),
    "a score too many": (Act({**GOOD_CONTENT, "verdict": "pass"}), "invalid_answer"),
    "a score missing": (Act({"message": GOOD_CONTENT["message"]}), "invalid_answer"),
    "no reason": (Act(over("message", reason="")), "invalid_answer"),
    "nothing": (Act(""), "empty_answer"),
    "white space": (Act(" \n" * 400), "empty_answer"),
    "endless white space": (Act("{" + "\n" * 900, finish_reason="length"), "truncated"),
    "cut off": (Act(json.dumps(GOOD_CONTENT)[:60], finish_reason="length"), "truncated"),
    "whole but marked as cut off": (Act(GOOD_CONTENT, finish_reason="length"), "truncated"),
    "filtered": (Act(GOOD_CONTENT, finish_reason="content_filter"), "truncated"),
    "a passage that is not there": (Act(over("message", passage=59)), "quote_not_found"),
    "too late": (Act(GOOD_CONTENT, delay_s=3.0), "timeout"),
    "too long for the model": (Act(status=400), "refused_by_model_server"),
}


@pytest.mark.parametrize("fault", CONTENT_FAULTS)
def test_a_content_answer_that_does_not_count_is_a_review(
    fault: str, client: httpx.Client, llm: ScriptedLLM, proposal: dict[str, Any]
) -> None:
    act, reason = CONTENT_FAULTS[fault]
    llm.script["ContentAnswer"] = act
    answer = client.post("/v1/proposals/evaluate", json=proposal)
    assert answer.status_code == 200
    evaluation = answer.json()
    assert evaluation["verdict"] == "review"
    assert evaluation["decided_by"] == "content"
    assert evaluation["stages"][1]["review_reasons"] == [reason]
    assert evaluation["summary"] is None


DELIBERATION_FAULTS = {
    "a level without a passage": Act({**CLEAN, "violence": {"passage": 0, "level": 2}}),
    "a high level without a passage": Act({**CLEAN, "violence": {"passage": 0, "level": 4}}),
    "a passage that is not there": Act({**CLEAN, "drugs": {"passage": 60, "level": 1}}),
    "a level out of range": Act({**CLEAN, "drugs": {"passage": 1, "level": 5}}),
    "the string false": Act("false"),
    "a criterion missing": Act({k: v for k, v in CLEAN.items() if k != "horror"}),
    "nothing": Act(""),
}


@pytest.mark.parametrize("fault", DELIBERATION_FAULTS)
def test_a_deliberation_answer_that_does_not_add_up_is_a_review(
    fault: str, client: httpx.Client, llm: ScriptedLLM, proposal: dict[str, Any]
) -> None:
    llm.script["DeliberationAnswer"] = DELIBERATION_FAULTS[fault]
    evaluation = client.post("/v1/proposals/evaluate", json=proposal).json()
    assert (evaluation["verdict"], evaluation["decided_by"]) == ("review", "deliberation")


def test_deliberation_can_reject(
    client: httpx.Client, llm: ScriptedLLM, proposal: dict[str, Any]
) -> None:
    """The first backend's third stage never could: bool("false") is True."""
    llm.script["DeliberationAnswer"] = Act({**CLEAN, "imitation": {"passage": 2, "level": 4}})
    evaluation = client.post("/v1/proposals/evaluate", json=proposal).json()
    assert (evaluation["verdict"], evaluation["decided_by"]) == ("fail", "deliberation")
    evidence = evaluation["stages"][2]["evidence"]
    assert evidence[0]["quote"] in proposal["content"]
    assert evaluation["feedback"]["violations"]


@pytest.mark.parametrize("status", [429, 500, 502, 503])
@pytest.mark.parametrize("schema", ["ContentAnswer", "DeliberationAnswer", "SummaryAnswer"])
def test_an_unavailable_model_is_a_503_with_retry_after(
    status: int, schema: str, client: httpx.Client, llm: ScriptedLLM, proposal: dict[str, Any]
) -> None:
    llm.script[schema] = Act(status=status, headers={"Retry-After": "7"})
    answer = client.post("/v1/proposals/evaluate", json=proposal)
    assert answer.status_code == 503
    assert answer.headers["Retry-After"] == "7"
    assert answer.json()["code"] == "model_unavailable"
    assert "scripted" not in answer.text


def test_a_model_that_dies_while_it_answers_is_a_503(
    client: httpx.Client, llm: ScriptedLLM, proposal: dict[str, Any]
) -> None:
    llm.script["ContentAnswer"] = Act(GOOD_CONTENT, dies_after=0)
    answer = client.post("/v1/proposals/evaluate", json=proposal)
    assert answer.status_code == 503
    assert int(answer.headers["Retry-After"]) >= 1


def test_a_model_that_dies_in_mid_summary_ends_the_stream_with_an_error(
    client: httpx.Client, llm: ScriptedLLM, proposal: dict[str, Any]
) -> None:
    llm.script["SummaryAnswer"] = Act({"text": "아주 긴 요약 " * 10}, dies_after=40)
    with client.stream("POST", "/v1/proposals/evaluate/stream", json=proposal) as answer:
        text = answer.read().decode()
    assert "event: token" in text
    assert "event: result" not in text
    last = text.strip().split("\n\n")[-1]
    assert last.startswith("event: error")
    assert json.loads(last.split("data: ")[1])["status"] == 503


def test_a_summary_that_does_not_count_is_never_a_pass(
    client: httpx.Client, llm: ScriptedLLM, proposal: dict[str, Any]
) -> None:
    llm.script["SummaryAnswer"] = Act({"text": "x", "keywords": ["하나"]})
    evaluation = client.post("/v1/proposals/evaluate", json=proposal).json()
    assert (evaluation["verdict"], evaluation["summary"]) == ("review", None)


def test_feedback_does_not_need_its_model(
    client: httpx.Client, llm: ScriptedLLM, proposal: dict[str, Any]
) -> None:
    llm.script["ContentAnswer"] = Act(over("relevance", score=3))
    llm.script["FeedbackAnswer"] = Act(status=500)
    evaluation = client.post("/v1/proposals/evaluate", json=proposal).json()
    assert evaluation["verdict"] == "fail"
    assert [s["change"] for s in evaluation["feedback"]["suggestions"]] == [
        GOOD_CONTENT[c]["reason"] for c in ("message", "target", "relevance")
    ]


def test_two_borderline_runs_that_disagree_are_a_review(
    client: httpx.Client, llm: ScriptedLLM, proposal: dict[str, Any]
) -> None:
    """26 + 26 is 52; with 14 it is 66 and passes, with 10 it is 62 and fails."""
    base = over("message", score=26)
    llm.script["ContentAnswer"] = lambda n: Act(
        {**base, "relevance": {**base["relevance"], "score": 14 if n == 1 else 10}}
    )
    evaluation = client.post("/v1/proposals/evaluate", json=proposal).json()
    assert evaluation["verdict"] == "review"
    assert evaluation["stages"][1]["review_reasons"] == ["runs_disagree"]
    first, second = llm.calls_for("ContentAnswer")
    assert first["messages"] == second["messages"]
    assert (first["temperature"], second["temperature"]) == (0.0, 0.7)


def test_two_borderline_runs_that_agree_keep_the_first(
    client: httpx.Client, llm: ScriptedLLM, proposal: dict[str, Any]
) -> None:
    base = over("message", score=26)
    llm.script["ContentAnswer"] = lambda n: Act(
        {**base, "relevance": {**base["relevance"], "score": 14 if n == 1 else 17}}
    )
    evaluation = client.post("/v1/proposals/evaluate", json=proposal).json()
    assert (evaluation["verdict"], evaluation["stages"][1]["total"]) == ("pass", 66)
    assert len(llm.calls_for("ContentAnswer")) == 2


def test_a_clear_score_is_judged_once(
    client: httpx.Client, llm: ScriptedLLM, proposal: dict[str, Any]
) -> None:
    client.post("/v1/proposals/evaluate", json=proposal)
    assert len(llm.calls_for("ContentAnswer")) == len(llm.calls_for("DeliberationAnswer")) == 1


def test_hanging_up_ends_the_calls_at_the_model(
    evaluation_url: str, llm: ScriptedLLM, proposal: dict[str, Any]
) -> None:
    llm.script["ContentAnswer"] = Act(GOOD_CONTENT, delay_s=0.9)
    hang_up(evaluation_url, llm, proposal)
    assert llm.running == 0
    assert not llm.calls_for("SummaryAnswer")
