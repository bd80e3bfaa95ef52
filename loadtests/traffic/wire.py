"""HTTP as a load test needs it, over gevent sockets: nothing waits, nothing is sent twice, and what
arrives is seen when it arrives.

No pool bounds the connections (a bound is a queue that nobody sees). Nothing is retried: a
connection that breaks is the answer. A connection that lay idle for over a second is not used
again, so that the server's keep-alive never closes one just as a request goes out on it. Lines of a
stream are handed on as each comes in; a reader that fills a block first would report the first
token hundreds of milliseconds late. Knows nothing of Locust or of traffic classes.
"""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import SplitResult, urlsplit

import gevent.socket
import gevent.ssl
from geventhttpclient.response import HTTPParseError, HTTPSocketResponse

MAX_IDLE_S = 1.0
CONNECT_TIMEOUT_S = 10.0
BLOCK_BYTES = 65_536
BROKEN = (OSError, HTTPParseError)
"""What a connection raises that breaks, is refused, or does not speak HTTP."""


class BadAddress(ValueError):
    """No server can be called by this; the message says what would do."""


@dataclass(frozen=True, slots=True)
class Message:
    """A request as it goes out; made before it is due, since making it takes time."""

    method: str
    head: bytes
    body: bytes


@dataclass
class Connections:
    """Connections to one server. `headers` go with every request."""

    url: str
    headers: Mapping[str, str] = field(default_factory=dict)
    opened: int = 0
    _idle: deque[tuple[float, gevent.socket.socket]] = field(default_factory=deque)

    def __post_init__(self) -> None:
        parts = checked_url(self.url)
        self._host = parts.hostname or ""
        self._port = parts.port or (443 if parts.scheme == "https" else 80)
        self._root = parts.path.rstrip("/")
        is_tls = parts.scheme == "https"
        self._tls = gevent.ssl.create_default_context() if is_tls else None
        shown = f"[{self._host}]" if ":" in self._host else self._host
        lines = {"Host": f"{shown}:{self._port}", "Accept-Encoding": "identity", **self.headers}
        self._lines = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        self._addresses: list[tuple[int, Any]] = []

    def message(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Message:
        content = b"" if body is None else json.dumps(body, ensure_ascii=False).encode()
        typed = "" if body is None else "Content-Type: application/json\r\n"
        length = f"Content-Length: {len(content)}\r\n" if method != "GET" else ""
        head = f"{method} {self._root}{path} HTTP/1.1\r\n{self._lines}{typed}{length}"
        return Message(method, head.encode("latin-1"), content)

    @contextmanager
    def send(self, message: Message, *, within_ms: int | None = None) -> Iterator[Reply]:
        """The reply once its head is there. `within_ms` tells the server how long the answer is of
        use (X-Deadline-Ms). Raises one of BROKEN; the caller bounds the time with gevent.Timeout.

        Left before the end of the body, the connection is closed, and so the request cancelled.
        """
        deadline = b"" if within_ms is None else b"X-Deadline-Ms: %d\r\n" % within_ms
        connection = self._connection()
        reply: Reply | None = None
        try:
            connection.sendall(message.head + deadline + b"\r\n" + message.body)
            response = HTTPSocketResponse(connection, block_size=BLOCK_BYTES, method=message.method)
            reply = Reply(response)
            yield reply
        finally:
            if reply is not None and reply.is_complete and not reply.closes:
                self._idle.append((time.monotonic(), connection))
            else:
                connection.close()

    def close(self) -> None:
        while self._idle:
            self._idle.pop()[1].close()

    def _connection(self) -> gevent.socket.socket:
        """The one that was used last, or a new one."""
        oldest = time.monotonic() - MAX_IDLE_S
        while self._idle and self._idle[0][0] < oldest:
            self._idle.popleft()[1].close()
        return self._idle.pop()[1] if self._idle else self._connected()

    def _connected(self) -> gevent.socket.socket:
        """To the first address of the name that takes it; the name is looked up once, since a name
        server is not what is measured.
        """
        if not self._addresses:
            found = gevent.socket.getaddrinfo(
                self._host, self._port, type=gevent.socket.SOCK_STREAM
            )
            self._addresses = [(family, address) for family, _, _, _, address in found]
        for family, address in self._addresses:
            try:
                connection = self._connected_to(family, address)
            except OSError as error:
                refused = error
                continue
            self._addresses = [(family, address)]
            self.opened += 1
            return connection
        raise refused

    def _connected_to(self, family: int, address: Any) -> gevent.socket.socket:
        connection = gevent.socket.socket(family, gevent.socket.SOCK_STREAM)
        try:
            connection.settimeout(CONNECT_TIMEOUT_S)
            connection.connect(address)
            connection.setsockopt(gevent.socket.IPPROTO_TCP, gevent.socket.TCP_NODELAY, 1)
            if self._tls is not None:
                connection = self._tls.wrap_socket(connection, server_hostname=self._host)
            connection.settimeout(None)
        except BaseException:
            connection.close()
            raise
        return connection


class Reply:
    """An answer whose head has come."""

    def __init__(self, response: HTTPSocketResponse) -> None:
        self._response = response
        self.status = response.status_code

    @property
    def is_complete(self) -> bool:
        return bool(self._response.message_complete)

    @property
    def closes(self) -> bool:
        """True when the connection ends with this answer."""
        return bool(self._response.should_close())

    @property
    def retry_after_s(self) -> float | None:
        value = self._response.get("Retry-After")
        return float(value) if isinstance(value, str) and value.isdigit() else None

    def read(self) -> bytes:
        return bytes(self._response.read())

    def json(self) -> Any:
        """Raises ValueError for what is no JSON."""
        return json.loads(self.read())

    def events(self) -> Iterator[tuple[str, str]]:
        """Server-sent events, (name, data), each as its last line comes in. Ends with the stream;
        a broken one raises. Events without data, and comments, are left out.
        """
        name, data = "message", list[str]()
        while line := self._response.readline(b"\n"):
            text = line.decode("utf-8", "replace").rstrip("\r\n")
            if not text:
                if data:
                    yield name, "\n".join(data)
                name, data = "message", []
                continue
            key, _, value = text.partition(":")
            value = value.removeprefix(" ")
            if key == "event":
                name = value
            elif key == "data":
                data.append(value)


def checked_url(url: str) -> SplitResult:
    """Raises BadAddress."""
    fix = "give one such as http://127.0.0.1:3000"
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError as error:
        raise BadAddress(f"{url!r} is no address ({error}): {fix}") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise BadAddress(f"{url!r} is no http or https address: {fix}")
    return parts
