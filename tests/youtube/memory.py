"""A quota ledger and a snapshot cache in a dict, for tests that are not about databases."""

from __future__ import annotations

import asyncio
from datetime import datetime

from services.vetting.ports import Cached


class MemoryLedger:
    def __init__(self) -> None:
        self.used: dict[str, int] = {}
        self.closed: set[str] = set()

    async def reserve(self, units: int, day: str, *, budget: int) -> bool:
        await asyncio.sleep(0)
        used = self.used.get(day, 0) + units
        if day in self.closed or used > budget:
            return False
        self.used[day] = used
        return True

    async def release(self, units: int, day: str) -> None:
        self.used[day] = max(0, self.used.get(day, 0) - units)

    async def close(self, day: str) -> None:
        self.closed.add(day)

    async def spent(self, day: str) -> int:
        return self.used.get(day, 0)


class MemoryCache:
    def __init__(self) -> None:
        self.kept: dict[str, Cached] = {}

    async def get(self, key: str) -> Cached | None:
        return self.kept.get(key)

    async def put(self, key: str, cached: Cached) -> None:
        self.kept[key] = cached

    async def delete_older_than(self, moment: datetime) -> None:
        self.kept = {k: c for k, c in self.kept.items() if c.fetched_at >= moment}
