"""One call to the YouTube Data API: Google's client in a thread, bounded in time and size.

The key is added to the address on the way out, below everything that keeps, logs or raises
addresses, and is taken out of whatever comes back. No error of Google's client leaves this file,
not even as the cause of another.

CallFailed
├── MayPass          another try may go well
├── DaySpent         the project's units for today are spent
└── UploadsMissing   the uploads playlist is not there or not for us
"""

from __future__ import annotations

import asyncio
import http.client
import json
import re
import socket
import ssl
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import quote, quote_plus

import httplib2  # type: ignore[import-untyped]
from googleapiclient.discovery import build  # type: ignore[import-untyped]
from googleapiclient.errors import HttpError  # type: ignore[import-untyped]
from googleapiclient.http import HttpRequest  # type: ignore[import-untyped]
from httplib2.decode import (  # type: ignore[import-untyped]
    DecodeLimitError,
    DecodeRatioError,
)
from pydantic import SecretStr

from services.vetting.errors import (
    ChannelNotFound,
    SourceError,
    SourceRefused,
    SourceTimedOut,
    SourceUnavailable,
)

CallName = Literal["channels", "playlist_items", "videos"]

READ_BYTES = 64 * 1024
REDACTED = "REDACTED"
REASON = re.compile(r"[A-Za-z_]{1,64}")
DAILY = frozenset({"quotaExceeded", "dailyLimitExceeded", "dailyLimitExceededUnreg"})
PASSING = frozenset({"rateLimitExceeded", "userRateLimitExceeded", "backendError"})
GONE = frozenset({"channelNotFound", "channelClosed", "channelSuspended"})
UPLOADS_MISSING = "playlistNotFound"
UPLOADS_CLOSED = "playlistItemsNotAccessible"
DEFAULT_RETRY_S = 30


class CallFailed(Exception):
    """Base of what a call may come to that its caller has an answer for."""


class MayPass(CallFailed):
    """`lasting` is what it is when no other try helped."""

    def __init__(self, lasting: SourceError, retry_after_s: float | None = None) -> None:
        super().__init__(str(lasting))
        self.lasting = lasting
        self.retry_after_s = retry_after_s


class DaySpent(CallFailed):
    pass


class UploadsMissing(CallFailed):
    """`code` is YouTube's name for the reason: UPLOADS_MISSING or UPLOADS_CLOSED."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


@dataclass(frozen=True)
class Answer:
    """`body` is None when the entity tag still holds. `bytes` counts the decoded answer."""

    body: dict[str, Any] | None
    bytes: int


class YouTubeCalls:
    """The three list calls. Each runs in one of `max_concurrent` threads with a connection of its
    own: httplib2 is not thread-safe.
    """

    def __init__(
        self,
        key: SecretStr,
        *,
        api_endpoint: str | None,
        timeout_s: float,
        max_bytes: int,
        max_concurrent: int,
    ) -> None:
        self._key = key
        self._timeout_s = timeout_s
        self._max_bytes = max_bytes
        self._turn = asyncio.Semaphore(max_concurrent)
        self._threads = ThreadPoolExecutor(max_concurrent, thread_name_prefix="youtube")
        options = {"api_endpoint": api_endpoint} if api_endpoint else None
        # Without a key and with an Http there is nothing that Google's client could look for.
        youtube = build(
            "youtube",
            "v3",
            http=httplib2.Http(),
            client_options=options,
            static_discovery=True,
            cache_discovery=False,
        )
        self._lists = {
            "channels": youtube.channels().list,
            "playlist_items": youtube.playlistItems().list,
            "videos": youtube.videos().list,
        }

    async def ask(self, name: CallName, parameters: Mapping[str, Any], etag: str | None) -> Answer:
        """One unit. Raises the CallFailed and SourceError families."""
        request: HttpRequest = self._lists[name](**parameters)
        if etag is not None:
            request.headers["If-None-Match"] = etag
        async with self._turn:
            outcome = await self._answered(request)
        if isinstance(outcome, Exception):  # raised here, where no error of the client is near
            raise outcome
        return outcome

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _answered(self, request: HttpRequest) -> Answer | CallFailed | SourceError:
        connection = _BoundedHttp(self._key, self._timeout_s, self._max_bytes)
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._timeout_s):
                return await loop.run_in_executor(self._threads, _execute, request, connection)
        except TimeoutError:
            return _timed_out(self._timeout_s)
        finally:
            connection.abort()


def _execute(request: HttpRequest, connection: _BoundedHttp) -> Answer | CallFailed | SourceError:
    """In a thread. Whatever Google's client raises becomes a value without a trace of it."""
    try:
        body = request.execute(http=connection)
    except HttpError as error:
        is_held = error.resp.status == 304
        return Answer(None, connection.received) if is_held else _for_status(error)
    except _TooLarge as error:
        return SourceUnavailable(str(error))
    except (OSError, http.client.HTTPException, httplib2.HttpLib2Error) as error:
        return _for_transport(error, connection.timeout)
    except (ValueError, RecursionError):
        return _garbled("it is no JSON")
    if not connection.is_json or not isinstance(body, dict):
        return _garbled("it is no JSON object, or does not call itself one")
    return Answer(body, connection.received)


def _for_transport(error: Exception, timeout_s: float) -> CallFailed | SourceError:
    if isinstance(error, TimeoutError):
        return _timed_out(timeout_s)
    if isinstance(error, ssl.SSLCertVerificationError):
        return SourceUnavailable("YouTube's certificate is not valid")
    kind = type(error).__name__
    return MayPass(SourceUnavailable(f"YouTube could not be reached: {kind}", DEFAULT_RETRY_S))


def _timed_out(timeout_s: float) -> MayPass:
    return MayPass(SourceTimedOut(f"YouTube did not answer within {timeout_s:g} s"))


def _garbled(why: str) -> SourceUnavailable:
    return SourceUnavailable(f"YouTube's answer is not understood: {why}", DEFAULT_RETRY_S)


def _for_status(error: HttpError) -> CallFailed | SourceError:
    status: int = error.resp.status
    reason, is_daily = _reason(error.content)
    said = f"YouTube answered {status} ({reason or 'without a reason'})"
    wait_s = _retry_after(error.resp)
    lasting = SourceUnavailable(said, int(wait_s or DEFAULT_RETRY_S))
    if status in (403, 429) and is_daily:
        return DaySpent(said)
    if status >= 500 or status in (408, 429) or (status == 403 and reason in PASSING):
        return MayPass(lasting, wait_s)
    if reason in (UPLOADS_MISSING, UPLOADS_CLOSED):
        return UploadsMissing(reason)
    if reason in GONE:
        return ChannelNotFound(f"There is no such channel ({reason})")
    if status in (400, 401, 403):
        return SourceRefused(reason or f"http_{status}")
    return lasting


def _reason(content: bytes) -> tuple[str | None, bool]:
    """YouTube's name for what went wrong, and whether a quota for the whole day is meant. Google
    has two ways to say both: errors[].reason, and details[] with the quota's unit.
    """
    with suppress(ValueError, RecursionError, AttributeError, TypeError):
        error = json.loads(content)["error"]
        details = [d for d in error.get("details") or [] if isinstance(d, dict)]
        errors = [e for e in error.get("errors") or [] if isinstance(e, dict)]
        names = [str(e.get("reason")) for e in (*errors, *details)]
        units = [str((d.get("metadata") or {}).get("quota_unit")) for d in details]
        if "API_KEY_INVALID" in names:  # its first reason is only badRequest
            return "keyInvalid", False
        known = next((name for name in names if REASON.fullmatch(name)), None)
        return known, known in DAILY or any(unit.startswith("1/d") for unit in units)
    return None, False


def _retry_after(response: httplib2.Response) -> float | None:
    value = str(response.get("retry-after", ""))
    return float(value) if re.fullmatch(r"\d{1,6}", value) else None


class _TooLarge(Exception):
    pass


class _BoundedHttp(httplib2.Http):  # type: ignore[misc]
    """httplib2 for one request: no redirect is followed (the key would go with it), nothing is
    sent twice (each try costs a unit), and what is read is bounded in bytes and, as a whole, in
    time.
    """

    def __init__(self, key: SecretStr, timeout_s: float, max_bytes: int) -> None:
        super().__init__(timeout=timeout_s, decode_limit_hard=max_bytes, decode_limit_chunk=4096)
        self.follow_redirects = False
        self.received = 0
        self.is_json = False
        self._key = key
        self._max_bytes = max_bytes
        self._is_aborted = False

    def request(  # type: ignore[no-untyped-def]
        self, uri, method="GET", body=None, headers=None, **_
    ) -> tuple[httplib2.Response, bytes]:
        if method != "GET":  # what Google's client does with an address that is too long
            raise ValueError("a call to YouTube does not fit an address")
        key = self._key.get_secret_value()
        uri = f"{uri}{'&' if '?' in uri else '?'}key={quote_plus(key)}"
        try:
            response, content = super().request(
                uri, method, body, headers, connection_type=self._connection(uri)
            )
        except (DecodeLimitError, DecodeRatioError, httplib2.FailedToDecompressContent):
            raise _TooLarge("YouTube's answer cannot be unpacked, or is too large") from None
        self.received = len(content)
        self.is_json = str(response.get("content-type", "")).startswith("application/json")
        for spelt in {key, quote_plus(key), quote(key)}:
            content = content.replace(spelt.encode(), REDACTED.encode())
            for name, value in response.items():
                response[name] = str(value).replace(spelt, REDACTED)
        return response, content

    def abort(self) -> None:
        """Ends a request that another thread waits for; nothing when it has ended."""
        self._is_aborted = True
        for connection in list(self.connections.values()):
            if (open_socket := connection.sock) is not None:
                with suppress(OSError):
                    open_socket.shutdown(socket.SHUT_RDWR)
            with suppress(OSError, AttributeError):
                connection.close()

    def _connection(self, uri: str) -> type:
        """A kind of connection that connects once and whose answers are bounded."""
        is_tls = uri.startswith("https:")
        base: Any = (
            httplib2.HTTPSConnectionWithTimeout if is_tls else httplib2.HTTPConnectionWithTimeout
        )
        until, owner = time.monotonic() + self.timeout, self

        class Response(http.client.HTTPResponse):
            def read(self, amount: int | None = None) -> bytes:
                whole, expected = bytearray(), self.length
                while expected is None or len(whole) < expected:
                    if not (chunk := self.read1(READ_BYTES)):
                        break
                    whole += chunk
                    if len(whole) > owner._max_bytes:
                        raise _TooLarge(f"YouTube's answer is over {owner._max_bytes} bytes")
                    if time.monotonic() > until:
                        raise TimeoutError
                if expected is not None and len(whole) < expected:
                    raise http.client.IncompleteRead(b"", expected - len(whole))
                return bytes(whole)

        class Connection(base):  # type: ignore[misc]
            response_class = Response
            has_connected = False

            def connect(self) -> None:
                if self.has_connected or owner._is_aborted:
                    raise ConnectionResetError("closed before it answered")
                self.has_connected = True
                super().connect()

        return Connection
