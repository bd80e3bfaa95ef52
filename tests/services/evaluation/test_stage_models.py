"""Each judging stage may have a model and a prompt version of its own, and says which it was."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from services.evaluation.app import create_app, wired
from services.evaluation.errors import UnknownPrompt
from services.evaluation.prompts.library import PromptLibrary
from services.evaluation.settings import EvaluationSettings
from tests.fakes.scripted_llm import ScriptedLLM, served_app

JUDGE = "judge-of-content"


@pytest.fixture(scope="module")
def judged_url(_scripted: ScriptedLLM, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    settings = EvaluationSettings(
        llm_url=_scripted.base_url,
        home=tmp_path_factory.mktemp("judged"),
        content_model=JUDGE,
        content_prompt_version="judge",
        deliberation_prompt_version="1",
        log_level="error",
    )
    with served_app(create_app(settings)) as base_url:
        yield base_url


@pytest.fixture
def judged(judged_url: str, llm: ScriptedLLM) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=judged_url, timeout=30) as client:
        yield client


def asked(llm: ScriptedLLM) -> dict[str, tuple[str, str]]:
    """By answer, whom and in which words."""
    return {
        call["response_format"]["json_schema"]["name"]: (
            call["model"],
            call["messages"][0]["content"],
        )
        for call in llm.calls
    }


def words(version: str, name: str) -> str:
    return PromptLibrary().get(version, name).instructions


def test_a_stage_is_put_to_its_own_model_in_its_own_words(
    judged: httpx.Client, llm: ScriptedLLM, proposal: dict[str, Any]
) -> None:
    evaluation = judged.post("/v1/proposals/evaluate", json=proposal).json()
    assert asked(llm) == {
        "ContentAnswer": (JUDGE, words("judge", "content")),
        "DeliberationAnswer": ("scripted", words("1", "deliberation")),
        "SummaryAnswer": ("scripted", words("2", "summary")),
    }
    assert (evaluation["model"], evaluation["prompt_version"]) == ("scripted", "2")
    steps = judged.get(f"/v1/evaluations/{evaluation['id']}/steps").json()["steps"]
    provenance = {step["node"]: (step["model"], step["prompt"]) for step in steps if step["prompt"]}
    assert provenance == {
        "content": (JUDGE, "content@judge"),
        "deliberation": ("scripted", "deliberation@1"),
        "summary": ("scripted", "summary@2"),
    }


def test_a_replay_keeps_the_stages_models_unless_it_names_another(
    judged: httpx.Client, llm: ScriptedLLM, proposal: dict[str, Any]
) -> None:
    parent = judged.post("/v1/proposals/evaluate", json=proposal).json()["id"]
    llm.calls.clear()
    judged.post(f"/v1/evaluations/{parent}/replay", json={"from_stage": "content"})
    assert asked(llm)["ContentAnswer"][0] == JUDGE
    llm.calls.clear()
    judged.post(
        f"/v1/evaluations/{parent}/replay", json={"from_stage": "content", "model": "another"}
    )
    assert {model for model, _ in asked(llm).values()} == {"another"}
    assert asked(llm)["ContentAnswer"][1] == words("judge", "content")
    llm.calls.clear()
    judged.post(
        f"/v1/evaluations/{parent}/replay", json={"from_stage": "content", "prompt_version": "1"}
    )
    assert asked(llm)["ContentAnswer"] == (JUDGE, words("1", "content"))


def test_text_alone_is_deliberated_by_the_stage_s_own(
    judged: httpx.Client, llm: ScriptedLLM, proposal: dict[str, Any]
) -> None:
    told = judged.post("/v1/proposals/deliberate", json=proposal).json()
    assert (told["model"], told["prompt_version"]) == ("scripted", "1")
    assert asked(llm)["DeliberationAnswer"] == ("scripted", words("1", "deliberation"))


def test_what_is_warmed_is_what_will_be_asked(llm: ScriptedLLM, tmp_path: Path) -> None:
    settings = EvaluationSettings(
        llm_url=llm.base_url, home=tmp_path, deliberation_model=JUDGE, log_level="error"
    )
    until = time.monotonic() + 20
    with served_app(create_app(settings)):
        while len(llm.calls) < 8 and time.monotonic() < until:
            time.sleep(0.02)
    warmed = {(c["response_format"]["json_schema"]["name"], c["model"]) for c in llm.calls}
    assert ("DeliberationAnswer", JUDGE) in warmed
    assert ("ContentAnswer", "scripted") in warmed


async def test_an_unknown_version_of_a_stage_stops_the_start(
    llm: ScriptedLLM, tmp_path: Path
) -> None:
    settings = EvaluationSettings(
        llm_url=llm.base_url, home=tmp_path, deliberation_prompt_version="99"
    )
    with pytest.raises(UnknownPrompt, match="'99'"):
        async with wired(settings):
            pass
