"""Faults that really happen to processes, links and disks, and what the records say they cost."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path

import httpx
import psutil
import pytest

from loadtests.faults.disk import FILE, FillDisk, TooLarge, free_bytes
from loadtests.faults.effects import effects
from loadtests.faults.link import CLEAR, BadLink, Condition, Link
from loadtests.faults.plan import PlanError, read_plan
from loadtests.faults.processes import Kill, LimitFiles, NotFound, Service, Stop, Terminate
from loadtests.faults.timeline import Mark, Planned, carry_out
from loadtests.faults.youtube import YouTubeFault
from loadtests.outcomes import Outcome, Record
from services.shared.peers import free_port
from tests.youtube.server import KEY, serve_youtube

# A supervisor that holds a listening socket and its worker that serves on it: writes a file's size.
SERVICE = """
    import os, socket, sys, time
    listening = socket.create_server(("127.0.0.1", int(sys.argv[1])))
    worker = os.fork()
    if worker:
        os.waitpid(worker, 0)
        time.sleep(60)
    while True:
        connection, _ = listening.accept()
        connection.recv(100)
        try:
            with open(sys.argv[2], "ab") as file:
                file.write(b"x" * 1_000)
            said = b"written"
        except OSError as error:
            said = str(error.errno).encode()
        connection.sendall(said)
        connection.close()
"""


def ask(port: int, timeout_s: float = 0.5) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=timeout_s) as connection:
        connection.sendall(b"?")
        return connection.recv(100)


def answers(port: int, within_s: float = 10.0) -> bool:
    until = time.monotonic() + within_s
    while time.monotonic() < until:
        with suppress(OSError):
            if ask(port):
                return True
        time.sleep(0.02)
    return False


def end(pid: int) -> None:
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        for one in [*process.children(recursive=True), process]:
            with suppress(psutil.NoSuchProcess):
                one.kill()


@pytest.fixture
def port(tmp_path: Path) -> Iterator[int]:
    at = free_port()
    command = [sys.executable, "-c", textwrap.dedent(SERVICE), str(at), str(tmp_path / "file")]
    process = subprocess.Popen(command)
    try:
        assert answers(at)
        yield at
    finally:
        end(process.pid)
        process.wait(10)


def test_a_service_is_found_by_its_port_with_its_supervisor_first(port: int) -> None:
    everyone = Service(port, which="all").processes()
    (supervisor,) = Service(port, which="supervisor").processes()
    (worker,) = Service(port, which="workers").processes()
    assert everyone == [supervisor, worker]
    assert worker.ppid() == supervisor.pid
    assert Service(words=("create_server", str(port))).processes() == [worker]


def test_what_is_not_there_is_said_and_this_process_is_never_found() -> None:
    with pytest.raises(NotFound, match="is it started"):
        Service(free_port()).processes()
    with socket.create_server(("127.0.0.1", 0)) as own, pytest.raises(NotFound):
        Service(own.getsockname()[1]).processes()
    with pytest.raises(ValueError, match="by its port or by words"):
        Service()


async def test_a_killed_worker_is_gone_and_its_supervisor_is_not(port: int) -> None:
    supervisor, worker = Service(port, which="all").processes()
    await Kill(Service(port)).begin()
    psutil.wait_procs([worker], timeout=5)
    assert not worker.is_running()
    assert supervisor.is_running()


async def test_a_killed_service_is_started_again_as_it_was(port: int) -> None:
    fault = Kill(Service(port, which="all"), restarts=True)
    before = Service(port, which="supervisor").processes()[0].cmdline()
    await fault.begin()
    await asyncio.sleep(0.1)
    with pytest.raises(OSError):  # noqa: PT011 - refused or reset
        ask(port)
    await fault.end()
    try:
        assert answers(port)
        assert Service(port, which="supervisor").processes()[0].cmdline() == before
    finally:
        for restarted in fault.restarted:
            end(restarted.pid)
            restarted.wait(10)


async def test_a_stopped_service_answers_late_not_never(port: int) -> None:
    fault = Stop(Service(port))
    await fault.begin()
    with pytest.raises(TimeoutError):
        ask(port, timeout_s=0.2)
    await fault.end()
    assert answers(port)


async def test_a_terminated_service_gets_sigterm(port: int) -> None:
    (supervisor,) = Service(port, which="supervisor").processes()
    await Terminate(Service(port, which="supervisor")).begin()
    psutil.wait_procs([supervisor], timeout=5)
    assert not supervisor.is_running() or supervisor.status() == psutil.STATUS_ZOMBIE


async def test_a_service_that_may_not_write_gets_the_error_and_then_may_again(port: int) -> None:
    fault = LimitFiles(Service(port), max_bytes=100)
    await fault.begin()
    assert ask(port) == str(errno.EFBIG).encode()
    await fault.end()
    assert ask(port) == b"written"


@asynccontextmanager
async def echoing() -> AsyncIterator[int]:
    """Says back what it hears; "many" is answered with 100,000 bytes."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while heard := await reader.read(65_536):
                writer.write(b"m" * 100_000 if heard == b"many" else heard)
                await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield int(server.sockets[0].getsockname()[1])
    finally:
        server.close()


@asynccontextmanager
async def linked() -> AsyncIterator[tuple[Link, asyncio.StreamReader, asyncio.StreamWriter]]:
    async with echoing() as port, Link("127.0.0.1", port).opened() as link:
        reader, writer = await asyncio.open_connection("127.0.0.1", link.port)
        try:
            yield link, reader, writer
        finally:
            writer.close()


async def said(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, text: bytes) -> bytes:
    writer.write(text)
    return await asyncio.wait_for(reader.readexactly(len(text)), 10)


async def test_a_clear_link_passes_every_byte_both_ways_and_the_end() -> None:
    async with linked() as (_, reader, writer):
        sent = os.urandom(300_000)
        assert await said(reader, writer, sent) == sent
        writer.write_eof()
        assert await asyncio.wait_for(reader.read(), 10) == b""


async def test_a_cut_link_breaks_what_is_open_refuses_what_is_new_and_heals() -> None:
    async with linked() as (link, reader, writer):
        assert await said(reader, writer, b"before") == b"before"
        fault = BadLink(link, Condition(is_cut=True))
        await fault.begin()
        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(reader.readexactly(1), 10)
        again, other = await asyncio.open_connection("127.0.0.1", link.port)
        with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
            await asyncio.wait_for(again.readexactly(1), 10)
        other.close()
        await fault.end()
        again, other = await asyncio.open_connection("127.0.0.1", link.port)
        assert await said(again, other, b"after") == b"after"
        other.close()


async def test_a_silent_link_keeps_the_connection_and_what_was_said() -> None:
    async with linked() as (link, reader, writer):
        link.become(Condition(is_silent=True))
        writer.write(b"held")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reader.read(1), 0.15)
        link.become(CLEAR)
        assert await asyncio.wait_for(reader.readexactly(4), 10) == b"held"


async def test_a_slow_link_delays_each_chunk_without_holding_back_the_next() -> None:
    async with linked() as (link, reader, writer):
        link.become(Condition(delay_s=0.2))
        started = time.monotonic()
        for _ in range(5):
            writer.write(b"chunk")
            await asyncio.sleep(0.01)
        await asyncio.wait_for(reader.readexactly(25), 10)
        took_s = time.monotonic() - started
        assert took_s >= 0.4, "both ways"
        assert took_s < 5 * 0.4, "one chunk waited for the other"


async def test_a_narrow_link_carries_no_more_than_it_may() -> None:
    async with linked() as (link, reader, writer):
        link.become(Condition(bytes_per_s=200_000))
        started = time.monotonic()
        writer.write(b"many")
        await asyncio.wait_for(reader.readexactly(100_000), 20)
        assert time.monotonic() - started >= 0.9 * 100_000 / 200_000


async def test_a_link_that_truncates_ends_after_exactly_so_many_bytes() -> None:
    async with linked() as (link, reader, writer):
        link.become(Condition(truncates_at=12_345))
        writer.write(b"many")
        assert len(await asyncio.wait_for(reader.read(-1), 10)) == 12_345


async def test_a_link_to_nobody_resets_and_leaves_nothing_behind() -> None:
    async with Link("127.0.0.1", free_port()).opened() as link:
        reader, writer = await asyncio.open_connection("127.0.0.1", link.port)
        with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
            await asyncio.wait_for(reader.readexactly(1), 10)
        writer.close()
    assert not [t for t in asyncio.all_tasks() if t is not asyncio.current_task()]


def test_conditions_that_mean_nothing_are_refused_with_the_value() -> None:
    with pytest.raises(ValueError, match="bytes_per_s is 0"):
        Condition(bytes_per_s=0)
    with pytest.raises(ValueError, match="delay_s is -1"):
        Condition(delay_s=-1)


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("mounting a small file system takes root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


async def test_a_full_disk_takes_no_byte_more_and_is_empty_again(tmp_path: Path) -> None:
    with small_disk(tmp_path / "small", "4m") as folder:
        free = free_bytes(folder)
        fault = FillDisk(folder, leaves_bytes=65_536)
        await fault.begin()
        assert free_bytes(folder) <= 65_536
        with pytest.raises(OSError, match="No space left"):
            (folder / "state").write_bytes(b"x" * 131_072)
        await fault.end()
        (folder / "state").unlink()
        assert free_bytes(folder) == free


async def test_a_large_disk_is_left_alone(tmp_path: Path) -> None:
    fault = FillDisk(tmp_path, max_bytes=1_000)
    with pytest.raises(TooLarge, match="a file system of its own"):
        await fault.begin()
    assert not (tmp_path / FILE).exists()


async def test_youtube_fails_for_as_long_as_the_fault_lasts() -> None:
    with serve_youtube() as youtube:

        def status() -> int:
            some = next(iter(youtube.channels.values()))
            asked = {"part": "snippet", "id": some.id, "key": KEY}
            url = f"{youtube.base_url}/youtube/v3/channels"
            return httpx.get(url, params=asked, timeout=10).status_code

        fault = YouTubeFault(youtube, "server_error")
        assert status() == 200
        await fault.begin()
        assert status() == 500
        await fault.end()
        assert status() == 200


class Noted:
    """A fault that notes when it began and ended, and may fail at either."""

    def __init__(self, name: str, fails: str = "") -> None:
        self.name, self.notes, self._fails = name, [], fails

    async def begin(self) -> None:
        self.notes.append("begin")
        if self._fails == "begin":
            raise OSError("no such thing")

    async def end(self) -> None:
        self.notes.append("end")
        if self._fails == "end":
            raise OSError("cannot mend")


async def test_faults_happen_at_their_times_and_one_that_fails_stops_no_other() -> None:
    good, unmade, unmended = Noted("good"), Noted("unmade", "begin"), Noted("unmended", "end")
    marks = await carry_out(
        [Planned(0.15, 0.1, good), Planned(0.0, 0.1, unmade), Planned(0.05, 0.0, unmended)]
    )
    assert [mark.name for mark in marks] == ["unmade", "unmended", "good"]
    assert [mark.problem for mark in marks] == [
        "no such thing",
        "not mended: cannot mend",
        None,
    ]
    assert marks[2].began_at - marks[0].began_at >= 0.14
    assert marks[2].ended_at - marks[2].began_at >= 0.09
    assert marks[1].ended_at == marks[1].began_at
    assert good.notes == unmade.notes == unmended.notes == ["begin", "end"]


async def test_a_timeline_that_is_cancelled_mends_what_it_began() -> None:
    begun, later = Noted("begun"), Noted("later")
    task = asyncio.create_task(carry_out([Planned(0, 60, begun), Planned(60, 1, later)]))
    await asyncio.sleep(0.1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert begun.notes == ["begin", "end"]
    assert later.notes == []


def record(number: int, outcome: Outcome = Outcome.GOOD, takes_s: float = 0.05) -> Record:
    due_s = number * 0.1
    return Record(number, "chat", number, outcome, due_s, due_s, None, due_s + takes_s)


def run_of(bad: dict[int, Outcome], requests: int = 600) -> list[Record]:
    return [record(n, bad.get(n, Outcome.GOOD)) for n in range(requests)]


def test_what_a_fault_cost_is_counted_from_its_beginning_to_the_recovery() -> None:
    """Ten a second; a crash at 20 s; the first to notice is due then, the last fails at 26 s."""
    bad = dict.fromkeys(range(200, 261), Outcome.FAILED) | {
        230: Outcome.LATE,
        231: Outcome.REJECTED,
    }
    (effect,) = effects([Mark("kill", 1_020.0, 1_020.0)], run_of(bad), 1_000.0)
    assert (effect.began_s, effect.lost, effect.late) == (20.0, 60, 1)
    assert effect.detected_s == pytest.approx(0.05)
    assert effect.recovered_s == pytest.approx(6.1)
    assert effect.hit == 61  # due from 20.0 to 26.0, all bad
    assert effect.availability == 0.0


def test_requests_under_way_when_it_began_are_hit_too() -> None:
    records = run_of({})
    records[190] = record(190, Outcome.FAILED, takes_s=1.3)  # due at 19.0, broken at 20.3
    (effect,) = effects([Mark("kill", 1_020.0, 1_020.0)], records, 1_000.0)
    assert (effect.hit, effect.lost, effect.detected_s) == (1, 1, pytest.approx(0.3))
    assert effect.recovered_s == 0.0


def test_a_fault_that_nobody_noticed_cost_nothing() -> None:
    (effect,) = effects([Mark("kill", 1_020.0, 1_030.0)], run_of({}), 1_000.0)
    assert (effect.lost, effect.detected_s, effect.recovered_s) == (0, None, 0.0)
    assert effect.availability == 1.0


def test_no_recovery_before_the_end_is_no_recovery() -> None:
    bad = dict.fromkeys(range(200, 600), Outcome.FAILED)
    (effect,) = effects([Mark("kill", 1_020.0, 1_020.0)], run_of(bad), 1_000.0)
    assert effect.recovered_s is None
    assert effect.lost == 400


def test_a_miss_now_and_then_before_the_fault_does_not_hide_the_recovery() -> None:
    usual = dict.fromkeys(range(0, 600, 20), Outcome.LATE)
    bad = usual | dict.fromkeys(range(200, 250), Outcome.FAILED)
    (effect,) = effects([Mark("kill", 1_020.0, 1_020.0)], run_of(bad), 1_000.0)
    assert effect.recovered_s == pytest.approx(5.0, abs=0.5)


def test_two_faults_share_no_loss() -> None:
    bad = dict.fromkeys((*range(200, 230), *range(400, 420)), Outcome.FAILED)
    first, second = effects(
        [Mark("stop", 1_040.0, 1_042.0), Mark("kill", 1_020.0, 1_020.0)], run_of(bad), 1_000.0
    )
    assert (first.name, first.lost) == ("kill", 30)
    assert (second.name, second.lost, second.recovered_s) == ("stop", 20, 0.0)


PLAN = """
    [links.llm]
    listen = 3900
    to = "127.0.0.1:3001"
    [links.youtube]
    listen = 3901
    [[faults]]
    kind = "kill"
    at_s = 3
    port = 3002
    which = "all"
    [[faults]]
    kind = "link"
    at_s = 6
    for_s = 2
    link = "llm"
    delay_s = 0.2
    [[faults]]
    kind = "fill_disk"
    at_s = 7
    for_s = 1
    folder = "state"
    [[faults]]
    kind = "youtube"
    at_s = 9
    for_s = 1
    fault = "quota_exceeded"
    calls = ["videos"]
"""


async def test_a_plan_becomes_faults_at_their_times(tmp_path: Path) -> None:
    file = tmp_path / "plan.toml"
    file.write_text(textwrap.dedent(PLAN), "utf-8")
    plan = read_plan(file)
    with serve_youtube() as youtube:
        planned = plan.planned({"llm": Link("127.0.0.1", 3_001)}, youtube)
    assert [(p.at_s, p.for_s, p.fault.name) for p in planned] == [
        (3, 0, "kill port 3002"),
        (6, 2, "llm 200 to 200 ms late"),
        (7, 1, "fill state, 0 bytes left"),
        (9, 1, "YouTube quota_exceeded"),
    ]


@pytest.mark.parametrize(
    ("old", "new", "names"),
    [
        ('link = "llm"', 'link = "lmm"', "links.lmm is not given"),
        ("port = 3002", "prt = 3002", "prt"),
        ("port = 3002", "", "by its port or by words"),
        ('kind = "kill"', 'kind = "murder"', "murder"),
        ("delay_s = 0.2", "delay_s = -1", "delay_s"),
        ('to = "127.0.0.1:3001"', "", "links.llm.to is not given"),
        ("[links.youtube]", "[links.other]", "links.youtube is not given"),
    ],
)
def test_a_plan_that_cannot_be_carried_out_names_the_key(
    tmp_path: Path, old: str, new: str, names: str
) -> None:
    file = tmp_path / "plan.toml"
    file.write_text(textwrap.dedent(PLAN).replace(old, new), "utf-8")
    with pytest.raises(PlanError, match=names):
        read_plan(file)


async def test_the_command_makes_its_faults_and_writes_them_down(tmp_path: Path) -> None:
    at, file = free_port(), tmp_path / "plan.toml"
    async with echoing() as port:
        file.write_text(
            f'links.a = {{ listen = {at}, to = "127.0.0.1:{port}" }}\n[[faults]]\nkind = "link"\n'
            'at_s = 0.1\nfor_s = 0.2\nlink = "a"\nis_cut = true\n',
            "utf-8",
        )
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "loadtests.faults", str(file)),
            *("--out", str(tmp_path), "--stays", "0"),
        )
        assert await asyncio.wait_for(process.wait(), 60) == 0
    assert '"a cut"' in (tmp_path / "faults.json").read_text("utf-8")
