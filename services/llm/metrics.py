"""Adds vLLM's metrics to the service's own /metrics."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class AppendMetrics:
    """ASGI middleware: `more()` is appended to a successful answer of /metrics."""

    def __init__(self, app: ASGIApp, more: Callable[[], Awaitable[bytes]]) -> None:
        self.app = app
        self.more = more

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] != "/metrics":
            await self.app(scope, receive, send)
            return
        added = await self.more()

        async def send_with_more(message: Message) -> None:
            if message["type"] == "http.response.start":
                del MutableHeaders(scope=message)["content-length"]
            elif not message.get("more_body"):
                message = {**message, "body": message.get("body", b"") + added}
            await send(message)

        await self.app(scope, receive, send_with_more)
