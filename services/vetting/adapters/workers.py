"""Processes of our own for work on untrusted bytes: one request at a time each, killed when late.

A worker is `python -m MODULE`, whose module ends in `serve(...)`. Both sides speak frames: four
bytes of length (big-endian), then that many bytes. The first frame says that the worker is ready,
or what it lacks. Workers get a bare environment: no keys, no proxies. Knows nothing of pictures.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import struct
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import IO

ROOT = Path(__file__).resolve().parents[3]
INHERITED = ("PATH", "LD_LIBRARY_PATH", "TESSDATA_PREFIX", "TMPDIR", "SYSTEMROOT")
MAX_FRAME_BYTES = 64 * 2**20
LENGTH = struct.Struct(">I")
READY = b"ready"
START_TIMEOUT_S = 60.0


class WorkerLacks(Exception):
    """The worker cannot work here: what is missing and how to get it."""


class WorkerTimedOut(Exception):
    """It took longer than allowed and was killed."""


class WorkerDied(Exception):
    """It ended before it answered. `signal` is what ended it, where a signal did."""

    def __init__(self, status: int | None) -> None:
        super().__init__(f"the worker ended with status {status}")
        self.signal = -status if status is not None and status < 0 else None


class WorkersBusy(Exception):
    """As many requests wait as may wait, or this one waited too long."""


class Workers:
    """At most `count` processes, started when they are first needed and again after they died.

    At most `max_waiting` requests wait, each for at most `wait_s`.
    """

    def __init__(self, module: str, *arguments: str, count: int, max_waiting: int, wait_s: float):
        self._idle: asyncio.LifoQueue[_Worker] = asyncio.LifoQueue()
        self._all = [_Worker(module, arguments) for _ in range(count)]
        for worker in self._all:
            self._idle.put_nowait(worker)
        self._waiting = 0
        self._max_waiting = max_waiting
        self._wait_s = wait_s

    async def ask(self, request: bytes, *, timeout_s: float) -> bytes:
        """The answer of one worker. Raises WorkersBusy, WorkerLacks, WorkerTimedOut, WorkerDied.

        Cancelled or late, the process that works on it is killed at once.
        """
        async with self._lent() as worker:
            await worker.start()
            return await worker.ask(request, timeout_s)

    async def start(self) -> None:
        """Starts one worker, to see whether it can. Raises WorkerLacks, WorkerDied, WorkersBusy."""
        async with self._lent() as worker:
            await worker.start()

    def pids(self) -> list[int]:
        """Of the processes that live now."""
        return [worker.pid for worker in self._all if worker.pid is not None]

    async def aclose(self) -> None:
        await asyncio.gather(*(worker.stop() for worker in self._all))

    @contextlib.asynccontextmanager
    async def _lent(self) -> AsyncIterator[_Worker]:
        worker = await self._next()
        try:
            yield worker
        except BaseException:
            worker.kill()
            raise
        finally:
            self._idle.put_nowait(worker)

    async def _next(self) -> _Worker:
        if self._idle.empty() and self._waiting >= self._max_waiting:
            raise WorkersBusy(f"{self._waiting} wait already")
        self._waiting += 1
        try:
            async with asyncio.timeout(self._wait_s):
                return await self._idle.get()
        except TimeoutError:
            raise WorkersBusy(f"no worker was free for {self._wait_s} s") from None
        finally:
            self._waiting -= 1


class _Worker:
    def __init__(self, module: str, arguments: tuple[str, ...]) -> None:
        self._command = (sys.executable, "-m", module, *arguments)
        self._process: asyncio.subprocess.Process | None = None
        self._killed: list[asyncio.subprocess.Process] = []

    @property
    def pid(self) -> int | None:
        lives = self._process is not None and self._process.returncode is None
        return self._process.pid if self._process and lives else None

    async def start(self) -> None:
        """Raises WorkerLacks or WorkerDied."""
        if self.pid is not None:
            return
        self._process = await asyncio.create_subprocess_exec(
            *self._command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env=_bare_environment(),
            start_new_session=True,
        )
        said = await self._within(START_TIMEOUT_S, self._receive())
        if said != READY:
            raise WorkerLacks(said.decode("utf-8", "replace"))

    async def ask(self, request: bytes, timeout_s: float) -> bytes:
        return await self._within(timeout_s, self._exchange(request))

    async def stop(self) -> None:
        """Returns when no process of this worker is left."""
        self.kill()
        while self._killed:
            await self._killed[-1].communicate()  # also closes its pipes
            self._killed.pop()

    def kill(self) -> None:
        """With everything that it started. The next request gets a new one."""
        process, self._process = self._process, None
        if process is None:
            return
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        assert process.stdin is not None
        process.stdin.close()
        self._killed = [p for p in self._killed if p.returncode is None] + [process]

    async def _within(self, timeout_s: float, work: Coroutine[None, None, bytes]) -> bytes:
        process = self._process
        assert process is not None
        try:
            async with asyncio.timeout(timeout_s):
                return await work
        except TimeoutError:
            await self.stop()
            raise WorkerTimedOut(f"no answer within {timeout_s} s") from None
        except (asyncio.IncompleteReadError, ConnectionError):
            raise WorkerDied(await process.wait()) from None

    async def _exchange(self, request: bytes) -> bytes:
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(LENGTH.pack(len(request)) + request)
        await self._process.stdin.drain()
        return await self._receive()

    async def _receive(self) -> bytes:
        assert self._process is not None
        assert self._process.stdout is not None
        (length,) = LENGTH.unpack(await self._process.stdout.readexactly(LENGTH.size))
        if length > MAX_FRAME_BYTES:  # a worker that a hostile picture took over
            await self.stop()
            raise WorkerDied(None)
        return await self._process.stdout.readexactly(length)


def serve(answer: Callable[[bytes], bytes]) -> None:
    """The worker's side: answers frames until the parent closes its end.

    Libraries that print do so into nothing: frames have a descriptor of their own.
    """
    frames_out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    frames_in = sys.stdin.buffer
    _send(frames_out, READY)
    while len(head := frames_in.read(LENGTH.size)) == LENGTH.size:
        _send(frames_out, answer(frames_in.read(LENGTH.unpack(head)[0])))


def refuse_to_serve(lacks: str) -> None:
    """The worker's side: says what is missing, and how to get it."""
    _send(sys.stdout.buffer, lacks.encode())


def _send(file: IO[bytes], frame: bytes) -> None:
    file.write(LENGTH.pack(len(frame)) + frame)
    file.flush()


def _bare_environment() -> dict[str, str]:
    """One thread a process; the code that we run, wherever we stand."""
    kept = {name: os.environ[name] for name in INHERITED if name in os.environ}
    return kept | {
        "LC_ALL": "C.UTF-8",
        "OMP_NUM_THREADS": "1",
        "OMP_THREAD_LIMIT": "1",
        "PYTHONPATH": str(ROOT),
    }
