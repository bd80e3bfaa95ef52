"""An HTTP server on loopback that serves pictures as badly as a test wants, byte by byte."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

Reply = Callable[[asyncio.StreamWriter], Awaitable[None]]


@dataclass
class Asked:
    path: str
    host: str
    server_name: str | None
    """What TLS named, where there was TLS."""


@dataclass
class PictureHost:
    """`replies` by path; any other path is a 404."""

    port: int = 0
    replies: dict[str, Reply] = field(default_factory=dict)
    asked: list[Asked] = field(default_factory=list)
    open_connections: int = 0
    most_connections: int = 0
    readers: dict[asyncio.StreamWriter, asyncio.StreamReader] = field(default_factory=dict)
    tasks: set[asyncio.Task[None]] = field(default_factory=set)
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    """What `held` replies wait for."""

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def paths(self) -> list[str]:
        return [asked.path for asked in self.asked]

    async def no_connections(self) -> None:
        """Returns when the last client has gone."""
        async with asyncio.timeout(5):
            while self.open_connections:
                await asyncio.sleep(0.01)

    async def hang_up(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.tasks.add(task)
        self.readers[writer] = reader
        self.open_connections += 1
        self.most_connections = max(self.most_connections, self.open_connections)
        try:
            with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
                while True:
                    await self._answer(await reader.readuntil(b"\r\n\r\n"), writer)
        finally:
            self.open_connections -= 1
            writer.close()
            self.tasks.discard(task)
            del self.readers[writer]

    async def _answer(self, head: bytes, writer: asyncio.StreamWriter) -> None:
        lines = head.decode("latin-1").split("\r\n")
        path = lines[0].split(" ")[1]
        host = next(line[6:] for line in lines if line.lower().startswith("host: "))
        session = writer.get_extra_info("ssl_object")
        name = getattr(session, "asked_name", None) if session else None
        self.asked.append(Asked(path, host, name))
        await self.replies.get(path, status(404))(writer)
        await writer.drain()

    def held(self, reply: Reply) -> Reply:
        async def send(writer: asyncio.StreamWriter) -> None:
            while not self.gate.is_set():
                if self.readers[writer].at_eof():
                    raise ConnectionResetError("the client has gone")
                await asyncio.sleep(0.01)
            await reply(writer)

        return send


@asynccontextmanager
async def serving(tls: ssl.SSLContext | None = None) -> AsyncIterator[PictureHost]:
    host = PictureHost()
    if tls is not None:
        tls.sni_callback = lambda session, name, _: setattr(session, "asked_name", name)
    server = await asyncio.start_server(host.serve, "127.0.0.1", 0, ssl=tls)
    host.port = server.sockets[0].getsockname()[1]
    try:
        yield host
    finally:
        server.close()
        await host.hang_up()


def picture(data: bytes, media_type: str = "image/jpeg", *more: tuple[str, str]) -> Reply:
    return raw(_head(200, ("Content-Type", media_type), ("Content-Length", str(len(data))), *more)
               + data)  # fmt: skip


def status(code: int, data: bytes = b"", media_type: str = "text/html") -> Reply:
    return raw(_head(code, ("Content-Type", media_type), ("Content-Length", str(len(data)))) + data)


def redirect(location: str, code: int = 302) -> Reply:
    head = f"HTTP/1.1 {code} Found\r\nContent-Length: 0\r\nLocation: "
    return raw(head.encode() + location.encode("utf-8") + b"\r\n\r\n")


def raw(data: bytes) -> Reply:
    async def send(writer: asyncio.StreamWriter) -> None:
        writer.write(data)

    return send


def endless(start: bytes, *, every_s: float, chunk: bytes) -> Reply:
    """A body without a length, which never ends."""

    async def send(writer: asyncio.StreamWriter) -> None:
        writer.write(_head(200, ("Content-Type", "image/jpeg")) + start)
        while True:
            writer.write(chunk)
            await writer.drain()
            await asyncio.sleep(every_s)

    return send


def _head(code: int, *headers: tuple[str, str]) -> bytes:
    lines: Sequence[str] = [f"HTTP/1.1 {code} Whatever", *(f"{k}: {v}" for k, v in headers)]
    return "\r\n".join(lines).encode() + b"\r\n\r\n"
