"""An OpenAI-compatible server with faults at the level of the socket; a request's `script` says
which. What works is tested with the real vLLM.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

EVENT = b'data: {"choices": [{"delta": {"content": "a"}}]}\n\n'
DONE = b"data: [DONE]\n\n"
LONG_S = 60.0
VLLM_400 = '{"error":{"message":"too long","type":"BadRequestError","param":null,"code":400}}'


@dataclass
class Upstream:
    """`running` counts the requests that are being answered; `seen` are their headers."""

    base_url: str = ""
    running: int = 0
    seen: list[dict[str, str]] = field(default_factory=list)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            while await self._one(reader, writer):
                pass
        writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in head[1:] if ": " in line)
        self.seen.append({**headers, "request-line": head[0]})
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        request = json.loads(body or b"{}")
        self.running += 1
        acting = asyncio.ensure_future(self._act(request, writer))
        leaving = asyncio.ensure_future(reader.read(1))
        try:
            await asyncio.wait({acting, leaving}, return_when=asyncio.FIRST_COMPLETED)
            return False  # One request a connection keeps the fake simple.
        finally:
            acting.cancel()
            leaving.cancel()
            self.running -= 1

    async def _act(self, request: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        script = request.get("script", "ok")
        if script == "dies":
            return
        if script in ("slow", "stream_slow", "stream_dies", "stream", "stream_half"):
            await self._long(script, request, writer)
            return
        status, content = {
            "ok": (200, '{"object": "chat.completion"}'),
            "busy": (503, '{"error":{"message":"secret queue","type":"x","code":503}}'),
            "fault": (500, '{"error":{"message":"secret /opt/path","type":"x","code":500}}'),
            "bad": (400, VLLM_400),
            "odd": (404, '{"detail":"Not Found"}'),
            "no_key": (401, '{"error":{"message":"bad key sk-secret","type":"x"}}'),
            "limited": (429, '{"error":{"message":"slow down","type":"x","code":429}}'),
        }[script]
        writer.write(
            f"HTTP/1.1 {status} X\r\ncontent-type: application/json\r\nconnection: close\r\n"
            f"content-length: {len(content)}\r\n\r\n{content}".encode()
        )
        await writer.drain()

    async def _long(
        self, script: str, request: dict[str, Any], writer: asyncio.StreamWriter
    ) -> None:
        if script == "slow":
            await asyncio.sleep(request.get("seconds", LONG_S))
            script = "stream"
        writer.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n"
            b"transfer-encoding: chunked\r\n\r\n"
        )
        for _ in range(request.get("events", 3)):
            writer.write(b"%x\r\n%s\r\n" % (len(EVENT), EVENT))
            await writer.drain()
            await asyncio.sleep(request.get("pause_s", 0.0))
        if script == "stream_half":
            writer.write(b"6\r\ndata: \r\n")
        if script == "stream_slow":
            await asyncio.sleep(LONG_S)
        if script == "stream":
            writer.write(b"%x\r\n%s\r\n0\r\n\r\n" % (len(DONE), DONE))
        await writer.drain()


@contextmanager
def upstream() -> Iterator[Upstream]:
    """The server on loopback, in a thread with an event loop of its own."""
    fake = Upstream()
    loop = asyncio.new_event_loop()
    server = loop.run_until_complete(asyncio.start_server(fake.serve, "127.0.0.1", 0))
    host, port = server.sockets[0].getsockname()[:2]
    fake.base_url = f"http://{host}:{port}"
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield fake
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        server.close()
