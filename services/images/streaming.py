"""One image as server-sent events, in OpenAI's shape.

What is refused is refused with its own status, before the first byte; `X-Eta-S` in the head says
how many seconds were foreseen. Then partial pictures, and the finished one; or one last event
`{"error": ...}`. A comment line comes after every 15 s of silence. A caller who hangs up frees the
row at the next step.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

import structlog
from fastapi import Request, Response
from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event
from starlette.types import Message, Receive, Scope, Send

from models.flux.engine import Ticket
from models.flux.errors import FluxError
from services.images.drawing import Drawer, Previews, Wanted
from services.images.schemas import CompletedImage, DrawnImage, PartialImage
from services.shared.errors import Problem, openai_error
from services.shared.web import ClientGone, until_hang_up

SILENCE_S = 15.0
ETA = "X-Eta-S"
log = structlog.get_logger()


class ImageStream(Response):
    """Draws while it is sent. Must be sent by the route that made it, which has read the body."""

    media_type = "text/event-stream"

    def __init__(
        self, drawer: Drawer, wanted: Wanted, problem: Callable[[FluxError], Problem]
    ) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["Content-Length"]
        self._drawer = drawer
        self._wanted = wanted
        self._problem = problem
        self._has_begun = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await until_hang_up(Request(scope, receive), self._send_all(send))
        except ClientGone:
            if not self._has_begun:
                raise
            log.info("caller hung up", what="stream of an image")
        except FluxError as error:
            raise self._problem(error) from None

    async def _send_all(self, send: Send) -> None:
        previews = Previews()
        async with self._drawer.admitted(self._wanted, previews) as (ticket,):
            await self._begin(ticket, send)
            try:
                async with aclosing(self._events(ticket, previews)) as events:
                    async for event in events:
                        await send(_body(event))
            except FluxError as error:
                body = json.dumps(openai_error(self._problem(error)))
                last = format_sse_event(event="error", data_str=body)
                await send(_body(last))
            await send({"type": "http.response.body", "body": b""})

    async def _begin(self, ticket: Ticket, send: Send) -> None:
        self.headers[ETA] = f"{ticket.eta_s:.2f}"
        self._has_begun = True
        start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        await send(start)

    async def _events(self, ticket: Ticket, previews: Previews) -> AsyncGenerator[bytes]:
        finished = asyncio.ensure_future(self._drawer.finished(self._wanted, ticket))
        finished.add_done_callback(lambda _: previews.end())
        try:
            index = 0
            while not finished.done() or previews.are_left:
                try:
                    image = await asyncio.wait_for(previews.next(), SILENCE_S)
                except TimeoutError:
                    yield KEEPALIVE_COMMENT
                    continue
                if image is not None:
                    yield _event(self._partial(index, await self._drawer.file(self._wanted, image)))
                    index += 1
            yield _event(self._completed(await finished))
        finally:
            finished.cancel()
            await asyncio.wait({finished})

    def _partial(self, index: int, file: str) -> PartialImage:
        return PartialImage(
            b64_json=file,
            created_at=int(time.time()),
            output_format=self._wanted.form,
            size=self._wanted.size,
            partial_image_index=index,
        )

    def _completed(self, drawn: DrawnImage) -> CompletedImage:
        return CompletedImage(
            **drawn.model_dump(),
            created_at=int(time.time()),
            output_format=self._wanted.form,
            size=self._wanted.size,
            usage=self._drawer.usage(self._wanted),
        )


def _event(event: PartialImage | CompletedImage) -> bytes:
    return format_sse_event(event=event.type, data_str=event.model_dump_json())


def _body(piece: bytes) -> Message:
    return {"type": "http.response.body", "body": piece, "more_body": True}
