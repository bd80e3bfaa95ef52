"""Answers by Idempotency-Key: who asks a second time gets the same answer, and it is drawn once.

    unknown ──begin──> being drawn ──finished──> kept ──too old, or too many──> unknown
                            └──failed, or the last one who waited has gone──> unknown

For callers that may be killed between asking for a picture and keeping it. Lives in this process
and for a while; belongs to one event loop. Knows nothing of HTTP or pictures.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass

from cachetools import TTLCache

from models.flux.errors import FluxError


class KeyReused(Exception):
    """The key stands for another request."""


@dataclass(frozen=True)
class Begun:
    """A drawing that was admitted."""

    answer: Coroutine[None, None, bytes]
    """The wire form of its pictures. Raises what the engine raises; CancelledError after
    `give_up`.
    """
    give_up: Callable[[], bool]
    """Frees its places. False when the engine had finished it: then `answer` is still to come."""


@dataclass
class _Drawing:
    request: str
    begun: Begun
    task: asyncio.Task[bytes]
    waiters: int = 0


@dataclass(frozen=True)
class _Kept:
    request: str
    answer: bytes


class _OldestFirst(TTLCache[str, _Kept, float]):
    """Makes room by age; TTLCache alone forgets what was asked for least recently."""

    def popitem(self) -> tuple[str, _Kept]:
        with self.timer:
            for key in self:
                return key, self.pop(key)
        raise KeyError("nothing is kept")


class AnswerMemory:
    """Keeps `max_answers` of `max_bytes` together, each for `ttl_s` from its finish; the oldest go
    first. Errors are not kept, nor is an answer that alone is over `max_bytes`.
    """

    def __init__(
        self,
        max_answers: int,
        max_bytes: int,
        ttl_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._max_answers = max_answers
        self._kept = _OldestFirst(max_bytes, ttl_s, clock, lambda kept: len(kept.answer))
        self._drawing: dict[str, _Drawing] = {}

    async def answer(
        self, key: str, request: str, begin: Callable[[], Begun]
    ) -> tuple[bytes, bool]:
        """The answer, and True when it was remembered. `request` tells requests apart.

        The drawing is everybody's who waits. When the last of them is cancelled it is given up and
        the key forgotten; unless the engine has finished it, then the answer is kept all the same.
        Raises KeyReused, and what `begin` and `Begun.answer` raise.
        """
        if (kept := self._kept.get(key)) is not None:
            _require_same(kept.request, request)
            return kept.answer, True
        drawing = self._drawing.get(key) or self._begun(key, request, begin())
        _require_same(drawing.request, request)
        return await self._waited_for(key, drawing), False

    def _begun(self, key: str, request: str, begun: Begun) -> _Drawing:
        drawing = _Drawing(request, begun, asyncio.ensure_future(begun.answer))
        self._drawing[key] = drawing
        drawing.task.add_done_callback(lambda _: self._ended(key, drawing))
        return drawing

    async def _waited_for(self, key: str, drawing: _Drawing) -> bytes:
        drawing.waiters += 1
        try:
            return await asyncio.shield(drawing.task)
        finally:
            drawing.waiters -= 1
            is_left = drawing.waiters == 0 and not drawing.task.done()
            if is_left and drawing.begun.give_up():
                self._forget(key, drawing)

    def _ended(self, key: str, drawing: _Drawing) -> None:
        self._forget(key, drawing)
        with suppress(asyncio.CancelledError, FluxError):
            self._keep(key, _Kept(drawing.request, drawing.task.result()))

    def _forget(self, key: str, drawing: _Drawing) -> None:
        """The key may stand for a later drawing by now."""
        if self._drawing.get(key) is drawing:
            del self._drawing[key]

    def _keep(self, key: str, kept: _Kept) -> None:
        with suppress(ValueError):  # it is larger than all of the memory
            self._kept[key] = kept
        with self._kept.timer:
            while len(self._kept) > self._max_answers:
                self._kept.popitem()


def _require_same(known: str, request: str) -> None:
    if known != request:
        raise KeyReused
