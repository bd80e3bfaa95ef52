"""Storyboards, their events and who works on them, in SQL.

Leases are told by the database's own clock: workers' clocks may differ. A task that is cancelled
in the middle of a transaction leaves no lock; with PostgreSQL, a worker that freezes or is cut off
there keeps the others waiting for SILENT_TRANSACTION_S.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    Row,
    String,
    Table,
    UniqueConstraint,
    delete,
    func,
    insert,
    select,
    text,
    true,
    update,
)
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.expression import FunctionElement

from services.shared.storage import as_unavailable, for_writing
from services.storyboard import telling
from services.storyboard.errors import KeyReused, LeaseLost, StillRunning, TooManyJobs
from services.storyboard.ports import Change, Lease, Load, NewEvent, NewJob, StoredEvent
from services.storyboard.schemas import FINISHED, Storyboard, StoryboardRequest

ANSWER_TIMEOUT_S = 30.0
# A transaction of ours that has said nothing for so long is undone, and its locks are free.
SILENT_TRANSACTION_S = 5.0
UNFINISHED = ("queued", "writing", "drawing")
NOBODYS: dict[str, Any] = {"leased_by": None, "leased_until_s": 0.0}
# Any number, the same in every replica: who holds it claims a job.
CLAIMING = 6_409_117_330_122

metadata = MetaData()
storyboards = Table(
    "storyboards",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("owner", String(16), nullable=False),
    Column("idempotency_key", String(128)),
    Column("body_hash", String(64), nullable=False),
    Column("state", String(16), nullable=False),
    Column("request", JSON, nullable=False),
    Column("document", JSON, nullable=False),
    # Seconds since 1970, by the database's clock.
    Column("created_s", Float(53), nullable=False),
    Column("finished_s", Float(53)),
    Column("expires_s", Float(53), nullable=False),
    Column("leased_until_s", Float(53), nullable=False),
    Column("leased_by", String(100)),
    Column("token", Integer, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("last_seq", Integer, nullable=False),
    UniqueConstraint("owner", "idempotency_key"),
    Index("storyboards_by_state", "state", "created_s"),
    Index("storyboards_by_owner", "owner", "state"),
    Index("storyboards_by_expiry", "expires_s"),
)
events = Table(
    "storyboard_events",
    metadata,
    Column(
        "storyboard_id",
        String(32),
        ForeignKey("storyboards.id", ondelete="CASCADE"),
        primary_key=True,
    ),
    Column("seq", Integer, primary_key=True),
    Column("name", String(16), nullable=False),
    Column("data", JSON, nullable=False),
)


class now_s(FunctionElement[float]):  # noqa: N801 - it reads as SQL
    """Seconds since 1970 at this moment, not at the transaction's begin."""

    type = Float(53)
    inherit_cache = True


@compiles(now_s, "postgresql")
def _now_postgresql(*_: Any, **__: Any) -> str:
    return "extract(epoch from clock_timestamp())"


@compiles(now_s, "sqlite")
def _now_sqlite(*_: Any, **__: Any) -> str:
    return "((julianday('now') - 2440587.5) * 86400.0)"


class SQLJobStore:
    """A JobStore on SQLite or PostgreSQL. Every call is one transaction."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._writer = for_writing(engine)
        self._is_postgresql = engine.dialect.name == "postgresql"
        if self._is_postgresql:
            self._turn: AbstractAsyncContextManager[None] = nullcontext()
        else:
            # SQLite's own waiting is by chance: under load somebody waits until it gives up.
            self._turn = asyncio.Lock()

    async def create(self, job: NewJob, *, max_unfinished: int) -> tuple[Storyboard, bool]:
        async with self._writing("The storyboard could not be stored.") as connection:
            await self._one_at_a_time(connection, func.hashtext(job.owner))
            if (used := await _by_key(connection, job)) is not None:
                if used.body_hash != job.body_hash:
                    raise KeyReused(job.idempotency_key)
                return Storyboard.model_validate(used.document), False
            mine = (storyboards.c.owner == job.owner) & storyboards.c.state.in_(UNFINISHED)
            unfinished = await connection.scalar(select(func.count()).where(mine))
            if (unfinished or 0) >= max_unfinished:
                raise TooManyJobs(max_unfinished)
            await connection.execute(insert(storyboards).values(_row(job)))
        return job.storyboard, True

    async def get(self, owner: str | None, job_id: str) -> Storyboard | None:
        query = select(storyboards.c.document).where(storyboards.c.id == job_id, _owned(owner))
        async with self._reading("The storyboard cannot be read.") as connection:
            document = await connection.scalar(query)
        return None if document is None else Storyboard.model_validate(document)

    async def events(self, job_id: str, after: int) -> Sequence[StoredEvent]:
        query = (
            select(events.c.name, events.c.data, events.c.seq)
            .where(events.c.storyboard_id == job_id, events.c.seq > after)
            .order_by(events.c.seq)
        )
        async with self._reading("The events cannot be read.") as connection:
            found = (await connection.execute(query)).all()
        return [StoredEvent(row.name, row.data, seq=row.seq) for row in found]

    async def cancel(self, owner: str, job_id: str) -> Storyboard | None:
        async with self._writing("The storyboard could not be cancelled.") as connection:
            row = await _locked(connection, job_id, _owned(owner))
            if row is None:
                return None
            now = Storyboard.model_validate(row.document)
            if now.state in FINISHED:
                return now
            cancelled = now.model_copy(
                update={"state": "cancelled", "updated_at": _time(row.now_s)}
            )
            change = Change(cancelled, (telling.result(cancelled),))
            await _write(connection, row, change, token=row.token + 1, attempts=row.attempts)
        return cancelled

    async def delete(self, owner: str | None, job_id: str) -> bool:
        async with self._writing("The storyboard could not be deleted.") as connection:
            row = await _locked(connection, job_id, _owned(owner))
            if row is None:
                return False
            if row.state not in FINISHED:
                raise StillRunning(f"storyboard {job_id} is {row.state}")
            await connection.execute(delete(events).where(events.c.storyboard_id == job_id))
            await connection.execute(delete(storyboards).where(storyboards.c.id == job_id))
        return True

    async def claim(self, worker: str, lease_s: float, *, max_running: int) -> Lease | None:
        async with self._writing("No job can be claimed.") as connection:
            await self._one_at_a_time(connection, CLAIMING)
            row = (await connection.execute(_next_job(max_running))).one_or_none()
            if row is None:
                return None
            token, attempts = row.token + 1, row.attempts + 1
            await connection.execute(
                update(storyboards)
                .where(storyboards.c.id == row.id)
                .values(
                    token=token,
                    attempts=attempts,
                    leased_by=worker,
                    leased_until_s=now_s() + lease_s,
                )
            )
        return Lease(
            job_id=row.id,
            token=token,
            worker=worker,
            request=StoryboardRequest.model_validate(row.request),
            storyboard=Storyboard.model_validate(row.document),
            created_at=_time(row.created_s),
            attempts=attempts,
        )

    async def renew(self, lease: Lease, lease_s: float) -> None:
        async with self._writing("The lease could not be renewed.") as connection:
            renewed = await connection.execute(
                update(storyboards).where(_held(lease)).values(leased_until_s=now_s() + lease_s)
            )
        if renewed.rowcount == 0:
            raise LeaseLost(lease.job_id)

    async def release(self, lease: Lease) -> None:
        async with self._writing("The lease could not be given back.") as connection:
            await connection.execute(update(storyboards).where(_held(lease)).values(NOBODYS))

    async def release_all(self) -> None:
        async with self._writing("The leases could not be given back.") as connection:
            await connection.execute(
                update(storyboards).where(storyboards.c.state.in_(UNFINISHED)).values(NOBODYS)
            )

    async def record(self, lease: Lease, change: Callable[[Storyboard], Change]) -> Storyboard:
        async with self._writing("The change could not be stored.") as connection:
            row = await _locked(connection, lease.job_id, storyboards.c.token == lease.token)
            if row is None or row.state in FINISHED:
                raise LeaseLost(lease.job_id)
            stored = Storyboard.model_validate(row.document)
            now = stored.model_copy(update={"updated_at": _time(row.now_s)})
            changed = change(now)
            if changed == Change(now):
                return stored
            attempts = row.attempts if changed.storyboard == now else 0
            await _write(connection, row, changed, token=row.token, attempts=attempts)
        return changed.storyboard

    async def expired(self, limit: int) -> Sequence[str]:
        once = select(now_s()).scalar_subquery()  # the index serves only what does not move
        query = (
            select(storyboards.c.id)
            .where(storyboards.c.state.in_(FINISHED), storyboards.c.expires_s < once)
            .order_by(storyboards.c.expires_s)
            .limit(limit)
        )
        async with self._reading("Expired storyboards cannot be found.") as connection:
            return list(await connection.scalars(query))

    async def load(self) -> Load:
        is_leased = storyboards.c.leased_until_s > now_s()
        query = (
            select(
                func.count().filter(~is_leased),
                func.count().filter(is_leased),
                func.coalesce(now_s() - func.min(storyboards.c.created_s).filter(~is_leased), 0.0),
            )
            .select_from(storyboards)
            .where(storyboards.c.state.in_(UNFINISHED))
        )
        async with self._reading("The load cannot be read.") as connection:
            queued, running, oldest_s = (await connection.execute(query)).one()
        return Load(queued=queued, running=running, oldest_queued_s=float(oldest_s))

    @asynccontextmanager
    async def _writing(self, otherwise: str) -> AsyncIterator[AsyncConnection]:
        with as_unavailable(otherwise):
            async with (
                asyncio.timeout(ANSWER_TIMEOUT_S),
                self._turn,
                self._writer.begin() as connection,
            ):
                if self._is_postgresql:
                    await connection.execute(_AS_OURS)
                yield connection

    @asynccontextmanager
    async def _reading(self, otherwise: str) -> AsyncIterator[AsyncConnection]:
        with as_unavailable(otherwise):
            async with asyncio.timeout(ANSWER_TIMEOUT_S), self._engine.connect() as connection:
                yield connection

    async def _one_at_a_time(self, connection: AsyncConnection, what: Any) -> None:
        """Until the transaction ends. SQLite's writers are one at a time already."""
        if self._is_postgresql:
            await connection.execute(select(func.pg_advisory_xact_lock(what)))


_AS_OURS = text(
    "SET TRANSACTION ISOLATION LEVEL READ COMMITTED; "
    f"SET LOCAL idle_in_transaction_session_timeout = {SILENT_TRANSACTION_S * 1_000:.0f}"
).execution_options(no_parameters=True)
"""Whatever a PostgreSQL server's defaults are: what waited for a lock sees what was committed
meanwhile, and a client that fell silent is not waited for until TCP gives it up, hours.
"""


def _row(job: NewJob) -> dict[str, Any]:
    storyboard = job.storyboard
    kept_s = (storyboard.expires_at - storyboard.created_at).total_seconds()
    return {
        "id": storyboard.id,
        "owner": job.owner,
        "idempotency_key": job.idempotency_key,
        "body_hash": job.body_hash,
        "state": storyboard.state,
        "request": job.request.model_dump(mode="json"),
        "document": storyboard.model_dump(mode="json"),
        "created_s": now_s(),
        "expires_s": now_s() + kept_s,
        "leased_until_s": 0.0,
        "token": 0,
        "attempts": 0,
        "last_seq": 0,
    }


async def _by_key(connection: AsyncConnection, job: NewJob) -> Row[*tuple[Any, ...]] | None:
    """The job that this idempotency key stands for."""
    if job.idempotency_key is None:
        return None
    query = select(storyboards.c.document, storyboards.c.body_hash).where(
        storyboards.c.owner == job.owner, storyboards.c.idempotency_key == job.idempotency_key
    )
    return (await connection.execute(query)).one_or_none()


async def _locked(
    connection: AsyncConnection, job_id: str, condition: Any
) -> Row[*tuple[Any, ...]] | None:
    """The row, which nobody else changes until the transaction ends."""
    query = (
        select(storyboards, now_s().label("now_s"))
        .where(storyboards.c.id == job_id, condition)
        .with_for_update()
    )
    return (await connection.execute(query)).one_or_none()


async def _write(
    connection: AsyncConnection,
    row: Row[*tuple[Any, ...]],
    change: Change,
    *,
    token: int,
    attempts: int,
) -> None:
    after = change.storyboard
    ended = {"finished_s": now_s(), **NOBODYS} if after.state in FINISHED else {}
    await connection.execute(
        update(storyboards)
        .where(storyboards.c.id == row.id)
        .values(
            state=after.state,
            document=after.model_dump(mode="json"),
            token=token,
            attempts=attempts,
            last_seq=row.last_seq + len(change.events),
            **ended,
        )
    )
    if change.events:
        await connection.execute(
            insert(events),
            [_event(row.id, row.last_seq + i, e) for i, e in enumerate(change.events, 1)],
        )


def _event(job_id: str, seq: int, event: NewEvent) -> dict[str, Any]:
    return {"storyboard_id": job_id, "seq": seq, "name": event.name, "data": event.data}


def _next_job(max_running: int) -> Any:
    """The oldest that nobody holds, of an owner who has not enough running."""
    is_unfinished = storyboards.c.state.in_(UNFINISHED)
    busy = (
        select(storyboards.c.owner)
        .where(is_unfinished, storyboards.c.leased_until_s > now_s())
        .group_by(storyboards.c.owner)
        .having(func.count() >= max_running)
    )
    return (
        select(storyboards)
        .where(
            is_unfinished,
            storyboards.c.leased_until_s <= now_s(),
            storyboards.c.owner.not_in(busy),
        )
        .order_by(storyboards.c.created_s, storyboards.c.id)
        .limit(1)
        .with_for_update(skip_locked=True)
    )


def _held(lease: Lease) -> Any:
    return (
        (storyboards.c.id == lease.job_id)
        & (storyboards.c.token == lease.token)
        & storyboards.c.state.in_(UNFINISHED)
    )


def _owned(owner: str | None) -> Any:
    """Anybody's when there is none to match."""
    return true() if owner is None else storyboards.c.owner == owner


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(float(seconds), UTC)
