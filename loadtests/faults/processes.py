"""Processes of a service: killed, stopped for a while, asked to end, denied room for their files.

A service is found by the port that it listens on. Services of one machine that talk through Unix
sockets have none; those are found by words of their command line. Under BentoML several processes
hold one listening socket: the outermost supervises (`"supervisor"`), the others serve
(`"workers"`).
"""

from __future__ import annotations

import os
import resource
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import psutil

Which = Literal["workers", "supervisor", "all"]


class NotFound(ValueError):
    """No process is that service; the message says how it was looked for."""


@dataclass(frozen=True)
class Service:
    """Either `port`, or `words` that all stand in the command line of each of its processes."""

    port: int | None = None
    words: tuple[str, ...] = ()
    which: Which = "workers"

    def __post_init__(self) -> None:
        if (self.port is None) == (not self.words):
            raise ValueError("a service is found by its port or by words: give one of the two")

    def __str__(self) -> str:
        return f"port {self.port}" if self.port is not None else " ".join(self.words)

    def processes(self) -> list[psutil.Process]:
        """Ancestors first. Never this process or one above it. Raises NotFound."""
        own = {os.getpid(), *(p.pid for p in psutil.Process().parents())}
        found = [p for p in psutil.process_iter() if p.pid not in own and self._is_part(p)]
        if not found:
            raise NotFound(f"no process of this user is the service at {self}: is it started?")
        pids = {process.pid for process in found}
        outer = [p for p in found if not pids & {parent.pid for parent in _parents(p)}]
        inner = [process for process in found if process not in outer]
        match self.which:
            case "supervisor":
                return outer
            case "workers":
                return inner or outer
        return outer + inner

    def _is_part(self, process: psutil.Process) -> bool:
        try:
            if self.port is None:
                command = " ".join(process.cmdline())
                return all(word in command for word in self.words)
            return any(
                one.status == psutil.CONN_LISTEN and one.laddr.port == self.port
                for one in process.net_connections("tcp")
            )
        except psutil.Error:
            return False


@dataclass
class Kill:
    """SIGKILL; with `restarts`, `end` starts it again as it was started, the way a supervisor does:
    same command, environment, folder and log. Who began this has to end what `restarted` holds.
    """

    service: Service
    restarts: bool = False
    restarted: list[subprocess.Popen[bytes]] = field(default_factory=list)
    _orders: list[_Order] = field(default_factory=list)

    @property
    def name(self) -> str:
        return f"kill {self.service}"

    async def begin(self) -> None:
        processes = self.service.processes()
        self._orders = [_Order.of(process) for process in processes] if self.restarts else []
        for process in processes:
            _send(process, signal.SIGKILL)

    async def end(self) -> None:
        orders, self._orders = self._orders, []
        for order in orders:
            self.restarted.append(order.start())


@dataclass
class Stop:
    """SIGSTOP, and SIGCONT at the end: alive, holding its sockets, answering nothing."""

    service: Service
    _stopped: list[psutil.Process] = field(default_factory=list)

    @property
    def name(self) -> str:
        return f"stop {self.service}"

    async def begin(self) -> None:
        for process in self.service.processes():
            self._stopped.append(process)
            _send(process, signal.SIGSTOP)

    async def end(self) -> None:
        while self._stopped:
            _send(self._stopped.pop(), signal.SIGCONT)


@dataclass
class Terminate:
    """SIGTERM: what a deployment does to the old version. Nothing is started again."""

    service: Service

    @property
    def name(self) -> str:
        return f"terminate {self.service}"

    async def begin(self) -> None:
        for process in self.service.processes():
            _send(process, signal.SIGTERM)

    async def end(self) -> None:
        pass


@dataclass
class LimitFiles:
    """No file of the service may grow beyond `max_bytes` (RLIMIT_FSIZE): a quota that needs no file
    system of its own. Every write past it fails with EFBIG.
    """

    service: Service
    max_bytes: int
    _before: list[tuple[psutil.Process, tuple[int, int]]] = field(default_factory=list)

    @property
    def name(self) -> str:
        return f"no files over {self.max_bytes:,} bytes at {self.service}"

    async def begin(self) -> None:
        for process in self.service.processes():
            soft, hard = resource.prlimit(process.pid, resource.RLIMIT_FSIZE)
            self._before.append((process, (soft, hard)))
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (self.max_bytes, hard))

    async def end(self) -> None:
        while self._before:
            process, limits = self._before.pop()
            if process.is_running():
                resource.prlimit(process.pid, resource.RLIMIT_FSIZE, limits)


@dataclass(frozen=True)
class _Order:
    """How a process was started. Its output goes on where it went, when that is a file."""

    command: Sequence[str]
    environment: dict[str, str]
    folder: str
    output: Path

    @classmethod
    def of(cls, process: psutil.Process) -> _Order:
        try:
            output = Path(f"/proc/{process.pid}/fd/1").resolve()
            return cls(process.cmdline(), process.environ(), process.cwd(), output)
        except psutil.Error as error:
            raise NotFound(f"process {process.pid} cannot be read: {error}") from None

    def start(self) -> subprocess.Popen[bytes]:
        with (self.output if self.output.is_file() else Path(os.devnull)).open("ab") as output:
            return subprocess.Popen(
                self.command,
                env=self.environment,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )


def _parents(process: psutil.Process) -> Iterator[psutil.Process]:
    with suppress(psutil.Error):
        yield from process.parents()


def _send(process: psutil.Process, number: signal.Signals) -> None:
    """One that is gone already needs no signal; psutil sees to it that a pid was not given anew."""
    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        return
    except psutil.AccessDenied:
        raise PermissionError(f"process {process.pid} belongs to another user") from None
