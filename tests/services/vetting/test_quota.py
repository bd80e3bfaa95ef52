"""The day's quota: a hard stop that no number of callers, replicas or retries gets past."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import pytest

from services.shared.storage import StorageUnavailable, open_storage
from services.vetting.adapters.quota import SQLQuotaLedger, metadata
from services.vetting.errors import QuotaExhausted
from services.vetting.ports import QuotaLedger
from services.vetting.quota import QuotaBudget, quota_day, resets_at
from tests.databases import Database
from tests.youtube.memory import MemoryLedger

DAY = "2026-11-24"
NOON = datetime(2026, 11, 24, 20, tzinfo=UTC)
CALLERS = 10_000
BUDGET = 300


@dataclass
class Clock:
    moment: datetime = NOON

    def __call__(self) -> datetime:
        return self.moment


@pytest.fixture
async def replicas(database: Database) -> AsyncIterator[list[QuotaLedger]]:
    """Two processes' ledgers on one database: engines of their own."""
    async with AsyncExitStack() as stack:
        opened = [
            await stack.enter_async_context(
                open_storage(database.url, database.file, metadata, pool_size=4)
            )
            for _ in range(2)
        ]
        yield [SQLQuotaLedger(storage.engine) for storage in opened]


@pytest.fixture(params=["memory", "sqlite", "postgresql"])
async def ledger(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[QuotaLedger]:
    """The one that other tests use must keep the same promises as the real one."""
    if request.param == "memory":
        yield MemoryLedger()
        return
    is_sqlite = request.param == "sqlite"
    url = None if is_sqlite else request.getfixturevalue("postgres").new_database()
    async with open_storage(url, tmp_path / "joing.sqlite3", metadata, pool_size=2) as storage:
        yield SQLQuotaLedger(storage.engine)


async def test_ten_thousand_at_once_overspend_by_nothing(replicas: list[QuotaLedger]) -> None:
    answers = await asyncio.gather(
        *(replicas[n % 2].reserve(3, DAY, budget=BUDGET) for n in range(CALLERS))
    )
    assert sum(answers) == BUDGET // 3
    assert await replicas[0].spent(DAY) == BUDGET


async def test_ten_thousand_budgets_at_once_overspend_by_nothing() -> None:
    ledger = MemoryLedger()
    budget = QuotaBudget(ledger, BUDGET, Clock())
    results = await asyncio.gather(
        *(budget.reserve(3) for _ in range(CALLERS)), return_exceptions=True
    )
    assert results.count(DAY) == 100
    assert all(isinstance(r, QuotaExhausted) for r in results if r != DAY)
    assert ledger.used == {DAY: BUDGET}


async def test_all_that_is_waited_for_is_given(replicas: list[QuotaLedger]) -> None:
    answers = await asyncio.gather(
        *(replicas[n % 2].reserve(1, DAY, budget=BUDGET) for n in range(BUDGET))
    )
    assert all(answers)


async def test_a_refusal_holds_no_longer_than_until_units_are_released(
    ledger: QuotaLedger,
) -> None:
    assert await ledger.reserve(3, DAY, budget=3)
    assert not await ledger.reserve(3, DAY, budget=3)
    await ledger.release(3, DAY)
    assert await ledger.reserve(3, DAY, budget=3)


async def test_the_last_units_are_given_and_not_one_more(ledger: QuotaLedger) -> None:
    assert await ledger.reserve(2, DAY, budget=5)
    assert await ledger.reserve(3, DAY, budget=5)
    assert not await ledger.reserve(2, DAY, budget=6)
    assert await ledger.reserve(1, DAY, budget=6)
    assert not await ledger.reserve(1, DAY, budget=6)
    assert await ledger.spent(DAY) == 6
    assert await ledger.reserve(1, "2026-11-25", budget=5)
    assert not await ledger.reserve(6, "2026-11-26", budget=5)
    assert await ledger.spent("2026-11-26") == 0


async def test_released_units_can_be_reserved_again_and_never_count_below_zero(
    ledger: QuotaLedger,
) -> None:
    await ledger.reserve(3, DAY, budget=3)
    await ledger.release(2, DAY)
    assert await ledger.spent(DAY) == 1
    assert await ledger.reserve(2, DAY, budget=3)
    await ledger.release(99, DAY)
    await ledger.release(1, "2026-12-01")
    assert await ledger.spent(DAY) == 0


async def test_a_closed_day_gives_nothing_and_the_next_does(ledger: QuotaLedger) -> None:
    await ledger.reserve(3, DAY, budget=100)
    await ledger.close(DAY)
    await ledger.close(DAY)
    assert not await ledger.reserve(1, DAY, budget=100)
    await ledger.release(3, DAY)
    assert not await ledger.reserve(1, DAY, budget=100)
    assert await ledger.reserve(1, "2026-11-25", budget=100)


async def test_a_day_can_be_closed_before_anything_was_reserved(ledger: QuotaLedger) -> None:
    await ledger.close(DAY)
    assert not await ledger.reserve(1, DAY, budget=100)


async def test_what_one_replica_closes_is_closed_for_all(replicas: list[QuotaLedger]) -> None:
    await replicas[0].close(DAY)
    assert not await replicas[1].reserve(1, DAY, budget=100)


async def test_a_ledger_that_cannot_be_written_gives_nothing(database: Database) -> None:
    async with open_storage(database.url, database.file, metadata, pool_size=2) as storage:
        async with storage.engine.begin() as connection:
            await connection.run_sync(metadata.drop_all)
        ledger = SQLQuotaLedger(storage.engine)
        with pytest.raises(StorageUnavailable):
            await ledger.reserve(1, DAY, budget=9)
        with pytest.raises(StorageUnavailable):
            await QuotaBudget(ledger, 9).reserve(1)


@pytest.mark.parametrize(
    ("moment", "day", "reset"),
    [
        ("2026-11-24T07:59:59", "2026-11-23", "2026-11-24T08:00:00"),
        ("2026-11-24T08:00:00", "2026-11-24", "2026-11-25T08:00:00"),
        ("2026-07-01T06:59:59", "2026-06-30", "2026-07-01T07:00:00"),
        ("2026-07-01T07:00:00", "2026-07-01", "2026-07-02T07:00:00"),
        # 8 March 2026 has 23 hours there, 1 November 25.
        ("2026-03-08T12:00:00", "2026-03-08", "2026-03-09T07:00:00"),
        ("2026-11-01T12:00:00", "2026-11-01", "2026-11-02T08:00:00"),
    ],
)
def test_the_day_ends_at_midnight_pacific_time(moment: str, day: str, reset: str) -> None:
    at = datetime.fromisoformat(moment).replace(tzinfo=UTC)
    assert quota_day(at) == day
    assert resets_at(at) == datetime.fromisoformat(reset).replace(tzinfo=UTC)


def test_time_zones_are_there_where_the_system_has_none() -> None:
    assert version("tzdata")


async def test_a_refusal_says_when_to_come_back() -> None:
    budget = QuotaBudget(MemoryLedger(), 2, Clock())
    with pytest.raises(QuotaExhausted) as caught:
        await budget.reserve(3)
    assert caught.value.resets_at == datetime(2026, 11, 25, 8, tzinfo=UTC)
    assert "2026-11-25T08:00:00Z" in str(caught.value)


async def test_what_was_reserved_and_not_spent_is_given_back_however_it_ends() -> None:
    ledger = MemoryLedger()
    budget = QuotaBudget(ledger, 10, Clock())
    with suppress(RuntimeError):
        async with budget.allowance(3) as allowance:
            await allowance.spend()
            assert ledger.used == {DAY: 3}
            raise RuntimeError
    assert ledger.used == {DAY: 1}
    assert await budget.remaining() == 9


async def test_a_call_beyond_the_reservation_is_paid_for_or_not_made() -> None:
    ledger = MemoryLedger()
    async with QuotaBudget(ledger, 3, Clock()).allowance(2) as allowance:
        for _ in range(3):
            await allowance.spend()
        with pytest.raises(QuotaExhausted):
            await allowance.spend()
    assert allowance.spent == 3
    assert ledger.used == {DAY: 3}


async def test_a_task_that_runs_past_midnight_pays_each_day_for_its_own_calls() -> None:
    ledger, clock = MemoryLedger(), Clock()
    async with QuotaBudget(ledger, 10, clock).allowance(3) as allowance:
        await allowance.spend()
        clock.moment = datetime(2026, 11, 25, 9, tzinfo=UTC)
        await allowance.spend()
    assert ledger.used == {DAY: 1, "2026-11-25": 1}


async def test_units_that_cannot_be_given_back_stay_counted_and_nothing_fails() -> None:
    class Stuck(MemoryLedger):
        async def release(self, units: int, day: str) -> None:
            raise StorageUnavailable("no")

    ledger = Stuck()
    async with QuotaBudget(ledger, 10, Clock()).allowance(3) as allowance:
        await allowance.spend()
    assert ledger.used == {DAY: 3}
