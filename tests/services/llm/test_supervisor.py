"""The supervisor, with a small real server process in vLLM's place."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import psutil
import pytest
import structlog.testing

from services.llm.supervisor import (
    LAUNCHER,
    CannotStart,
    Launch,
    Patience,
    State,
    Supervisor,
)
from services.llm.vllm import check_choice

SERVER = Path(__file__).parents[2] / "fakes" / "model_server.py"
PATIENCE = Patience(start_s=10, silent_s=1, restart_first_s=0.3, restart_last_s=2, drain_s=1)


def fake(*flags: str) -> Callable[[int], Launch]:
    return lambda port: Launch([sys.executable, str(SERVER), str(port), *flags])


@asynccontextmanager
async def supervised(
    launch: Callable[[int], Launch], patience: Patience = PATIENCE
) -> AsyncIterator[Supervisor]:
    supervisor = Supervisor(launch, check_choice, patience)
    supervisor.start()
    try:
        yield supervisor
    finally:
        await supervisor.stop()


async def until(holds: Callable[[], object], within_s: float = 10) -> None:
    async with asyncio.timeout(within_s):
        while not holds():
            await asyncio.sleep(0.02)


async def post(supervisor: Supervisor, path: str) -> None:
    async with httpx.AsyncClient(base_url=supervisor.base_url) as client:
        try:
            await client.post(path)
        except httpx.HTTPError:
            assert path == "/die"


def group(pid: int | None) -> list[psutil.Process]:
    """Living processes of the group that `pid` leads."""
    assert pid is not None
    found = []
    for process in psutil.process_iter(["status"]):
        try:
            if os.getpgid(process.pid) == pid and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (ProcessLookupError, psutil.NoSuchProcess):
            continue
    return found


async def test_ready_then_stopped_without_a_trace() -> None:
    async with supervised(fake()) as supervisor:
        await until(lambda: supervisor.is_ready)
        pid = supervisor.pid
        assert len(group(pid)) == 2
    assert supervisor.state is State.STOPPED
    assert group(pid) == []


@pytest.mark.parametrize("how", ["/die", "/fall-ill", "/hang"])
async def test_restarts_what_dies_or_falls_silent(how: str) -> None:
    async with supervised(fake()) as supervisor:
        await until(lambda: supervisor.is_ready)
        first = supervisor.pid
        await post(supervisor, how)
        await until(lambda: not supervisor.is_ready)
        assert supervisor.state is State.WAITING
        await until(lambda: supervisor.is_ready)
        assert supervisor.pid != first
        assert supervisor.restarts == 1
        assert group(first) == []


async def test_is_not_ready_the_moment_the_process_is_killed() -> None:
    async with supervised(fake("--stubborn")) as supervisor:
        await until(lambda: supervisor.is_ready)
        assert supervisor.pid is not None
        psutil.Process(supervisor.pid).children()[0].kill()
        killed = time.monotonic()
        await until(lambda: not supervisor.is_ready)
        assert time.monotonic() - killed < 0.5


async def test_a_stop_during_a_crash_waits_for_the_end() -> None:
    async with supervised(fake("--stubborn")) as supervisor:
        await until(lambda: supervisor.is_ready)
        pid = supervisor.pid
        await post(supervisor, "/fall-ill")
        await until(lambda: not supervisor.is_ready)
    await until(lambda: group(pid) == [], 2)  # the kernel may take a moment over a SIGKILL


async def test_waits_longer_each_time_up_to_the_last() -> None:
    patience = Patience(start_s=5, silent_s=1, restart_first_s=0.1, restart_last_s=0.4, drain_s=1)
    with structlog.testing.capture_logs() as logs:
        async with supervised(fake("--chatty"), patience) as supervisor:
            await until(lambda: supervisor.restarts == 4, 20)
    waits = [entry["restart_in_s"] for entry in logs if "restart_in_s" in entry][:4]
    assert waits == pytest.approx([0.1, 0.2, 0.4, 0.4], rel=0.25)


async def test_a_failed_start_is_logged_with_its_last_words_whatever_came_before() -> None:
    with structlog.testing.capture_logs() as logs:
        async with supervised(fake("--chatty")) as supervisor:
            await until(lambda: supervisor.state is State.WAITING)
    down = next(entry for entry in logs if "reason" in entry)
    assert down["reason"] == "exit code 7"
    assert down["output"].endswith("the last word")


async def test_a_start_has_an_end() -> None:
    patience = Patience(start_s=1, silent_s=1, restart_first_s=9, restart_last_s=9, drain_s=1)
    with structlog.testing.capture_logs() as logs:
        async with supervised(fake("--ill"), patience) as supervisor:
            await until(lambda: supervisor.state is State.WAITING, 5)
    assert next(entry for entry in logs if "reason" in entry)["reason"] == "not ready after 1 s"


async def test_missing_weights_are_looked_for_again() -> None:
    answers = [CannotStart("run `python -m models pull tiny`")]

    def launch(port: int) -> Launch:
        if answers:
            raise answers.pop()
        return fake()(port)

    with structlog.testing.capture_logs() as logs:
        async with supervised(launch) as supervisor:
            await until(lambda: supervisor.is_ready)
    assert logs[0]["reason"] == "run `python -m models pull tiny`"


async def test_a_choice_that_is_not_enforced_is_never_ready() -> None:
    with structlog.testing.capture_logs() as logs:
        async with supervised(fake("--free-spirited")) as supervisor:
            await until(lambda: supervisor.state is State.UNFIT)
            await asyncio.sleep(1.5)
            assert supervisor.state is State.UNFIT
            assert supervisor.restarts == 0
    error = next(entry for entry in logs if entry["log_level"] == "error")
    assert "'hello'" in error["reason"]


async def test_kills_what_ignores_sigterm_and_its_children() -> None:
    async with supervised(fake("--stubborn")) as supervisor:
        await until(lambda: supervisor.is_ready)
        pid = supervisor.pid
        assert len(group(pid)) == 3
        since = time.monotonic()
    assert time.monotonic() - since < PATIENCE.drain_s + 3
    assert group(pid) == []


async def test_nothing_outlives_a_supervisor_that_was_killed() -> None:
    starter = subprocess.Popen(
        [sys.executable, "-c", STARTER, str(LAUNCHER), str(SERVER)], stdout=subprocess.PIPE
    )
    assert starter.stdout is not None
    launcher = int(starter.stdout.readline())
    await until(lambda: len(group(launcher)) == 3)
    starter.kill()
    starter.communicate()
    await until(lambda: not group(launcher), 6)


STARTER = """
import subprocess, sys, time
server = [sys.executable, sys.argv[2], "0", "--stubborn"]
command = [sys.executable, "-I", sys.argv[1], "1", "1", *server]
launched = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL,
                            start_new_session=True)
print(launched.pid, flush=True)
time.sleep(600)
"""


async def test_the_launcher_ignores_sigterm_and_the_command_does_not() -> None:
    async with supervised(fake()) as supervisor:
        await until(lambda: supervisor.is_ready)
        assert supervisor.pid is not None
        os.kill(supervisor.pid, signal.SIGTERM)
        await asyncio.sleep(0.5)
        assert supervisor.is_ready
        server = psutil.Process(supervisor.pid).children()[0]
        server.terminate()
        await until(lambda: not supervisor.is_ready)


async def test_keys_of_this_service_stay_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOING_API_KEYS", "secret")
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", "/nowhere")
    async with supervised(fake()) as supervisor:
        await until(lambda: supervisor.is_ready)
        assert supervisor.pid is not None
        environment = psutil.Process(supervisor.pid).children()[0].environ()
    assert not environment.keys() & {"JOING_API_KEYS", "PROMETHEUS_MULTIPROC_DIR"}
