"""What the evaluation benchmark does with a running system: each function takes one kind of sample.

Both sides of a comparison take turns, so that whatever else the machine does falls on both.
Knows nothing of starting or of ratios.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, replace
from itertools import chain, count
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

import httpx

from loadtests.benchmarks.recorded_calls import (
    WRITERS,
    BenchmarkFailed,
    DirectModel,
    Evaluated,
    RecordedCall,
    Replayed,
    evaluate,
    with_calls,
)
from loadtests.benchmarks.summary import Accounts, Block, Judged, Pair, Samples

PROPOSALS = Path(__file__).parent / "proposals.jsonl"
WARM_UP_EVALUATIONS = 2
SALT = uuid4().hex
"""Separates repeated calls from recorded ones in vLLM's prefix cache; the static parts are sent
under it before anything is measured."""
T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Effort:
    """How often to measure. `each_*`: evaluations of each client in one block."""

    rounds: int
    blocks: int
    each_16: int
    each_32: int
    first_tokens: int


FULL = Effort(rounds=8, blocks=2, each_16=2, each_32=2, first_tokens=12)
QUICK = Effort(rounds=4, blocks=1, each_16=1, each_32=1, first_tokens=10)


@dataclass(frozen=True)
class Bench:
    """What is measured: clients of the running parts, and how often to measure.

    `in_order` is a second evaluation service before the same model, judging one by one.
    """

    system: httpx.AsyncClient
    in_order: httpx.AsyncClient | None
    direct: DirectModel
    original: httpx.AsyncClient | None
    uncached: DirectModel | None
    effort: Effort
    proposals: Iterator[dict[str, Any]]


def unique_proposals() -> Iterator[dict[str, Any]]:
    """The proposals over and over, each with a number of its own at the head of its title: no two
    have more in common than the static part of a prompt.
    """
    rows = [json.loads(line) for line in PROPOSALS.read_text("utf-8").splitlines()]
    for number in count():
        row = rows[number % len(rows)]
        yield {**row, "title": f"Plan {1_000_000 + number}: {row['title']}"}


async def one_client(bench: Bench, samples: Samples) -> None:
    """Each proposal three ways, one after another. Who sees a proposal first finds nothing but the
    static part in the prefix cache; that falls to both ways of judging in turn, and the calls sent
    straight to vLLM find what the evaluation they repeat found.
    """
    assert bench.in_order is not None
    for number in range(bench.effort.rounds):
        proposal = next(bench.proposals)
        if number % 2 == 0:
            accounts, together = await accounted(bench, proposal, cache_salt=SALT)
            in_order = await evaluate(bench.in_order, proposal)
        else:
            in_order = await evaluate(bench.in_order, proposal)
            accounts, together = await accounted(bench, proposal, cache_salt=None)
        samples.accounts.append(accounts)
        samples.judged.append(Judged(together.latency_s, in_order.latency_s))


async def accounted(
    bench: Bench, proposal: dict[str, Any], *, cache_salt: str | None
) -> tuple[Accounts, Evaluated]:
    """One evaluation, then its calls straight to vLLM. Nothing else may use vLLM meanwhile."""
    before_s = await bench.direct.served_s()
    evaluated = await evaluate(bench.system, proposal)
    between_s = await bench.direct.served_s()
    evaluated = await with_calls(bench.system, evaluated)
    replayed = await bench.direct.replay(evaluated.calls, cache_salt=cache_salt)
    after_s = await bench.direct.served_s()
    accounts = Accounts(
        latency_s=evaluated.latency_s,
        asking_s=evaluated.asking_s,
        calls=len(evaluated.calls),
        calls_in_a_row=evaluated.calls_in_a_row,
        transport_s=sum(call.duration_s for call in evaluated.calls) - (between_s - before_s),
        replay_s=replayed.latency_s,
        bare_transport_s=replayed.calls_s - (after_s - between_s),
        tokens_agree=replayed.tokens_agree,
    )
    return accounts, evaluated


async def sixteen_clients(bench: Bench, samples: Samples) -> None:
    assert bench.original is not None
    for _ in range(bench.effort.blocks):
        evaluated, ours = await system_block(bench, clients=16, each=bench.effort.each_16)
        replayed, _direct = await direct_block(bench, evaluated)
        samples.ours_16.append(ours)
        samples.original_16.append(await original_block(bench, evaluated))
        for done, again in zip(chain(*evaluated), chain(*replayed), strict=True):
            samples.pairs_16.append(Pair(done.latency_s, again.latency_s, again.tokens_agree))


async def thirty_two_clients(bench: Bench, samples: Samples) -> None:
    for _ in range(bench.effort.blocks):
        evaluated, ours = await system_block(bench, clients=32, each=bench.effort.each_32)
        _, direct = await direct_block(bench, evaluated)
        samples.ours_32.append(ours)
        samples.direct_32.append(direct)


async def first_tokens(bench: Bench, samples: Samples) -> None:
    """The content prompt of unseen proposals, to a vLLM with and to one without prefix caching."""
    assert bench.uncached is not None
    evaluated = await with_calls(bench.system, await evaluate(bench.system, next(bench.proposals)))
    content = next(call for call in evaluated.calls if call.node == "content")
    for number in range(WARM_UP_EVALUATIONS + bench.effort.first_tokens):
        call = about(next(bench.proposals), content)
        uncached = await bench.uncached.first_token_s(call)
        cached = await bench.direct.first_token_s(call)
        if number >= WARM_UP_EVALUATIONS:
            samples.first_token_uncached_s.append(uncached)
            samples.first_token_cached_s.append(cached)


def about(proposal: dict[str, Any], call: RecordedCall) -> RecordedCall:
    """`call` with another proposal in its last turn."""
    last = {"role": "user", "content": f"[1] {proposal['title']}\n[2] {proposal['content']}"}
    return replace(call, messages=[*call.messages[:-1], last])


async def system_block(
    bench: Bench, *, clients: int, each: int
) -> tuple[list[list[Evaluated]], Block]:
    """By client, what it had evaluated. The calls are fetched after the clock has stopped."""
    work = [[next(bench.proposals) for _ in range(each)] for _ in range(clients)]
    done, seconds = await in_parallel(work, lambda p: evaluate(bench.system, p))
    evaluated = [[await with_calls(bench.system, e) for e in own] for own in done]
    flat = list(chain(*evaluated))
    return evaluated, Block(
        len(flat), seconds, sum(len(e.calls) for e in flat), sum(e.completion_tokens for e in flat)
    )


async def direct_block(
    bench: Bench, evaluated: list[list[Evaluated]]
) -> tuple[list[list[Replayed]], Block]:
    done, seconds = await in_parallel(
        evaluated, lambda e: bench.direct.replay(e.calls, cache_salt=SALT)
    )
    flat = list(chain(*done))
    return done, Block(
        len(flat), seconds, sum(r.calls for r in flat), sum(r.completion_tokens for r in flat)
    )


async def original_block(bench: Bench, evaluated: list[list[Evaluated]]) -> Block:
    """The same proposals, and as many tokens in each call."""
    original = bench.original
    assert original is not None
    done, seconds = await in_parallel(evaluated, lambda e: ask_original(original, e))
    flat = list(chain(*done))
    return Block(len(flat), seconds, sum(map(len, flat)), sum(map(sum, flat)))


async def ask_original(client: httpx.AsyncClient, evaluated: Evaluated) -> list[int]:
    """Completion tokens of each of its calls."""
    tokens = {
        "writing" if call.node in WRITERS else call.node: call.completion_tokens
        for call in evaluated.calls
        if call.attempt == 1
    }
    plan = {name: evaluated.proposal[name] for name in ("title", "content")}
    response = await client.post("/evaluate", json={**plan, "tokens": tokens})
    if response.status_code != 200:
        raise BenchmarkFailed(f"The original answered {response.status_code}: {response.text}")
    written: dict[str, int] = response.json()
    return list(written.values())


async def in_parallel(
    work: list[list[T]], do: Callable[[T], Awaitable[R]]
) -> tuple[list[list[R]], float]:
    """Each list by a client of its own, one item after another; seconds until all are done."""

    async def client(own: list[T]) -> list[R]:
        return [await do(item) for item in own]

    started = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        clients = [group.create_task(client(own)) for own in work]
    return [task.result() for task in clients], time.perf_counter() - started


async def warm_up(bench: Bench) -> None:
    """Discarded: connections, grammars, and the static parts of the prompts, salted and not."""
    for client in filter(None, (bench.in_order, bench.system)):
        for _ in range(WARM_UP_EVALUATIONS):
            evaluated = await with_calls(client, await evaluate(client, next(bench.proposals)))
            await bench.direct.replay(evaluated.calls, cache_salt=SALT)
    if bench.original is not None:
        await ask_original(bench.original, evaluated)
