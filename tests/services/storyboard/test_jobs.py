"""The store of jobs: both databases keep the same promises."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from services.shared.proposals import Proposal
from services.shared.storage import StorageUnavailable, open_storage
from services.storyboard.adapters.jobs import SQLJobStore, metadata
from services.storyboard.errors import KeyReused, LeaseLost, StillRunning, TooManyJobs
from services.storyboard.ports import Change, NewEvent, NewJob
from services.storyboard.schemas import Storyboard, StoryboardRequest
from tests.databases import Database
from tests.postgres import Postgres

OWNER, OTHER = "a" * 16, "b" * 16
LEASE_S = 30.0
MANY = 1_000_000


@asynccontextmanager
async def opened(database: Database) -> AsyncIterator[SQLJobStore]:
    async with open_storage(database.url, database.file, metadata, pool_size=8) as storage:
        yield SQLJobStore(storage.engine)


def a_job(owner: str = OWNER, key: str | None = None, body: str = "x", **changes: Any) -> NewJob:
    now = datetime.now(UTC)
    proposal = Proposal(title="제목 🎬", content=body, media_type="short_form")
    storyboard = Storyboard(
        id=uuid4().hex,
        state="queued",
        progress=0,
        created_at=now,
        updated_at=now,
        expires_at=now + timedelta(days=1),
        title=proposal.title,
        language="ko",
        style=None,
        width=None,
        height=None,
        seed=1,
        duration_s=60,
        cast=[],
        settings=[],
        scenes=[],
        frames=[],
        notes=[],
        sheet_url=None,
        error=None,
        model=None,
        prompt_version="1",
    ).model_copy(update=changes)
    request = StoryboardRequest(proposal=proposal)
    return NewJob(owner, request, storyboard, body_hash=body, idempotency_key=key)


def to(state: str) -> Any:
    """A change to another state, with an event of that name."""
    return lambda now: Change(now.model_copy(update={"state": state}), (NewEvent(state, {}),))


async def created(store: SQLJobStore, job: NewJob | None = None) -> Storyboard:
    storyboard, _ = await store.create(job or a_job(), max_unfinished=MANY)
    return storyboard


async def claimed(store: SQLJobStore, lease_s: float = LEASE_S, worker: str = "w") -> Any:
    return await store.claim(worker, lease_s, max_running=MANY)


async def test_what_was_asked_for_is_kept_and_its_owners_alone(database: Database) -> None:
    async with opened(database) as store:
        storyboard = await created(store)
    async with opened(database) as store:
        assert await store.get(OWNER, storyboard.id) == storyboard
        assert await store.get(None, storyboard.id) == storyboard
        assert await store.get(OTHER, storyboard.id) is None
        assert await store.cancel(OTHER, storyboard.id) is None
        assert await store.delete(OTHER, storyboard.id) is False


async def test_a_key_is_one_job_an_owner(database: Database) -> None:
    async with opened(database) as store:
        first, is_new = await store.create(a_job(key="k"), max_unfinished=1)
        again, is_new_again = await store.create(a_job(key="k"), max_unfinished=1)
        assert (is_new, is_new_again) == (True, False)
        assert again.id == first.id, "answered although the quota is full"
        with pytest.raises(KeyReused):
            await store.create(a_job(key="k", body="y"), max_unfinished=1)
        assert (await created(store, a_job(OTHER, key="k"))).id != first.id


async def test_1000_interleavings_of_keys_and_bodies_make_one_job_a_key(
    database: Database,
) -> None:
    chance = random.Random(4)
    kept: dict[str, set[str]] = {}
    bodies: dict[str, set[str]] = {}

    async with opened(database) as store:

        async def ask(key: str, body: str) -> None:
            await asyncio.sleep(chance.random() / 50)
            try:
                storyboard, _ = await store.create(a_job(key=key, body=body), max_unfinished=MANY)
            except KeyReused:
                return
            kept.setdefault(key, set()).add(storyboard.id)
            bodies.setdefault(key, set()).add(body)

        asked = [(f"k{chance.randrange(60)}", chance.choice("xxy")) for _ in range(1_000)]
        for start in range(0, len(asked), 50):
            await asyncio.gather(*(ask(*one) for one in asked[start : start + 50]))
    assert len(kept) == 60
    assert {len(ids) for ids in kept.values()} == {len(b) for b in bodies.values()} == {1}


async def test_quotas_hold_against_those_who_ask_at_once(database: Database) -> None:
    outcomes: Counter[str] = Counter()
    async with opened(database) as store:

        async def ask() -> None:
            try:
                await store.create(a_job(), max_unfinished=5)
                outcomes["taken"] += 1
            except TooManyJobs:
                outcomes["refused"] += 1

        await asyncio.gather(*(ask() for _ in range(25)))
        assert outcomes == {"taken": 5, "refused": 20}
        lease = await claimed(store)
        await store.record(lease, to("done"))
        await store.create(a_job(), max_unfinished=5)


async def test_jobs_are_claimed_oldest_first_and_each_once(database: Database) -> None:
    async with opened(database) as one, opened(database) as other:
        ids = [(await created(one)).id for _ in range(20)]
        first = await claimed(one)
        assert first.job_id == ids[0]

        async def take(store: SQLJobStore, worker: str) -> list[str]:
            taken = []
            while (lease := await claimed(store, worker=worker)) is not None:
                taken.append(lease.job_id)
            return taken

        both = await asyncio.gather(take(one, "w1"), take(other, "w2"))
        assert sorted([*both[0], *both[1], ids[0]]) == sorted(ids)


async def test_an_owner_at_its_limit_lets_others_pass(database: Database) -> None:
    async with opened(database) as store:
        for _ in range(3):
            await created(store)
        waiting = await created(store, a_job(OTHER))
        for _ in range(2):
            lease = await store.claim("w", LEASE_S, max_running=2)
            assert lease is not None
            assert lease.job_id != waiting.id
        third = await store.claim("w", LEASE_S, max_running=2)
        assert third is not None
        assert third.job_id == waiting.id
        assert await store.claim("w", LEASE_S, max_running=2) is None


async def test_a_lease_that_ran_out_is_anothers_and_what_comes_late_is_refused(
    database: Database,
) -> None:
    async with opened(database) as store:
        storyboard = await created(store)
        late = await claimed(store, 0.1, "late")
        assert await claimed(store) is None
        await asyncio.sleep(0.2)
        now = await claimed(store, worker="now")
        assert (now.job_id, now.attempts) == (storyboard.id, 2)
        with pytest.raises(LeaseLost):
            await store.record(late, to("done"))
        with pytest.raises(LeaseLost):
            await store.renew(late, LEASE_S)
        await store.release(late)
        assert await claimed(store) is None, "the late one gave nothing back"
        assert (await store.get(OWNER, storyboard.id)).state == "queued"
        await store.record(now, to("writing"))
        assert [event.name for event in await store.events(storyboard.id, 0)] == ["writing"]


async def test_a_renewed_lease_lasts(database: Database) -> None:
    async with opened(database) as store:
        await created(store)
        lease = await claimed(store, 0.3)
        for _ in range(4):
            await asyncio.sleep(0.15)
            await store.renew(lease, 0.3)
            assert await claimed(store) is None
        await store.release(lease)
        assert await claimed(store) is not None


async def test_cancelling_refuses_what_is_still_to_come(database: Database) -> None:
    async with opened(database) as store:
        storyboard = await created(store)
        lease = await claimed(store)
        cancelled = await store.cancel(OWNER, storyboard.id)
        assert cancelled is not None
        assert cancelled.state == "cancelled"
        for late in (store.record(lease, to("done")), store.renew(lease, LEASE_S)):
            with pytest.raises(LeaseLost):
                await late
        assert await claimed(store) is None
        assert await store.cancel(OWNER, storyboard.id) == cancelled
        events = await store.events(storyboard.id, 0)
        assert [(event.seq, event.name) for event in events] == [(1, "result")]
        assert events[0].data["state"] == "cancelled"


async def test_changes_at_the_same_time_all_count_and_events_have_no_gaps(
    database: Database,
) -> None:
    async with opened(database) as store:
        storyboard = await created(store)
        lease = await claimed(store)

        def counted(now: Storyboard) -> Change:
            more = now.model_copy(update={"seed": now.seed + 1})
            return Change(more, (NewEvent("a", {"seed": more.seed}), NewEvent("b", {})))

        await asyncio.gather(*(store.record(lease, counted) for _ in range(20)))
        assert (await store.get(OWNER, storyboard.id)).seed == 21
        events = await store.events(storyboard.id, 0)
        assert [event.seq for event in events] == list(range(1, 41))
        assert [event.data["seed"] for event in events[::2]] == list(range(2, 22))
        assert list(await store.events(storyboard.id, 37)) == list(events[37:])


async def test_nothing_changed_is_nothing_written(database: Database) -> None:
    async with opened(database) as store:
        storyboard = await created(store)
        lease = await claimed(store)
        assert await store.record(lease, Change) == storyboard
        again = await claimed_after(store, lease)
        assert again.attempts == 2, "no progress"
        await store.record(again, to("writing"))
        assert (await claimed_after(store, again)).attempts == 1


async def claimed_after(store: SQLJobStore, lease: Any) -> Any:
    await store.release(lease)
    return await claimed(store)


async def test_finished_ones_are_deleted_and_running_ones_are_not(database: Database) -> None:
    async with opened(database) as store:
        old = datetime.now(UTC) - timedelta(days=2)
        storyboard = await created(
            store, a_job(created_at=old + timedelta(days=1), expires_at=old + timedelta(days=1))
        )
        lease = await claimed(store)
        with pytest.raises(StillRunning):
            await store.delete(OWNER, storyboard.id)
        assert await store.expired(10) == []
        await store.record(lease, to("done"))
        await asyncio.sleep(0.05)
        assert await store.expired(10) == [storyboard.id]
        assert await store.delete(None, storyboard.id) is True
        assert await store.events(storyboard.id, 0) == []
        assert await store.get(OWNER, storyboard.id) is None


async def test_the_load_counts_what_waits(database: Database) -> None:
    async with opened(database) as store:
        assert (await store.load()).queued == 0
        for _ in range(3):
            await created(store)
        await claimed(store)
        await asyncio.sleep(0.1)
        load = await store.load()
        assert (load.queued, load.running) == (2, 1)
        assert 0.1 <= load.oldest_queued_s < 60


async def test_a_connection_that_breaks_during_a_change_leaves_all_or_nothing(
    postgres: Postgres,
) -> None:
    url = postgres.new_database()
    database = Database(url, Path())
    async with opened(database) as store:
        storyboard = await created(store)
        lease = await claimed(store)

        def cut(now: Storyboard) -> Change:
            kill = (
                "select pg_terminate_backend(pid) from pg_stat_activity "
                "where pid <> pg_backend_pid() and state like 'idle in transaction%'"
            )
            with psycopg.connect(url, autocommit=True) as other:
                other.execute(kill)
            return to("done")(now)

        with pytest.raises(StorageUnavailable):
            await store.record(lease, cut)
        assert (await store.get(OWNER, storyboard.id)).state == "queued"
        assert await store.events(storyboard.id, 0) == []
        await store.record(lease, to("done"))


HAMMER = """
import asyncio, sys
from pathlib import Path
from tests.databases import Database
from tests.services.storyboard.test_jobs import a_job, claimed, opened, to

async def main():
    async with opened(Database(None, Path(sys.argv[1]))) as store:
        async def once():
            await store.create(a_job(), max_unfinished=10**6)
            lease = await claimed(store)
            if lease:
                await store.record(lease, to("writing"))
                await store.record(lease, to("done"))
        for _ in range(10):
            await asyncio.gather(*(once() for _ in range(8)))

asyncio.run(main())
"""


def test_two_processes_on_one_sqlite_file_wait_for_each_other(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HAMMER, str(tmp_path)]
    both = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for _ in range(2)
    ]
    until_s = time.monotonic() + 120
    for process in both:
        output, _ = process.communicate(timeout=until_s - time.monotonic())
        assert process.returncode == 0, output[-2_000:]
