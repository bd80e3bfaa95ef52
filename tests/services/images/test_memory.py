"""The memory of answers, with an engine whose drawings end when a test says so."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import pytest

from models.flux.errors import JobFailed
from services.images.memory import AnswerMemory, Begun, KeyReused

WITHIN_S = 5.0


@dataclass
class Drawings:
    """An engine's part: what was begun, and its end when a test says so. Nothing is drawn."""

    memory: AnswerMemory
    begun: dict[str, list[Future[bytes]]] = field(default_factory=dict)

    async def answer(self, key: str, request: str = "rain") -> tuple[bytes, bool]:
        async with asyncio.timeout(WITHIN_S):
            return await self.memory.answer(key, request, lambda: self._begin(key))

    def _begin(self, key: str) -> Begun:
        future: Future[bytes] = Future()
        self.begun.setdefault(key, []).append(future)

        async def answer() -> bytes:
            return await asyncio.wrap_future(future)

        return Begun(answer(), give_up=future.cancel)

    def live(self, key: str) -> list[Future[bytes]]:
        return [future for future in self.begun.get(key, ()) if not future.done()]

    def finished(self, key: str) -> list[bytes]:
        ended = (one for one in self.begun.get(key, ()) if one.done() and not one.cancelled())
        return [one.result() for one in ended if one.exception() is None]

    async def drawn(self, key: str, picture: bytes) -> None:
        """`key` is asked for, and drawn."""
        call = asyncio.create_task(self.answer(key))
        await asyncio.sleep(0)
        self.live(key)[0].set_result(picture)
        assert await call == (picture, False)

    async def keeps(self, key: str) -> bool:
        """True when it is answered at once."""
        call = asyncio.create_task(self.answer(key))
        await asyncio.sleep(0)
        if not call.done():
            call.cancel()
            await asyncio.wait({call})
            return False
        return call.result()[1]


def kept_until(now: list[float], **bounds: Any) -> Drawings:
    told = {"max_answers": 100, "max_bytes": 100, "ttl_s": 10.0, **bounds}
    return Drawings(AnswerMemory(**told, clock=lambda: now[0]))


async def test_an_answer_lives_from_its_finish_on() -> None:
    now = [0.0]
    drawings = kept_until(now)
    call = asyncio.create_task(drawings.answer("a"))
    await asyncio.sleep(0)
    now[0] = 30.0
    drawings.live("a")[0].set_result(b"picture")
    await call
    now[0] = 39.9
    assert await drawings.keeps("a")
    now[0] = 40.0
    assert not await drawings.keeps("a")


async def test_the_oldest_goes_first_however_often_it_is_asked_for() -> None:
    drawings = kept_until([0.0], max_answers=2)
    await drawings.drawn("a", b"1")
    await drawings.drawn("b", b"2")
    assert await drawings.keeps("a")
    await drawings.drawn("c", b"3")
    assert [await drawings.keeps(key) for key in "abc"] == [False, True, True]


async def test_the_oldest_make_room_for_large_ones() -> None:
    drawings = kept_until([0.0], max_bytes=10)
    for key in "abc":
        await drawings.drawn(key, b"four")
    assert [await drawings.keeps(key) for key in "abc"] == [False, True, True]
    await drawings.drawn("d", b"eleven byte")
    assert [await drawings.keeps(key) for key in "bcd"] == [True, True, False]
    await drawings.drawn("e", b"ten bytes.")
    assert [await drawings.keeps(key) for key in "bce"] == [False, False, True]


@pytest.mark.parametrize("bound", ["max_answers", "max_bytes"])
async def test_nothing_is_kept_where_there_is_no_room(bound: str) -> None:
    drawings = kept_until([0.0], **{bound: 0})
    await drawings.drawn("a", b"picture")
    assert not await drawings.keeps("a")


async def test_a_finish_at_the_moment_of_the_last_hang_up_is_kept() -> None:
    """In every order of the two within one turn of the loop."""
    for finish_first in (False, True):
        drawings = kept_until([0.0])
        call = asyncio.create_task(drawings.answer("a"))
        await asyncio.sleep(0)
        (future,) = drawings.live("a")
        if finish_first:
            future.set_result(b"picture")
            call.cancel()
        else:
            call.cancel()
            future.set_result(b"picture")
        await asyncio.wait({call})
        assert await drawings.answer("a") in ((b"picture", True), (b"picture", False))
        assert len(drawings.begun["a"]) == 1


async def test_no_order_of_events_draws_twice_or_loses_a_picture() -> None:
    """500 random orders of asking, leaving, finishing and failing, for three keys."""
    outcomes: Counter[str] = Counter()
    for seed in range(500):
        outcomes += await events(random.Random(seed))
    assert min(outcomes[what] for what in ("joined", "replayed", "failed", "left", "anew")) > 100


async def events(dice: random.Random) -> Counter[str]:
    """One of the orders, and what became of the calls."""
    drawings = kept_until([0.0])
    calls: list[tuple[str, asyncio.Task[tuple[bytes, bool]]]] = []
    for _ in range(dice.randint(5, 40)):
        key = dice.choice("abc")
        match dice.choice(("ask", "ask", "leave", "finish", "fail", "turn", "turn")):
            case "ask":
                calls.append((key, asyncio.create_task(drawings.answer(key))))
            case "leave" if calls:
                dice.choice(calls)[1].cancel()
            case "finish" | "fail" as end:
                for future in drawings.live(key):
                    _end(future, key, end, dice)
            case _:
                for _ in range(dice.randint(1, 4)):
                    await asyncio.sleep(0)
        assert all(len(drawings.live(key)) <= 1 for key in "abc"), "two drawings of one key"
    while not all(call.done() for _, call in calls):
        for future in [future for key in "abc" for future in drawings.live(key)]:
            future.set_result(dice.randbytes(4))
        await asyncio.sleep(0)
    return await _outcomes(drawings, calls)


def _end(future: Future[bytes], key: str, end: str, dice: random.Random) -> None:
    if end == "finish":
        future.set_result(dice.randbytes(4))
    else:
        future.set_exception(JobFailed(key))


async def _outcomes(
    drawings: Drawings, calls: list[tuple[str, asyncio.Task[tuple[bytes, bool]]]]
) -> Counter[str]:
    told: Counter[str] = Counter()
    for key, call in calls:
        if call.cancelled():
            told["left"] += 1
        elif isinstance(call.exception(), JobFailed):
            told["failed"] += 1
        else:
            picture, is_replayed = call.result()
            assert drawings.finished(key) == [picture], "one picture of a key, and everybody's"
            told["replayed" if is_replayed else "joined"] += 1
    for key, begun in drawings.begun.items():
        drawn = len(begun)
        told["anew"] += drawn > 1
        if finished := drawings.finished(key):
            assert (await drawings.answer(key))[0] == finished[0]
            assert len(begun) == drawn, "it was not drawn again"
    return told


async def test_another_request_is_told_at_once_whoever_waits() -> None:
    drawings = kept_until([0.0])
    call = asyncio.create_task(drawings.answer("a"))
    await asyncio.sleep(0)
    with pytest.raises(KeyReused):
        await drawings.answer("a", "snow")
    drawings.live("a")[0].set_result(b"picture")
    assert await call == (b"picture", False)
    with pytest.raises(KeyReused):
        await drawings.answer("a", "snow")
