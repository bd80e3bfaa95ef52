"""Evaluations from end to end: stages, events, stored steps, replay."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from services.evaluation.schemas import Evaluation, Steps
from tests.fakes.scripted_llm import CLEAN, GOOD_CONTENT, GOOD_SUMMARY, Act, ScriptedLLM


def evaluate(client: httpx.Client, proposal: dict[str, Any]) -> dict[str, Any]:
    answer = client.post("/v1/proposals/evaluate", json=proposal)
    assert answer.status_code == 200, answer.text
    evaluation: dict[str, Any] = answer.json()
    return evaluation


def test_a_pass_has_everything_the_contract_names(
    client: httpx.Client, proposal: dict[str, Any]
) -> None:
    evaluation = evaluate(client, proposal)
    Evaluation.model_validate(evaluation)
    assert evaluation["verdict"] == "pass"
    assert evaluation["decided_by"] is None
    assert evaluation["feedback"] is None
    assert evaluation["summary"] == {"title": proposal["title"], **GOOD_SUMMARY}
    volume, content, deliberation = evaluation["stages"]
    assert volume["characters"] == len(proposal["content"])
    assert content["total"] == 27 + 26 + 35
    assert content["reasons"][1]["quote"] in proposal["content"]
    assert (deliberation["grade"], deliberation["confidence"]) == (0, 1.0)


def test_both_ways_of_judging_give_the_same_answer(
    client: httpx.Client, llm: ScriptedLLM, proposal: dict[str, Any]
) -> None:
    """Same graph, same inputs: only durations and ids may differ."""
    from services.evaluation.graph import after_judging, judges_left

    both = {"volume": {"outcome": "pass"}, "content": {}, "deliberation": {}}
    for plan in ({"judging": "together"}, {"judging": "in_order"}):
        assert judges_left({**both, "plan": plan}) == ["decide"]  # type: ignore[typeddict-item]
        assert after_judging({**both, "plan": plan}) == ["decide"]  # type: ignore[typeddict-item]


def test_events_tell_the_same_story(
    client: httpx.Client, llm: ScriptedLLM, proposal: dict[str, Any]
) -> None:
    with client.stream("POST", "/v1/proposals/evaluate/stream", json=proposal) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        blocks = answer.read().decode().strip().split("\n\n")
    events = [
        (block.split("\n")[0].removeprefix("event: "), json.loads(block.split("data: ")[1]))
        for block in blocks
    ]
    stages = [(data["name"], data["state"]) for name, data in events if name == "stage"]
    assert stages[:2] == [("volume", "started"), ("volume", "pass")]
    assert set(stages[2:]) == {
        (stage, state) for stage in ("content", "deliberation") for state in ("started", "pass")
    }
    written = "".join(data["text"] for name, data in events if name == "token")
    assert events[-1][0] == "result"
    assert written == events[-1][1]["summary"]["text"] == GOOD_SUMMARY["text"]
    assert client.get(f"/v1/evaluations/{events[-1][1]['id']}").json() == events[-1][1]


def test_steps_show_what_was_sent_and_what_came_back(
    client: httpx.Client, llm: ScriptedLLM, proposal: dict[str, Any]
) -> None:
    answer = client.post(
        "/v1/proposals/evaluate", json=proposal, headers={"X-Request-Id": "planner-7"}
    )
    assert answer.headers["X-Request-Id"] == "planner-7"
    stored = client.get(f"/v1/evaluations/{answer.json()['id']}/steps").json()
    Steps.model_validate(stored)
    assert stored["request_id"] == "planner-7"
    by_node = {step["node"]: step for step in stored["steps"]}
    assert set(by_node) == {"volume", "content", "deliberation", "decide", "summary"}
    content, sent = by_node["content"], llm.calls_for("ContentAnswer")[0]
    assert content["messages"] == sent["messages"]
    assert json.loads(content["reply"]) == GOOD_CONTENT
    assert content["prompt"] == "content@2"
    assert content["usage"] == {"prompt_tokens": 10, "completion_tokens": 5, "cached_tokens": 4}
    assert sent["request_id"] == "planner-7-content-1"


def test_the_steps_of_a_failure_name_it(
    client: httpx.Client, llm: ScriptedLLM, proposal: dict[str, Any]
) -> None:
    llm.script["ContentAnswer"] = Act("nonsense")
    evaluation = evaluate(client, proposal)
    steps = client.get(f"/v1/evaluations/{evaluation['id']}/steps").json()["steps"]
    content = next(step for step in steps if step["node"] == "content")
    assert content["reply"] == "nonsense"
    assert "AnswerInvalid" in content["error"]


@pytest.mark.parametrize(
    ("body", "asked"),
    [
        ({"from_stage": "volume"}, {"ContentAnswer", "DeliberationAnswer", "SummaryAnswer"}),
        ({"from_stage": "content"}, {"ContentAnswer", "DeliberationAnswer", "SummaryAnswer"}),
        ({"from_stage": "deliberation"}, {"DeliberationAnswer", "SummaryAnswer"}),
        ({"from_stage": "writing"}, {"SummaryAnswer"}),
    ],
)
def test_a_replay_runs_from_its_stage_on(
    body: dict[str, Any],
    asked: set[str],
    client: httpx.Client,
    llm: ScriptedLLM,
    proposal: dict[str, Any],
) -> None:
    parent = evaluate(client, proposal)
    llm.calls.clear()
    answer = client.post(f"/v1/evaluations/{parent['id']}/replay", json=body)
    assert answer.status_code == 200
    assert answer.json()["parent_id"] == parent["id"]
    assert answer.json()["verdict"] == "pass"
    names = [c["response_format"]["json_schema"]["name"] for c in llm.calls]
    assert sorted(names) == sorted(asked)
    assert client.get(f"/v1/evaluations/{parent['id']}").json() == parent


def test_a_replay_takes_another_model_prompt_and_threshold(
    client: httpx.Client, llm: ScriptedLLM, proposal: dict[str, Any]
) -> None:
    parent = evaluate(client, proposal)
    llm.calls.clear()
    body = {
        "from_stage": "content",
        "model": "another",
        "prompt_version": "1",
        "content_threshold": 95,
    }
    child = client.post(f"/v1/evaluations/{parent['id']}/replay", json=body).json()
    assert (child["model"], child["prompt_version"], child["verdict"]) == ("another", "1", "fail")
    assert {call["model"] for call in llm.calls} == {"another"}
    grandchild = client.post(
        f"/v1/evaluations/{child['id']}/replay", json={"from_stage": "writing"}
    ).json()
    assert grandchild["parent_id"] == child["id"]
    assert grandchild["stages"][1]["threshold"] == 95


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "from_stage"),
        ({"from_stage": "summary"}, "from_stage"),
        ({"from_stage": "content", "prompt_version": "99"}, "prompt_version"),
        ({"from_stage": "content", "content_threshold": 101}, "content_threshold"),
        ({"from_stage": "writing", "content_threshold": 10}, "body"),
    ],
)
def test_a_replay_that_cannot_be_names_why(
    body: dict[str, Any], field: str, client: httpx.Client, proposal: dict[str, Any]
) -> None:
    parent = evaluate(client, proposal)
    answer = client.post(f"/v1/evaluations/{parent['id']}/replay", json=body)
    assert answer.status_code == 422
    assert field in [error["field"] for error in answer.json()["errors"]]


def test_too_thin_in_both_languages(client: httpx.Client, llm: ScriptedLLM) -> None:
    for title, content, word in (
        ("브이로그", "재밌게 찍을게요", "기획안"),
        ("Vlog", "fun", "proposal"),
    ):
        thin = {"title": title, "content": content, "media_type": "short_form"}
        evaluation = evaluate(client, thin)
        assert (evaluation["verdict"], evaluation["decided_by"]) == ("fail", "volume")
        assert word in evaluation["feedback"]["text"]
    assert not llm.calls


def test_summarize_does_not_judge(
    client: httpx.Client, llm: ScriptedLLM, proposal: dict[str, Any]
) -> None:
    summary = client.post("/v1/proposals/summarize", json=proposal).json()
    assert summary == {"title": proposal["title"], **GOOD_SUMMARY}
    assert len(llm.calls) == 1


def test_any_text_can_be_deliberated_alone(
    client: httpx.Client, llm: ScriptedLLM, proposal: dict[str, Any]
) -> None:
    llm.script["DeliberationAnswer"] = Act({**CLEAN, "violence": {"passage": 2, "level": 4}})
    answer = client.post("/v1/proposals/deliberate", json=proposal)
    assert answer.status_code == 200, answer.text
    stage = answer.json()["stage"]
    assert (stage["outcome"], stage["grade"]) == ("fail", 4)
    assert stage["evidence"][0]["quote"] in proposal["content"]
    assert len(llm.calls_for("DeliberationAnswer")) == len(llm.calls) == 1


def test_a_deliberation_without_an_answer_that_counts_is_a_review(
    client: httpx.Client, llm: ScriptedLLM, proposal: dict[str, Any]
) -> None:
    llm.script["DeliberationAnswer"] = Act("no JSON")
    stage = client.post("/v1/proposals/deliberate", json=proposal).json()["stage"]
    assert (stage["outcome"], stage["review_reasons"]) == ("review", ["invalid_answer"])
