"""One port for all of it: forwarding, keys, limits, errors, one OpenAPI."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from pydantic import SecretStr

from services.gateway.app import ROUTES, create_app
from services.gateway.settings import GatewaySettings
from tests.fakes.scripted_llm import GOOD_CONTENT, Act, ScriptedLLM, hang_up, served_app


@pytest.fixture
def gateway(gateway_url: str, llm: ScriptedLLM) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=gateway_url, timeout=30) as client:
        yield client


def test_an_evaluation_passes_through_unchanged(
    gateway: httpx.Client, client: httpx.Client, proposal: dict[str, Any]
) -> None:
    headers = {"X-Request-Id": "backend-42"}
    answer = gateway.post("/v1/proposals/evaluate", json=proposal, headers=headers)
    assert answer.status_code == 200
    assert answer.headers["X-Request-Id"] == "backend-42"
    stored = f"/v1/evaluations/{answer.json()['id']}"
    assert gateway.get(stored).json() == client.get(stored).json() == answer.json()
    assert gateway.get(f"{stored}/steps").json()["request_id"] == "backend-42"
    replayed = gateway.post(f"{stored}/replay", json={"from_stage": "writing"})
    assert replayed.json()["parent_id"] == answer.json()["id"]


def test_events_arrive_while_the_model_writes(
    gateway: httpx.Client, llm: ScriptedLLM, proposal: dict[str, Any]
) -> None:
    llm.script["ContentAnswer"] = Act(GOOD_CONTENT, delay_s=0.6)
    arrived: dict[str, float] = {}
    with gateway.stream("POST", "/v1/proposals/evaluate/stream", json=proposal) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        for line in answer.iter_lines():
            if line.startswith("event: "):
                arrived.setdefault(line.removeprefix("event: "), time.monotonic())
    assert arrived["result"] - arrived["stage"] > 0.5


def test_errors_of_the_service_pass_through(
    gateway: httpx.Client, proposal: dict[str, Any]
) -> None:
    answer = gateway.post("/v1/proposals/evaluate", json={**proposal, "title": ""})
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["errors"][0]["field"] == "title"


@pytest.mark.parametrize("path", ["/v1/proposals/evaluate", "/gen/proposal/evaluation"])
def test_a_body_over_the_limit_stops_at_the_gateway(path: str, gateway: httpx.Client) -> None:
    answer = gateway.post(path, content=b'{"title": "' + b"a" * 1_000_000)
    assert (answer.status_code, answer.json()["code"]) == (413, "too_large")


def test_the_openai_client_works_through_the_gateway(gateway_url: str, llm: ScriptedLLM) -> None:
    client = openai.OpenAI(base_url=f"{gateway_url}/v1", api_key="none", max_retries=0)
    assert [model.id for model in client.models.list()] == ["scripted"]
    ask: dict[str, Any] = {"model": "scripted", "messages": [{"role": "user", "content": "hi"}]}
    assert client.chat.completions.create(**ask).choices[0].message.content == "hello"
    pieces = client.chat.completions.create(**ask, stream=True)
    assert "".join(p.choices[0].delta.content or "" for p in pieces if p.choices) == "hello"


def test_hanging_up_at_the_gateway_ends_the_call_at_the_model(
    gateway_url: str, llm: ScriptedLLM, proposal: dict[str, Any]
) -> None:
    llm.script["ContentAnswer"] = Act(GOOD_CONTENT, delay_s=0.9)
    hang_up(gateway_url, llm, proposal)
    assert llm.running == 0
    assert not llm.calls_for("SummaryAnswer")


def test_a_service_that_is_away_is_a_503(proposal: dict[str, Any]) -> None:
    away = GatewaySettings(
        evaluation_url="http://127.0.0.1:9", llm_url="http://127.0.0.1:9", log_level="error"
    )
    with served_app(create_app(away)) as url:
        answer = httpx.post(f"{url}/v1/proposals/evaluate", json=proposal)
        assert (answer.status_code, answer.json()["code"]) == (503, "evaluation_unavailable")
        assert int(answer.headers["Retry-After"]) >= 1
        original = httpx.post(f"{url}/gen/proposal/summary", json={**proposal})
        assert original.status_code == 503
        models = httpx.get(f"{url}/v1/models")
        assert (models.status_code, models.json()["error"]["code"]) == (503, "llm_unavailable")
        assert httpx.get(f"{url}/openapi.json").status_code == 200


def test_keys(evaluation_url: str, llm: ScriptedLLM) -> None:
    settings = GatewaySettings(
        api_keys=SecretStr("first, second"),
        evaluation_url=evaluation_url,
        llm_url=llm.base_url,
        log_level="error",
    )
    with served_app(create_app(settings)) as url:
        for key, status in (("first", 200), ("second", 200), ("third", 401), ("", 401)):
            headers = {"Authorization": f"Bearer {key}"} if key else {}
            answer = httpx.get(f"{url}/v1/models", headers=headers)
            assert answer.status_code == status
        assert "WWW-Authenticate" in answer.headers
        assert answer.json()["error"]["code"] == "unauthorized"
        assert httpx.get(f"{url}/docs").status_code == 401
        assert httpx.get(f"{url}/ready").status_code == 200


def test_openapi_describes_every_forwarded_path(gateway: httpx.Client) -> None:
    document = gateway.get("/openapi.json").json()
    for _, path in ROUTES["evaluation"]:
        assert path in document["paths"]
    assert "/gen/proposal/evaluation" in document["paths"]
    text = json.dumps(document)
    referred = {part.split('"')[0] for part in text.split("#/components/schemas/")[1:]}
    assert referred <= set(document["components"]["schemas"])
