"""Requests on their way to a server with faults and back, over real sockets."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterator
from typing import Any

import httpx
import pytest

from services.llm.app import create_app, only_vllm
from services.llm.proxy import HELD_BYTES, whole_events
from services.llm.settings import LLMSettings
from tests.fakes.scripted_llm import served_app
from tests.fakes.upstream import EVENT, VLLM_400, Upstream, upstream

CHAT = "/v1/chat/completions"
DEADLINE_S = 4.0
CAPACITY = 64


@pytest.fixture(scope="module")
def fake() -> Iterator[Upstream]:
    with upstream() as server:
        yield server


@pytest.fixture(scope="module")
def app(fake: Upstream) -> Any:
    return create_app(
        LLMSettings(
            url=f"{fake.base_url}/v1",
            key="upstream-key",
            max_concurrent=CAPACITY // 2,
            max_queued=CAPACITY // 2,
            request_timeout_s=DEADLINE_S,
            retry_after_s=9,
            log_level="error",
            max_body_bytes=10_000,
        )
    )


@pytest.fixture(scope="module")
def base_url(app: Any) -> Iterator[str]:
    with served_app(app) as url:
        yield url


@pytest.fixture
async def client(base_url: str) -> AsyncIterator[httpx.AsyncClient]:
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=base_url, timeout=20, limits=limits) as client:
        yield client


async def until(holds: Callable[[], object], within_s: float = 5) -> None:
    async with asyncio.timeout(within_s):
        while not holds():
            await asyncio.sleep(0.02)


async def test_passes_on_what_it_should_and_no_key_of_the_caller(
    client: httpx.AsyncClient, fake: Upstream
) -> None:
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    answer = await client.post(
        CHAT,
        json={"script": "ok"},
        headers={
            "X-Request-Id": "my-id",
            "traceparent": trace,
            "Authorization": "Bearer callers-key",
            "Cookie": "a=b",
        },
    )
    assert (answer.status_code, answer.headers["x-request-id"]) == (200, "my-id")
    seen = fake.seen[-1]
    assert seen["request-line"] == f"POST {CHAT} HTTP/1.1"
    assert seen["authorization"] == "bearer upstream-key"
    assert (seen["x-request-id"], seen["traceparent"]) == ("my-id", trace)
    assert "cookie" not in seen


@pytest.mark.parametrize("path", ["/tokenize", "/invocations", "/v1/embeddings", "/metrics", "/"])
async def test_other_paths_do_not_reach_the_server(
    client: httpx.AsyncClient, fake: Upstream, path: str
) -> None:
    before = len(fake.seen)
    assert (await client.post(path, json={})).status_code == 404
    assert len(fake.seen) == before


@pytest.mark.parametrize(
    ("script", "status", "code", "retry_after"),
    [
        ("busy", 503, "queue_full", "9"),
        ("dies", 503, "model_unavailable", "9"),
        ("fault", 500, "internal", None),
        ("no_key", 503, "model_unavailable", "9"),
        ("limited", 429, 429, "9"),
        ("odd", 404, None, None),
        ("slow", 504, "deadline_exceeded", None),
    ],
)
async def test_faults_in_openais_shape_without_inner_text(
    client: httpx.AsyncClient, script: str, status: int, code: object, retry_after: str | None
) -> None:
    answer = await client.post(CHAT, json={"script": script})
    error = answer.json()["error"]
    assert (answer.status_code, error.get("code")) == (status, code)
    assert answer.headers.get("retry-after") == retry_after
    assert error["message"]
    assert "secret" not in answer.text


async def test_the_callers_fault_passes_unchanged(client: httpx.AsyncClient) -> None:
    answer = await client.post(CHAT, json={"script": "bad"})
    assert (answer.status_code, answer.text) == (400, VLLM_400)


async def test_a_body_over_the_limit_is_413(client: httpx.AsyncClient) -> None:
    answer = await client.post(CHAT, json={"script": "ok", "pad": "x" * 10_000})
    assert answer.status_code == 413
    assert answer.json()["error"]["code"] == "too_large"


async def test_events_arrive_one_by_one(client: httpx.AsyncClient) -> None:
    times = []
    body = {"script": "stream", "events": 4, "pause_s": 0.2}
    async with client.stream("POST", CHAT, json=body) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        times = [time.monotonic() async for line in answer.aiter_lines() if line]
    assert len(times) == 5
    assert times[-1] - times[0] > 0.6


@pytest.mark.parametrize(
    ("script", "code"),
    [
        ("stream_dies", "model_unavailable"),
        ("stream_half", "model_unavailable"),
        ("stream_slow", "deadline_exceeded"),
    ],
)
async def test_a_stream_that_breaks_ends_with_an_error_and_never_done(
    client: httpx.AsyncClient, script: str, code: str
) -> None:
    answer = await client.post(CHAT, json={"script": script})
    assert answer.status_code == 200
    *whole, last = answer.text.strip().split("\n\n")
    assert whole == [EVENT.decode().strip()] * 3
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == code


@pytest.mark.parametrize("script", ["slow", "stream_slow"])
async def test_64_callers_who_hang_up_leave_nothing_running(
    base_url: str, client: httpx.AsyncClient, app: Any, fake: Upstream, script: str
) -> None:
    async with httpx.AsyncClient(base_url=base_url, limits=httpx.Limits()) as leaving:
        calls = [
            asyncio.create_task(leaving.post(CHAT, json={"script": script}, timeout=60))
            for _ in range(CAPACITY)
        ]
        await until(lambda: fake.running == CAPACITY)
        since = time.monotonic()
        for call in calls:
            call.cancel()
        await asyncio.wait(calls)
        await until(lambda: fake.running == 0)
    assert time.monotonic() - since < DEADLINE_S / 2, "the deadline ended them, not the hang-up"
    await until(lambda: app.state.upstream.proxy.in_flight == 0)
    # Nor does the pool of connections remember them.
    answers = await asyncio.gather(
        *(client.post(CHAT, json={"script": "ok"}) for _ in range(CAPACITY))
    )
    assert {answer.status_code for answer in answers} == {200}


async def test_one_more_than_the_capacity_is_told_to_come_back(
    client: httpx.AsyncClient, app: Any, fake: Upstream
) -> None:
    calls = [
        asyncio.create_task(client.post(CHAT, json={"script": "slow", "seconds": 1}))
        for _ in range(CAPACITY)
    ]
    await until(lambda: fake.running == CAPACITY)
    refused = await client.post(CHAT, json={"script": "ok"})
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "9")
    assert refused.json()["error"]["code"] == "queue_full"
    answers = await asyncio.gather(*calls)
    assert {answer.status_code for answer in answers} == {200}
    assert app.state.upstream.proxy.in_flight == 0


async def test_a_caller_who_sends_half_a_body_gives_its_place_back(base_url: str, app: Any) -> None:
    url = httpx.URL(base_url)
    _, writer = await asyncio.open_connection(url.host, url.port)
    writer.write(f"POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{{".encode())
    await until(lambda: app.state.upstream.proxy.in_flight == 1)
    await until(lambda: app.state.upstream.proxy.in_flight == 0, DEADLINE_S + 3)
    writer.close()


async def test_a_caller_who_reads_nothing_gives_its_place_back(base_url: str, app: Any) -> None:
    url = httpx.URL(base_url)
    _, writer = await asyncio.open_connection(url.host, url.port, limit=1024)
    body = json.dumps({"script": "stream", "events": 400_000}).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    await until(lambda: app.state.upstream.proxy.in_flight == 1)
    await until(lambda: app.state.upstream.proxy.in_flight == 0, DEADLINE_S + 8)
    writer.close()


async def test_nobody_at_the_address_is_503() -> None:
    settings = LLMSettings(url="http://127.0.0.1:9", retry_after_s=9, log_level="error")
    with served_app(create_app(settings)) as url:
        async with httpx.AsyncClient(base_url=url) as client:
            answer = await client.get("/v1/models")
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "9")


async def test_without_weights_it_is_not_ready_and_says_so(tmp_path: Any) -> None:
    settings = LLMSettings(model="smollm2-135m", models_dir=tmp_path, log_level="error")
    with served_app(create_app(settings)) as url:
        async with httpx.AsyncClient(base_url=url) as client:
            answer = await client.get("/v1/models")
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "model_starting"


async def test_openapi_describes_every_route(client: httpx.AsyncClient) -> None:
    paths = (await client.get("/openapi.json")).json()["paths"]
    assert set(paths) == {"/v1/models", CHAT, "/v1/completions"}
    schema = paths[CHAT]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert "messages" in schema["required"]
    assert "503" in paths[CHAT]["post"]["responses"]


@pytest.mark.parametrize("size", [1, 7, 1_000])
@pytest.mark.parametrize("end", ["\n\n", "\r\n\r\n"])
async def test_whole_events_keeps_every_byte_and_cuts_between_events(size: int, end: str) -> None:
    content = "".join(f"data: {n}{end}" for n in range(50)).encode() + b"data: half"
    pieces = [content[i : i + size] for i in range(0, len(content), size)]
    cut = [events async for events in whole_events(_pieces(pieces))]
    assert b"".join(cut) == content
    assert all(events.endswith(end.encode()) for events in cut[:-1])


async def test_whole_events_holds_back_no_more_than_its_bound() -> None:
    pieces = [b"x" * (HELD_BYTES // 2)] * 5
    cut = [events async for events in whole_events(_pieces(pieces))]
    assert len(cut) > 1
    assert b"".join(cut) == b"".join(pieces)


async def _pieces(pieces: list[bytes]) -> AsyncIterable[bytes]:
    for piece in pieces:
        yield piece


def test_only_vllms_families_are_taken_over() -> None:
    text = (
        "# HELP vllm:x y\n# TYPE vllm:x gauge\nvllm:x 1\n# TYPE python_info gauge\npython_info 1\n"
    )
    assert only_vllm(text) == "# HELP vllm:x y\n# TYPE vllm:x gauge\nvllm:x 1\n"
