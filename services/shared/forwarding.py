"""Passing a request on to another service, byte for byte, and its answer back as it comes.

A caller that hangs up ends the call upstream at once, before or after the first byte.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager

import httpx
import structlog
from fastapi import Request
from fastapi.responses import StreamingResponse
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect

from services.shared.errors import (
    DeadlineExceeded,
    Problem,
    Unavailable,
    is_openai_path,
    openai_error,
)
from services.shared.web import (
    CALLER,
    REQUEST_ID,
    ClientGone,
    current_caller,
    current_request_id,
    until_hang_up,
)

PASSED_ON = ("content-type", "accept", "traceparent", "tracestate", "idempotency-key",
             "last-event-id")  # fmt: skip
PASSED_BACK = ("content-type", "retry-after", "cache-control", "x-accel-buffering", "location",
               "x-eta-s", "idempotent-replayed")  # fmt: skip
log = structlog.get_logger()


async def forward(
    request: Request, client: httpx.AsyncClient, peer: str, *, retry_after_s: int
) -> StreamingResponse:
    """The answer of `peer` to `request`. The body is read whole first (its size is limited).

    Raises Unavailable when the peer cannot be reached, DeadlineExceeded when it stays silent for
    longer than the client's read timeout, ClientGone when the caller hung up.
    """
    outgoing = _outgoing(request, client, await request.body())
    with unreachable_as_problem(peer, retry_after_s):
        response = await until_hang_up(request, client.send(outgoing, stream=True))
    return _passed_back(response, peer, request.url.path)


async def forward_upload(
    request: Request, client: httpx.AsyncClient, peer: str, *, retry_after_s: int
) -> StreamingResponse:
    """`forward` for a body that is too large to hold: its pieces go on as they come."""
    outgoing = _outgoing(request, client, request.stream())
    if (length := request.headers.get("content-length")) is not None:
        outgoing.headers["Content-Length"] = length
        del outgoing.headers["Transfer-Encoding"]
    with unreachable_as_problem(peer, retry_after_s):
        try:
            response = await client.send(outgoing, stream=True)
        except ClientDisconnect:
            raise ClientGone("The caller hung up while it sent the body.") from None
    return _passed_back(response, peer, request.url.path)


def _outgoing(
    request: Request, client: httpx.AsyncClient, content: bytes | AsyncIterator[bytes]
) -> httpx.Request:
    return client.build_request(
        request.method,
        request.url.path,
        params=str(request.query_params) or None,
        headers={**_headers(request.headers), CALLER: current_caller(request)},
        content=content,
    )


def _passed_back(response: httpx.Response, peer: str, path: str) -> StreamingResponse:
    back = {name: response.headers[name] for name in PASSED_BACK if name in response.headers}
    return StreamingResponse(_pieces(response, peer, path), response.status_code, headers=back)


@contextmanager
def unreachable_as_problem(peer: str, retry_after_s: int) -> Iterator[None]:
    """What httpx raises about `peer`, as what the caller is told."""
    try:
        yield
    except httpx.TimeoutException:
        raise DeadlineExceeded(f"The {peer} service took too long.") from None
    except httpx.HTTPError as error:
        log.warning("peer unreachable", peer=peer, reason=repr(error))
        raise Unavailable(
            f"The {peer} service is not available.",
            retry_after_s=retry_after_s,
            code=f"{peer}_unavailable",
        ) from None


def _headers(incoming: Headers) -> Mapping[str, str]:
    kept = {name: incoming[name] for name in PASSED_ON if name in incoming}
    return {**kept, REQUEST_ID: current_request_id()}


async def _pieces(response: httpx.Response, peer: str, path: str) -> AsyncIterator[bytes]:
    try:
        async for piece in response.aiter_raw():
            yield piece
    except httpx.HTTPError as error:
        log.warning("peer broke off", peer=peer, reason=repr(error))
        if not response.headers.get("content-type", "").startswith("text/event-stream"):
            raise  # The connection is cut short: the caller sees that the answer is incomplete.
        yield _last_event(peer, path)
    finally:
        await response.aclose()


def _last_event(peer: str, path: str) -> bytes:
    problem: Problem = Unavailable(
        f"The {peer} service broke off.", retry_after_s=1, code=f"{peer}_broke_off"
    )
    if is_openai_path(path):
        return f"data: {json.dumps(openai_error(problem))}\n\n".encode()
    return f"event: error\ndata: {problem.body().model_dump_json()}\n\n".encode()
