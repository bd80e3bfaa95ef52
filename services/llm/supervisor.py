"""Keeps one server process running: starts it, watches it, starts it again when it dies.

    starting ──answers, and does as asked──> ready ──dies, or falls silent──> waiting ──> starting
        │──answers, does not do as asked───> unfit ──dies─────────────────────^
        └──dies, is late, cannot start────────────────────────────────────────^
    any of them ──stop()──> stopping ──> stopped

Knows nothing of HTTP routes or of vLLM; the process is any command that serves /health on a port.
The launcher beside this file sees to it that no process is left, whichever way this one goes.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import re
import signal
import sys
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

import httpx
import structlog

from services.llm.launcher import LINGER_S
from services.shared.peers import free_port

LAUNCHER = Path(__file__).with_name("launcher.py")
LOG_LINES_KEPT = 40
LINE_BYTES = 1 << 16
POLL_EVERY_S = 0.25
HEALTH_EVERY_S = 2.0
HEALTH_TIMEOUT_S = 5.0
KILLED_WITHIN_S = 10.0
# Our keys are not the process's business, and in BentoML's folder for metrics
# (PROMETHEUS_MULTIPROC_DIR) its own would be taken for ours.
NOT_INHERITED = ("JOING_", "BENTOML_", "PROMETHEUS_")
LEVEL = re.compile(r"\b(WARNING|ERROR|CRITICAL)\b")
LEVEL_WITHIN = 100
log = structlog.get_logger()


class State(StrEnum):
    STARTING = "starting"
    READY = "ready"
    UNFIT = "unfit"
    WAITING = "waiting"
    STOPPING = "stopping"
    STOPPED = "stopped"


class CannotStart(Exception):
    """There is nothing to run yet; the message tells the operator what to do."""


class NotAsAsked(Exception):
    """The server runs and does not do what it must; starting it again would not help."""


@dataclass(frozen=True)
class Launch:
    """What to run: an argv, and variables on top of this process's own."""

    command: list[str]
    environment: dict[str, str] = field(default_factory=dict)


LaunchOn = Callable[[int], Launch]
"""From a port to what serves on it, asked anew at every start. May raise CannotStart."""
Probe = Callable[[str], Awaitable[None]]
"""Asked once a start, with the base URL. Raises NotAsAsked, or httpx.HTTPError to try again."""


@dataclass(frozen=True)
class Patience:
    """How long to wait for what, in seconds."""

    start_s: float
    silent_s: float
    restart_first_s: float
    restart_last_s: float
    drain_s: float


@dataclass(frozen=True)
class _Running:
    """The launcher's process, what tells of the command's end, and who reads the output."""

    process: asyncio.subprocess.Process
    ended: asyncio.Future[str]
    reading: asyncio.Task[None]


class Supervisor:
    """Owns the process. One event loop; `start` once, `stop` at the end."""

    def __init__(self, launch: LaunchOn, probe: Probe, patience: Patience) -> None:
        self._launch = launch
        self._probe = probe
        self._patience = patience
        self._task: asyncio.Task[None] | None = None
        self._tail: deque[str] = deque(maxlen=LOG_LINES_KEPT)
        self._is_stopping = asyncio.Event()
        self.state = State.STOPPED
        self.base_url = ""
        self.restarts = 0
        self.pid: int | None = None
        """Of the launcher, which leads the process group; None while there is none."""

    @property
    def is_ready(self) -> bool:
        """True while the process answers and has been seen to do what it must."""
        return self.state is State.READY

    def start(self) -> None:
        self._task = asyncio.create_task(self._keep_running())
        self._task.add_done_callback(_report_bug)

    async def stop(self) -> None:
        """Ends the process and everything that it started: SIGTERM, after `drain_s` SIGKILL."""
        self.state = State.STOPPING
        self._is_stopping.set()
        if self._task is not None:
            await asyncio.wait({self._task})
        self.state = State.STOPPED

    async def _keep_running(self) -> None:
        # Nothing here is ever cancelled: a start or an end that is left halfway loses a process.
        failures = 0
        while not self._is_stopping.is_set():
            since = time.monotonic()
            reason, was_ready = await self._run_once()
            lasted = was_ready and time.monotonic() - since > self._patience.restart_last_s
            failures = 1 if lasted else failures + 1
            if not self._is_stopping.is_set():
                await self._wait(reason, failures)

    async def _wait(self, reason: str, failures: int) -> None:
        """Before the next start."""
        self.state = State.WAITING
        wait_s = self._backoff_s(failures)
        log.error(
            "the model server is down",
            reason=reason,
            restart_in_s=round(wait_s, 1),
            failures=failures,
            output="\n".join(self._tail),
        )
        with suppress(TimeoutError):
            await asyncio.wait_for(self._is_stopping.wait(), wait_s)
        self.restarts += 1

    def _backoff_s(self, failures: int) -> float:
        """Doubles from first to last, with up to a fifth of jitter."""
        patience = self._patience
        doubled: float = patience.restart_first_s * 2 ** min(failures - 1, 16)
        return min(doubled, patience.restart_last_s) * random.uniform(1.0, 1.2)  # noqa: S311

    async def _run_once(self) -> tuple[str, bool]:
        """From start to end of one process: why it ended, and whether it was ever ready."""
        self.state = State.STARTING
        self._tail.clear()
        port = free_port()
        self.base_url = f"http://127.0.0.1:{port}"
        try:
            launch = self._launch(port)
            async with self._running(launch) as ended:
                return await self._use(ended)
        except (CannotStart, OSError) as error:
            return str(error), False

    @asynccontextmanager
    async def _running(self, launch: Launch) -> AsyncIterator[asyncio.Future[str]]:
        """Yields what tells of the command's end at once. Leaves no process behind."""
        running = await self._spawn(launch)
        self.pid = running.process.pid
        try:
            yield running.ended
        finally:
            if self.state is State.READY:
                self.state = State.WAITING
            await _end(running.process, self._patience.drain_s)
            await asyncio.wait({running.reading}, timeout=KILLED_WITHIN_S)
            running.reading.cancel()
            self.pid = None

    async def _spawn(self, launch: Launch) -> _Running:
        """Starts the launcher. Raises OSError."""
        told_fd, tell_fd = os.pipe()
        grace_s = str(self._patience.drain_s)
        try:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-I", str(LAUNCHER), str(tell_fd), grace_s, *launch.command),
                env={**_inherited(), **launch.environment},
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                limit=LINE_BYTES,
                start_new_session=True,
                pass_fds=[tell_fd],
            )
        except BaseException:
            os.close(told_fd)
            raise
        finally:
            os.close(tell_fd)
        return _Running(process, _told(told_fd), asyncio.create_task(self._read_output(process)))

    async def _use(self, ended: asyncio.Future[str]) -> tuple[str, bool]:
        """Until the process is of no more use: why, and whether it was ever ready."""
        living = asyncio.create_task(self._live())
        stopping = asyncio.create_task(self._is_stopping.wait())
        try:
            ends: set[asyncio.Future[Any]] = {ended, living, stopping}
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            if ended.done():
                return ended.result(), self.state is State.READY
            reason = living.result() if living.done() else "stopping"
            return reason, self.state is State.READY
        finally:
            living.cancel()
            stopping.cancel()

    async def _live(self) -> str:
        """The process's life as seen from outside; returns why it should be ended."""
        # Its own client: a full pool or a proxy in the environment must not look like silence.
        async with httpx.AsyncClient(
            base_url=self.base_url, timeout=HEALTH_TIMEOUT_S, trust_env=False
        ) as client:
            try:
                async with asyncio.timeout(self._patience.start_s):
                    await _until_healthy(client)
                    await self._probe(self.base_url)
            except TimeoutError:
                return f"not ready after {self._patience.start_s:g} s"
            except httpx.HTTPError as error:
                return f"no answer to the first request: {error!r}"
            except NotAsAsked as error:
                self.state = State.UNFIT
                log.error("the model server does not do as asked", reason=str(error))
                return await _until_silent(client, self._patience.silent_s)
            self.state = State.READY
            log.info("the model server is ready", pid=self.pid, base_url=self.base_url)
            return await _until_silent(client, self._patience.silent_s)

    async def _read_output(self, process: asyncio.subprocess.Process) -> None:
        """Reads to the end, whatever comes: a full pipe would stop the process."""
        assert process.stdout is not None
        while True:
            try:
                line = await process.stdout.readline()
            except ValueError:
                continue  # A line over LINE_BYTES was thrown away.
            if not line:
                return
            text = line.decode("utf-8", "replace").rstrip()
            self._tail.append(text)
            level = LEVEL.search(text[:LEVEL_WITHIN])
            number = logging.getLevelNamesMapping()[level.group()] if level else logging.DEBUG
            log.log(number, "model server", line=text)


def _told(fd: int) -> asyncio.Future[str]:
    """Done when something comes from `fd` or its other end closes; `fd` is closed then."""
    loop = asyncio.get_running_loop()
    told: asyncio.Future[str] = loop.create_future()

    def read() -> None:
        loop.remove_reader(fd)
        code = os.read(fd, 16).decode()
        os.close(fd)
        if not told.done():
            told.set_result(f"exit code {code}" if code else "the launcher was killed")

    loop.add_reader(fd, read)
    return told


async def _health(client: httpx.AsyncClient) -> int | None:
    """The status of /health; None without an answer."""
    with suppress(httpx.HTTPError):
        return (await client.get("/health")).status_code
    return None


async def _until_healthy(client: httpx.AsyncClient) -> None:
    while True:
        if await _health(client) == httpx.codes.OK:
            return
        await asyncio.sleep(POLL_EVERY_S)


async def _until_silent(client: httpx.AsyncClient, silent_s: float) -> str:
    """Returns why the server should be ended: it says that it is dead, or nothing for long."""
    heard = time.monotonic()
    while True:
        await asyncio.sleep(min(HEALTH_EVERY_S, silent_s))
        status = await _health(client)
        if status is not None and status >= httpx.codes.INTERNAL_SERVER_ERROR:
            return f"/health answers {status}"
        if status is not None:
            heard = time.monotonic()
        elif time.monotonic() - heard > silent_s:
            return f"no answer for {silent_s:g} s"


async def _end(process: asyncio.subprocess.Process, drain_s: float) -> None:
    """Asks the launcher for an end, waits, and makes sure. Bounded; leaves no process."""
    assert process.stdin is not None
    process.stdin.close()
    with suppress(TimeoutError):
        await asyncio.wait_for(process.wait(), drain_s + LINGER_S + 1.0)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    with suppress(TimeoutError):
        await asyncio.wait_for(process.wait(), KILLED_WITHIN_S)


def _inherited() -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if not k.upper().startswith(NOT_INHERITED)}


def _report_bug(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()):
        log.error("the supervisor failed", exc_info=error)
