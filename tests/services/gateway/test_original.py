"""The first backend's calls, as its clients send and read them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from services.gateway.original import as_original
from tests.fakes.scripted_llm import CLEAN, GOOD_CONTENT, GOOD_SUMMARY, Act, ScriptedLLM

EMPTY_FEEDBACK = {"feedback_type": 0, "current_score": 0.0, "comment": "", "violations": []}
EMPTY_SUMMARY: dict[str, Any] = {"title": "", "content": "", "keyword": []}


@pytest.fixture
def gateway(gateway_url: str, llm: ScriptedLLM) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=gateway_url, timeout=30) as client:
        yield client


def as_sent(proposal: dict[str, Any], style: str) -> dict[str, Any]:
    features = {"길이": "8분", "편수": 3}
    names = {
        "snake": ("media_type", "proposal_score", "additional_features"),
        "camel": ("mediaType", "proposalScore", "additionalFeatures"),
        "mixed": ("media_type", "proposal_score", "additional_Features"),
    }[style]
    values = (proposal["media_type"], 72.5, features)
    return {
        "title": proposal["title"],
        "content": proposal["content"],
        **dict(zip(names, values, strict=True)),
    }


@pytest.mark.parametrize("style", ["snake", "camel", "mixed"])
def test_a_pass(
    style: str, gateway: httpx.Client, llm: ScriptedLLM, proposal: dict[str, Any]
) -> None:
    answer = gateway.post("/gen/proposal/evaluation", json=as_sent(proposal, style))
    assert answer.json() == {
        "evaluation_result": 1,
        "feedback": EMPTY_FEEDBACK,
        "summary": {
            "title": proposal["title"],
            "content": GOOD_SUMMARY["text"],
            "keyword": GOOD_SUMMARY["keywords"],
        },
    }
    sent = llm.calls_for("ContentAnswer")[0]["messages"][-1]["content"]
    assert "길이: 8분" in sent
    assert "편수: 3" in sent
    assert "72.5" not in sent


@pytest.mark.parametrize(
    ("script", "feedback_type"),
    [
        (
            {
                "ContentAnswer": {
                    **GOOD_CONTENT,
                    "relevance": {"reason": "x", "passage": 0, "score": 1},
                }
            },
            1,
        ),
        ({"DeliberationAnswer": {**CLEAN, "drugs": {"passage": 2, "level": 4}}}, 2),
    ],
)
def test_a_fail(
    script: dict[str, Any],
    feedback_type: int,
    gateway: httpx.Client,
    llm: ScriptedLLM,
    proposal: dict[str, Any],
) -> None:
    llm.script.update({name: Act(text) for name, text in script.items()})
    answer = gateway.post("/gen/proposal/evaluation", json=as_sent(proposal, "snake")).json()
    assert answer["evaluation_result"] == 0
    assert answer["feedback"]["feedback_type"] == feedback_type
    assert answer["feedback"]["comment"]
    assert bool(answer["feedback"]["violations"]) == (feedback_type == 2)
    assert answer["summary"] == EMPTY_SUMMARY


def test_too_thin_is_type_0(gateway: httpx.Client, proposal: dict[str, Any]) -> None:
    thin = {**as_sent(proposal, "snake"), "content": "재밌게 찍을게요"}
    answer = gateway.post("/gen/proposal/evaluation", json=thin).json()
    assert (answer["evaluation_result"], answer["feedback"]["feedback_type"]) == (0, 0)
    assert "분량" in answer["feedback"]["comment"]


def test_a_review_is_not_a_pass(
    gateway: httpx.Client, llm: ScriptedLLM, proposal: dict[str, Any]
) -> None:
    llm.script["DeliberationAnswer"] = Act('"false"')
    answer = gateway.post("/gen/proposal/evaluation", json=as_sent(proposal, "snake")).json()
    assert answer["evaluation_result"] == 0
    assert "담당자" in answer["feedback"]["comment"]
    assert answer["summary"] == EMPTY_SUMMARY


def test_only_a_pass_is_1() -> None:
    for verdict in ("fail", "review", "unknown", "", None, "PASS"):
        evaluation = {"verdict": verdict, "decided_by": None, "feedback": None, "stages": []}
        assert as_original(evaluation).evaluation_result == 0


def test_summary(gateway: httpx.Client, proposal: dict[str, Any]) -> None:
    answer = gateway.post("/gen/proposal/summary", json=as_sent(proposal, "snake")).json()
    assert answer["summary"]["content"] == GOOD_SUMMARY["text"]
    assert answer["feedback"] == EMPTY_FEEDBACK


def test_bad_input_names_the_field(gateway: httpx.Client, proposal: dict[str, Any]) -> None:
    for change, field in (({"title": "가" * 101}, "title"), ({"media_type": "tv"}, "media_type")):
        sent = {**as_sent(proposal, "snake"), **change}
        answer = gateway.post("/gen/proposal/evaluation", json=sent)
        assert answer.status_code == 422
        assert field in [error["field"] for error in answer.json()["errors"]]


def test_ready(gateway: httpx.Client) -> None:
    assert gateway.get("/ready").json()["status"] == "ok"
