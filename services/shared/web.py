"""The web face that every service has: strict JSON, limits, keys, request ids, error bodies.

Knows no route of any service. Middleware here is plain ASGI: it never buffers a stream, and
a client that hangs up reaches the handler as a disconnect.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import ipaddress
import json
import math
import re
import time
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, TypeVar
from uuid import uuid4

import structlog
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.types import ASGIApp, Lifespan, Message, Receive, Scope, Send

from services.shared.errors import (
    BY_STATUS,
    FieldError,
    Forbidden,
    Internal,
    Malformed,
    Problem,
    ProblemBody,
    TooLarge,
    Unauthorized,
    Unprocessable,
    problem_response,
)
from services.shared.settings import ServiceSettings

REQUEST_ID = "X-Request-Id"
# Who the gateway calls for; believed only of the key that services use among themselves.
CALLER = "X-Joing-Caller"
CALLER_SHAPE = re.compile(r"[0-9a-f]{16}")
NOBODY = "0" * 16
REQUEST_ID_SHAPE = re.compile(r"[A-Za-z0-9._-]{1,64}")
OPEN_PATHS = frozenset({"/livez", "/readyz", "/ready"})
T = TypeVar("T")
log = structlog.get_logger()


def create_web_app(
    service: str,
    settings: ServiceSettings,
    *,
    description: str,
    lifespan: Lifespan[FastAPI] | None = None,
    larger_bodies: Mapping[str, int] | None = None,
) -> FastAPI:
    """A FastAPI application without routes, with everything that this module promises.

    `larger_bodies` is path prefixes that take more than `max_body_bytes`, and how many bytes.
    """
    app = FastAPI(
        title=f"Joing {service}",
        description=description,
        version="1.0.0",
        lifespan=lifespan,
        responses={
            "4XX": {"model": ProblemBody, "description": "The request is at fault"},
            "5XX": {"model": ProblemBody, "description": "The service is at fault"},
        },
    )
    app.router.route_class = StrictRoute
    app.add_exception_handler(Problem, _on_problem)
    app.add_exception_handler(StarletteHTTPException, _on_http_exception)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(Exception, _on_bug)
    app.add_middleware(BodyLimit, max_bytes=settings.max_body_bytes, larger=larger_bodies)
    app.add_middleware(KeyCheck, keys=settings.keys())
    app.add_middleware(RequestLog)
    return app


class StrictRequest(Request):
    """A request whose JSON is UTF-8, finite and without duplicate keys."""

    async def json(self) -> Any:
        if not hasattr(self, "_json"):
            self._json = parse_json(await self.body())
        return self._json


class StrictRoute(APIRoute):
    """A route that reads its body as StrictRequest does."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def strict(request: Request) -> Response:
            return await handle(StrictRequest(request.scope, request.receive))

        return strict


def parse_json(body: bytes) -> Any:
    """RFC 8259 JSON, nothing looser. Raises Malformed, saying where."""
    try:
        return json.loads(
            body.decode("utf-8"),
            object_pairs_hook=_refuse_duplicates,
            parse_constant=_refuse_constant,
            parse_float=_finite,
        )
    except UnicodeDecodeError as error:
        raise _malformed(
            "invalid_utf8", f"byte {error.start} is not valid UTF-8; send UTF-8 text"
        ) from None
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise _malformed("invalid_json", f"{error.msg} at {where}; send one JSON object") from None
    except RecursionError:
        raise _malformed("invalid_json", "nested too deeply; send one flat JSON object") from None
    except ValueError:  # Python reads integers of at most 4,300 digits
        raise _malformed("invalid_json", "holds a number that is too long to be read") from None


def _refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        shown = printable(twice)
        raise _malformed("duplicate_key", "appears twice; send each key once", field=shown)
    return result


def _refuse_constant(name: str) -> None:
    raise _malformed("invalid_json", f"{name} is not JSON; send a finite number")


def _finite(literal: str) -> float:
    number = float(literal)
    if math.isinf(number):
        raise _malformed("invalid_json", "holds a number that is too large; send a smaller one")
    return number


def _malformed(code: str, message: str, field: str = "body") -> Malformed:
    return Malformed(
        f"The request body cannot be read: {field} {message}.",
        code=code,
        errors=[FieldError(field=field, message=message)],
    )


def printable(text: str, limit: int = 100) -> str:
    """`text` as it may stand in an answer or a log line: no lone surrogates, bounded length."""
    return text.encode("utf-8", "replace").decode()[:limit]


def _on_problem(request: Request, problem: Exception) -> Response:
    assert isinstance(problem, Problem)
    return problem_response(problem, request.url.path)


def _on_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, StarletteHTTPException)
    kind = BY_STATUS.get(error.status_code, Malformed)
    problem = kind(str(error.detail), headers=error.headers)
    if error.status_code == 404:
        problem.detail = f"There is nothing at {printable(request.url.path)}; see /docs."
    if error.status_code == 405:
        problem.detail = f"{request.method} is not for this path; see /docs."
    return problem_response(problem, request.url.path)


def _on_invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return problem_response(unprocessable(error.errors()), request.url.path)


def unprocessable(errors: Any) -> Unprocessable:
    """pydantic's errors as a 422 that names each field. Never repeats what the caller sent."""
    fields = [
        FieldError(
            field=printable(".".join(map(str, _path(entry["loc"]))) or "body"),
            message=printable(_advice(entry), 300),
        )
        for entry in errors
    ]
    named = ", ".join(dict.fromkeys(field.field for field in fields))
    return Unprocessable(f"These fields are against the rules: {named}.", errors=fields)


def _path(loc: tuple[str | int, ...]) -> tuple[str | int, ...]:
    return loc[1:] if loc and loc[0] in ("body", "query", "path", "header") else loc


def _advice(entry: dict[str, Any]) -> str:
    if entry["type"] == "extra_forbidden":
        return "is not a field of this request; leave it out"
    if entry["type"] == "string_unicode":
        return "holds a lone surrogate, which is not a character; send valid Unicode text"
    return str(entry["msg"]).removeprefix("Value error, ")


def _on_bug(request: Request, error: Exception) -> Response:
    log.error("unexpected error", path=request.url.path, exc_info=error)
    problem = Internal("Something went wrong on our side; the request id names it in our log.")
    response = problem_response(problem, request.url.path)
    # This is answered outside of RequestLog, which adds the id to every other answer.
    response.headers[REQUEST_ID] = current_request_id()
    return response


class RequestLog:
    """Gives each request an id (the caller's, when well formed) and one line in the log."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        offered = Headers(scope=scope).get(REQUEST_ID, "")
        request_id = offered if REQUEST_ID_SHAPE.fullmatch(offered) else uuid4().hex
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(request_id=request_id)
        started, status = time.perf_counter(), 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)[REQUEST_ID] = request_id
            await send(message)

        try:
            await self.app(scope, receive, send_with_id)
        except Exception:
            status = status or Internal.status  # _on_bug answers it
            raise
        finally:
            if scope["path"] not in OPEN_PATHS:
                log.info(
                    "request",
                    method=scope["method"],
                    path=printable(scope["path"]),
                    status=status,
                    duration_ms=round((time.perf_counter() - started) * 1000, 1),
                )


def current_request_id() -> str:
    """The id of the request being served; a new one outside of a request."""
    return str(structlog.contextvars.get_contextvars().get("request_id") or uuid4().hex)


def current_caller(request: Request) -> str:
    """Whose request it is: 16 hex digits of the key's SHA-256, zeros where no key is configured."""
    return str(request.scope.get("joing.caller", NOBODY))


class KeyCheck:
    """Lets in callers with a key; with no key configured, only callers on this machine. Notes who
    they are for `current_caller`.
    """

    def __init__(self, app: ASGIApp, keys: tuple[str, ...]) -> None:
        self.app = app
        self.keys = [key.encode() for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in OPEN_PATHS:
            refusal = self.refusal(scope)
            if refusal is not None:
                await problem_response(refusal, scope["path"])(scope, receive, send)
                return
            scope["joing.caller"] = self.caller(scope)
        await self.app(scope, receive, send)

    def caller(self, scope: Scope) -> str:
        """Of a request that was let in."""
        headers = Headers(scope=scope)
        offered = _token(headers) if self.keys else b""
        told = headers.get(CALLER, "")
        if CALLER_SHAPE.fullmatch(told) and offered == (self.keys[0] if self.keys else b""):
            return told
        return hashlib.sha256(offered).hexdigest()[:16] if self.keys else NOBODY

    def refusal(self, scope: Scope) -> Problem | None:
        if not self.keys:
            if is_local(scope):
                return None
            return Forbidden(
                "No API key is configured, so only this machine may call. "
                "Set JOING_API_KEYS to open the service to others.",
                code="no_key_configured",
            )
        offered = _token(Headers(scope=scope))
        if not offered:
            return Unauthorized("Send a key: Authorization: Bearer <key>.")
        # Every key is compared, in constant time: timing tells nothing about them.
        if sum(hmac.compare_digest(offered, key) for key in self.keys) == 0:
            return Unauthorized("This key is not known here.")
        return None


def _token(headers: Headers) -> bytes:
    """The bearer token; empty when there is none."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    return token.strip().encode() if scheme.lower() == "bearer" else b""


def is_local(scope: Scope) -> bool:
    """True for a Unix socket and for loopback addresses."""
    client = scope.get("client")
    if not client or not client[0]:
        return True
    try:
        return ipaddress.ip_address(client[0]).is_loopback
    except ValueError:
        return client[0] in ("localhost", "testclient")


class BodyLimit:
    """Answers 413 as soon as a body is, or says it will be, over the limit of its path."""

    def __init__(
        self, app: ASGIApp, max_bytes: int, larger: Mapping[str, int] | None = None
    ) -> None:
        """`larger` is limits by path prefix; `max_bytes` holds for every other path."""
        self.app = app
        self.max_bytes = max_bytes
        self.larger = dict(larger or {})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        limit = self.limit_of(scope["path"])
        declared = Headers(scope=scope).get("content-length", "0")
        if declared.isdecimal() and int(declared) > limit:
            await problem_response(body_over(limit), scope["path"])(scope, receive, send)
            return
        received = 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            if message["type"] == "http.request":
                received += len(message.get("body", b""))
                if received > limit:
                    raise body_over(limit)
            return message

        await self.app(scope, counted, send)

    def limit_of(self, path: str) -> int:
        """Bytes that a body for `path` may have."""
        limits = (limit for prefix, limit in self.larger.items() if path.startswith(prefix))
        return next(limits, self.max_bytes)


def body_over(max_bytes: int) -> TooLarge:
    """What the caller of a body over `max_bytes` is told."""
    message = f"is over {max_bytes} bytes; send less"
    return TooLarge(f"The body {message}.", errors=[FieldError(field="body", message=message)])


class ClientGone(Problem):
    """The caller hung up before the answer; 499 is for the log, nobody reads it."""

    status, title, default_code = 499, "Client closed request", "client_gone"


async def until_hang_up(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """`work`'s result; cancels it as soon as the caller hangs up. The body must have been read.

    Raises ClientGone, and whatever `work` raises.
    """
    working = asyncio.ensure_future(work)
    watching = asyncio.ensure_future(_hung_up(request))
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientGone("The caller hung up.")
    finally:
        working.cancel()
        watching.cancel()
        await asyncio.wait({working, watching})


async def _hung_up(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
