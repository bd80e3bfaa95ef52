"""The storyboard service over HTTP: a scripted writer, the real deliberation, the real engine with
the embedded image model.
"""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from services.evaluation.app import create_app as create_evaluation
from services.evaluation.settings import EvaluationSettings
from services.images.app import create_app as create_images
from services.images.app import metrics
from services.images.settings import ImagesSettings
from services.storyboard.app import create_app
from services.storyboard.settings import StoryboardSettings
from tests.fakes.scripted_llm import served, served_app
from tests.fakes.scripted_writer import ScriptedWriter

READY_WITHIN_S = 120.0
DONE_WITHIN_S = 60.0
STORYBOARDS = "/v1/storyboards"
PASSED_ON = ("content-type", "idempotency-key")


@dataclass(frozen=True)
class Images:
    """The images service, with few steps so that a frame takes a moment."""

    base_url: str
    app: FastAPI

    def live(self) -> int:
        now = self.app.state.opening.studio.engine.snapshot()
        return now.waiting + now.running + now.parked

    def drawn(self) -> int:
        """Pictures that were finished, ever. They are counted a moment after they are given."""
        time.sleep(0.2)
        return finished(metrics(self.app))

    @contextmanager
    def slowly(self) -> Iterator[None]:
        """Frames take a thousand times as long meanwhile."""
        opening = self.app.state.opening
        drawer = opening.studio.drawer
        usual = drawer._model
        drawer._model = replace(usual, steps=50)
        try:
            yield
        finally:
            drawer._model = usual

    @contextmanager
    def failing(self, scenes: set[int], busy: int = 0) -> Iterator[Failing]:
        """An images service in front of this one, where pictures of some scenes always fail and
        the first `busy` requests are told to come back.
        """
        failing = Failing(self.base_url, scenes, busy)
        with served_app(failing.app()) as base_url:
            failing.base_url = base_url
            yield failing


def finished(text: str) -> int:
    """Of an images service's /metrics."""
    found = re.search(r'joing_images_ended_total\{outcome="finished"\} ([0-9.]+)', text)
    return int(float(found[1])) if found else 0


@dataclass
class Failing:
    """Passes requests on to images, except those that are to fail."""

    images_url: str
    scenes: set[int]
    busy: int
    base_url: str = ""
    asked: Counter[str] = field(default_factory=Counter)
    waits: dict[str, float] = field(default_factory=dict)
    _told: dict[str, float] = field(default_factory=dict)

    def app(self) -> Starlette:
        route = Route("/{path:path}", self.answer, methods=["GET", "POST"])
        return Starlette(routes=[route])

    async def answer(self, request: Request) -> Response:
        key = request.headers.get("idempotency-key", "")
        if key:
            self.asked[key] += 1
            if key in self._told:
                self.waits[key] = time.monotonic() - self._told.pop(key)
            elif self.busy > 0:
                self.busy -= 1
                self._told[key] = time.monotonic()
                return Response(status_code=503, headers={"Retry-After": "1"})
            if int(key.rpartition("-")[2]) in self.scenes:
                return Response(status_code=500)
        async with httpx.AsyncClient(base_url=self.images_url, timeout=60) as client:
            answer = await client.request(
                request.method,
                request.url.path,
                content=await request.body(),
                headers={k: v for k, v in request.headers.items() if k in PASSED_ON},
            )
        return Response(answer.content, answer.status_code, media_type="application/json")


@dataclass(frozen=True)
class Peers:
    """What the storyboard service asks."""

    llm: ScriptedWriter
    evaluation_url: str
    images: Images

    def settings(self, home: Path, **other: Any) -> StoryboardSettings:
        told = {
            "llm_url": self.llm.base_url,
            "evaluation_url": self.evaluation_url,
            "images_url": self.images.base_url,
            "home": home,
            "poll_s": 0.05,
            "log_level": "error",
            **other,
        }
        return StoryboardSettings(**told)


@dataclass(frozen=True)
class Service:
    """One running storyboard service."""

    base_url: str
    app: FastAPI
    client: httpx.Client

    def ask(self, body: dict[str, Any], key: str | None = None) -> httpx.Response:
        headers = {"Idempotency-Key": key} if key else {}
        return self.client.post(STORYBOARDS, json=body, headers=headers)

    def get(self, storyboard_id: str) -> dict[str, Any]:
        answer = self.client.get(f"{STORYBOARDS}/{storyboard_id}")
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def ended(self, storyboard_id: str, within_s: float = DONE_WITHIN_S) -> dict[str, Any]:
        """The storyboard once it is done, failed or cancelled."""
        return ended(self.client, storyboard_id, within_s)

    def events(self, storyboard_id: str, after: int | None = None) -> list[dict[str, Any]]:
        """All events up to the last: {id, event, data}."""
        headers = {"Last-Event-ID": str(after)} if after is not None else {}
        url = f"{STORYBOARDS}/{storyboard_id}/events"
        with self.client.stream("GET", url, headers=headers) as answer:
            assert answer.headers["content-type"].startswith("text/event-stream")
            return list(parsed(answer.iter_lines()))


def ended(client: httpx.Client, storyboard_id: str, within_s: float) -> dict[str, Any]:
    until_s = time.monotonic() + within_s
    while True:
        found: dict[str, Any] = client.get(f"{STORYBOARDS}/{storyboard_id}").json()
        if found["state"] in ("done", "failed", "cancelled"):
            return found
        assert time.monotonic() < until_s, found
        time.sleep(0.05)


def parsed(lines: Iterator[str]) -> Iterator[dict[str, Any]]:
    """Server-sent events as dictionaries."""
    event: dict[str, Any] = {}
    for line in lines:
        name, _, value = line.partition(": ")
        if name in ("event", "id"):
            event[name] = value
        elif name == "data":
            event["data"] = json.loads(value)
        elif not line and event:
            yield event
            event = {}


def until(holds: Callable[[], object], within_s: float = 20.0) -> None:
    end = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Images]:
    # One row at a time: a picture's last bit depends on how many are computed together.
    settings = ImagesSettings(
        home=tmp_path_factory.mktemp("images"), steps=4, threads=1, max_rows=1, log_level="error"
    )
    app = create_images(settings)
    with served_app(app) as base_url:
        until(lambda: app.state.opening.is_ready, READY_WITHIN_S)
        yield Images(base_url, app)


@pytest.fixture(scope="session")
def _peers(images: Images, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Peers]:
    with served(ScriptedWriter()) as llm:
        settings = EvaluationSettings(
            llm_url=llm.base_url, home=tmp_path_factory.mktemp("evaluation"), log_level="error"
        )
        with served_app(create_evaluation(settings)) as evaluation_url:
            yield Peers(llm, evaluation_url, images)


@pytest.fixture
def peers(_peers: Peers) -> Peers:
    _peers.llm.reset()
    until(lambda: _peers.images.live() == 0)
    return _peers


Serve = Callable[..., Any]


@pytest.fixture
def serve(peers: Peers, tmp_path: Path) -> Serve:
    """A context manager of one service; keywords are its settings."""

    @contextmanager
    def serve_one(**settings: Any) -> Iterator[Service]:
        app = create_app(peers.settings(settings.pop("home", tmp_path), **settings))
        with served_app(app) as base_url, httpx.Client(base_url=base_url, timeout=30) as client:
            yield Service(base_url, app, client)

    return serve_one


@pytest.fixture
def service(serve: Serve) -> Iterator[Service]:
    with serve() as running:
        yield running


@pytest.fixture
def request_body(proposal: dict[str, Any]) -> dict[str, Any]:
    return {"proposal": {**proposal, "media_type": "short_form"}, "scenes": 6, "seed": 7}
