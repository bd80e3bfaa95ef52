"""Server-sent events, as the services send them: one line a field, JSON as data."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any, NamedTuple

import httpx


class Event(NamedTuple):
    name: str
    data: dict[str, Any]
    id: str
    """Where to go on from, as Last-Event-ID; empty when the stream cannot be taken up again."""


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
