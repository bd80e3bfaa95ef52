"""Units spent each day, in SQL: one statement decides, so replicas cannot overspend together."""

from __future__ import annotations

import asyncio

from sqlalchemy import (
    Boolean,
    Column,
    Integer,
    MetaData,
    String,
    Table,
    case,
    false,
    select,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncEngine

from services.shared.storage import as_unavailable, for_writing

AT_ONCE = 4

metadata = MetaData()
quota = Table(
    "vetting_quota",
    metadata,
    Column("day", String(10), primary_key=True),
    Column("used", Integer, nullable=False),
    Column("is_closed", Boolean, nullable=False),
)


class SQLQuotaLedger:
    """A QuotaLedger on SQLite or PostgreSQL. `AT_ONCE` calls of this process are with the database
    at a time: a thousand callers must not wait for its connections longer than the pool allows.
    """

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = for_writing(engine)
        is_postgresql = engine.dialect.name == "postgresql"
        self._insert = postgresql.insert if is_postgresql else sqlite.insert
        self._turn = asyncio.Semaphore(AT_ONCE)

    async def reserve(self, units: int, day: str, *, budget: int) -> bool:
        if units > budget:
            return False
        row = self._insert(quota).values(day=day, used=units, is_closed=False)
        used = quota.c.used + row.excluded.used
        statement = row.on_conflict_do_update(
            index_elements=[quota.c.day],
            set_={"used": used},
            where=(used <= budget) & (quota.c.is_closed == false()),
        ).returning(quota.c.used)
        with as_unavailable("The YouTube quota cannot be reserved."):
            async with self._turn, self._engine.begin() as connection:
                return await connection.scalar(statement) is not None

    async def release(self, units: int, day: str) -> None:
        left = quota.c.used - units
        statement = (
            update(quota).where(quota.c.day == day).values(used=case((left < 0, 0), else_=left))
        )
        with as_unavailable("The YouTube quota cannot be released."):
            async with self._turn, self._engine.begin() as connection:
                await connection.execute(statement)

    async def close(self, day: str) -> None:
        row = self._insert(quota).values(day=day, used=0, is_closed=True)
        statement = row.on_conflict_do_update(
            index_elements=[quota.c.day], set_={"is_closed": True}
        )
        with as_unavailable("The YouTube quota cannot be closed."):
            async with self._turn, self._engine.begin() as connection:
                await connection.execute(statement)

    async def spent(self, day: str) -> int:
        with as_unavailable("The YouTube quota cannot be read."):
            async with self._turn, self._engine.connect() as connection:
                return await connection.scalar(select(quota.c.used).where(quota.c.day == day)) or 0
