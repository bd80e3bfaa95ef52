"""Keeps one server process running: starts it, watches it, starts it again when it dies.

    starting ──healthy, and does as asked──> ready ──dies──> waiting ──> starting
        └────────────dies or is late─────────────────────────^
    any of them ──stop()──> stopped

Knows nothing of HTTP routes; the process is any command that serves /health on a port.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import random
import signal
import socket
import time
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum

import httpx
import structlog

LOG_LINES_KEPT = 40
POLL_S = 0.25
POLL_TIMEOUT_S = 5.0
LONG_LINE_BYTES = 1 << 20
PR_SET_PDEATHSIG = 1
log = structlog.get_logger()

Command = Callable[[int], list[str]]
Probe = Callable[[str], Awaitable[None]]


class State(StrEnum):
    STARTING = "starting"
    READY = "ready"
    WAITING = "waiting"
    STOPPED = "stopped"


class NotAsAsked(Exception):
    """The server runs and does not do what it must; restarting would not help by itself."""


@dataclass(frozen=True)
class Patience:
    """How long to wait for what, in seconds."""

    start_s: float
    restart_first_s: float
    restart_last_s: float
    drain_s: float


class Supervisor:
    """`command(port)` is the argv; `probe(base_url)` raises NotAsAsked when it must not be used."""

    def __init__(
        self, command: Command, environment: dict[str, str], probe: Probe, patience: Patience
    ) -> None:
        self._command = command
        self._environment = {**os.environ, **environment}
        self._probe = probe
        self._patience = patience
        self._process: asyncio.subprocess.Process | None = None
        self._loop: asyncio.Task[None] | None = None
        self._tail: deque[str] = deque(maxlen=LOG_LINES_KEPT)
        self.state = State.STOPPED
        self.base_url = ""
        self.restarts = 0

    @property
    def is_ready(self) -> bool:
        """True while the process answers and has been seen to do what it must."""
        return self.state is State.READY

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    def start(self) -> None:
        self._loop = asyncio.create_task(self._keep_running())

    async def stop(self) -> None:
        """Ends the process within `drain_s`, and everything that it started."""
        self.state = State.STOPPED
        if self._loop is not None:
            self._loop.cancel()
            await asyncio.wait({self._loop})
        await self._end_process()

    async def _keep_running(self) -> None:
        failures = 0
        while True:
            lived_s = await self._run_once()
            await self._end_process()
            failures = 1 if lived_s > self._patience.restart_last_s else failures + 1
            self.state = State.WAITING
            wait_s = self._backoff_s(failures)
            log.error(
                "the model server is down",
                restart_in_s=round(wait_s, 1),
                failures=failures,
                output="\n".join(self._tail),
            )
            await asyncio.sleep(wait_s)
            self.restarts += 1

    def _backoff_s(self, failures: int) -> float:
        """Doubles from first to last, with up to a fifth of jitter."""
        patience = self._patience
        doubled = patience.restart_first_s * 2 ** min(failures - 1, 16)
        return min(doubled, patience.restart_last_s) * random.uniform(1.0, 1.2)  # noqa: S311

    async def _run_once(self) -> float:
        """Returns when the process is of no more use: seconds for which it was ready."""
        self.state = State.STARTING
        port = _free_port()
        self.base_url = f"http://127.0.0.1:{port}"
        self._tail.clear()
        self._process = await asyncio.create_subprocess_exec(
            *self._command(port),
            env=self._environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            limit=LONG_LINE_BYTES,
            start_new_session=True,
            preexec_fn=_die_with_parent,
        )
        reading = asyncio.create_task(self._read_output(self._process))
        try:
            if not await self._became_ready(self._process):
                return 0.0
            since = time.monotonic()
            self.state = State.READY
            log.info("the model server is ready", pid=self._process.pid)
            await self._process.wait()
            return time.monotonic() - since
        finally:
            reading.cancel()

    async def _became_ready(self, process: asyncio.subprocess.Process) -> bool:
        dying = asyncio.create_task(process.wait())
        readying = asyncio.create_task(self._answers())
        try:
            await asyncio.wait(
                {dying, readying},
                timeout=self._patience.start_s,
                return_when=asyncio.FIRST_COMPLETED,
            )
            if dying.done() or not readying.done():
                return False
            readying.result()
        except NotAsAsked as error:
            log.error("the model server does not do as asked", reason=str(error))
            return False
        else:
            return True
        finally:
            dying.cancel()
            readying.cancel()

    async def _answers(self) -> None:
        async with httpx.AsyncClient(base_url=self.base_url, timeout=POLL_TIMEOUT_S) as client:
            while True:
                with suppress(httpx.HTTPError):
                    if (await client.get("/health")).status_code == 200:
                        break
                await asyncio.sleep(POLL_S)
        await self._probe(self.base_url)

    async def _read_output(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        with suppress(ValueError):  # a line over LONG_LINE_BYTES
            async for line in process.stdout:
                text = line.decode("utf-8", "replace").rstrip()
                self._tail.append(text)
                log.debug("model server", line=text)

    async def _end_process(self) -> None:
        process = self._process
        if process is None:
            return
        if process.returncode is None:
            process.terminate()
            with suppress(TimeoutError):
                await asyncio.wait_for(process.wait(), self._patience.drain_s)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        with suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), self._patience.drain_s)
        self._process = None


def _die_with_parent() -> None:
    """Runs in the child: the kernel ends it when this process is gone, however it went."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
