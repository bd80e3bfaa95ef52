"""One SQL database for a service's rows and for LangGraph's checkpoints: SQLite on one machine,
PostgreSQL for several replicas.

Knows no table of any service: each brings its own.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiosqlite
import filelock
import psycopg
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import BaseCheckpointSaver, CheckpointTuple
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from psycopg.rows import dict_row
from psycopg_pool import AsyncConnectionPool
from sqlalchemy import Connection, MetaData, event, func, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.schema import CreateIndex, CreateTable

from services.shared.settings import ConfigurationError

BUSY_TIMEOUT_S = 10.0
CONNECT_TIMEOUT_S = 10
SETUP_TIMEOUT_S = 60.0
# Any number, the same in every replica: who holds it makes the tables.
ADVISORY_LOCK = 6_409_117_330_121
LOCK_RETRY_S = 0.1


class StorageUnavailable(Exception):
    """The database did not take or give what it was asked for: 503, try later."""


@dataclass(frozen=True)
class Storage:
    """An open database whose tables are there. Several processes may share it if `is_shared`."""

    engine: AsyncEngine
    checkpointer: BaseCheckpointSaver[str]
    is_shared: bool


def for_writing(engine: AsyncEngine) -> AsyncEngine:
    """The same connections, for transactions that read and then write: SQLite's take the file's
    write lock when they begin, and wait for it, instead of failing half-way.
    """
    return engine.execution_options(joing_writes=True)


@contextmanager
def as_unavailable(detail: str) -> Iterator[None]:
    """What SQLAlchemy, both drivers and the file system raise, as StorageUnavailable."""
    try:
        yield
    except (SQLAlchemyError, psycopg.Error, sqlite3.Error, OSError) as error:
        raise StorageUnavailable(detail) from error


@asynccontextmanager
async def open_storage(
    database_url: str | None, sqlite_path: Path, tables: MetaData, *, pool_size: int
) -> AsyncIterator[Storage]:
    """The database at `database_url`, or the file `sqlite_path`, with `tables` made.

    Raises ConfigurationError for an address that is neither SQLite nor PostgreSQL.
    """
    url = database_url or f"sqlite:///{sqlite_path}"
    scheme, _, rest = url.partition("://")
    if scheme in ("postgresql", "postgres"):
        opened = _postgresql(f"postgresql://{rest}", tables, pool_size)
    elif scheme == "sqlite":
        opened = _sqlite(Path(rest.removeprefix("/")) if database_url else sqlite_path, tables)
    else:
        raise ConfigurationError(
            f"JOING_DATABASE_URL: {scheme}:// is not supported; use postgresql:// or sqlite:///"
        )
    async with opened as storage:
        yield storage


class _Checkpoints(BaseCheckpointSaver[str]):
    """What LangGraph calls during a run, raising StorageUnavailable. Goes before a saver."""

    async def aget_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        with as_unavailable("The checkpoint cannot be read."):
            return await super().aget_tuple(config)

    async def aput(self, *args: Any, **kwargs: Any) -> RunnableConfig:
        with as_unavailable("The checkpoint could not be stored."):
            return await super().aput(*args, **kwargs)

    async def aput_writes(self, *args: Any, **kwargs: Any) -> None:
        with as_unavailable("The checkpoint could not be stored."):
            await super().aput_writes(*args, **kwargs)


class _SqliteCheckpoints(_Checkpoints, AsyncSqliteSaver):
    pass


class _PostgresCheckpoints(_Checkpoints, AsyncPostgresSaver):
    pass


@asynccontextmanager
async def _sqlite(path: Path, tables: MetaData) -> AsyncIterator[Storage]:
    path.parent.mkdir(parents=True, exist_ok=True)
    engine = create_async_engine(
        f"sqlite+aiosqlite:///{path}", connect_args={"timeout": BUSY_TIMEOUT_S}
    )
    event.listen(engine.sync_engine, "connect", _on_connect)
    event.listen(engine.sync_engine, "begin", _on_begin)
    event.listen(engine.sync_engine, "invalidate", _on_invalidate)
    # Turning the write-ahead log on takes the whole file, and SQLite does not wait for that: two
    # processes that start together must not both try.
    alone = filelock.AsyncFileLock(
        path.with_suffix(".lock"), timeout=SETUP_TIMEOUT_S, thread_local=False
    )
    try:
        async with aiosqlite.connect(path, timeout=BUSY_TIMEOUT_S) as own:
            saver = _SqliteCheckpoints(own)
            async with alone:
                await own.execute("PRAGMA journal_mode=WAL")
                await saver.setup()
                async with engine.begin() as connection:
                    await connection.run_sync(_make_tables, tables)
            yield Storage(engine, saver, is_shared=False)
    finally:
        await engine.dispose()


def _make_tables(connection: Connection, tables: MetaData) -> None:
    """Leaves tables that are there as they are."""
    for table in tables.sorted_tables:
        connection.execute(CreateTable(table, if_not_exists=True))
        for index in table.indexes:
            connection.execute(CreateIndex(index, if_not_exists=True))


def _on_connect(connection: Any, _record: object) -> None:
    """A commit in the write-ahead log survives the process that made it. Transactions are begun
    by `_on_begin`, not by the driver.
    """
    connection.isolation_level = None
    cursor = connection.cursor()
    cursor.execute("PRAGMA synchronous=NORMAL")
    cursor.close()


def _on_begin(connection: Connection) -> None:
    writes = connection.get_execution_options().get("joing_writes")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _on_invalidate(connection: Any, _record: object, _error: object) -> None:
    """A cancelled connection is closed as it is, and its transaction holds the file for as long as
    anybody refers to the rows that it was reading.
    """
    connection.rollback()


@asynccontextmanager
async def _postgresql(url: str, tables: MetaData, pool_size: int) -> AsyncIterator[Storage]:
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
                await connection.run_sync(_make_tables, tables)
                await saver.setup()
            yield Storage(engine, saver, is_shared=True)
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
        with as_unavailable("Another replica has been making the tables for too long."):
            async with asyncio.timeout(SETUP_TIMEOUT_S):
                while not (await connection.execute(held)).scalar_one():  # noqa: ASYNC110 - another process
                    await asyncio.sleep(LOCK_RETRY_S)
        try:
            yield connection
        finally:
            await connection.execute(select(func.pg_advisory_unlock(ADVISORY_LOCK)))
