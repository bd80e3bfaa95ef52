"""Vettings, and what YouTube said about channels, in SQL; nothing in here outlives 30 days.

Documents are stored as JSON beside the columns that are searched by. One database holds these
tables and the quota's (quota.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime

from pydantic import TypeAdapter, ValidationError
from sqlalchemy import JSON, Column, DateTime, MetaData, String, Table, delete, insert, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncEngine

from services.shared.storage import as_unavailable
from services.vetting.adapters.quota import quota
from services.vetting.ports import Cached
from services.vetting.quota import now
from services.vetting.schemas import Vetting

ANSWER_TIMEOUT_S = 20.0

metadata = MetaData()
quota.to_metadata(metadata)
vettings = Table(
    "vettings",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("channel_id", String(24), nullable=False, index=True),
    Column("verdict", String(8), nullable=False),
    Column("fetched_at", DateTime(timezone=True), nullable=False),
    Column("expires_at", DateTime(timezone=True), nullable=False, index=True),
    Column("document", JSON, nullable=False),
)
snapshots = Table(
    "vetting_snapshots",
    metadata,
    Column("key", String(200), primary_key=True),
    Column("fetched_at", DateTime(timezone=True), nullable=False, index=True),
    Column("document", JSON, nullable=False),
)
DOCUMENT = TypeAdapter(Cached)


class SQLVettingStore:
    """A VettingStore on any database that SQLAlchemy speaks to asynchronously."""

    def __init__(self, engine: AsyncEngine, clock: Callable[[], datetime] = now) -> None:
        self._engine = engine
        self._clock = clock

    async def save(self, vetting: Vetting) -> None:
        row = {
            "id": vetting.id,
            "channel_id": vetting.channel.id,
            "verdict": vetting.verdict,
            "fetched_at": _utc(vetting.fetched_at),
            "expires_at": _utc(vetting.expires_at),
            "document": vetting.model_dump(mode="json"),
        }
        with as_unavailable("The vetting could not be stored."):
            async with asyncio.timeout(ANSWER_TIMEOUT_S), self._engine.begin() as connection:
                await connection.execute(insert(vettings).values(row))

    async def get(self, vetting_id: str) -> Vetting | None:
        query = select(vettings.c.document).where(
            vettings.c.id == vetting_id, vettings.c.expires_at > _utc(self._clock())
        )
        with as_unavailable("The vetting cannot be read."):
            async with asyncio.timeout(ANSWER_TIMEOUT_S), self._engine.connect() as connection:
                document = (await connection.execute(query)).scalar_one_or_none()
        return None if document is None else Vetting.model_validate(document)

    async def delete_expired(self, moment: datetime) -> int:
        statement = delete(vettings).where(vettings.c.expires_at <= _utc(moment))
        with as_unavailable("Expired vettings could not be deleted."):
            async with asyncio.timeout(ANSWER_TIMEOUT_S), self._engine.begin() as connection:
                return (await connection.execute(statement)).rowcount


class SQLSnapshotCache:
    """A SnapshotCache on SQLite or PostgreSQL, shared by every replica."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        is_postgresql = engine.dialect.name == "postgresql"
        self._insert = postgresql.insert if is_postgresql else sqlite.insert

    async def get(self, key: str) -> Cached | None:
        """None, too, for what an older version of this service wrote and this one cannot read."""
        query = select(snapshots.c.document).where(snapshots.c.key == key)
        with as_unavailable("What is known of the channel cannot be read."):
            async with asyncio.timeout(ANSWER_TIMEOUT_S), self._engine.connect() as connection:
                document = (await connection.execute(query)).scalar_one_or_none()
        try:
            return None if document is None else DOCUMENT.validate_python(document)
        except ValidationError:
            return None

    async def put(self, key: str, cached: Cached) -> None:
        values = {
            "fetched_at": _utc(cached.fetched_at),
            "document": DOCUMENT.dump_python(cached, mode="json"),
        }
        statement = self._insert(snapshots).values(key=key, **values)
        replaced = statement.on_conflict_do_update(index_elements=[snapshots.c.key], set_=values)
        with as_unavailable("What YouTube said could not be stored."):
            async with asyncio.timeout(ANSWER_TIMEOUT_S), self._engine.begin() as connection:
                await connection.execute(replaced)

    async def delete_older_than(self, moment: datetime) -> None:
        statement = delete(snapshots).where(snapshots.c.fetched_at < _utc(moment))
        with as_unavailable("Old channel data could not be deleted."):
            async with asyncio.timeout(ANSWER_TIMEOUT_S), self._engine.begin() as connection:
                await connection.execute(statement)


def _utc(moment: datetime) -> datetime:
    """SQLite compares times as text: all in one zone."""
    return moment.astimezone(UTC)
