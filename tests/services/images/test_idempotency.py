"""One Idempotency-Key, one drawing: who joins, who is given it again, who leaves, what is kept.

`held` stops the service at a point that a test names, so that no race is left to luck.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
from pydantic import SecretStr

from services.images import drawing
from services.images.app import metrics
from tests.services.images.conftest import (
    FOREVER,
    GENERATIONS,
    HELD_S,
    Hold,
    Serve,
    Served,
    held,
    picture,
)

HEADER, REPLAYED = "Idempotency-Key", "Idempotent-Replayed"


@dataclass(frozen=True)
class Callers:
    """Callers of one service, and what it has counted since they came."""

    service: Served
    client: httpx.AsyncClient
    before: dict[str, float]

    def ask(self, key: str, *, bearer: str = "", **body: Any) -> asyncio.Task[httpx.Response]:
        """A call under way; cancelled, it hangs up."""
        headers = {HEADER: key} | ({"Authorization": f"Bearer {bearer}"} if bearer else {})
        post = self.client.post(GENERATIONS, json={"prompt": "rain", **body}, headers=headers)
        return asyncio.create_task(post)

    def waiting(self, key: str) -> int:
        """How many wait for the key's drawing."""
        drawings = self.service.app.state.opening.memory._drawing
        return sum(one.waiters for owned, one in drawings.items() if owned.endswith(f"/{key}"))

    async def joined(self, key: str, number: int) -> None:
        await soon(lambda: self.waiting(key) == number)

    async def counted(self) -> tuple[int, int, int]:
        """Pictures finished and cancelled, and answers replayed. Counts when all is quiet."""
        await soon(lambda: self.service.live() == 0)
        now = samples(self.service)
        names = ('ended_total{outcome="finished"}', 'ended_total{outcome="cancelled"}')
        finished, cancelled, replayed = (
            int(now[f"joing_images_{name}"] - self.before[f"joing_images_{name}"])
            for name in (*names, "replayed_total")
        )
        return finished, cancelled, replayed


def samples(service: Served) -> dict[str, float]:
    lines = (line for line in metrics(service.app).splitlines() if not line.startswith("#"))
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}


async def soon(holds: Callable[[], object], within_s: float = HELD_S) -> None:
    async with asyncio.timeout(within_s):
        while not holds():
            await asyncio.sleep(0.005)


async def reached(hold: Hold) -> None:
    await soon(hold.reached.is_set)


async def hang_up(call: asyncio.Task[httpx.Response]) -> None:
    call.cancel()
    with suppress(asyncio.CancelledError):
        await call
    assert call.cancelled(), "it was answered before it left"


async def calling(service: Served) -> AsyncIterator[Callers]:
    limits = httpx.Limits(max_connections=64)
    async with httpx.AsyncClient(base_url=service.base_url, timeout=60, limits=limits) as client:
        yield Callers(service, client, samples(service))


@pytest.fixture
async def callers(service: Served) -> AsyncIterator[Callers]:
    async for some in calling(service):
        yield some


@pytest.fixture
def key() -> str:
    """One that the shared service has not seen."""
    return uuid4().hex


def code(answer: httpx.Response) -> tuple[int, str, str]:
    error = answer.json()["error"]
    return answer.status_code, error["code"], error["param"]


# --- joined and replayed --------------------------------------------------------------------------


async def test_who_asks_while_it_is_drawn_gets_the_same_answer(callers: Callers, key: str) -> None:
    with held(callers.service.engine.runner, "step") as hold:
        first = callers.ask(key)
        await reached(hold)
        others = [callers.ask(key), callers.ask(key, seed=None, stream=None)]
        await callers.joined(key, 3)
    answers = await asyncio.gather(first, *others)
    assert [answer.status_code for answer in answers] == [200] * 3
    assert len({answer.content for answer in answers}) == 1
    assert all(REPLAYED not in answer.headers for answer in answers)
    assert await callers.counted() == (1, 0, 0)


async def test_who_asks_later_gets_the_answer_as_it_was_drawn(callers: Callers, key: str) -> None:
    """Chance seeds, times and all."""
    first = await callers.ask(key, n=2, guidance=3)
    again = await callers.ask(key, guidance=3.0, n=2, seed=None)
    assert (first.status_code, again.status_code) == (200, 200)
    assert REPLAYED not in first.headers
    assert again.headers[REPLAYED] == "true"
    assert again.headers["content-type"] == first.headers["content-type"]
    assert again.content == first.content
    assert [picture(image).mode for image in again.json()["data"]] == ["RGB"] * 2
    assert await callers.counted() == (2, 0, 1)


async def test_without_a_key_nothing_is_remembered(callers: Callers) -> None:
    seeds = {callers.service.post().json()["data"][0]["seed"] for _ in range(3)}
    assert len(seeds) == 3
    assert await callers.counted() == (3, 0, 0)


async def test_a_key_with_another_body_is_a_conflict(callers: Callers, key: str) -> None:
    with held(callers.service.engine.runner, "step") as hold:
        first = callers.ask(key, seed=1)
        await reached(hold)
        meanwhile = await callers.ask(key, seed=2)
    assert (await first).json()["data"][0]["seed"] == 1, "it was not disturbed"
    later = await callers.ask(key)
    for refused in (meanwhile, later):
        assert code(refused) == (409, "idempotency_key_reused", HEADER)
        assert "new key" in refused.json()["error"]["message"]
    assert (await callers.ask(key, seed=1)).headers[REPLAYED] == "true"
    assert await callers.counted() == (1, 0, 1)


async def test_callers_do_not_share_keys(serve: Serve, tmp_path: Path) -> None:
    with serve(tmp_path, api_keys=SecretStr("one,two")) as service:
        async for callers in calling(service):
            one, two = await asyncio.gather(
                callers.ask("k", bearer="one", seed=1), callers.ask("k", bearer="two", seed=2)
            )
            for bearer, seed, first in (("one", 1, one), ("two", 2, two)):
                assert first.json()["data"][0]["seed"] == seed
                again = await callers.ask("k", bearer=bearer, seed=seed)
                assert (again.headers[REPLAYED], again.content) == ("true", first.content)
            assert await callers.counted() == (2, 0, 2)


async def test_a_crowd_draws_each_key_once(callers: Callers) -> None:
    """500 calls for 40 keys, in any order, each at any moment of the others."""
    dice = random.Random(0)
    keys = [uuid4().hex for _ in range(40)]
    limit = asyncio.Semaphore(48)

    async def call(key: str) -> tuple[str, httpx.Response]:
        async with limit:
            await asyncio.sleep(dice.random() * 0.05)
            return key, await callers.ask(key, steps=1)

    asked = keys + dice.choices(keys, k=500 - len(keys))
    dice.shuffle(asked)
    answers = await asyncio.gather(*(call(key) for key in asked))
    assert {answer.status_code for _, answer in answers} == {200}
    assert len({(key, answer.content) for key, answer in answers}) == len(keys)
    finished, cancelled, replayed = await callers.counted()
    assert (finished, cancelled) == (len(keys), 0)
    assert replayed == sum(REPLAYED in answer.headers for _, answer in answers) > 0


# --- hanging up -----------------------------------------------------------------------------------


@pytest.mark.parametrize("leaver", [0, 1], ids=["first", "second"])
async def test_who_leaves_takes_nothing_from_who_stays(
    callers: Callers, key: str, leaver: int
) -> None:
    with held(callers.service.engine.runner, "step") as hold:
        calls = [callers.ask(key)]
        await reached(hold)
        calls.append(callers.ask(key))
        await callers.joined(key, 2)
        await hang_up(calls.pop(leaver))
        await callers.joined(key, 1)
    assert (await calls[0]).status_code == 200
    assert await callers.counted() == (1, 0, 0)


async def test_when_the_last_one_leaves_the_key_is_free_again(callers: Callers, key: str) -> None:
    calls = [callers.ask(key, steps=FOREVER, n=8), callers.ask(key, steps=FOREVER, n=8)]
    await callers.joined(key, 2)
    await soon(lambda: callers.service.engine.snapshot().running)
    for call in calls:
        await hang_up(call)
    await soon(lambda: callers.service.live() == 0, 3)
    again = await callers.ask(key, seed=4)
    assert again.json()["data"][0]["seed"] == 4
    assert REPLAYED not in again.headers
    assert await callers.counted() == (1, 8, 0)


async def test_the_key_is_free_before_the_engine_has_stopped(callers: Callers, key: str) -> None:
    """A step is under way when the last one leaves, and another one asks."""
    with held(callers.service.engine.runner, "step") as hold:
        given_up = callers.ask(key)
        await reached(hold)
        await hang_up(given_up)
        await callers.joined(key, 0)
        again = callers.ask(key, seed=4)
        await callers.joined(key, 1)
    assert (await again).json()["data"][0]["seed"] == 4
    assert (await callers.ask(key, seed=4)).headers[REPLAYED] == "true"
    assert await callers.counted() == (1, 1, 1)


async def test_leaving_while_it_is_decoded_harms_no_neighbour(callers: Callers, key: str) -> None:
    engine = callers.service.engine
    neighbour = callers.ask(uuid4().hex, steps=200)
    await soon(lambda: engine.snapshot().running)
    with held(engine.runner, "finish") as hold:
        leaving = callers.ask(key, steps=1)
        await reached(hold)
        await hang_up(leaving)
        await callers.joined(key, 0)
    assert (await neighbour).status_code == 200
    assert REPLAYED not in (await callers.ask(key, steps=1)).headers
    assert await callers.counted() == (2, 1, 0)


async def test_a_picture_that_nobody_waited_for_any_more_is_kept(
    callers: Callers, key: str
) -> None:
    """The last one leaves between the engine's last stroke and the answer."""
    with held(drawing, "encoded") as hold:
        killed = callers.ask(key)
        await reached(hold)
        await hang_up(killed)
        await callers.joined(key, 0)
    await soon(lambda: key not in str(callers.service.app.state.opening.memory._drawing))
    again = await callers.ask(key)
    assert (again.status_code, again.headers[REPLAYED]) == (200, "true")
    assert await callers.counted() == (1, 0, 1)


async def test_who_asks_again_while_it_is_encoded_joins(callers: Callers, key: str) -> None:
    with held(drawing, "encoded") as hold:
        killed = callers.ask(key)
        await reached(hold)
        await hang_up(killed)
        await callers.joined(key, 0)
        again = callers.ask(key)
        await callers.joined(key, 1)
    assert (await again).status_code == 200
    assert await callers.counted() == (1, 0, 0)


async def test_a_hang_up_between_the_delivery_and_the_books(callers: Callers, key: str) -> None:
    """The engine has given the picture away and not yet counted it as finished."""
    engine = callers.service.engine
    with held(drawing, "encoded"), held(engine, "_deliver", after=True) as hold:
        killed = callers.ask(key)
        await reached(hold)
        await hang_up(killed)
        await callers.joined(key, 0)
    again = await callers.ask(key)
    assert again.status_code == 200
    assert (await callers.counted())[:2] == (1, 0)


# --- errors ---------------------------------------------------------------------------------------


async def test_a_failure_is_everybodys_and_not_remembered(callers: Callers, key: str) -> None:
    fault = RuntimeError("scripted")
    with held(callers.service.engine.runner, "step", raises=fault) as hold:
        calls = [callers.ask(key), callers.ask(key)]
        await reached(hold)
        await callers.joined(key, 2)
        hold.go.set()
        answers = await asyncio.gather(*calls)
    assert {answer.status_code for answer in answers} == {500}
    again = await callers.ask(key)
    assert again.status_code == 200
    assert REPLAYED not in again.headers
    assert await callers.counted() == (1, 0, 0)


@pytest.mark.parametrize("body", [{"size": "60x48"}, {"model": "nobody"}, {"n": 9}])
async def test_a_refusal_is_not_remembered(
    callers: Callers, key: str, body: dict[str, Any]
) -> None:
    assert (await callers.ask(key, **body)).status_code in (404, 422)
    assert (await callers.ask(key)).status_code == 200


@pytest.mark.parametrize("bad", ["", "a b", "a/b", "a,b", "\u00e9", "a" * 129, '"a"'])
async def test_a_bad_key_is_refused_by_name(callers: Callers, bad: str) -> None:
    headers = {HEADER: bad.encode("latin-1")}
    answer = await callers.client.post(GENERATIONS, json={"prompt": "rain"}, headers=headers)
    assert code(answer) == (400, "malformed", HEADER)
    assert "1-128" in answer.json()["error"]["message"]
    assert await callers.counted() == (0, 0, 0)


@pytest.mark.parametrize("good", [f"{uuid4()}:7_x.Y-", "a" * 128, "-"])
async def test_a_good_key(callers: Callers, good: str) -> None:
    assert (await callers.ask(good)).status_code == 200


async def test_a_stream_has_no_key(callers: Callers, key: str) -> None:
    answer = await callers.ask(key, stream=True)
    assert code(answer) == (422, "invalid", "stream")
    assert HEADER in answer.json()["error"]["message"]
    assert (await callers.ask(key, stream=False)).status_code == 200


def test_the_header_is_described(service: Served) -> None:
    described = service.client.get("/openapi.json").json()["paths"][GENERATIONS]["post"]
    (header,) = described["parameters"]
    assert (header["name"], header["in"], header["required"]) == (HEADER, "header", False)
    assert header["schema"]["pattern"] == "^[A-Za-z0-9._:-]{1,128}$"
    assert REPLAYED in described["responses"]["200"]["headers"]


# --- what is kept ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "bound",
    [{"remembered_answers": 1}, {"remembered_bytes": 20_000}, {"remembered_s": 0.001}],
    ids=str,
)
async def test_the_settings_bound_what_is_kept(
    serve: Serve, tmp_path: Path, bound: dict[str, Any]
) -> None:
    """An answer has some 13,000 bytes."""
    with serve(tmp_path, **bound) as service:
        async for callers in calling(service):
            for key in ("first", "second", "first"):
                assert REPLAYED not in (await callers.ask(key)).headers
            assert await callers.counted() == (3, 0, 0)
