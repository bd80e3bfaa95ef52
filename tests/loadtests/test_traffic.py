"""What is sent is what the services take, never twice the same; wrong answers are told from right.

The server of canned answers stands for faults that a real one would need luck to show; it speaks
HTTP over a socket.
"""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from loadtests.mixes.reading import Mix
from loadtests.traffic import texts
from loadtests.traffic.base import Attempt, Refused, Unavailable, Wrong
from loadtests.traffic.chat import ChatOptions, Chats
from loadtests.traffic.classes import TRAFFIC
from loadtests.traffic.evaluation import EvaluationOptions, Evaluations
from loadtests.traffic.images import ImageOptions, Images
from loadtests.traffic.probe import ProbeOptions, Probes
from loadtests.traffic.storyboards import StoryboardOptions, Storyboards
from loadtests.traffic.vetting import VettingOptions, Vettings
from loadtests.traffic.wire import BROKEN, BadAddress, Connections, Message, checked_url
from services.images.schemas import ImageGeneration
from services.shared.proposals import CONTENT_CHARACTERS, Proposal
from services.storyboard.schemas import StoryboardRequest
from services.vetting.schemas import VetRequest

NOWHERE = Connections("http://127.0.0.1:9")
OK = b"HTTP/1.1 200 OK\r\n"
STREAM = OK + b"Content-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
FACTS: dict[str, dict[str, Any]] = {
    "chat": {"model": "m"},
    "images": {"loras": ["ink", "pen"], "vocabulary": {"who": ["a cook"]}, "trigger": "drawn"},
    "vetting": {"channels": [f"@channel{number}" for number in range(300)]},
}


def made(kind: str, seed: int = 1, **options: Any) -> Any:
    traffic = TRAFFIC[kind]
    return traffic(kind, traffic.options(**options), FACTS.get(kind, {}), seed)


def body_of(message: Message) -> Any:
    return json.loads(message.body)


def accepted_by_the_services(kind: str, body: Any) -> None:
    match kind:
        case "evaluation":
            Proposal.model_validate(body)
        case "storyboards":
            StoryboardRequest.model_validate(body)
        case "images":
            ImageGeneration.model_validate(body)
        case "vetting":
            VetRequest.model_validate(body)
        case "chat":
            assert body["stream"] is True
            assert 32 <= body["max_tokens"] <= 128


@pytest.mark.parametrize("kind", ["evaluation", "storyboards", "images", "vetting", "chat"])
def test_requests_are_valid_unlike_each_other_and_the_same_again(kind: str) -> None:
    first = [made(kind).prepare(NOWHERE, item) for item in range(200)]
    for message in first:
        accepted_by_the_services(kind, body_of(message))
    assert len({message.body for message in first}) == 200
    assert first == [made(kind).prepare(NOWHERE, item) for item in range(200)]
    others = [made(kind, seed=2).prepare(NOWHERE, item).body for item in range(200)]
    if kind != "vetting":  # there are only so many channels
        assert not {message.body for message in first} & set(others)


def test_texts_are_of_both_languages_and_of_many_lengths() -> None:
    drawn = [
        texts.proposal(item, "ko" if item % 2 else "en", seed=1, name="x", repeats=False)
        for item in range(400)
    ]
    for text in drawn:
        assert Proposal.model_validate(text).answer_language == text["language"]
    lengths = sorted(len(text["content"]) for text in drawn)
    assert lengths[-1] <= CONTENT_CHARACTERS
    assert lengths[360] > 2 * lengths[40]
    assert len({text["title"] for text in drawn}) == len(drawn)
    repeated = [texts.proposal(i, "en", seed=1, name="x", repeats=True) for i in range(400)]
    assert len({text["title"] for text in repeated}) < len(texts.proposals()["en"]) + 1


def test_options_decide_what_is_sent() -> None:
    images = made("images", loras={"any": 1}, sizes={"64x64": 1}, steps={"3": 1}, n=2)
    body = body_of(images.prepare(NOWHERE, 0))
    assert body["model"] in ("ink", "pen")
    assert (body["size"], body["steps"], body["n"]) == ("64x64", 3, 2)
    assert "deadline_s" not in body
    streamed = made("evaluation", streamed=1.0, languages={"ko": 1})
    message = streamed.prepare(NOWHERE, 5)
    assert message.head.startswith(b"POST /v1/proposals/evaluate/stream HTTP/1.1")
    assert body_of(message)["language"] == "ko"


def test_channels_that_do_not_suffice_are_told(tmp_path: Path) -> None:
    file = tmp_path / "channels"
    file.write_text("# ours\n@one\n\n@two\n", "utf-8")
    options = VettingOptions(channels_file=str(file))
    assert Vettings.discover(NOWHERE, options, 2) == {"channels": ["@one", "@two"]}
    with pytest.raises(Unavailable, match="3 vettings are due and there are 2"):
        Vettings.discover(NOWHERE, options, 3)
    with pytest.raises(Unavailable, match="--channels"):
        Vettings.discover(NOWHERE, VettingOptions(), 1)
    with pytest.raises(Unavailable, match="cannot be read"):
        Vettings.discover(NOWHERE, VettingOptions(channels_file="none"), 1)


@pytest.mark.parametrize("url", ["", "localhost:3000", "ftp://a", "http://", "http://a:x"])
def test_an_address_that_is_none_is_told_with_one_that_is(url: str) -> None:
    with pytest.raises(BadAddress, match=r"http://127\.0\.0\.1:3000"):
        checked_url(url)


@contextmanager
def answering(
    *answers: bytes, gap_s: float = 0.0, keep: bool = True
) -> Iterator[tuple[Connections, list[bytes]]]:
    """A server whose n-th request gets the n-th answer; `gap_s` before each line of an answer."""
    listener = socket.create_server(("127.0.0.1", 0))
    heads: list[bytes] = []
    left = list(answers)

    def talk(connection: socket.socket) -> None:
        with connection:
            while left:
                head = b""
                while b"\r\n\r\n" not in head:
                    if not (piece := connection.recv(65_536)):
                        return
                    head += piece
                heads.append(head)
                for line in left.pop(0).splitlines(keepends=True) if gap_s else [left.pop(0)]:
                    time.sleep(gap_s)
                    connection.sendall(line)
                if not keep:
                    return

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=talk, args=(connection,), daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    http = Connections(f"http://127.0.0.1:{listener.getsockname()[1]}")
    try:
        yield http, heads
    finally:
        http.close()
        listener.close()


def whole(body: Any, status: bytes = b"200 OK", headers: bytes = b"") -> bytes:
    content = json.dumps(body).encode()
    return b"HTTP/1.1 %s\r\n%sContent-Length: %d\r\n\r\n%s" % (
        status,
        headers,
        len(content),
        content,
    )


def stream(*events: tuple[str, Any], ends: bool = True) -> bytes:
    said = b""
    for name, data in events:
        text = data if isinstance(data, str) else json.dumps(data)
        piece = f"event: {name}\ndata: {text}\n\n".encode()
        said += b"%x\r\n%s\r\n" % (len(piece), piece)
    return STREAM + said + (b"0\r\n\r\n" if ends else b"")


def performed(traffic: Any, *answers: bytes, **how: Any) -> Attempt:
    attempt = Attempt(time.monotonic)
    with answering(*answers, **how) as (http, _):
        traffic.perform(http, traffic.prepare(http, 0), attempt)
    return attempt


def evaluation(**changed: Any) -> dict[str, Any]:
    stages = [{"name": "content", "review_reasons": changed.pop("reasons", [])}]
    return {"id": "e", "verdict": "pass", "duration_ms": 250.0, "stages": stages, **changed}


JSON_EVALUATIONS: Callable[[], Evaluations] = lambda: made("evaluation", streamed=0.0)  # noqa: E731
STREAMED: Callable[[], Evaluations] = lambda: made("evaluation", streamed=1.0)  # noqa: E731


def test_an_evaluation_with_a_verdict_is_right() -> None:
    attempt = performed(JSON_EVALUATIONS(), whole(evaluation()))
    assert (attempt.status, attempt.service_s) == (200, 0.25)
    told = [("stage", {}), ("token", {"text": "a"}), ("token", {"text": "b"})]
    attempt = performed(STREAMED(), stream(*told, ("result", evaluation(verdict="review"))))
    assert attempt.tokens == 2
    assert attempt.first_s is not None
    assert attempt.detail["verdict"] == "review"


@pytest.mark.parametrize(
    ("traffic", "answer", "raised", "told"),
    [
        (JSON_EVALUATIONS, whole(evaluation(verdict="maybe")), Wrong, "no verdict"),
        (JSON_EVALUATIONS, whole(evaluation(reasons=["timeout"])), Wrong, "stage timeout"),
        (JSON_EVALUATIONS, whole([1]), Wrong, "no object"),
        (JSON_EVALUATIONS, OK + b"Content-Length: 3\r\n\r\nabc", Wrong, "no JSON"),
        (
            JSON_EVALUATIONS,
            whole({"code": "busy"}, b"503 Busy", b"Retry-After: 7\r\n"),
            Refused,
            "503 busy",
        ),
        (JSON_EVALUATIONS, whole({"error": {"code": "x"}}, b"500 No"), Wrong, "500 x"),
        (JSON_EVALUATIONS, whole({}, b"504 Late"), Wrong, "504"),
        (STREAMED, stream(("stage", {})), Wrong, "no result"),
        (STREAMED, stream(("error", {"code": "busy"})), Wrong, "error event busy"),
        (STREAMED, stream(("result", evaluation()), ends=False), BROKEN, None),
        (JSON_EVALUATIONS, OK + b"Content-Length: 99\r\n\r\n{}", BROKEN, None),
        (JSON_EVALUATIONS, b"\x00\x01\x02\r\n\r\n", BROKEN, None),
    ],
)
def test_answers_that_are_not_right_are_told_apart(
    traffic: Callable[[], Any], answer: bytes, raised: Any, told: str | None
) -> None:
    with pytest.raises(raised, match=told):
        performed(traffic(), answer, keep=False)


def test_a_refusal_says_when_to_come_back() -> None:
    attempt = Attempt(time.monotonic)
    answer = whole({"code": "busy"}, b"429 Slow", b"Retry-After: 7\r\n")
    with answering(answer) as (http, _), pytest.raises(Refused):
        JSON_EVALUATIONS().perform(http, JSON_EVALUATIONS().prepare(http, 0), attempt)
    assert (attempt.status, attempt.retry_after_s) == (429, 7.0)


def test_a_chat_is_right_when_it_is_finished() -> None:
    def piece(text: str | None, finish: str | None = None) -> tuple[str, Any]:
        return "message", {"choices": [{"delta": {"content": text}, "finish_reason": finish}]}

    usage = ("message", {"choices": [], "usage": {"completion_tokens": 9}})
    done = ("message", "[DONE]")
    attempt = performed(
        made("chat"), stream(piece(""), piece("a"), piece("b", "stop"), usage, done)
    )
    assert attempt.tokens == 9
    with pytest.raises(Wrong, match="cut off"):
        performed(made("chat"), stream(piece("a")))
    with pytest.raises(Wrong, match="cut off"):
        performed(made("chat"), stream(piece("a", "stop")))
    with pytest.raises(Wrong, match="error event"):
        performed(made("chat"), stream(piece("a"), ("message", {"error": {"message": "x"}})))
    with pytest.raises(Wrong, match="finished by abort"):
        performed(made("chat"), stream(piece("a", "abort"), done))


def test_a_picture_is_right_when_it_is_whole() -> None:
    png = (
        "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAA"
        "AgABSK+kcQAAAABJRU5ErkJggg=="
    )
    picture = {"b64_json": png, "duration_ms": 40.0, "lora": None, "steps": 4}
    assert performed(made("images"), whole({"data": [picture]})).service_s == 0.04
    with pytest.raises(Wrong, match="missing"):
        performed(made("images"), whole({"data": []}))
    with pytest.raises(Wrong, match="no whole picture"):
        performed(made("images"), whole({"data": [{**picture, "b64_json": png[:-16]}]}))


BOARD = {"id": "b", "state": "done", "frames": [{"state": "done"}, {"state": "failed"}]}


def test_a_storyboard_is_followed_to_its_end() -> None:
    accepted = whole({"id": "b"}, b"202 Accepted")
    listened = made("storyboards", followed=1.0)
    frame = ("frame", {"n": 1, "state": "done"})
    attempt = performed(listened, accepted, stream(("stage", {}), frame, ("result", BOARD)))
    assert attempt.detail["frames_missing"] == 1
    assert "first_frame_s" in attempt.detail
    polled = made("storyboards", followed=0.0, poll_s=0.05)
    attempt = performed(polled, accepted, whole({**BOARD, "state": "drawing"}), whole(BOARD))
    assert attempt.detail["frames"] == 1


def test_a_storyboard_that_is_given_up_is_cancelled() -> None:
    listened = made("storyboards", followed=1.0)
    accepted = whole({"id": "b"}, b"202 Accepted")
    failing = (accepted, stream(("error", {"code": "x"})), whole({}))
    with answering(*failing) as (http, heads), pytest.raises(Wrong, match="failed x"):
        listened.perform(http, listened.prepare(http, 0), Attempt(time.monotonic))
    assert [head.split(b" HTTP")[0] for head in heads[1:]] == [
        b"GET /v1/storyboards/b/events",
        b"DELETE /v1/storyboards/b",
    ]


def test_the_first_event_is_seen_when_it_comes_not_when_a_block_is_full() -> None:
    """Each line of the answer comes 0.05 s after the one before."""
    streamed = Probes("p", ProbeOptions(streamed=True), {}, 1)
    began = time.monotonic()
    attempt = performed(streamed, stream(*[("token", "x")] * 6), gap_s=0.05)
    assert attempt.first_s is not None
    assert attempt.last_token_s is not None
    # Of 34 lines; a reader of blocks would see the first with the last.
    assert attempt.first_s - began < 0.5 * (attempt.last_token_s - began)
    assert attempt.tokens == 6


def test_a_connection_is_used_again_and_a_broken_one_is_not_retried() -> None:
    probe = Probes("p", ProbeOptions(), {}, 1)
    with answering(whole({}), whole({}), b"", whole({}), keep=True) as (http, heads):
        for _ in range(2):
            probe.perform(http, probe.prepare(http, 0), Attempt(time.monotonic))
        assert http.opened == 1
    with answering(b"", whole({}), keep=False) as (http, heads):
        with pytest.raises(BROKEN):
            probe.perform(http, probe.prepare(http, 0), Attempt(time.monotonic))
        assert len(heads) == 1


def test_the_server_is_told_how_long_the_answer_is_of_use() -> None:
    probe = Probes("p", ProbeOptions(), {}, 1)
    with answering(whole({})) as (http, heads):
        probe.perform(http, probe.prepare(http, 0), Attempt(time.monotonic, within_ms=250))
    assert b"\r\nX-Deadline-Ms: 250\r\n" in heads[0]


def test_a_server_that_is_not_joing_is_told(tmp_path: Path) -> None:
    with answering(whole({}, b"404 No")) as (http, _), pytest.raises(Unavailable, match="llm"):
        Chats.discover(http, ChatOptions(), 1)
    with answering(whole({"data": []})) as (http, _), pytest.raises(Unavailable, match="no model"):
        Chats.discover(http, ChatOptions(), 1)
    loras = {"data": [{"name": "ink"}], "base": {"vocabulary": None, "trigger": ""}}
    with answering(whole(loras)) as (http, _), pytest.raises(Unavailable, match="no LoRA oil"):
        Images.discover(http, ImageOptions(loras={"oil": 1}), 1)
    assert Storyboards.discover(NOWHERE, StoryboardOptions(), 1) == {}
    assert Evaluations.discover(NOWHERE, EvaluationOptions(), 1) == {}


def test_every_kind_can_be_named_in_a_mix() -> None:
    share = {"share": 1 / len(TRAFFIC), "within_s": 1}
    classes = {f"my-{kind}": {**share, "traffic": kind} for kind in TRAFFIC}
    mix = Mix.model_validate({"name": "m", "rate": 1, "duration_s": 9, "classes": classes})
    assert {mix.kind_of(name) for name in mix.classes} == set(TRAFFIC)
