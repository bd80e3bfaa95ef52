"""Evaluations and their steps in SQL: SQLite on one machine, PostgreSQL for several replicas.

The wire documents are stored as JSON beside the columns that are searched by. LangGraph keeps its
checkpoints in the same database, in tables of its own.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import aiosqlite
import psycopg
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import BaseCheckpointSaver, CheckpointTuple
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from psycopg.rows import dict_row
from psycopg_pool import AsyncConnectionPool
from sqlalchemy import (
    JSON,
    Column,
    Connection,
    DateTime,
    MetaData,
    String,
    Table,
    event,
    func,
    insert,
    select,
)
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.schema import CreateIndex, CreateTable

from services.evaluation.errors import StorageUnavailable
from services.evaluation.schemas import Evaluation, Steps
from services.shared.settings import ConfigurationError

BUSY_TIMEOUT_S = 10.0
CONNECT_TIMEOUT_S = 10
ANSWER_TIMEOUT_S = 20.0
# Any number, the same in every replica: who holds it makes the tables.
ADVISORY_LOCK = 6_409_117_330_121
LOCK_RETRY_S = 0.1

metadata = MetaData()
evaluations = Table(
    "evaluations",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("parent_id", String(32), nullable=True, index=True),
    Column("created_at", DateTime(timezone=True), nullable=False, index=True),
    Column("verdict", String(8), nullable=False),
    Column("document", JSON, nullable=False),
    Column("steps", JSON, nullable=False),
)


class SQLStore:
    """An EvaluationStore on any database that SQLAlchemy speaks to asynchronously."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def save(self, evaluation: Evaluation, steps: Steps) -> None:
        row = {
            "id": evaluation.id,
            "parent_id": evaluation.parent_id,
            "created_at": evaluation.created_at,
            "verdict": evaluation.verdict,
            "document": evaluation.model_dump(mode="json"),
            "steps": steps.model_dump(mode="json"),
        }
        with _as_unavailable("The evaluation could not be stored."):
            async with self._engine.begin() as connection:
                await connection.execute(insert(evaluations).values(row))

    async def get(self, evaluation_id: str) -> Evaluation | None:
        document = await self._column("document", evaluation_id)
        return None if document is None else Evaluation.model_validate(document)

    async def steps(self, evaluation_id: str) -> Steps | None:
        document = await self._column("steps", evaluation_id)
        return None if document is None else Steps.model_validate(document)

    async def _column(self, name: str, evaluation_id: str) -> object | None:
        query = select(evaluations.c[name]).where(evaluations.c.id == evaluation_id)
        with _as_unavailable("The database cannot be read."):
            async with asyncio.timeout(ANSWER_TIMEOUT_S), self._engine.connect() as connection:
                found: object | None = (await connection.execute(query)).scalar_one_or_none()
        return found


class _Checkpoints(BaseCheckpointSaver[str]):
    """What LangGraph calls during a run, raising StorageUnavailable. Goes before a saver."""

    async def aget_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        with _as_unavailable("The checkpoint cannot be read."):
            return await super().aget_tuple(config)

    async def aput(self, *args: Any, **kwargs: Any) -> RunnableConfig:
        with _as_unavailable("The checkpoint could not be stored."):
            return await super().aput(*args, **kwargs)

    async def aput_writes(self, *args: Any, **kwargs: Any) -> None:
        with _as_unavailable("The checkpoint could not be stored."):
            await super().aput_writes(*args, **kwargs)


class _SqliteCheckpoints(_Checkpoints, AsyncSqliteSaver):
    pass


class _PostgresCheckpoints(_Checkpoints, AsyncPostgresSaver):
    pass


@contextmanager
def _as_unavailable(detail: str) -> Iterator[None]:
    try:
        yield
    except (SQLAlchemyError, psycopg.Error, sqlite3.Error, OSError) as error:
        raise StorageUnavailable(detail) from error


@asynccontextmanager
async def open_storage(
    database_url: str | None, sqlite_path: Path, *, pool_size: int
) -> AsyncIterator[tuple[SQLStore, BaseCheckpointSaver[str]]]:
    """The store and the checkpointer over one database, with their tables made.

    Raises ConfigurationError for an address that is neither SQLite nor PostgreSQL.
    """
    url = database_url or f"sqlite:///{sqlite_path}"
    scheme, _, rest = url.partition("://")
    if scheme in ("postgresql", "postgres"):
        opened = _postgresql(f"postgresql://{rest}", pool_size)
    elif scheme == "sqlite":
        opened = _sqlite(Path(rest.removeprefix("/")) if database_url else sqlite_path)
    else:
        raise ConfigurationError(
            f"JOING_DATABASE_URL: {scheme}:// is not supported; use postgresql:// or sqlite:///"
        )
    async with opened as storage:
        yield storage


@asynccontextmanager
async def _sqlite(path: Path) -> AsyncIterator[tuple[SQLStore, BaseCheckpointSaver[str]]]:
    path.parent.mkdir(parents=True, exist_ok=True)
    engine = create_async_engine(
        f"sqlite+aiosqlite:///{path}", connect_args={"timeout": BUSY_TIMEOUT_S}
    )
    event.listen(engine.sync_engine, "connect", _use_write_ahead_log)
    try:
        async with engine.begin() as connection:
            await connection.run_sync(_make_tables)
        async with aiosqlite.connect(path, timeout=BUSY_TIMEOUT_S) as own:
            saver = _SqliteCheckpoints(own)
            await saver.setup()
            yield SQLStore(engine), saver
    finally:
        await engine.dispose()


def _make_tables(connection: Connection) -> None:
    """Leaves tables that are there as they are."""
    connection.execute(CreateTable(evaluations, if_not_exists=True))
    for index in evaluations.indexes:
        connection.execute(CreateIndex(index, if_not_exists=True))


def _use_write_ahead_log(connection: object, _record: object) -> None:
    """Readers do not wait for the writer; a commit survives the process that made it."""
    cursor = connection.cursor()  # type: ignore[attr-defined]
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=NORMAL")
    cursor.close()


@asynccontextmanager
async def _postgresql(
    url: str, pool_size: int
) -> AsyncIterator[tuple[SQLStore, BaseCheckpointSaver[str]]]:
    engine = create_async_engine(
        url.replace("postgresql://", "postgresql+psycopg://", 1),
        pool_size=pool_size,
        max_overflow=0,
        pool_pre_ping=True,
        pool_timeout=CONNECT_TIMEOUT_S,
        connect_args={"connect_timeout": CONNECT_TIMEOUT_S},
    )
    pool = AsyncConnectionPool(
        url,
        min_size=1,
        max_size=pool_size,
        timeout=CONNECT_TIMEOUT_S,
        open=False,
        check=AsyncConnectionPool.check_connection,
        kwargs={"autocommit": True, "prepare_threshold": 0, "row_factory": dict_row},
    )
    try:
        async with pool:
            saver = _PostgresCheckpoints(pool)  # type: ignore[arg-type]
            async with _alone(engine) as connection:
                await connection.run_sync(_make_tables)
                await saver.setup()
            yield SQLStore(engine), saver
    finally:
        await engine.dispose()


@asynccontextmanager
async def _alone(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    """One replica at a time: PostgreSQL's IF NOT EXISTS fails when two make the same table.

    Asks again and again rather than waiting in a statement: the CREATE INDEX CONCURRENTLY of
    whoever holds the lock waits for every statement that is running.
    """
    held = select(func.pg_try_advisory_lock(ADVISORY_LOCK))
    async with engine.connect() as connection:
        await connection.execution_options(isolation_level="AUTOCOMMIT")
        while not (await connection.execute(held)).scalar_one():  # noqa: ASYNC110 - another process
            await asyncio.sleep(LOCK_RETRY_S)
        try:
            yield connection
        finally:
            await connection.execute(select(func.pg_advisory_unlock(ADVISORY_LOCK)))
