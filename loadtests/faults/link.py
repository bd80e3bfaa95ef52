"""A link between a client and a server that can be made bad: a TCP proxy.

Whoever should feel it is given the link's address in place of the server's. Bytes pass unread and
in order. Memory is bounded: a direction holds at most WAITING_CHUNKS chunks, then it stops reading.
"""

from __future__ import annotations

import asyncio
import random
import socket
import struct
import time
from asyncio import StreamReader, StreamWriter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

CHUNK_BYTES = 16_384
WAITING_CHUNKS = 64
CONNECT_TIMEOUT_S = 10.0
CLOSE_LIMIT_S = 5.0


@dataclass(frozen=True)
class Condition:
    """How the link is. Delay (each way, and up to `jitter_s` more) applies to every chunk, without
    holding back the ones behind it; `bytes_per_s` is for one direction of one connection;
    `truncates_at` ends a connection after so many bytes of what the server says on it. `is_cut`
    breaks connections and refuses new ones; `is_silent` keeps them and passes nothing.
    """

    is_cut: bool = False
    is_silent: bool = False
    delay_s: float = 0.0
    jitter_s: float = 0.0
    bytes_per_s: float | None = None
    truncates_at: int | None = None

    def __post_init__(self) -> None:
        for name, value in (("delay_s", self.delay_s), ("jitter_s", self.jitter_s)):
            if value < 0:
                raise ValueError(f"{name} is {value:g}: it may not be negative")
        if self.bytes_per_s is not None and self.bytes_per_s <= 0:
            raise ValueError(f"bytes_per_s is {self.bytes_per_s:g}: it is over 0; cut it instead")
        if self.truncates_at is not None and self.truncates_at < 0:
            raise ValueError(f"truncates_at is {self.truncates_at}: it may not be negative")

    def __str__(self) -> str:
        said = [name for name, is_so in (("cut", self.is_cut), ("silent", self.is_silent)) if is_so]
        if self.delay_s or self.jitter_s:
            said.append(
                f"{1e3 * self.delay_s:g} to {1e3 * (self.delay_s + self.jitter_s):g} ms late"
            )
        if self.bytes_per_s is not None:
            said.append(f"{self.bytes_per_s:,.0f} bytes/s")
        if self.truncates_at is not None:
            said.append(f"ends after {self.truncates_at:,} bytes")
        return ", ".join(said) or "clear"


CLEAR = Condition()


class Link:
    """From `host:port`, once opened, to `to_host:to_port`. One event loop's."""

    def __init__(
        self, to_host: str, to_port: int, *, host: str = "127.0.0.1", port: int = 0, seed: int = 1
    ) -> None:
        self._to, self._at = (to_host, to_port), (host, port)
        self._condition = CLEAR
        self._random = random.Random(seed)
        self._speaks = asyncio.Event()
        self._speaks.set()
        self._open: set[_Connection] = set()
        self._serving: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    @property
    def condition(self) -> Condition:
        return self._condition

    @property
    def port(self) -> int:
        assert self._server is not None, "the link is not open"
        return int(self._server.sockets[0].getsockname()[1])

    @property
    def url(self) -> str:
        return f"http://{self._at[0]}:{self.port}"

    def become(self, condition: Condition) -> None:
        """From now on, for open connections too; those that are cut are reset."""
        self._condition = condition
        if condition.is_silent:
            self._speaks.clear()
        else:
            self._speaks.set()
        if condition.is_cut:
            for connection in list(self._open):
                connection.reset()

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[Link]:
        """Raises OSError where the port is taken. Leaves no connection behind."""
        self._server = await asyncio.start_server(self._serve, *self._at)
        try:
            yield self
        finally:
            self._server.close()
            self._server = None
            self.become(Condition(is_cut=True))
            await self._ended()

    async def _ended(self) -> None:
        if self._serving:
            _, late = await asyncio.wait(self._serving, timeout=CLOSE_LIMIT_S)
            for task in late:
                task.cancel()

    async def _serve(self, reader: StreamReader, writer: StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)
        if self._condition.is_cut:
            _reset(writer)
            return
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                to_reader, to_writer = await asyncio.open_connection(*self._to)
        except (OSError, TimeoutError):
            _reset(writer)
            return
        connection = _Connection(self, writer, to_writer)
        self._open.add(connection)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pass(reader, to_writer, None))
                group.create_task(self._pass(to_reader, writer, connection))
        except* OSError:
            pass
        finally:
            self._open.discard(connection)
            connection.close()

    async def _pass(
        self, reader: StreamReader, writer: StreamWriter, answers: _Connection | None
    ) -> None:
        """One direction, until its end; `answers` is the connection where it is the server's."""
        queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(WAITING_CHUNKS)
        async with asyncio.TaskGroup() as group:
            group.create_task(self._read(reader, queue))
            group.create_task(self._write(queue, writer, answers))

    async def _read(self, reader: StreamReader, queue: asyncio.Queue[tuple[float, bytes]]) -> None:
        due = 0.0
        while True:
            chunk = await reader.read(CHUNK_BYTES)
            late_s = self._condition.delay_s + self._random.uniform(0, self._condition.jitter_s)
            due = max(due, time.monotonic() + late_s)  # never overtakes
            await queue.put((due, chunk))
            if not chunk:
                return

    async def _write(
        self,
        queue: asyncio.Queue[tuple[float, bytes]],
        writer: StreamWriter,
        answers: _Connection | None,
    ) -> None:
        while True:
            due, chunk = await queue.get()
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            await self._speaks.wait()
            if not chunk:
                with suppress(OSError):
                    writer.write_eof()
                return
            if answers is not None:
                chunk = answers.allowed(chunk)
            await self._send(writer, chunk)
            if answers is not None and answers.is_over:
                raise ConnectionResetError("truncated")

    async def _send(self, writer: StreamWriter, chunk: bytes) -> None:
        """At the speed of the moment, in pieces small enough to feel even."""
        while chunk:
            speed = self._condition.bytes_per_s
            piece = chunk if speed is None else chunk[: max(1, int(speed / 20))]
            chunk = chunk[len(piece) :]
            writer.write(piece)
            await writer.drain()
            if speed is not None:
                await asyncio.sleep(len(piece) / speed)


@dataclass(eq=False)
class _Connection:
    link: Link
    client: StreamWriter
    server: StreamWriter
    answered: int = 0
    is_over: bool = field(default=False)

    def allowed(self, chunk: bytes) -> bytes:
        """What of it still passes; sets `is_over` where that is all that will."""
        limit = self.link.condition.truncates_at
        if limit is not None and self.answered + len(chunk) >= limit:
            chunk, self.is_over = chunk[: max(0, limit - self.answered)], True
        self.answered += len(chunk)
        return chunk

    def reset(self) -> None:
        for writer in (self.server, self.client):
            _reset(writer)

    def close(self) -> None:
        """What was passed still goes out."""
        for writer in (self.server, self.client):
            writer.close()


def _reset(writer: StreamWriter) -> None:
    """A reset, where a closing connection would look like an answer that ends here."""
    connection = writer.get_extra_info("socket")
    with suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


@dataclass
class BadLink:
    """A link in a condition, and clear again."""

    link: Link
    condition: Condition
    label: str = "link"

    @property
    def name(self) -> str:
        return f"{self.label} {self.condition}"

    async def begin(self) -> None:
        self.link.become(self.condition)

    async def end(self) -> None:
        self.link.become(CLEAR)
