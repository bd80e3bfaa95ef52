"""YouTube's thumbnails, fetched as if every URL, name server and picture were hostile.

A URL is not parsed but matched: https, a host of the list, no user, no port but 443. Its host is
resolved once for each connection, every answer must be public (addresses.py), and the connection
goes to such an answer; TLS and the Host header still name the host. Proxies of the environment are
not asked. What comes is capped while it is read, judged by its header, and decoded in a process
that can be killed (decoding.py).
"""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import aclosing
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import httpcore
import httpx

from services.shared.settings import ConfigurationError
from services.vetting.adapters import decoding
from services.vetting.adapters.workers import (
    WorkerDied,
    WorkerLacks,
    Workers,
    WorkersBusy,
    WorkerTimedOut,
)
from services.vetting.addresses import is_near, is_public
from services.vetting.picture_headers import read_header
from services.vetting.pictures import (
    MAX_PIXELS,
    Picture,
    PictureError,
    PictureRefused,
    PictureUnavailable,
)

# Videos' pictures (i*, img), channels' pictures (yt3): the hosts in the API's answers.
HOSTS = frozenset(
    {"i.ytimg.com", "i1.ytimg.com", "i2.ytimg.com", "i3.ytimg.com", "i4.ytimg.com"}
    | {"img.youtube.com", "yt3.ggpht.com", "yt3.googleusercontent.com"}
)
# What RFC 3986 allows after the host, without a fragment.
URL = re.compile(
    r"https://(?P<host>[a-z0-9.-]{1,253})(?::443)?"
    r"(?P<target>/[A-Za-z0-9._~!$&'()*+,;=:@%/-]*(?:\?[A-Za-z0-9._~!$&'()*+,;=:@%/?-]*)?)",
    re.IGNORECASE | re.ASCII,
)
MEDIA_TYPES = ("image/jpeg", "image/png", "image/webp")
MAX_URL_CHARS = 2_048
MAX_REDIRECTS = 2
MAX_ADDRESSES = 4
REDIRECTS = frozenset({301, 302, 303, 307, 308})
MISSING = frozenset({404, 410})
DECODE_TIMEOUT_S = 5.0
VARIABLE = "JOING_VETTING_PICTURES_URL"

Resolver = Callable[[str, int], Awaitable[Sequence[str]]]
"""The addresses of a host, for a port. Raises OSError."""


class Target(NamedTuple):
    """Where one request goes. `url` is for people; the rest is what is sent."""

    url: str
    scheme: str
    host: str
    port: int
    path: str


async def system_resolver(host: str, port: int) -> Sequence[str]:
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(address[0]) for *_, address in found]


class ThumbnailFetcher:
    """A PictureSource. At most `concurrency` pictures are on their way at a time, `max_waiting`
    wait, each for at most `wait_s`.

    `timeout_s` bounds one picture from the first look-up to its last byte, redirects and smaller
    sizes included; decoding has its own bound. `base_override` is another place that serves the
    same paths, over http or https, on a public, private or loopback address: for tests and
    mirrors; None is YouTube. Which URLs may be asked for stays as it is.
    """

    def __init__(
        self,
        *,
        base_override: str | None = None,
        hosts: Iterable[str] = HOSTS,
        timeout_s: float = 3.0,
        max_bytes: int = 5_000_000,
        max_pixels: int = MAX_PIXELS,
        max_side_px: int = 1280,
        concurrency: int = 8,
        decoders: int = 1,
        max_waiting: int = 200,
        wait_s: float = 30.0,
        resolver: Resolver = system_resolver,
        dialler: httpcore.AsyncNetworkBackend | None = None,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        """Raises ConfigurationError for an override that is no base URL."""
        self._hosts = frozenset(hosts)
        self._mirror = _mirror(base_override)
        self._timeout_s = timeout_s
        self._max_bytes = max_bytes
        self._max_pixels = max_pixels
        self._turns = asyncio.Semaphore(concurrency)
        self._waiting = 0
        self._max_waiting = max_waiting
        self._wait_s = wait_s
        self._decoders = Workers(
            decoding.__name__, str(max_pixels), str(max_side_px),
            count=decoders, max_waiting=max_waiting, wait_s=wait_s,
        )  # fmt: skip
        self._connections = httpcore.AsyncConnectionPool(
            ssl_context=ssl_context or httpx.create_ssl_context(trust_env=False),
            max_connections=concurrency,
            max_keepalive_connections=concurrency,
            keepalive_expiry=30.0,
            network_backend=CheckedDialler(
                resolver,
                dialler or httpcore.AnyIOBackend(),
                mirror=(self._mirror.host, self._mirror.port) if self._mirror else None,
            ),
        )

    async def fetch(self, urls: Sequence[str]) -> Picture:
        """The first of `urls` that is there: only a 404 leads to the next. Raises PictureError."""
        if not urls:
            raise PictureUnavailable("no_url", detail="YouTube named no picture")
        await self._turn()
        try:
            url, data = await self._first_there(urls)
        finally:
            self._turns.release()
        return await self._decoded(url, data)

    async def aclose(self) -> None:
        await self._connections.aclose()
        await self._decoders.aclose()

    async def _turn(self) -> None:
        if self._turns.locked() and self._waiting >= self._max_waiting:
            raise PictureUnavailable("busy", detail=f"{self._waiting} pictures wait already")
        self._waiting += 1
        try:
            async with asyncio.timeout(self._wait_s):
                await self._turns.acquire()
        except TimeoutError:
            raise PictureUnavailable("busy", detail=f"no turn within {self._wait_s} s") from None
        finally:
            self._waiting -= 1

    async def _first_there(self, urls: Sequence[str]) -> tuple[str, bytes]:
        url = urls[0]
        try:
            async with asyncio.timeout(self._timeout_s):
                for url in urls:
                    if (data := await self._file(url)) is not None:
                        return url, data
        except TimeoutError:
            detail = f"not there within {self._timeout_s} s"
            raise PictureUnavailable("timeout", url, detail) from None
        raise PictureUnavailable("not_found", url, f"none of {len(urls)} sizes is there")

    async def _file(self, url: str) -> bytes | None:
        """The file at `url`, which may send us on; None where there is none."""
        asked = self._judged(url)
        for _ in range(MAX_REDIRECTS + 1):
            answer = await self._request(asked)
            if isinstance(answer, bytes) or answer is None:
                return answer
            try:
                asked = self._judged(answer.absolute(asked))
            except PictureRefused as refused:
                raise PictureRefused("redirect_refused", url, str(refused)) from None
        raise PictureRefused("redirect_refused", url, f"more than {MAX_REDIRECTS} redirects")

    def _judged(self, url: str) -> Target:
        """Raises PictureRefused for what must not be asked for."""
        shown = url[:MAX_URL_CHARS]
        if len(url) > MAX_URL_CHARS or not (match := URL.fullmatch(url)):
            raise PictureRefused(
                "url_not_allowed", shown, "not https://host/path with a plain host"
            )
        host = match["host"].lower()
        if host not in self._hosts:
            raise PictureRefused("host_not_allowed", shown, f"not one of {sorted(self._hosts)}")
        if self._mirror is None:
            return Target(url, "https", host, 443, match["target"])
        return self._mirror._replace(url=url, path=self._mirror.path + match["target"])

    async def _request(self, target: Target) -> bytes | _Redirect | None:
        try:
            return await self._exchange(target)
        except _AddressRefused as error:
            raise PictureRefused("address_not_allowed", target.url, str(error)) from None
        except _NotResolved as error:
            raise PictureUnavailable("not_resolved", target.url, str(error)) from None
        except (httpcore.TimeoutException, TimeoutError) as error:
            raise PictureUnavailable("timeout", target.url, str(error)) from None
        except (httpcore.NetworkError, OSError) as error:
            raise PictureUnavailable("unreachable", target.url, str(error)) from None
        except httpcore.ProtocolError as error:
            raise PictureUnavailable("host_error", target.url, f"broken HTTP: {error}") from None

    async def _exchange(self, target: Target) -> bytes | _Redirect | None:
        url = httpcore.URL(
            scheme=target.scheme, host=target.host, port=target.port, target=target.path
        )
        headers: dict[str | bytes, str | bytes] = {
            "Host": target.host if target.port == 443 else f"{target.host}:{target.port}",
            "Accept": ", ".join(MEDIA_TYPES),
            "Accept-Encoding": "identity",
            "User-Agent": "joing-vetting",
        }
        async with self._connections.stream("GET", url, headers=headers) as response:
            if response.status in REDIRECTS:
                return _Redirect(_header(response, b"location"))
            if response.status in MISSING:
                return None
            if response.status != 200:
                raise PictureUnavailable("host_error", target.url, f"status {response.status}")
            return await self._body(response, target.url)

    async def _body(self, response: httpcore.Response, url: str) -> bytes:
        """Raises PictureRefused before the body is read where its head says enough."""
        declared = _header(response, b"content-type").partition(";")[0].strip().lower()
        if declared not in MEDIA_TYPES:
            raise PictureRefused("type_not_allowed", url, f"content type {declared[:60]!r}")
        if _header(response, b"content-encoding").lower() not in ("", "identity"):
            raise PictureRefused("encoded", url, "a picture with a content encoding")
        length = _header(response, b"content-length")
        if length.isdecimal() and (len(length) > 12 or int(length) > self._max_bytes):
            raise PictureRefused("too_large", url, f"{length[:20]} of {self._max_bytes} bytes")
        data = bytearray()
        async with aclosing(_chunks(response)) as chunks:
            async for chunk in chunks:
                data += chunk
                if len(data) > self._max_bytes:
                    raise PictureRefused("too_large", url, f"over {self._max_bytes} bytes")
        self._judge(bytes(data), declared, url)
        return bytes(data)

    def _judge(self, data: bytes, declared: str, url: str) -> None:
        try:
            header = read_header(data)
        except PictureRefused as refused:
            raise PictureRefused(refused.reason, url, refused.detail) from None  # type: ignore[arg-type]
        if header.media_type != declared:
            detail = f"{header.media_type} that calls itself {declared}"
            raise PictureRefused("type_mismatch", url, detail)
        if header.width * header.height > self._max_pixels:
            detail = f"{header.width} x {header.height} px, over {self._max_pixels}"
            raise PictureRefused("too_many_pixels", url, detail)

    async def _decoded(self, url: str, data: bytes) -> Picture:
        try:
            answer = await self._decoders.ask(data, timeout_s=DECODE_TIMEOUT_S)
        except WorkersBusy as error:
            raise PictureUnavailable("busy", url, str(error)) from None
        except WorkerTimedOut as error:
            raise PictureRefused("too_slow_to_decode", url, str(error)) from None
        except WorkerDied as error:
            raise _death(error, url) from None
        except WorkerLacks as error:
            raise PictureUnavailable("decoder_failed", url, str(error)) from None
        kind, rest = answer[:1], answer[1:]
        if kind != decoding.MADE:
            raise PictureRefused(rest.decode("ascii", "replace"), url)  # type: ignore[arg-type]
        width, height = decoding.SIZE.unpack_from(rest)
        return Picture(rest[decoding.SIZE.size :], "image/jpeg", width, height, url)


class CheckedDialler(httpcore.AsyncNetworkBackend):
    """Resolves a host once, judges every answer, and dials the judged addresses themselves.

    One answer that must not be dialled condemns all: a name server that mixes them is hostile or
    broken. `mirror` is the one host and port whose address may also be near.
    """

    def __init__(
        self,
        resolver: Resolver,
        dialler: httpcore.AsyncNetworkBackend,
        *,
        mirror: tuple[str, int] | None = None,
    ) -> None:
        self._resolver = resolver
        self._dialler = dialler
        self._mirror = mirror

    async def connect_tcp(
        self, host: str, port: int, *rest: Any, **options: Any
    ) -> httpcore.AsyncNetworkStream:
        failure: Exception = _NotResolved(f"{host} has no address")
        for address in (await self._checked(host, port))[:MAX_ADDRESSES]:
            try:
                return await self._dialler.connect_tcp(address, port, *rest, **options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
        raise failure

    async def connect_unix_socket(self, path: str, *rest: Any, **options: Any) -> Any:
        raise _AddressRefused(f"a Unix socket: {path}")

    async def sleep(self, seconds: float) -> None:
        await self._dialler.sleep(seconds)

    async def _checked(self, host: str, port: int) -> list[str]:
        try:
            found = list(dict.fromkeys(await self._resolver(host, port)))
        except (OSError, UnicodeError) as error:
            raise _NotResolved(f"{host}: {error}") from None
        may_be_near = (host, port) == self._mirror
        for address in found:
            if not (is_public(address) or (may_be_near and is_near(address))):
                raise _AddressRefused(f"{host} resolves to {address}")
        return found


class _Redirect(NamedTuple):
    location: str

    def absolute(self, asked: Target) -> str:
        """A path alone stays on the host that was asked for; anything else must be whole."""
        if self.location.startswith("/") and not self.location.startswith(("//", "/\\")):
            return f"https://{urlsplit(asked.url).hostname}{self.location}"
        return self.location


class _AddressRefused(Exception):
    pass


class _NotResolved(Exception):
    pass


def _mirror(base: str | None) -> Target | None:
    if base is None:
        return None
    try:
        parts = urlsplit(base)
        port = parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError as error:
        raise ConfigurationError(f"{VARIABLE}: {error}") from None
    extra = parts.username or parts.password or parts.query or parts.fragment
    if parts.scheme not in ("http", "https") or not parts.hostname or extra:
        raise ConfigurationError(
            f"{VARIABLE}: {base!r} is not http(s)://host[:port][/path]; leave it unset for YouTube"
        )
    return Target(base, parts.scheme, parts.hostname, port, parts.path.rstrip("/"))


def _header(response: httpcore.Response, name: bytes) -> str:
    """The first header of this name, or ""."""
    values = (value for key, value in response.headers if key.lower() == name)
    return next(values, b"").decode("latin-1")


async def _chunks(response: httpcore.Response) -> Any:
    async for chunk in response.aiter_stream():
        yield chunk


def _death(error: WorkerDied, url: str) -> PictureError:
    """The decoder's own limits end it with a signal: then the picture is to blame."""
    if error.signal is None:
        return PictureUnavailable("decoder_failed", url, str(error))
    return PictureRefused("too_slow_to_decode", url, f"ended by signal {error.signal}")
