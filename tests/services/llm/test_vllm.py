"""The whole service with a real vLLM: the clients that people use, hang-ups, crashes, metrics."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import httpx
import openai
import pytest
from langchain_openai import ChatOpenAI
from pydantic import BaseModel, Field

from tests.conftest import CONTEXT_TOKENS, LlmServer, lives

pytestmark = pytest.mark.vllm

GENERATED = "vllm:generation_tokens_total"
COUNT = [{"role": "user", "content": "Count from one to a thousand, in words."}]


class Grade(BaseModel):
    """How good a text is."""

    score: int = Field(ge=0, le=9)
    verdict: str = Field(pattern="^(pass|fail)$")


def until(holds: Callable[[], object], within_s: float) -> None:
    end = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < end, f"not within {within_s:g} s"
        time.sleep(0.1)


@pytest.fixture
def client(llm_server: LlmServer) -> openai.OpenAI:
    return openai.OpenAI(
        base_url=f"{llm_server.base_url}/v1", api_key="unused", max_retries=0, timeout=120
    )


@pytest.fixture
def chat(llm_server: LlmServer) -> ChatOpenAI:
    return ChatOpenAI(
        base_url=f"{llm_server.base_url}/v1",
        api_key="unused",
        model=llm_server.model,
        max_completion_tokens=64,
        max_retries=0,
        timeout=120,
        temperature=0,
    )


def test_openai_client_lists_the_model(client: openai.OpenAI, llm_server: LlmServer) -> None:
    assert [model.id for model in client.models.list()] == [llm_server.model]


def test_openai_client_chats_and_streams(client: openai.OpenAI, llm_server: LlmServer) -> None:
    question: dict[str, Any] = {"model": llm_server.model, "messages": COUNT, "max_tokens": 12}
    whole = client.chat.completions.create(**question, temperature=0)
    assert whole.usage is not None
    assert whole.usage.completion_tokens == 12
    pieces = list(client.chat.completions.create(**question, temperature=0, stream=True))
    text = "".join(piece.choices[0].delta.content or "" for piece in pieces)
    assert text == whole.choices[0].message.content
    assert len(pieces) > 6


def test_openai_client_completes_text(client: openai.OpenAI, llm_server: LlmServer) -> None:
    answer = client.completions.create(model=llm_server.model, prompt="Once", max_tokens=8)
    assert answer.choices[0].text


def test_a_json_schema_is_enforced(client: openai.OpenAI, llm_server: LlmServer) -> None:
    answer = client.chat.completions.parse(
        model=llm_server.model, messages=COUNT, max_tokens=64, response_format=Grade
    )
    assert answer.choices[0].finish_reason == "stop"
    assert isinstance(answer.choices[0].message.parsed, Grade)


def test_a_prompt_that_is_too_long_is_the_callers_fault(
    client: openai.OpenAI, llm_server: LlmServer
) -> None:
    prompt = "word " * (CONTEXT_TOKENS + 100)
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model=llm_server.model, prompt=prompt)
    assert "context length" in caught.value.message
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="no-such-model", messages=COUNT)


@pytest.mark.parametrize("body", [b"{", b"", b"[]", b"\xff", b'{"messages": 7}'])
def test_what_cannot_be_read_gets_openais_error(llm_server: LlmServer, body: bytes) -> None:
    answer = httpx.post(
        f"{llm_server.base_url}/v1/chat/completions",
        content=body,
        headers={"content-type": "application/json"},
    )
    assert 400 <= answer.status_code < 500
    assert answer.json()["error"]["message"]


def test_langchain_invokes_streams_and_keeps_to_a_schema(chat: ChatOpenAI) -> None:
    assert chat.invoke("Say hello.").content
    assert "".join(str(piece.content) for piece in chat.stream("Say hello."))
    graded = chat.with_structured_output(Grade, method="json_schema").invoke("Grade this: hello")
    assert isinstance(graded, Grade)


async def test_one_request_id_may_be_used_by_calls_at_the_same_time(
    llm_server: LlmServer,
) -> None:
    async with httpx.AsyncClient(base_url=llm_server.base_url, timeout=60) as client:
        body = {"model": llm_server.model, "messages": COUNT, "max_tokens": 16}
        calls = [
            client.post("/v1/chat/completions", json=body, headers={"X-Request-Id": "shared-id"})
            for _ in range(4)
        ]
        answers = await asyncio.gather(*calls)
    assert [answer.status_code for answer in answers] == [200] * 4
    assert {answer.json()["id"] for answer in answers} == {"chatcmpl-shared-id"}


def test_metrics_of_both_and_each_family_once(llm_server: LlmServer) -> None:
    text = httpx.get(f"{llm_server.base_url}/metrics").text
    families = Counter(line.split()[2] for line in text.splitlines() if line.startswith("# TYPE"))
    assert [name for name, times in families.items() if times > 1] == []
    assert families["vllm:num_requests_running"]
    assert families["bentoml_service_request_total"]
    assert not any(name.startswith("http_") for name in families), "vLLM's own, by another way"


@pytest.mark.parametrize("stream", [True, False])
async def test_64_callers_who_hang_up_free_their_slots(llm_server: LlmServer, stream: bool) -> None:
    body = {
        "model": llm_server.model,
        "messages": COUNT,
        "max_tokens": 1900,
        "ignore_eos": True,
        "stream": stream,
    }
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(
        base_url=llm_server.base_url, timeout=120, limits=limits
    ) as client:
        calls = [
            asyncio.create_task(client.post("/v1/chat/completions", json=body)) for _ in range(64)
        ]
        async with asyncio.timeout(120):
            while await asyncio.to_thread(llm_server.metric, "vllm:num_requests_running") < 64:
                await asyncio.sleep(0.1)
        assert not any(call.done() for call in calls)
        computed = await asyncio.to_thread(llm_server.metric, GENERATED)
        for call in calls:
            call.cancel()
        await asyncio.wait(calls)
    # The step that was under way ends first, and on a busy machine it takes its time: what tells
    # is that (almost) nothing is computed any more, out of 64 replies of 1900 tokens.
    async with asyncio.timeout(60):
        while await asyncio.to_thread(llm_server.metric, "vllm:num_requests_running") > 0:
            await asyncio.sleep(0.1)
    assert llm_server.metric(GENERATED) - computed <= 64 * 20
    assert llm_server.metric("vllm:num_requests_waiting") == 0


async def test_a_stream_cut_by_a_crash_ends_with_an_error_and_the_service_recovers(
    llm_server: LlmServer,
) -> None:
    body = {
        "model": llm_server.model,
        "messages": COUNT,
        "max_tokens": 1900,
        "ignore_eos": True,
        "stream": True,
    }
    before = llm_server.vllm_processes()
    received = ""
    async with httpx.AsyncClient(base_url=llm_server.base_url, timeout=60) as client:
        async with client.stream("POST", "/v1/chat/completions", json=body) as answer:
            async for piece in answer.aiter_text():
                if not received:
                    before[1].kill()
                received += piece
        last = received.strip().split("\n\n")[-1]
        assert json.loads(last.removeprefix("data: "))["error"]["code"] == "model_unavailable"
        refused = await client.get("/v1/models")
    assert refused.status_code == 503
    assert int(refused.headers["retry-after"]) > 0
    assert not llm_server.is_ready()
    assert httpx.get(f"{llm_server.base_url}/livez").status_code == 200
    assert "bentoml_service" in httpx.get(f"{llm_server.base_url}/metrics").text
    until(llm_server.is_ready, 240)
    assert not [process for process in before if lives(process)]
    assert {process.pid for process in llm_server.vllm_processes()}.isdisjoint(
        process.pid for process in before
    )
