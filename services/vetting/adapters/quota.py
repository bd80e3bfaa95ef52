"""Units spent each day, in SQL: one statement decides, so replicas cannot overspend together."""

from __future__ import annotations

import asyncio
import time

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

REFUSAL_HOLDS_S = 1.0

metadata = MetaData()
quota = Table(
    "vetting_quota",
    metadata,
    Column("day", String(10), primary_key=True),
    Column("used", Integer, nullable=False),
    Column("is_closed", Boolean, nullable=False),
)


class SQLQuotaLedger:
    """A QuotaLedger on SQLite or PostgreSQL.

    All of a day is one row, so callers of this process take turns here, which is cheaper than
    waiting for each other's locks there, and leaves the pool to others. Who asks for as much as
    was refused within the last second is refused without the database, unless this process
    released some.
    """

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = for_writing(engine)
        is_postgresql = engine.dialect.name == "postgresql"
        self._insert = postgresql.insert if is_postgresql else sqlite.insert
        self._turn = asyncio.Lock()
        self._refused: tuple[str, int, float] | None = None

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
        async with self._turn:
            if self._was_just_refused(units, day):
                return False
            with as_unavailable("The YouTube quota cannot be reserved."):
                async with self._engine.begin() as connection:
                    is_reserved = await connection.scalar(statement) is not None
            if not is_reserved:
                self._refused = (day, units, time.monotonic() + REFUSAL_HOLDS_S)
            return is_reserved

    def _was_just_refused(self, units: int, day: str) -> bool:
        if self._refused is None:
            return False
        refused_day, refused_units, until = self._refused
        return day == refused_day and units >= refused_units and time.monotonic() < until

    async def release(self, units: int, day: str) -> None:
        left = quota.c.used - units
        statement = (
            update(quota).where(quota.c.day == day).values(used=case((left < 0, 0), else_=left))
        )
        with as_unavailable("The YouTube quota cannot be released."):
            async with self._turn, self._engine.begin() as connection:
                await connection.execute(statement)
        self._refused = None

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
