"""Answers by Idempotency-Key: who asks a second time gets the same answer, and it is drawn once.

For callers that may be killed between asking for a picture and keeping it. Lives in this process
and for a while; errors are not kept.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass

from cachetools import TTLCache

from models.flux.errors import Cancelled, FluxError


class KeyReused(Exception):
    """The key stands for another request."""


@dataclass
class Begun:
    """A drawing that was admitted. `answer` gives the wire form of its pictures, whoever waits;
    `give_up` cancels what is not finished in the engine yet.
    """

    answer: Coroutine[None, None, bytes]
    give_up: Callable[[], None]


@dataclass
class _Drawing:
    request: str
    begun: Begun
    task: asyncio.Task[bytes]
    waiters: int = 0
    is_given_up: bool = False


class AnswerMemory:
    """`max_bytes` of answers, each for `ttl_s` seconds; the oldest go first."""

    def __init__(self, max_bytes: int, ttl_s: float) -> None:
        self._kept: TTLCache[str, tuple[str, bytes]] = TTLCache(
            max_bytes, ttl_s, getsizeof=lambda kept: len(kept[1])
        )
        self._drawing: dict[str, _Drawing] = {}

    async def answer(
        self, key: str, request: str, begin: Callable[[], Begun]
    ) -> tuple[bytes, bool]:
        """The answer, and True when it was remembered. `request` tells requests apart.

        Cancelled, it gives the drawing up when nobody else waits for it; what the engine has
        finished by then is kept all the same. Raises KeyReused, and what `begin` and the engine
        raise.
        """
        while True:
            if (kept := self._kept.get(key)) is not None:
                _require_same(kept[0], request)
                return kept[1], True
            drawing = self._drawing.get(key) or self._begun(key, request, begin())
            _require_same(drawing.request, request)
            try:
                return await self._waited_for(drawing), False
            except Cancelled:
                if not drawing.is_given_up:
                    raise
                # The last one to wait had gone, and we came before its end: draw anew.

    def _begun(self, key: str, request: str, begun: Begun) -> _Drawing:
        drawing = _Drawing(request, begun, asyncio.ensure_future(begun.answer))
        self._drawing[key] = drawing
        drawing.task.add_done_callback(lambda _: self._ended(key, drawing))
        return drawing

    async def _waited_for(self, drawing: _Drawing) -> bytes:
        drawing.waiters += 1
        try:
            return await asyncio.shield(drawing.task)
        finally:
            drawing.waiters -= 1
            if drawing.waiters == 0 and not drawing.task.done():
                drawing.is_given_up = True
                drawing.begun.give_up()

    def _ended(self, key: str, drawing: _Drawing) -> None:
        del self._drawing[key]
        with suppress(asyncio.CancelledError, FluxError):
            answer = drawing.task.result()
            with suppress(ValueError):  # larger than all of the memory
                self._kept[key] = (drawing.request, answer)


def _require_same(known: str, request: str) -> None:
    if known != request:
        raise KeyReused
