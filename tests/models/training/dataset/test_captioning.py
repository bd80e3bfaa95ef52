"""A caption is a whole answer in one line, or a failure that says why; every wait ends."""

from __future__ import annotations

from collections.abc import Iterator
from io import BytesIO

import pytest

from models.training.dataset import captioning
from models.training.dataset.captioning import (
    Captioner,
    CaptioningFailed,
    CaptioningRefused,
    Seer,
)
from models.training.errors import DatasetUnusable
from tests.models.training.dataset.conftest import drawn
from tests.models.training.dataset.seeing_server import Act, SeeingServer, seeing_server


@pytest.fixture
def server() -> Iterator[SeeingServer]:
    with seeing_server() as running:
        yield running


def png() -> bytes:
    stream = BytesIO()
    drawn(1, (64, 48)).save(stream, "PNG")
    return stream.getvalue()


def asked(server: SeeingServer, *acts: Act, timeout_s: float = 5.0, key: str = "") -> str:
    server.acts.extend(acts)
    with Captioner(Seer(server.url, "eyes", timeout_s=timeout_s, api_key=key)) as captioner:
        return captioner.caption(png())


def test_the_model_sees_the_picture_and_the_grammar(server: SeeingServer) -> None:
    assert asked(server, key="secret").startswith("a 64 by 48 grey ")
    (call,) = server.calls
    assert call["model"] == "eyes"
    assert "<who> <doing what> in <place>" in call["messages"][0]["content"]
    assert server.keys == ["Bearer secret"]


def test_an_answer_becomes_one_bare_line(server: SeeingServer) -> None:
    assert asked(server, Act('"A dog,\nin a park."\n')) == "A dog, in a park."


@pytest.mark.parametrize(
    "act",
    [
        Act(refusal="This shows a person."),
        Act("", finish_reason="content_filter"),
        Act("I’m sorry, but I can't describe people."),
        Act("I cannot help with that."),
    ],
)
def test_a_refusal_is_named(server: SeeingServer, act: Act) -> None:
    with pytest.raises(CaptioningRefused, match="refused"):
        asked(server, act)
    assert len(server.calls) == 1


@pytest.mark.parametrize(
    ("act", "why"),
    [
        (Act("a dog in a", finish_reason="length"), "broke off"),
        (Act(None), "broke off"),
        (Act(" \n"), "0 characters"),
        (Act("dog " * 200), "799 characters"),
        (Act(body=b"<html>"), "no JSON"),
        (Act(body=b"[]"), "no chat completion"),
        (Act(body=b'{"choices": []}'), "no chat completion"),
        (Act(body=b" " * 1_100_000), "bytes long"),
    ],
)
def test_half_an_answer_is_a_failure(server: SeeingServer, act: Act, why: str) -> None:
    with pytest.raises(CaptioningFailed, match=why) as raised:
        asked(server, act)
    assert not isinstance(raised.value, CaptioningRefused)


def test_a_busy_server_is_asked_again(
    server: SeeingServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(captioning, "FIRST_PAUSE_S", 0.01)
    assert asked(server, Act(status=503), Act(hangs_up=True)).startswith("a 64 by 48")
    with pytest.raises(CaptioningFailed, match="said 429, 3 times"):
        asked(server, *[Act(status=429)] * 3)


@pytest.mark.parametrize("act", [Act("a dog", delay_s=1.5), Act("a dog", trickle_s=0.05)])
def test_a_slow_answer_is_not_waited_for(server: SeeingServer, act: Act) -> None:
    with pytest.raises(CaptioningFailed, match=r"no answer within 0\.3 s"):
        asked(server, act, timeout_s=0.3)
    assert len(server.calls) == 1


@pytest.mark.parametrize("status", [400, 401, 404, 422])
def test_what_no_repeating_mends_ends_the_run(server: SeeingServer, status: int) -> None:
    with pytest.raises(DatasetUnusable, match=f"says {status}.*no images here.*model that can see"):
        asked(server, Act(status=status, body=b"no images here"))
    assert len(server.calls) == 1


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/v1", "127.0.0.1/v1"])
def test_no_server_ends_the_run(url: str) -> None:
    with Captioner(Seer(url, "eyes")) as captioner, pytest.raises(DatasetUnusable, match="answer"):
        captioner.caption(png())
