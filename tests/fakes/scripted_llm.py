"""An OpenAI-compatible server that answers what a test told it to: faults on demand, over HTTP.

It stands for a model that misbehaves in a way that a real one would need luck to repeat. Tests of
what works use the real vLLM.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

GOOD_CONTENT: dict[str, Any] = {
    "message": {"reason": "분명하다", "passage": 1, "score": 27},
    "target": {"reason": "뚜렷하다", "passage": 2, "score": 26},
    "relevance": {"reason": "이어진다", "passage": 2, "score": 35},
}
CLEAN = {
    c: {"passage": 0, "level": 0}
    for c in ("theme", "sexuality", "violence", "horror", "swearing", "drugs", "imitation")
}
GOOD_SUMMARY = {"text": "요약 문장입니다.", "keywords": ["하나", "둘", "셋", "넷"]}
GOOD_FEEDBACK = {
    "text": "이렇게 고쳐 보세요.",
    "suggestions": [{"about": "대상", "change": "누구를 위한 영상인지 적어 주세요."}],
}
GOOD: dict[str, Any] = {
    "ContentAnswer": GOOD_CONTENT,
    "DeliberationAnswer": CLEAN,
    "SummaryAnswer": GOOD_SUMMARY,
    "FeedbackAnswer": GOOD_FEEDBACK,
}


@dataclass
class Act:
    """What to do with one call. `text` is sent as it is; a dict is sent as JSON."""

    text: Any = ""
    finish_reason: str = "stop"
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    delay_s: float = 0.0
    dies_after: int | None = None  # characters of a stream, then the connection is cut


@dataclass
class ScriptedLLM:
    """`script[schema name]` is an Act, or a function from the call's number (from 1) to one."""

    script: dict[str, Act | Callable[[int], Act]] = field(default_factory=dict)
    calls: list[dict[str, Any]] = field(default_factory=list)
    running: int = 0
    base_url: str = ""

    def reset(self) -> None:
        self.script.clear()
        self.calls.clear()

    def calls_for(self, name: str) -> list[dict[str, Any]]:
        return [c for c in self.calls if _schema_name(c) == name]

    def act_for(self, body: dict[str, Any]) -> Act:
        name = _schema_name(body)
        scripted = self.script.get(name)
        if callable(scripted):
            return scripted(len(self.calls_for(name)))
        return scripted or Act(GOOD.get(name, "hello"))

    async def complete(self, request: Request) -> Response:
        body = await request.json()
        self.calls.append({**body, "request_id": request.headers.get("x-request-id")})
        act = self.act_for(body)
        self.running += 1
        try:
            await self._wait(request, act.delay_s)
        finally:
            self.running -= 1
        if act.status != 200:
            error = {"error": {"message": "scripted", "code": "scripted", "type": "scripted"}}
            return JSONResponse(error, act.status, headers=act.headers)
        text = act.text if isinstance(act.text, str) else json.dumps(act.text, ensure_ascii=False)
        if body.get("stream"):
            pieces = self._pieces(body, act, text)
            return StreamingResponse(pieces, media_type="text/event-stream")
        if act.dies_after is not None:
            return StreamingResponse(_cut_short(), media_type="application/json")
        return JSONResponse(_whole(body, text, act.finish_reason))

    async def _wait(self, request: Request, seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until and not await request.is_disconnected():
            await asyncio.sleep(0.02)

    async def _pieces(self, body: dict[str, Any], act: Act, text: str) -> AsyncIterator[str]:
        self.running += 1
        try:
            for start in range(0, len(text), 4):
                if act.dies_after is not None and start >= act.dies_after:
                    raise ConnectionResetError("scripted death")
                yield _chunk(body, {"content": text[start : start + 4]}, None)
                await asyncio.sleep(0)
            yield _chunk(body, {}, act.finish_reason)
            usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
            yield f"data: {json.dumps({**_frame(body), 'choices': [], 'usage': usage})}\n\n"
            yield "data: [DONE]\n\n"
        finally:
            self.running -= 1


def hang_up(base_url: str, llm: ScriptedLLM, proposal: dict[str, Any]) -> None:
    """Asks for `proposal` in both ways, leaves before the answer, and gives the model a while to
    notice.
    """
    for path in ("/v1/proposals/evaluate", "/v1/proposals/evaluate/stream"):
        with suppress(httpx.ReadTimeout), httpx.Client(base_url=base_url) as caller:
            caller.post(path, json=proposal, timeout=0.3)
            raise AssertionError(f"{path} answered before the caller left")
    until = time.monotonic() + 5
    while llm.running and time.monotonic() < until:
        time.sleep(0.02)


async def _cut_short() -> AsyncIterator[bytes]:
    yield b'{"id": "x", '
    raise ConnectionResetError("scripted death")


def _schema_name(body: dict[str, Any]) -> str:
    return str(body.get("response_format", {}).get("json_schema", {}).get("name", ""))


def _frame(body: dict[str, Any]) -> dict[str, Any]:
    return {"id": "cmpl", "object": "chat.completion.chunk", "created": 1, "model": body["model"]}


def _chunk(body: dict[str, Any], delta: dict[str, Any], finish: str | None) -> str:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return f"data: {json.dumps({**_frame(body), 'choices': [choice]}, ensure_ascii=False)}\n\n"


def _whole(body: dict[str, Any], text: str, finish: str) -> dict[str, Any]:
    message = {"role": "assistant", "content": text}
    return {
        "id": "cmpl",
        "object": "chat.completion",
        "created": 1,
        "model": body["model"],
        "choices": [{"index": 0, "message": message, "finish_reason": finish}],
        "usage": {
            "prompt_tokens": 10,
            "completion_tokens": 5,
            "total_tokens": 15,
            "prompt_tokens_details": {"cached_tokens": 4},
        },
    }


async def models(_: Request) -> Response:
    return JSONResponse({"object": "list", "data": [{"id": "scripted", "object": "model"}]})


@contextmanager
def served(llm: ScriptedLLM):  # type: ignore[no-untyped-def]
    """`llm` behind a real socket on loopback."""
    app = Starlette(
        routes=[
            Route("/v1/models", models),
            Route("/v1/chat/completions", llm.complete, methods=["POST"]),
        ]
    )
    with served_app(app) as base_url:
        llm.base_url = base_url
        yield llm


@contextmanager
def served_app(app: Any):  # type: ignore[no-untyped-def]
    """Any ASGI application behind a real socket on loopback, in a thread of this process."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", lifespan="on"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    until = time.monotonic() + 60
    while not server.started and time.monotonic() < until:
        assert thread.is_alive(), "the server stopped while it started"
        time.sleep(0.01)
    host, port = server.servers[0].sockets[0].getsockname()[:2]
    base_url = f"http://{host}:{port}"
    httpx.get(base_url)
    try:
        yield base_url
    finally:
        server.should_exit = True
        thread.join(20)
