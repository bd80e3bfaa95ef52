"""A use case as server-sent events: what it tells while it runs, then its result or an error.

Knows no event of any service.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import structlog
from fastapi.sse import ServerSentEvent

from services.shared.errors import Internal, Problem

T = TypeVar("T")
Event = dict[str, Any]
log = structlog.get_logger()


async def told(
    run: Callable[[Callable[[Event], None]], Awaitable[T]], result: str
) -> AsyncIterator[Event]:
    """What `run` emits, as it happens; last {"event": "result", result: what it returned}.

    Raises as `run` does. Closing the iterator cancels it.
    """
    events: asyncio.Queue[Event | None] = asyncio.Queue()

    async def produce() -> T:
        try:
            return await run(events.put_nowait)
        finally:
            events.put_nowait(None)

    producer = asyncio.create_task(produce())
    try:
        while (event := await events.get()) is not None:
            yield event
        yield {"event": "result", result: await producer}
    finally:
        producer.cancel()
        await asyncio.wait({producer})


async def sse(
    events: AsyncIterator[Event],
    in_wire_form: Callable[[Event], ServerSentEvent],
    as_problems: AbstractContextManager[None],
) -> AsyncIterator[ServerSentEvent]:
    """Events in their wire form. After the first byte an error can only be an event."""
    try:
        with as_problems:
            async for event in events:
                yield in_wire_form(event)
    except Problem as problem:
        yield ServerSentEvent(event="error", raw_data=problem.body().model_dump_json())
    except Exception as error:  # the HTTP edge of a stream
        log.error("unexpected error in a stream", exc_info=error)
        internal = Internal("Something went wrong on our side; the request id names it in our log.")
        yield ServerSentEvent(event="error", raw_data=internal.body().model_dump_json())
