"""The vetting service over HTTP: a fake YouTube, a reader that knows the labels, a database."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from pydantic import SecretStr

from services.vetting.app import Parts, create_app
from services.vetting.settings import VettingSettings
from tests.fakes.scripted_llm import served, served_app
from tests.fakes.scripted_vetter import ScriptedReader, ScriptedVetter
from tests.youtube.described import Channels
from tests.youtube.server import KEY, FakeYouTube, serve_youtube

PICTURES = "https://i.ytimg.com"
CALL_TIMEOUT_S = 5.0
SLOW_S = 3.0
VET = "/v1/creators/vet"


@dataclass
class Vetting:
    """One running service. `name`s are those of files in tests/youtube/channels."""

    client: httpx.Client
    channels: Channels
    app: FastAPI

    def ask(self, name: str, **body: Any) -> httpx.Response:
        body = {"channel": self.channels[name].id, **body}
        return self.client.post(VET, json=body, headers={"X-Request-Id": name})

    def vet(self, name: str, **body: Any) -> dict[str, Any]:
        answer = self.ask(name, **body)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def events(self, name: str, path: str = f"{VET}/stream", **headers: str) -> list[Any]:
        """(name, data) of every event."""
        body = {"channel": self.channels[name].id}
        headers = {"X-Request-Id": name, **headers}
        with self.client.stream("POST", path, json=body, headers=headers) as answer:
            assert answer.headers["content-type"].startswith("text/event-stream")
            return list(parsed(answer.iter_lines()))


def parsed(lines: Iterator[str]) -> Iterator[tuple[str, Any]]:
    name = ""
    for line in lines:
        if line.startswith("event: "):
            name = line.removeprefix("event: ")
        if line.startswith("data: "):
            yield name, json.loads(line.removeprefix("data: "))


Serve = Callable[..., AbstractContextManager[Vetting]]


@pytest.fixture(scope="session")
def channels() -> Channels:
    return Channels.load()


@pytest.fixture(scope="session")
def _served_youtube(channels: Channels) -> Iterator[FakeYouTube]:
    with serve_youtube(channels, picture_base_url=PICTURES, slow_s=SLOW_S) as youtube:
        yield youtube


@pytest.fixture
def fake(_served_youtube: FakeYouTube) -> FakeYouTube:
    _served_youtube.reset()
    return _served_youtube


@pytest.fixture(scope="session")
def _vetter(channels: Channels) -> Iterator[ScriptedVetter]:
    with served(ScriptedVetter(channels=channels)) as llm:
        yield llm


@pytest.fixture
def reader_llm(_vetter: ScriptedVetter) -> ScriptedVetter:
    _vetter.reset()
    return _vetter


@pytest.fixture
def serve(fake: FakeYouTube, reader_llm: ScriptedVetter, tmp_path: Path) -> Serve:
    """A service of its own for one test. Settings are as given; `parts` replaces adapters."""

    @contextmanager
    def serve_one(parts: Parts | None = None, **settings: Any) -> Iterator[Vetting]:
        given = settings_for(fake, reader_llm, tmp_path, **settings)
        app = create_app(given, parts or scripted_parts(fake.channels))
        with served_app(app) as url, httpx.Client(base_url=url, timeout=60) as client:
            yield Vetting(client, fake.channels, app)

    return serve_one


def scripted_parts(channels: Channels) -> Parts:
    return Parts(reader=lambda settings: ScriptedReader(channels))


def settings_for(
    youtube: FakeYouTube, llm: ScriptedVetter, home: Path, **settings: Any
) -> VettingSettings:
    return VettingSettings(
        **{
            "youtube_key": SecretStr(KEY),
            "youtube_url": youtube.base_url,
            "pictures_url": youtube.base_url,
            "llm_url": llm.base_url,
            "home": home,
            "vision": True,
            "cache_ttl_s": 0.0,
            "call_timeout_s": CALL_TIMEOUT_S,
            "youtube_timeout_s": 0.5,
            "youtube_deadline_s": 4.0,
            "thumbnail_timeout_s": 1.0,
            "deadline_s": 20.0,
            "log_level": "error",
            **settings,
        }
    )
