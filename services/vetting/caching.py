"""A channel source that asks again only when what it knows is too old.

Knows no vendor and no database: a source that can revalidate, and a cache, are given to it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from services.vetting.channels import ChannelRef
from services.vetting.ports import RevalidatingSource, Snapshot, SnapshotCache
from services.vetting.quota import now

MAX_AGE_S = 30 * 24 * 3600.0
SWEEP_EVERY = timedelta(hours=1)


@dataclass
class _Fetch:
    task: asyncio.Task[Snapshot]
    waiters: int = 0


class CachedSource:
    """Within `ttl_s` of a fetch nothing is asked; after that YouTube is asked whether it changed.
    Nothing older than `max_age_s` is kept or used: YouTube's terms allow 30 days.

    Those who want one channel at the same time share one fetch; it is cancelled when the last of
    them leaves.
    """

    def __init__(
        self,
        source: RevalidatingSource,
        cache: SnapshotCache,
        ttl_s: float,
        max_age_s: float = MAX_AGE_S,
        clock: Callable[[], datetime] = now,
    ) -> None:
        if not 0 <= ttl_s <= max_age_s <= MAX_AGE_S:
            raise ValueError(f"0 <= ttl_s ({ttl_s}) <= max_age_s ({max_age_s}) <= {MAX_AGE_S:.0f}")
        self._source = source
        self._cache = cache
        self._ttl = timedelta(seconds=ttl_s)
        self._max_age = timedelta(seconds=max_age_s)
        self._clock = clock
        self._running: dict[str, _Fetch] = {}
        self._swept_at: datetime | None = None

    async def fetch(self, ref: ChannelRef) -> Snapshot:
        key = ref.key
        if (fetch := self._running.get(key)) is None:
            fetch = self._running[key] = _Fetch(asyncio.create_task(self._fetch(ref)))
        fetch.waiters += 1
        try:
            return await asyncio.shield(fetch.task)
        finally:
            fetch.waiters -= 1
            if fetch.waiters == 0:
                fetch.task.cancel()
                if self._running.get(key) is fetch:
                    del self._running[key]

    async def sweep(self) -> None:
        """Deletes what is too old to keep. A fetch does it once an hour; so should whoever owns
        this, for hours without a fetch.
        """
        self._swept_at = self._clock()
        await self._cache.delete_older_than(self._swept_at - self._max_age)

    async def _fetch(self, ref: ChannelRef) -> Snapshot:
        if self._swept_at is None or self._clock() - self._swept_at > SWEEP_EVERY:
            await self.sweep()
        known = await self._cache.get(ref.key)
        age = None if known is None else self._clock() - known.fetched_at
        if known is not None and age is not None and timedelta() <= age < self._ttl:
            return replace(known.snapshot, quota_units=0, bytes=0)
        if age is not None and age >= self._max_age:
            known = None
        fetched = await self._source.refetch(ref, known)
        for key in {ref.key, ChannelRef("id", fetched.snapshot.channel.id).key}:
            await self._cache.put(key, fetched)
        return fetched.snapshot
