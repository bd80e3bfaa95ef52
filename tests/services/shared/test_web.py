"""The face that every service has: what is read, what is refused, and in which words."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from typing import Any

import httpx
import pytest
import structlog
from fastapi import FastAPI, Request
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, SecretStr
from structlog.testing import capture_logs

from services.shared.errors import Malformed, ProblemBody, TooLarge
from services.shared.settings import ServiceSettings
from services.shared.web import (
    CALLER,
    NOBODY,
    BodyLimit,
    ClientGone,
    KeyCheck,
    create_web_app,
    current_request_id,
    parse_json,
    until_hang_up,
)

LIMIT = 1_024
OUTSIDE = ("203.0.113.9", 40_000)
LOOPBACK = ("127.0.0.1", 40_000)
SECRET = "the secret of /srv/joing/key"
OPENAI = "/v1/chat/completions"


@pytest.fixture(autouse=True)
def _every_level_is_logged() -> Iterator[None]:
    """Services that other tests run in this process have configured its logs."""
    configured = structlog.get_config()
    structlog.reset_defaults()
    yield
    structlog.configure(**configured)


class Cup(BaseModel):
    name: str
    size: float = 1.0


def web_app(**settings: Any) -> FastAPI:
    app = create_web_app(
        "test", ServiceSettings(max_body_bytes=LIMIT, **settings), description="A test."
    )

    @app.post("/cups")
    async def cups(cup: Cup) -> str:
        return current_request_id()

    @app.post("/raw")
    @app.post(OPENAI)
    async def raw(request: Request) -> int:
        return len(await request.body())

    @app.get("/broken")
    @app.get("/v1/models")
    async def broken() -> None:
        raise RuntimeError(SECRET)

    @app.get("/livez")
    async def livez() -> None: ...

    return app


def caller(app: FastAPI | None = None, client: Any = LOOPBACK) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app or web_app(), client=client, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://test")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)  # fmt: skip


@given(json_values)
def test_json_is_read_as_it_was_meant(value: Any) -> None:
    assert parse_json(json.dumps(value).encode()) == value
    assert parse_json(json.dumps(value, ensure_ascii=False).encode("utf-8")) == value


@given(st.binary(max_size=200))
def test_no_body_is_a_crash(body: bytes) -> None:
    with suppress(Malformed):
        parse_json(body)


LOOSE = {
    "duplicate": (b'{"a": 1, "a": 1}', "duplicate_key", "a"),
    "nested duplicate": (b'[{"x": {"b": 1, "c": 2, "b": 3}}]', "duplicate_key", "b"),
    "duplicate spelt with an escape": (b'{"a": 1, "\\u0061": 2}', "duplicate_key", "a"),
    "duplicate of a lone surrogate": (b'{"\\ud800": 1, "\\ud800": 2}', "duplicate_key", "?"),
    "NaN": (b'{"a": [NaN]}', "invalid_json", "body"),
    "Infinity": (b'{"a": Infinity}', "invalid_json", "body"),
    "-Infinity": (b'{"a": -Infinity}', "invalid_json", "body"),
    "infinite by its exponent": (b'{"a": 1e999}', "invalid_json", "body"),
    "more digits than Python reads": (b'{"a": ' + b"1" * 5_000 + b"}", "invalid_json", "body"),
    "byte order mark": (b'\xef\xbb\xbf{"a": 1}', "invalid_json", "body"),
    "UTF-16": ('{"a": 1}'.encode("utf-16"), "invalid_utf8", "body"),
    "Latin-1": ('{"a": "é"}'.encode("latin-1"), "invalid_utf8", "body"),
    "encoded surrogate": (b'{"a": "\xed\xa0\x80"}', "invalid_utf8", "body"),
    "overlong": (b'{"a": "\xc0\xaf"}', "invalid_utf8", "body"),
    "single quotes": (b"{'a': 1}", "invalid_json", "body"),
    "comment": (b"{} // all", "invalid_json", "body"),
    "trailing comma": (b'{"a": 1,}', "invalid_json", "body"),
    "raw control character": (b'{"a": "\x00"}', "invalid_json", "body"),
    "two documents": (b"{}{}", "invalid_json", "body"),
    "nothing": (b"", "invalid_json", "body"),
    "deep": (b'{"a":' * 100_000, "invalid_json", "body"),
    "deep and closed": (b"[" * 100_000 + b"]" * 100_000, "invalid_json", "body"),
}


@pytest.mark.parametrize("case", LOOSE)
def test_looser_than_json_is_refused(case: str) -> None:
    body, code, field = LOOSE[case]
    with pytest.raises(Malformed) as refused:
        parse_json(body)
    assert refused.value.code == code
    assert [error.field for error in refused.value.errors] == [field]


@pytest.mark.parametrize("body", [b'{"name": "a", "name": "b"}', b'{"name": "a", "size": 1e999}'])
async def test_routes_read_strict_json(body: bytes) -> None:
    async with caller() as client:
        answer = await client.post(
            "/cups", content=body, headers={"Content-Type": "application/json"}
        )
    assert answer.status_code == 400
    assert ProblemBody.model_validate(answer.json()).errors


PROBLEMS = {
    "404": ("GET", "/nowhere", {}, 404, "not_found"),
    "405": ("DELETE", "/cups", {}, 405, "method_not_allowed"),
    "413": ("POST", "/cups", {"content": b" " * (LIMIT + 1)}, 413, "too_large"),
    "422": ("POST", "/cups", {"json": {"name": 5, "size": "x"}}, 422, "invalid"),
    "500": ("GET", "/broken", {}, 500, "internal"),
}


@pytest.mark.parametrize("case", PROBLEMS)
async def test_an_error_is_a_problem(case: str) -> None:
    method, path, options, status, code = PROBLEMS[case]
    async with caller() as client:
        answer = await client.request(method, path, **options)
    assert answer.headers["content-type"] == "application/problem+json"
    body = ProblemBody.model_validate(answer.json())
    assert set(answer.json()) == {"type", "title", "status", "detail", "code", "errors"}
    assert (answer.status_code, body.status, body.code) == (status, status, code)
    assert body.type == "about:blank"
    assert body.title
    assert body.detail
    if case == "422":
        assert [error.field for error in body.errors] == ["name", "size"]
    if case == "405":
        assert answer.headers["Allow"] == "POST"


async def test_a_422_never_repeats_what_was_sent() -> None:
    async with caller() as client:
        answer = await client.post("/cups", json={"name": [SECRET], "size": SECRET})
    assert answer.status_code == 422
    assert SECRET not in answer.text


@pytest.mark.parametrize("path", ["/broken", "/v1/models"])
async def test_a_bug_stays_in_the_log(path: str) -> None:
    with capture_logs() as lines:
        async with caller() as client:
            answer = await client.get(path, headers={"X-Request-Id": "r-1"})
    assert answer.status_code == 500
    for inner in (SECRET, "/srv", "RuntimeError", "Traceback", __file__, path):
        assert inner not in answer.text
    assert SECRET in repr(next(line["exc_info"] for line in lines if "exc_info" in line))


async def test_a_bug_can_be_found_by_its_request_id() -> None:
    with capture_logs() as lines:
        async with caller() as client:
            answer = await client.get("/broken", headers={"X-Request-Id": "r-1"})
    assert answer.headers["X-Request-Id"] == "r-1"
    assert [line["status"] for line in lines if line["event"] == "request"] == [500]


@pytest.mark.parametrize(
    ("method", "path", "options", "status", "kind"),
    [
        ("GET", "/v1/models", {}, 500, "server_error"),
        ("GET", "/v1/models/none", {}, 404, "invalid_request_error"),
        ("GET", OPENAI, {}, 405, "invalid_request_error"),
        ("POST", OPENAI, {"content": b" " * (LIMIT + 1)}, 413, "invalid_request_error"),
    ],
)
async def test_openai_paths_have_openai_errors(
    method: str, path: str, options: Any, status: int, kind: str
) -> None:
    async with caller() as client:
        answer = await client.request(method, path, **options)
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/json")
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == kind


async def test_openai_paths_refuse_keys_in_openais_words() -> None:
    async with caller(web_app(api_keys=SecretStr("k"))) as client:
        answer = await client.get("/v1/models")
    assert (answer.status_code, answer.json()["error"]["code"]) == (401, "unauthorized")
    assert answer.headers["WWW-Authenticate"] == "Bearer"


@pytest.mark.parametrize("offered", ["a", "A-z_0.9", "x" * 64])
async def test_a_request_id_is_kept_and_given_back(offered: str) -> None:
    async with caller() as client:
        answer = await client.post("/cups", json={"name": "a"}, headers={"X-Request-Id": offered})
    assert answer.headers["X-Request-Id"] == answer.json() == offered


@pytest.mark.parametrize("offered", [None, "", "x" * 65, "a b", "a/b", "{x}", "é", "a,b"])
async def test_a_malformed_request_id_is_replaced(offered: str | None) -> None:
    headers = {} if offered is None else {"X-Request-Id": offered.encode("utf-8")}
    async with caller() as client:
        answer = await client.post("/cups", json={"name": "a"}, headers=headers)
        second = await client.post("/cups", json={"name": "a"}, headers=headers)
    assert re.fullmatch("[0-9a-f]{32}", answer.headers["X-Request-Id"])
    assert answer.json() == answer.headers["X-Request-Id"] != second.json()


@pytest.mark.parametrize("path", ["/nowhere", "/broken", "/livez"])
async def test_every_answer_has_a_request_id(path: str) -> None:
    async with caller(web_app(api_keys=SecretStr("k"))) as client:
        for headers in ({}, {"Authorization": "Bearer k"}):
            assert (await client.get(path, headers=headers)).headers["X-Request-Id"]


@pytest.mark.parametrize(
    ("client", "is_let_in"),
    [
        (LOOPBACK, True),
        (("127.9.9.9", 1), True),
        (("::1", 1), True),
        (None, True),  # a Unix socket
        (("", 0), True),  # a Unix socket, as uvicorn writes it
        (OUTSIDE, False),
        (("10.0.0.7", 1), False),
        (("::ffff:203.0.113.9", 1), False),
        (("127.0.0.1.example.org", 1), False),
        (("example.org", 1), False),
    ],
)
async def test_without_keys_only_this_machine_may_call(client: Any, is_let_in: bool) -> None:
    async with caller(client=client) as someone:
        answer = await someone.post("/cups", json={"name": "a"})
        alive = await someone.get("/livez")
    assert answer.status_code == (200 if is_let_in else 403)
    assert is_let_in or answer.json()["code"] == "no_key_configured"
    assert alive.status_code == 200


@pytest.mark.parametrize(
    ("authorization", "status"),
    [
        ("Bearer first", 200),
        ("bearer second", 200),
        ("Bearer  second ", 200),
        ("Bearer third", 401),
        ("Bearer first,second", 401),
        ("Bearer firs", 401),
        ("Bearer", 401),
        ("Bearer ", 401),
        ("Basic first", 401),
        ("first", 401),
        ("Bearer é", 401),
        (None, 401),
    ],
)
@pytest.mark.parametrize("client", [LOOPBACK, OUTSIDE])
async def test_with_keys_everyone_needs_one(
    authorization: str | None, status: int, client: Any
) -> None:
    app = web_app(api_keys=SecretStr("first,second"))
    headers = {"Authorization": authorization.encode()} if authorization is not None else {}
    async with caller(app, client) as someone:
        answer = await someone.post("/cups", json={"name": "a"}, headers=headers)
        assert (await someone.get("/docs")).status_code == 401
    assert answer.status_code == status


CALLER_ID = "0123456789abcdef"
UNTOLD = "f" * 15


@pytest.mark.parametrize(
    ("keys", "sent", "told", "caller"),
    [
        ("one,two", "one", CALLER_ID, CALLER_ID),
        ("one,two", "two", CALLER_ID, hashlib.sha256(b"two").hexdigest()[:16]),
        ("one,two", "one", UNTOLD, hashlib.sha256(b"one").hexdigest()[:16]),
        ("", "", CALLER_ID, CALLER_ID),
        ("", "anything", "", NOBODY),
    ],
)
def test_only_the_key_of_the_services_may_call_for_another(
    keys: str, sent: str, told: str, caller: str
) -> None:
    check = KeyCheck(web_app(), tuple(filter(None, keys.split(","))))
    headers = [
        (b"authorization", f"Bearer {sent}".encode()),
        (CALLER.lower().encode(), told.encode()),
    ]
    assert check.caller({"type": "http", "headers": headers}) == caller


def test_a_key_is_compared_as_it_is() -> None:
    check = KeyCheck(web_app(), ("",))
    scope = {"type": "http", "headers": [(b"authorization", b"Bearer x")], "client": OUTSIDE}
    assert check.refusal(scope) is not None


async def test_a_chunked_body_is_stopped_at_the_limit() -> None:
    sent = 0

    async def pieces() -> AsyncIterator[bytes]:
        nonlocal sent
        for _ in range(100):
            sent += 256
            yield b" " * 256

    async with caller() as client:
        answer = await client.post(
            "/cups", content=pieces(), headers={"Content-Type": "application/json"}
        )
    assert (answer.status_code, answer.json()["code"]) == (413, "too_large")
    assert sent <= LIMIT + 256


@pytest.mark.parametrize(("size", "status"), [(LIMIT, 200), (LIMIT + 1, 413)])
@pytest.mark.parametrize("declared", [True, False])
async def test_the_limit_is_the_last_size_that_is_taken(
    size: int, status: int, declared: bool
) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield b"a" * (size - 1)
        yield b"a"

    async with caller() as client:
        answer = await client.post("/raw", content=b"a" * size if declared else pieces())
    assert answer.status_code == status


@pytest.mark.parametrize("declared", [b"-1", b"1e9", b"\xb2", b"", b"0x10"])
async def test_a_strange_length_is_not_believed(declared: bytes) -> None:
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"a" * (LIMIT + 1)}

    async def send(message: Any) -> None:
        sent.append(message)

    async def application(scope: Any, receive: Any, send: Any) -> None:
        await receive()

    scope = {"type": "http", "path": "/", "headers": [(b"content-length", declared)]}
    limited = BodyLimit(application, LIMIT)
    with pytest.raises(TooLarge):
        await limited(scope, receive, send)


class Line:
    """The caller's end of a request, at the level of ASGI."""

    def __init__(self) -> None:
        self.hung_up = asyncio.Event()
        self.request = Request({"type": "http", "method": "GET"}, self.receive)

    async def receive(self) -> dict[str, Any]:
        await self.hung_up.wait()
        return {"type": "http.disconnect"}


async def test_hanging_up_cancels_the_work() -> None:
    line, ended = Line(), asyncio.Event()

    async def work() -> None:
        line.hung_up.set()
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0)
            ended.set()

    with pytest.raises(ClientGone):
        await asyncio.wait_for(until_hang_up(line.request, work()), 5)
    assert ended.is_set()


async def test_work_that_ends_first_counts() -> None:
    line = Line()

    async def work() -> str:
        return "done"

    async def fault() -> str:
        raise ValueError("fault")

    assert await until_hang_up(line.request, work()) == "done"
    with pytest.raises(ValueError, match="fault"):
        await until_hang_up(line.request, fault())


async def test_nothing_is_left_running() -> None:
    line, before = Line(), asyncio.all_tasks()

    async def work() -> None:
        await asyncio.sleep(60)

    waiting = asyncio.create_task(until_hang_up(line.request, work()))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert asyncio.all_tasks() == before


async def test_a_request_whose_caller_hung_up_is_logged_as_such() -> None:
    app = web_app()

    @app.get("/slow")
    async def slow(request: Request) -> None:
        await until_hang_up(request, asyncio.sleep(60))

    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    scope = {
        "type": "http",
        "method": "GET",
        "path": "/slow",
        "raw_path": b"/slow",
        "root_path": "",
        "query_string": b"",
        "headers": [],
        "client": LOOPBACK,
        "server": ("test", 80),
        "scheme": "http",
        "http_version": "1.1",
        "asgi": {"version": "3.0"},
    }
    with capture_logs() as lines:
        await asyncio.wait_for(app(scope, receive, send), 5)
    assert [line["status"] for line in lines] == [499]
