"""The day's YouTube quota: nothing is asked before it is paid for, and nothing beyond the budget.

Knows no database (a ledger keeps the sums) and nothing of YouTube but its day, which ends at
midnight Pacific time.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, time, timedelta
from zoneinfo import ZoneInfo

import structlog

from services.shared.storage import StorageUnavailable
from services.vetting.errors import QuotaExhausted
from services.vetting.ports import QuotaLedger

PACIFIC = ZoneInfo("America/Los_Angeles")
log = structlog.get_logger()


def now() -> datetime:
    return datetime.now(UTC)


def quota_day(moment: datetime) -> str:
    """The date in California, as in 2026-11-24."""
    return moment.astimezone(PACIFIC).date().isoformat()


def resets_at(moment: datetime) -> datetime:
    """The next midnight in California, in UTC."""
    tomorrow = moment.astimezone(PACIFIC).date() + timedelta(days=1)
    return datetime.combine(tomorrow, time(), PACIFIC).astimezone(UTC)


class QuotaBudget:
    """A hard stop at `units_per_day`, over all replicas that share the ledger."""

    def __init__(
        self, ledger: QuotaLedger, units_per_day: int, clock: Callable[[], datetime] = now
    ) -> None:
        self._ledger = ledger
        self._units_per_day = units_per_day
        self._clock = clock

    @asynccontextmanager
    async def allowance(self, units: int) -> AsyncIterator[Allowance]:
        """Reserves `units` for the calls inside, and takes back what they did not spend.

        Raises QuotaExhausted, then nothing is reserved.
        """
        allowance = Allowance(self, units, await self.reserve(units))
        try:
            yield allowance
        finally:
            await allowance.give_back()

    async def reserve(self, units: int) -> str:
        """The day that they were reserved for. Raises QuotaExhausted."""
        day = self.today()
        if not await self._ledger.reserve(units, day, budget=self._units_per_day):
            raise QuotaExhausted(resets_at(self._clock()))
        return day

    async def release(self, units: int, day: str) -> None:
        """Units that cannot be given back stay counted: the stop comes sooner, never later."""
        with suppress(StorageUnavailable):
            await self._ledger.release(units, day)
            return
        log.warning("quota_not_released", units=units, day=day)

    async def close(self) -> QuotaExhausted:
        """YouTube says that the day's quota is spent, whatever the ledger says. Returns what to
        raise.
        """
        await self._ledger.close(self.today())
        log.warning("quota_closed", day=self.today())
        return QuotaExhausted(resets_at(self._clock()))

    async def remaining(self) -> int:
        """Of today, as far as the ledger knows; not below 0."""
        return max(0, self._units_per_day - await self._ledger.spent(self.today()))

    def today(self) -> str:
        return quota_day(self._clock())


class Allowance:
    """Units reserved for one task. One task at a time may use it."""

    def __init__(self, budget: QuotaBudget, units: int, day: str) -> None:
        self._budget = budget
        self._left = units
        self._day = day
        self.spent = 0

    async def spend(self) -> None:
        """Before each call. What goes beyond the reservation, or into the next day, is reserved
        now. Raises QuotaExhausted: then the call must not be made.
        """
        if self._day != self._budget.today():
            await self.give_back()
        if self._left == 0:
            self._day = await self._budget.reserve(1)
            self._left = 1
        self._left -= 1
        self.spent += 1

    async def give_back(self) -> None:
        left, self._left = self._left, 0
        if left:
            await self._budget.release(left, self._day)
