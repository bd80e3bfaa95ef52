"""A channel is asked for again when what is known of it is too old, and never by two at once."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import pytest
from pydantic import SecretStr

from services.vetting.adapters.youtube import YouTubeSource
from services.vetting.caching import MAX_AGE_S, CachedSource
from services.vetting.channels import ChannelRef, parse_channel
from services.vetting.errors import SourceUnavailable
from services.vetting.ports import Cached, Channel, Snapshot
from services.vetting.quota import QuotaBudget
from tests.youtube.memory import MemoryCache, MemoryLedger
from tests.youtube.server import FakeYouTube, serve_youtube

TTL_S = 3600.0
HANDLE = ChannelRef("handle", "SlowRidge")
ID = f"UC{'x' * 22}"


@dataclass
class Clock:
    moment: datetime = datetime(2026, 11, 24, 12, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.moment

    def pass_s(self, seconds: float) -> None:
        self.moment += timedelta(seconds=seconds)


@dataclass
class CountingSource:
    """Every channel is the same one. `gate` holds fetches back until it is set."""

    clock: Clock
    error: Exception | None = None
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    known: list[Cached | None] = field(default_factory=list)
    cancelled: int = 0

    async def fetch(self, ref: ChannelRef) -> Snapshot:
        return (await self.refetch(ref, None)).snapshot

    async def refetch(self, ref: ChannelRef, known: Cached | None) -> Cached:
        self.known.append(known)
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self.error is not None:
            raise self.error
        channel = Channel(
            ID, "@slowridge", "Slow", "", (), None, 1, 0, self.clock.moment, f"UU{ID[2:]}"
        )
        return Cached(Snapshot(channel, (), (), (), 3, self.clock.moment, 900), {"channels": "e"})


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def inner(clock: Clock) -> CountingSource:
    source = CountingSource(clock)
    source.gate.set()
    return source


@pytest.fixture
def cache() -> MemoryCache:
    return MemoryCache()


@pytest.fixture
def cached(inner: CountingSource, cache: MemoryCache, clock: Clock) -> CachedSource:
    return CachedSource(inner, cache, TTL_S, clock=clock)


async def test_within_the_ttl_nothing_is_asked_and_nothing_is_spent(
    cached: CachedSource, inner: CountingSource, clock: Clock
) -> None:
    first = await cached.fetch(HANDLE)
    clock.pass_s(TTL_S - 1)
    again = await cached.fetch(ChannelRef("handle", "slowridge"))
    by_id = await cached.fetch(ChannelRef("id", ID))
    assert (first.quota_units, first.bytes) == (3, 900)
    assert (again.quota_units, again.bytes, again.fetched_at) == (0, 0, first.fetched_at)
    assert by_id == again
    assert len(inner.known) == 1


async def test_after_the_ttl_it_is_asked_with_what_is_known(
    cached: CachedSource, inner: CountingSource, clock: Clock
) -> None:
    await cached.fetch(HANDLE)
    clock.pass_s(TTL_S)
    assert (await cached.fetch(HANDLE)).fetched_at == clock.moment
    assert inner.known[0] is None
    assert inner.known[1] is not None
    assert inner.known[1].etags == {"channels": "e"}


async def test_what_is_older_than_allowed_is_deleted_and_not_used(
    cached: CachedSource, inner: CountingSource, cache: MemoryCache, clock: Clock
) -> None:
    await cached.fetch(HANDLE)
    clock.pass_s(MAX_AGE_S + 1)
    await cached.fetch(ChannelRef("handle", "another"))
    assert "handle:slowridge" not in cache.kept
    await cached.fetch(HANDLE)
    assert inner.known == [None, None, None]


async def test_a_cache_that_keeps_too_long_is_not_believed(
    inner: CountingSource, clock: Clock
) -> None:
    class Hoarder(MemoryCache):
        async def delete_older_than(self, moment: datetime) -> None:
            pass

    cached = CachedSource(inner, Hoarder(), TTL_S, clock=clock)
    await cached.fetch(HANDLE)
    clock.pass_s(MAX_AGE_S)
    await cached.fetch(HANDLE)
    assert inner.known == [None, None]


async def test_a_snapshot_from_the_future_is_not_fresh(
    cached: CachedSource, inner: CountingSource, clock: Clock
) -> None:
    await cached.fetch(HANDLE)
    clock.pass_s(-60)
    await cached.fetch(HANDLE)
    assert len(inner.known) == 2


async def test_a_failure_is_told_and_not_kept(
    cached: CachedSource, inner: CountingSource, cache: MemoryCache, clock: Clock
) -> None:
    await cached.fetch(HANDLE)
    clock.pass_s(TTL_S)
    inner.error = SourceUnavailable("down")
    for _ in range(2):
        with pytest.raises(SourceUnavailable):
            await cached.fetch(HANDLE)
    inner.error = None
    assert (await cached.fetch(HANDLE)).fetched_at == clock.moment


async def test_a_hundred_at_once_share_one_fetch_and_its_failure(
    cached: CachedSource, inner: CountingSource
) -> None:
    inner.gate.clear()
    inner.error = SourceUnavailable("down")
    waiting = [asyncio.create_task(cached.fetch(HANDLE)) for _ in range(100)]
    await asyncio.sleep(0.01)
    inner.gate.set()
    results = await asyncio.gather(*waiting, return_exceptions=True)
    assert all(isinstance(r, SourceUnavailable) for r in results)
    assert len(inner.known) == 1


async def test_one_who_leaves_does_not_take_the_fetch_from_the_others(
    cached: CachedSource, inner: CountingSource
) -> None:
    inner.gate.clear()
    first, second = (asyncio.create_task(cached.fetch(HANDLE)) for _ in range(2))
    await asyncio.sleep(0.01)
    first.cancel()
    await asyncio.sleep(0.01)
    inner.gate.set()
    assert (await second).channel.id == ID
    assert (len(inner.known), inner.cancelled) == (1, 0)


async def test_the_last_to_leave_ends_the_fetch_and_the_next_begins_anew(
    cached: CachedSource, inner: CountingSource
) -> None:
    inner.gate.clear()
    waiting = [asyncio.create_task(cached.fetch(HANDLE)) for _ in range(3)]
    await asyncio.sleep(0.01)
    for task in waiting:
        task.cancel()
    next_one = asyncio.create_task(cached.fetch(HANDLE))
    for task in waiting:
        with suppress(asyncio.CancelledError):
            await task
    inner.gate.set()
    assert (await next_one).channel.id == ID


@pytest.mark.parametrize(("ttl_s", "max_age_s"), [(-1, 10), (11, 10), (1, MAX_AGE_S + 1)])
def test_bounds_that_the_terms_do_not_allow_are_refused(ttl_s: float, max_age_s: float) -> None:
    with pytest.raises(ValueError, match="max_age_s"):
        CachedSource(CountingSource(Clock()), MemoryCache(), ttl_s, max_age_s)


@pytest.fixture(scope="module")
def youtube() -> Iterator[FakeYouTube]:
    with serve_youtube() as youtube:
        yield youtube


async def test_fifty_callers_of_a_real_source_spend_three_units(youtube: FakeYouTube) -> None:
    budget = QuotaBudget(MemoryLedger(), 3)
    source = YouTubeSource(SecretStr(youtube.key), budget, api_endpoint=youtube.base_url)
    cached = CachedSource(source, MemoryCache(), TTL_S)
    ref = parse_channel("https://m.youtube.com/@slowridge?app=desktop")
    snapshots = await asyncio.gather(*(cached.fetch(ref) for _ in range(50)))
    snapshots += [await cached.fetch(ref)]
    assert {s.channel.id for s in snapshots} == {youtube.channels["harmless-hiking"].id}
    assert youtube.units == 3
    source.close()
