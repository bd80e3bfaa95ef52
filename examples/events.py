"""Server-sent events, as the services send them, and several streams shown while they run."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import httpx
from rich.console import Console, Group, RenderableType
from rich.live import Live

SILENCE_S = 60.0  # a comment line comes every 15 s
FAILURES = (httpx.HTTPError, KeyError, ValueError, RuntimeError, TimeoutError)


class Event(NamedTuple):
    name: str
    data: dict[str, Any]
    id: str
    """Where to go on from, as Last-Event-ID; empty when the stream cannot be taken up again."""


class Followed(Protocol):
    """What one stream tells about. `error` says why it came to no end."""

    error: str
    seconds: float

    def take(self, event: str, data: dict[str, Any]) -> None: ...

    def view(self) -> RenderableType: ...


async def events(response: httpx.Response) -> AsyncIterator[Event]:
    """Until the stream ends. Raises httpx.HTTPError."""
    name = last_id = ""
    async for line in response.aiter_lines():
        key, _, value = line.partition(": ")
        if key == "event":
            name = value
        elif key == "id":
            last_id = value
        elif key == "data":
            yield Event(name, json.loads(value), last_id)


async def show(
    console: Console,
    base_url: str,
    path: str,
    asked: Sequence[tuple[Mapping[str, Any], Followed]],
) -> None:
    """Posts every body to `path` at once, shows what their events tell, and leaves it printed."""
    async with httpx.AsyncClient(base_url=base_url, timeout=SILENCE_S) as client:
        with Live(console=console, refresh_per_second=8, transient=True) as live:
            work = asyncio.gather(*(_follow(client, path, body, one) for body, one in asked))
            while not work.done():
                live.update(Group(*(one.view() for _, one in asked)))
                await asyncio.wait({work}, timeout=0.25)
            await work
    for _, one in asked:
        console.print(one.view())


async def _follow(
    client: httpx.AsyncClient, path: str, body: Mapping[str, Any], followed: Followed
) -> None:
    """Takes one stream's events until the last."""
    started = time.monotonic()
    try:
        async with client.stream("POST", path, json=body) as response:
            if response.is_error:
                await response.aread()
                followed.error = response.json()["detail"]
                return
            async for event in events(response):
                followed.take(event.name, event.data)
    except FAILURES as error:
        followed.error = f"{type(error).__name__}: {error}"
    finally:
        followed.seconds = time.monotonic() - started
