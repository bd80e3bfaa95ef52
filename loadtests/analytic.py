"""A small server whose every answer can be worked out beforehand, to test the instrument with.

    GET /stalled   `service_s` after the stall that it falls into, if it falls into one: every
                   `stall_every_s` by the clock the server does nothing for `stall_s`
    GET /queued    `servers` serve in order of arrival, `service_s` each; who would wait behind
                   `queue` others is a 503 with Retry-After
    GET /stream    events: the first token after `first_s`, one more every `gap_s`, last [DONE];
                   a token's data is the Unix time at which it was written
    GET /endings   by `item`: one of each ending that a client has to tell apart

`python -m loadtests.analytic --port N` serves; the functions say what the answers have to be. What
is known of time is the wall clock, which the client's records share.
"""

from __future__ import annotations

import asyncio
import heapq
import os
import time
from asyncio import IncompleteReadError, StreamReader, StreamWriter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields
from urllib.parse import parse_qs, urlsplit

import click

from loadtests.outcomes import Outcome

LAST = "[DONE]"
LAST_CHUNK = b"0\r\n\r\n"
STREAM_HEAD = (
    b"HTTP/1.1 200 .\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
)
NEVER_S = 3_600.0
PRIORITY = -10  # where the system lets us
ENDINGS = (
    Outcome.GOOD,  # 200 and a whole stream
    Outcome.REJECTED,  # 429
    Outcome.REJECTED,  # 503
    Outcome.FAILED,  # 500
    Outcome.FAILED,  # the connection ends before the answer
    Outcome.FAILED,  # the stream ends before its last event
    Outcome.FAILED,  # the connection ends in the middle of the stream
    Outcome.LATE,  # right, after `late_s`
    Outcome.CANCELLED,  # never
)


@dataclass(frozen=True)
class Behaviour:
    """What the server does; seconds."""

    service_s: float = 0.02
    stall_every_s: float = 10.0
    stall_s: float = 3.0
    servers: int = 1
    queue: int = 20
    first_s: float = 0.05
    gap_s: float = 0.03
    tokens: int = 10
    late_s: float = 1.0

    def stalled_s(self, at_unix_s: float) -> float:
        """How long GET /stalled takes that comes at this time."""
        into = at_unix_s % self.stall_every_s
        return self.service_s + max(0.0, self.stall_s - into)

    def stalled_percentile_s(self, percent: float) -> float:
        """Of arrivals that come at any time alike: the stalled are spread evenly over the stall."""
        slower = (1 - percent / 100) * self.stall_every_s
        return self.service_s + max(0.0, self.stall_s - slower)

    def stalled_share_within(self, limit_s: float) -> float:
        """Of the same arrivals, the share that takes at most `limit_s`."""
        too_long_s = min(self.stall_s, max(0.0, self.stall_s + self.service_s - limit_s))
        return 1 - too_long_s / self.stall_every_s

    def queued_s(self, at_s: Sequence[float]) -> list[float | None]:
        """How long each GET /queued takes of those that come at these times (ascending); None for
        those refused.
        """
        line = Line(self)
        return [None if (ends := line.join(at)) is None else ends - at for at in at_s]

    @property
    def capacity(self) -> float:
        """GET /queued a second that it can answer."""
        return self.servers / self.service_s


@dataclass
class Line:
    """Customers of `servers`, first come first served, each served for `service_s`."""

    behaviour: Behaviour
    free_at: list[float] = field(default_factory=list)
    begins: list[float] = field(default_factory=list)

    def join(self, at_s: float) -> float | None:
        """When who comes at `at_s` is served; None when too many wait already."""
        self.begins = [begin for begin in self.begins if begin > at_s]
        is_free = len(self.free_at) < self.behaviour.servers
        begin = at_s if is_free else max(at_s, self.free_at[0])
        if begin > at_s:
            if len(self.begins) >= self.behaviour.queue:
                return None
            self.begins.append(begin)
        if not is_free:
            heapq.heappop(self.free_at)
        heapq.heappush(self.free_at, begin + self.behaviour.service_s)
        return begin + self.behaviour.service_s


class Server:
    """HTTP/1.1 by hand: GETs without a body, connections that stay open. What a framework does
    between the clock and the socket would be measured as the client's error.
    """

    def __init__(self, behaviour: Behaviour) -> None:
        self._behaviour = behaviour
        self._line = Line(behaviour)

    async def talk(self, reader: StreamReader, writer: StreamWriter) -> None:
        """Everything on one connection."""
        with suppress(ConnectionError, IncompleteReadError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                came = time.time()
                target = urlsplit(head.split(b" ", 2)[1].decode())
                await self._answer(target.path, parse_qs(target.query), came, writer)
                await writer.drain()
                if writer.is_closing():
                    return

    async def _answer(
        self, path: str, query: Mapping[str, Sequence[str]], came: float, writer: StreamWriter
    ) -> None:
        behaviour = self._behaviour
        match path:
            case "/livez":
                writer.write(whole(200))
            case "/stalled":
                await until(came + behaviour.stalled_s(came))
                writer.write(whole(200))
            case "/queued":
                ends = self._line.join(came)
                await until(ends or came)
                writer.write(whole(200 if ends else 503))
            case "/stream":
                await self._stream(came, writer)
            case "/endings":
                await self._end(int(query["item"][0]) % len(ENDINGS), came, writer)
            case _:
                writer.write(whole(404))

    async def _stream(
        self, came: float, writer: StreamWriter, *, tokens: int | None = None
    ) -> None:
        """All of it; or `tokens` and neither the last event nor the end of the body."""
        behaviour = self._behaviour
        writer.write(STREAM_HEAD)
        for number in range(behaviour.tokens if tokens is None else tokens):
            await until(came + behaviour.first_s + number * behaviour.gap_s)
            writer.write(chunk(f"event: token\ndata: {time.time():.6f}\n\n"))
            await writer.drain()
        if tokens is None:
            writer.write(chunk(f"data: {LAST}\n\n") + LAST_CHUNK)

    async def _end(self, kind: int, came: float, writer: StreamWriter) -> None:
        match kind:
            case 1 | 2 | 3:
                writer.write(whole((429, 503, 500)[kind - 1]))
            case 4:
                writer.close()
            case 5:
                await self._stream(came, writer, tokens=2)
                writer.write(LAST_CHUNK)
            case 6:
                await self._stream(came, writer, tokens=2)
                writer.close()
            case 7:
                await until(came + self._behaviour.late_s)
                await self._stream(time.time(), writer)
            case 8:
                await until(came + NEVER_S)
            case _:
                await self._stream(came, writer)


def whole(status: int) -> bytes:
    """An answer in one piece. Refusals say when to come back."""
    body = b'{"code": "%d"}' % status
    retry = b"Retry-After: 1\r\n" if status in (429, 503) else b""
    return b"HTTP/1.1 %d .\r\nContent-Type: application/json\r\n%sContent-Length: %d\r\n\r\n%s" % (
        status,
        retry,
        len(body),
        body,
    )


def chunk(text: str) -> bytes:
    return b"%x\r\n%s\r\n" % (len(text.encode()), text.encode())


async def until(unix_s: float) -> None:
    if (left_s := unix_s - time.time()) > 0:
        await asyncio.sleep(left_s)


@click.command()
@click.option("--port", type=int, required=True)
@click.option("--set", "changed", multiple=True, metavar="NAME=VALUE", help="As in Behaviour.")
def main(port: int, changed: Sequence[str]) -> None:
    """Serve on loopback until stopped."""
    types = {one.name: int if one.type == "int" else float for one in fields(Behaviour)}
    given = dict(pair.split("=", 1) for pair in changed)
    if unknown := sorted(set(given) - set(types)):
        raise click.UsageError(f"--set {unknown[0]}: it is one of {', '.join(types)}")
    behaviour = Behaviour(**{name: types[name](value) for name, value in given.items()})
    # The truth must not wait for a processor.
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, PRIORITY)
    asyncio.run(serve(behaviour, port))


async def serve(behaviour: Behaviour, port: int) -> None:
    talk = Server(behaviour).talk
    server = await asyncio.start_server(talk, "127.0.0.1", port, backlog=4_096)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    main()
