"""The store of jobs: both databases keep the same promises."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from services.shared.proposals import Proposal
from services.shared.storage import StorageUnavailable, open_storage
from services.storyboard import telling
from services.storyboard.adapters.jobs import SQLJobStore, metadata
from services.storyboard.errors import KeyReused, LeaseLost, StillRunning, TooManyJobs
from services.storyboard.ports import Change, NewEvent, NewJob, StoredEvent
from services.storyboard.schemas import Storyboard, StoryboardRequest
from tests.databases import Database
from tests.postgres import Postgres
from tests.services.storyboard.relay import Relay

OWNER, OTHER = "a" * 16, "b" * 16
LEASE_S = 30.0
MANY = 1_000_000
# A lock that is left behind is waited for longer: 10 s by SQLite, 30 s by the store.
BOUND_S = 9.0
TEXT = "한국어 ㅋㅋ 🎬👩‍👩‍👧 'quoted' \"twice\" \\ {brace} %s \x00 العربية \u2028"


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


async def test_1000_interleavings_make_one_job_a_key_and_never_more_than_the_quota(
    database: Database,
) -> None:
    chance = random.Random(4)
    quota = 20
    kept: dict[tuple[str, str], set[tuple[str, str]]] = {}
    refused: set[tuple[str, str, str]] = set()
    turned_away: Counter[str] = Counter()

    async with opened(database) as one, opened(database) as other:

        async def ask(owner: str, key: str, body: str) -> None:
            await asyncio.sleep(chance.random() / 50)
            store = chance.choice((one, other))
            try:
                storyboard, _ = await store.create(a_job(owner, key, body), max_unfinished=quota)
                kept.setdefault((owner, key), set()).add((storyboard.id, body))
            except KeyReused:
                refused.add((owner, key, body))
            except TooManyJobs:
                turned_away[owner] += 1

        asked = [
            (chance.choice((OWNER, OTHER)), f"k{chance.randrange(30)}", chance.choice("xxy"))
            for _ in range(1_000)
        ]
        for start in range(0, len(asked), 50):
            await asyncio.gather(*(ask(*one) for one in asked[start : start + 50]))
        assert (await one.load()).queued == 2 * quota
    assert {len(what) for what in kept.values()} == {1}, "one job and one body a key"
    assert Counter(owner for owner, _ in kept) == {OWNER: quota, OTHER: quota}
    assert refused
    assert set(turned_away) == {OWNER, OTHER}
    for owner, key, body in refused:
        assert body not in {kept_body for _, kept_body in kept[owner, key]}


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


async def test_fifty_jobs_are_claimed_oldest_first_and_each_once(database: Database) -> None:
    async with opened(database) as one, opened(database) as other:
        ids = []
        for _ in range(50):
            ids.append((await created(one)).id)
            await asyncio.sleep(0.002)  # SQLite's clock counts milliseconds
        taken: dict[str, list[str]] = {}
        began = {"0": asyncio.Event(), "1": asyncio.Event()}

        async def take(store: SQLJobStore, worker: str) -> None:
            while (lease := await claimed(store, worker=worker)) is not None:
                taken.setdefault(worker, []).append(lease.job_id)
                began[worker[0]].set()
                # Neither store may be through before the other has had its turn at the file.
                await asyncio.gather(*(event.wait() for event in began.values()))

        workers = [(store, f"{i}-{n}") for i, store in enumerate((one, other)) for n in range(4)]
        await asyncio.gather(*(take(*worker) for worker in workers))
    assert sorted(job_id for mine in taken.values() for job_id in mine) == sorted(ids)
    assert {worker[0] for worker in taken} == {"0", "1"}, "both stores took some"
    for mine in taken.values():
        assert mine == sorted(mine, key=ids.index)


async def test_those_who_claim_at_once_stay_within_an_owners_limit(database: Database) -> None:
    async with opened(database) as one, opened(database) as other:
        for _ in range(10):
            await created(one)
        claims = (store.claim("w", LEASE_S, max_running=3) for store in (one, other) * 10)
        leases = [lease for lease in await asyncio.gather(*claims) if lease is not None]
    assert len({lease.job_id for lease in leases}) == len(leases) == 3


async def test_a_workers_clock_decides_nothing(database: Database) -> None:
    """Storyboards are dated by whoever was asked for them; their order and age are not."""
    async with opened(database) as store:
        hour = timedelta(hours=1)
        now = datetime.now(UTC)
        dates = [now + hour, now - hour]
        ids = []
        for date in dates:
            job = a_job(created_at=date, updated_at=date, expires_at=date + timedelta(seconds=60))
            ids.append((await created(store, job)).id)
            await asyncio.sleep(0.005)
        assert (await store.load()).oldest_queued_s < 600
        for job_id in ids:
            lease = await claimed(store)
            assert lease.job_id == job_id
            assert abs(lease.created_at - now) < timedelta(seconds=600)
            await store.record(lease, to("done"))
        assert await store.expired(10) == []


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
        await asyncio.gather(*(store.record(lease, counted) for _ in range(20)))
        after = await store.get(OWNER, storyboard.id)
        events = await store.events(storyboard.id, 0)
        assert after is not None
        assert (after.seed, len(events)) == (21, 40)
        assert_whole(after, events)
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


async def test_telling_something_is_no_progress(database: Database) -> None:
    async with opened(database) as store:
        storyboard = await created(store)
        lease = await claimed(store)
        await store.record(lease, lambda now: Change(now, (NewEvent("a", {}),)))
        assert len(await store.events(storyboard.id, 0)) == 1
        assert (await claimed_after(store, lease)).attempts == 2


async def claimed_after(store: SQLJobStore, lease: Any) -> Any:
    await store.release(lease)
    return await claimed(store)


async def test_the_last_event_holds_the_storyboard_as_it_is_kept(database: Database) -> None:
    async with opened(database) as store:
        an_hour_ago = datetime.now(UTC) - timedelta(hours=1)
        before = await created(store, a_job(updated_at=an_hour_ago))
        lease = await claimed(store)

        def done(now: Storyboard) -> Change:
            ended = now.model_copy(update={"state": "done"})
            return Change(ended, (telling.result(ended),))

        after = await store.record(lease, done)
        assert after == await store.get(OWNER, before.id)
        assert after.updated_at > an_hour_ago + timedelta(minutes=30)
        (last,) = await store.events(before.id, 0)
        assert Storyboard.model_validate(last.data) == after


async def test_any_text_comes_back_unchanged(database: Database) -> None:
    async with opened(database) as store:
        storyboard = await created(store, a_job(title=TEXT))
        lease = await claimed(store)
        assert lease.storyboard == storyboard
        data = {TEXT: [TEXT, None, 1.5, {"\ud800": "\udfff"}]}
        await store.record(lease, lambda now: Change(now, (NewEvent("a", data),)))
        assert [event.data for event in await store.events(storyboard.id, 0)] == [data]


async def test_a_process_that_starts_alone_takes_all_leases_back(database: Database) -> None:
    async with opened(database) as store:
        ids = {(await created(store)).id for _ in range(3)}
        done = await claimed(store)
        await store.record(done, to("done"))
        late = await claimed(store)
        await store.release_all()
        now = [await claimed(store), await claimed(store)]
        assert {lease.job_id for lease in now} == ids - {done.job_id}
        assert await claimed(store) is None
        with pytest.raises(LeaseLost):
            await store.record(late, to("done"))


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


async def test_connections_that_break_at_any_moment_leave_all_or_nothing(
    postgres: Postgres,
) -> None:
    chance = random.Random(4)
    url = postgres.new_database()
    outcomes: Counter[str] = Counter()
    kill = (
        "select pg_terminate_backend(pid) from pg_stat_activity "
        "where pid <> pg_backend_pid() and datname = current_database()"
    )
    async with (
        opened(Database(url, Path())) as store,
        await psycopg.AsyncConnection.connect(url, autocommit=True) as other,
    ):
        storyboard = await created(store)
        lease = await claimed(store)
        for _ in range(60):
            recording = asyncio.ensure_future(store.record(lease, counted))
            await asyncio.sleep(chance.random() / 60)
            await other.execute(kill)
            try:
                await recording
                outcomes["stored"] += 1
            except StorageUnavailable:
                outcomes["unavailable"] += 1
        await store.record(lease, counted)
        assert_whole(await store.get(OWNER, storyboard.id), await store.events(storyboard.id, 0))
    assert set(outcomes) == {"stored", "unavailable"}


async def test_cancelled_changes_leave_all_or_nothing_and_no_lock(database: Database) -> None:
    chance = random.Random(4)
    async with opened(database) as store:
        storyboard = await created(store)
        lease = await claimed(store)
        cancelled = []
        for _ in range(60):
            recording = [asyncio.ensure_future(store.record(lease, counted)) for _ in range(3)]
            cancelled += recording  # whoever keeps a task keeps what it was doing
            await asyncio.sleep(chance.random() / 80)
            for task in recording:
                task.cancel()
            await asyncio.wait(recording)
            async with asyncio.timeout(BOUND_S):
                await store.record(lease, counted)
        assert any(task.cancelled() for task in cancelled)
        assert_whole(await store.get(OWNER, storyboard.id), await store.events(storyboard.id, 0))


def counted(now: Storyboard) -> Change:
    more = now.model_copy(update={"seed": now.seed + 1})
    return Change(more, (NewEvent("a", {"seed": more.seed}), NewEvent("b", {})))


def assert_whole(storyboard: Storyboard | None, events: Sequence[StoredEvent]) -> None:
    """Every `counted` is in the storyboard and in the events, or in neither."""
    assert storyboard is not None
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    assert [event.data["seed"] for event in events[::2]] == list(range(2, storyboard.seed + 1))


async def test_a_worker_that_freezes_in_a_change_does_not_hold_the_others_up(
    postgres: Postgres, tmp_path: Path
) -> None:
    url = postgres.new_database()
    with Relay(postgres.port) as relay:
        frozen_url = url.replace(str(postgres.port), str(relay.port))
        async with (
            opened(Database(url, tmp_path)) as store,
            opened(Database(frozen_url, tmp_path)) as frozen,
        ):
            storyboard = await created(store)
            lease = await claimed(frozen)

            def freeze(now: Storyboard) -> Change:
                relay.cut()
                return to("done")(now)

            recording = asyncio.ensure_future(frozen.record(lease, freeze))
            while not await is_locked(url):
                await asyncio.sleep(0.01)
            async with asyncio.timeout(BOUND_S):
                cancelled = await store.cancel(OWNER, storyboard.id)
            relay.mend()
            with pytest.raises(StorageUnavailable):
                await recording
            assert await store.get(OWNER, storyboard.id) == cancelled
            assert [e.name for e in await store.events(storyboard.id, 0)] == ["result"]


async def is_locked(url: str) -> bool:
    query = "select id from storyboards for update skip locked"
    async with await psycopg.AsyncConnection.connect(url) as connection:
        return await (await connection.execute(query)).fetchone() is None


async def test_what_was_on_its_way_when_the_lease_ran_out_is_refused(
    postgres: Postgres, tmp_path: Path
) -> None:
    url = postgres.new_database()
    with Relay(postgres.port) as relay:
        far_url = url.replace(str(postgres.port), str(relay.port))
        async with (
            opened(Database(url, tmp_path)) as store,
            opened(Database(far_url, tmp_path)) as far,
        ):
            storyboard = await created(store)
            late = await claimed(far, 0.5, "far")
            relay.cut()
            recording = asyncio.ensure_future(far.record(late, to("done")))
            await asyncio.sleep(0.7)
            now = await claimed(store, worker="near")
            assert now.job_id == storyboard.id
            relay.mend()
            with pytest.raises(LeaseLost):
                await recording
            await store.record(now, to("writing"))
            assert (await store.get(OWNER, storyboard.id)).state == "writing"


async def test_changes_wait_for_each_other_whatever_the_servers_isolation(
    postgres: Postgres,
) -> None:
    url = postgres.new_database()
    name = url.rpartition("/")[2]
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(
            f"alter database {name} set default_transaction_isolation = serializable"
        )
    async with opened(Database(url, Path())) as store:
        storyboard = await created(store)
        lease = await claimed(store)
        await asyncio.gather(*(store.record(lease, counted) for _ in range(20)))
        assert (await store.get(OWNER, storyboard.id)).seed == 21


async def test_a_database_without_our_tables_is_unavailable(database: Database) -> None:
    async with opened(database) as store:
        storyboard = await created(store)
        lease = await claimed(store)
        async with store._engine.begin() as connection:
            await connection.run_sync(metadata.drop_all)
        for asked in (
            store.create(a_job(), max_unfinished=1),
            store.get(None, storyboard.id),
            store.events(storyboard.id, 0),
            store.cancel(OWNER, storyboard.id),
            store.delete(None, storyboard.id),
            claimed(store),
            store.renew(lease, LEASE_S),
            store.release(lease),
            store.release_all(),
            store.record(lease, to("done")),
            store.expired(1),
            store.load(),
        ):
            with pytest.raises(StorageUnavailable):
                await asked


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
