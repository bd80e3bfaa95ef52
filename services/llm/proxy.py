"""Requests go on to one OpenAI-compatible server, and its answers come back.

 - At most `capacity` requests are in flight; the next is told to come back later.
 - An event stream is passed on event by event. Any other answer is read whole before the first
   byte goes out, so that an upstream which dies halfway is still a clean error.
 - A caller that hangs up ends the request upstream at once, and vLLM frees its slot.
 - What callers are told: upstream's 4xx as it stands (in OpenAI's shape if it was not); 503 with
   Retry-After when upstream is starting, full, gone or refuses our key; 504 past the deadline; 500
   for its other faults, whose text stays in the log. In a stream that has begun: one last event
   `data: {"error": ...}`, and no [DONE].

Knows nothing of how the server is run.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterable, AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

import httpx
import structlog
from fastapi import Request, Response
from fastapi.responses import JSONResponse
from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive, Scope, Send

from services.shared.errors import DeadlineExceeded, Internal, Problem, Unavailable, openai_error
from services.shared.peers import IDLE_S
from services.shared.web import REQUEST_ID, ClientGone, current_request_id, printable, until_hang_up

PASSED_ON = ("content-type", "accept", "traceparent", "tracestate")
CONNECT_TIMEOUT_S = 5.0
LAST_EVENT_TIMEOUT_S = 5.0
HELD_BYTES = 1 << 20
EVENT_ENDS = (b"\n\n", b"\r\n\r\n")
log = structlog.get_logger()


@dataclass(frozen=True)
class Limits:
    """`capacity` requests at once, `request_timeout_s` each from first byte to last."""

    capacity: int
    request_timeout_s: float
    retry_after_s: int


class Proxy:
    """`address()` is the server's origin, or None while there is none. Close it at the end."""

    def __init__(self, address: Callable[[], str | None], limits: Limits, key: str = "") -> None:
        self.limits = limits
        self.is_draining = False
        self._address = address
        self._clocks: set[asyncio.Timeout] = set()
        self._is_idle = asyncio.Event()
        self._is_idle.set()
        self._client = httpx.AsyncClient(
            headers={
                "Accept-Encoding": "identity",
                **({"Authorization": f"Bearer {key}"} if key else {}),
            },
            # The deadline of the whole request bounds every read.
            timeout=httpx.Timeout(None, connect=CONNECT_TIMEOUT_S),
            transport=httpx.AsyncHTTPTransport(
                limits=httpx.Limits(
                    max_connections=limits.capacity,
                    max_keepalive_connections=limits.capacity,
                    keepalive_expiry=IDLE_S,
                )
            ),
        )

    @property
    def in_flight(self) -> int:
        return len(self._clocks)

    def relay(self, request: Request) -> Response:
        """The response that does all of it when it is sent."""
        return Relay(self, request.method, request.url.path)

    @asynccontextmanager
    async def admitted(self) -> AsyncIterator[None]:
        """A place among those in flight. Raises Unavailable when there is none; TimeoutError past
        the deadline, or when `drain` gave up waiting.
        """
        if self.is_draining:
            raise self.unavailable("shutting_down", "This server is shutting down.")
        if self.in_flight >= self.limits.capacity:
            told = f"{self.limits.capacity} requests are being answered or wait; come back later."
            raise self.unavailable("queue_full", told)
        clock = asyncio.timeout(self.limits.request_timeout_s)
        self._clocks.add(clock)
        self._is_idle.clear()
        try:
            async with clock:
                yield
        finally:
            self._clocks.discard(clock)
            if not self._clocks:
                self._is_idle.set()

    async def drain(self, within_s: float) -> None:
        """Admits nobody any more; returns when nothing is in flight, at the latest soon after
        `within_s` seconds, having cut off what still was.
        """
        self.is_draining = True
        log.info("draining", in_flight=self.in_flight)
        with suppress(TimeoutError):
            await asyncio.wait_for(self._is_idle.wait(), within_s)
        cut_off = self.in_flight
        for clock in self._clocks:
            clock.reschedule(0)
        with suppress(TimeoutError):
            await asyncio.wait_for(self._is_idle.wait(), LAST_EVENT_TIMEOUT_S)
        log.info("drained", cut_off=cut_off)

    async def close(self) -> None:
        await self._client.aclose()

    @asynccontextmanager
    async def call(self, request: Request, body: bytes) -> AsyncIterator[httpx.Response]:
        """Upstream's answer, its body not read yet. Raises Unavailable and httpx.HTTPError."""
        address = self._address()
        if address is None:
            raise self.unavailable("model_starting", "The language model is starting.")
        kept = {name: request.headers[name] for name in PASSED_ON if name in request.headers}
        outgoing = self._client.build_request(
            request.method,
            address + request.url.path,
            headers={**kept, REQUEST_ID: current_request_id()},
            content=body,
        )
        answer = await self._client.send(outgoing, stream=True)
        try:
            yield answer
        finally:
            await answer.aclose()

    def unavailable(self, code: str, detail: str) -> Unavailable:
        return Unavailable(detail, retry_after_s=self.limits.retry_after_s, code=code)

    def problem(self, error: Exception) -> Problem:
        """What a caller is told about a request that broke."""
        if isinstance(error, TimeoutError) and self.is_draining:
            return self.unavailable("shutting_down", "This server is shutting down.")
        if isinstance(error, TimeoutError):
            limit = self.limits.request_timeout_s
            return DeadlineExceeded(f"The language model took longer than {limit:g} s.")
        log.warning("model server broke off", reason=repr(error))
        return self.unavailable("model_unavailable", "The language model is not available.")


class Relay(Response):
    """One request on its way there and back. Must be sent by the route that made it."""

    def __init__(self, proxy: Proxy, method: str, path: str) -> None:
        super().__init__()
        self._proxy = proxy
        self._what = f"{method} {path}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        sent = Sent(send)
        try:
            async with self._proxy.admitted():
                request = Request(scope, receive)
                body = await _read(request)
                await until_hang_up(request, self._exchange(request, body, sent))
        except (TimeoutError, httpx.HTTPError) as error:
            problem = self._proxy.problem(error)
            if not sent.has_begun:
                raise problem from None
            await sent.last_event(problem)
        except ClientGone:
            log.info("caller hung up", what=self._what)
            if not sent.has_begun:
                raise

    async def _exchange(self, request: Request, body: bytes, sent: Sent) -> None:
        async with self._proxy.call(request, body) as answer:
            if answer.headers.get("content-type", "").startswith("text/event-stream"):
                await sent.events(answer)
                return
            content = await answer.aread()
            response = whole_answer(answer, content, self._proxy.limits.retry_after_s)
            await response(request.scope, request.receive, sent)


class Sent:
    """What has gone out to the caller so far."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.has_begun = False
        self._is_stream = False

    async def __call__(self, message: Message) -> None:
        self.has_begun = True
        await self._send(message)

    async def events(self, answer: httpx.Response) -> None:
        """Passes on an event stream, each event as soon as it is whole."""
        self._is_stream = True
        headers = [
            (b"content-type", answer.headers["content-type"].encode()),
            (b"cache-control", b"no-cache"),
            (b"x-accel-buffering", b"no"),
        ]
        status = answer.status_code
        await self({"type": "http.response.start", "status": status, "headers": headers})
        async for events in whole_events(answer.aiter_raw()):
            await self({"type": "http.response.body", "body": events, "more_body": True})
        await self({"type": "http.response.body", "body": b""})

    async def last_event(self, problem: Problem) -> None:
        """Ends a stream that broke; any other answer is left cut short, as its caller sees."""
        if not self._is_stream:
            return
        event = f"data: {json.dumps(openai_error(problem))}\n\n".encode()
        # A caller who reads nothing must not hold the place that the deadline has just freed.
        with suppress(TimeoutError):
            async with asyncio.timeout(LAST_EVENT_TIMEOUT_S):
                await self({"type": "http.response.body", "body": event})


async def _read(request: Request) -> bytes:
    try:
        return await request.body()
    except ClientDisconnect:
        raise ClientGone("The caller hung up while it sent the body.") from None


async def whole_events(pieces: AsyncIterable[bytes]) -> AsyncIterator[bytes]:
    """The same bytes, cut after events: if upstream dies inside one, its half is never passed on.

    Holds back at most HELD_BYTES of an unfinished event.
    """
    held = b""
    async for piece in pieces:
        held += piece
        cut = max(held.rfind(end) + len(end) if end in held else 0 for end in EVENT_ENDS)
        cut = cut or (len(held) if len(held) > HELD_BYTES else 0)
        if cut:
            yield held[:cut]
            held = held[cut:]
    if held:
        yield held


def whole_answer(answer: httpx.Response, content: bytes, retry_after_s: int) -> Response:
    """What the caller gets for an answer that is no stream. Raises Problem for a server's fault."""
    status = answer.status_code
    if answer.is_success:
        return Response(content, status, media_type=answer.headers.get("content-type"))
    if answer.is_client_error and status not in (401, 403):
        return _callers_fault(answer, content, retry_after_s)
    log.error("model server's fault", status=status, body=printable(answer.text, 2_000))
    if status == httpx.codes.SERVICE_UNAVAILABLE:
        wait_s = _seconds(answer.headers.get("retry-after"), retry_after_s)
        told = "The language model takes no more requests just now; come back later."
        raise Unavailable(told, retry_after_s=wait_s, code="queue_full")
    if status in (401, 403, 502, 504):
        told = "The language model is not available."
        raise Unavailable(told, retry_after_s=retry_after_s, code="model_unavailable")
    raise Internal("The language model failed; the request id names it in our log.")


def _callers_fault(answer: httpx.Response, content: bytes, retry_after_s: int) -> Response:
    status = answer.status_code
    headers = {}
    if status == httpx.codes.TOO_MANY_REQUESTS:
        headers["Retry-After"] = str(_seconds(answer.headers.get("retry-after"), retry_after_s))
    if _is_openai_error(content):
        return Response(content, status, headers, media_type="application/json")
    error = {
        "message": printable(answer.text, 300) or answer.reason_phrase,
        "type": "invalid_request_error",
        "param": None,
        "code": None,
    }
    return JSONResponse({"error": error}, status, headers)


def _is_openai_error(content: bytes) -> bool:
    try:
        return isinstance(json.loads(content)["error"]["message"], str)
    except (ValueError, LookupError, TypeError):
        return False


def _seconds(header: str | None, otherwise: int) -> int:
    return int(header) if header and header.isascii() and header.isdigit() else otherwise
