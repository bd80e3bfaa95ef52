"""kill -9, a few hundred times: no storyboard is lost, none is stuck, no frame is drawn twice."""

from __future__ import annotations

import hashlib
import random
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.services.storyboard.conftest import (
    STORYBOARDS,
    Peers,
    Serve,
    until,
)
from tests.services.storyboard.forking import (
    BOUNDARIES,
    PLAIN,
    Forks,
    forks,
    free_port,
    is_up,
    kill,
    lives,
)

KILLS = 200
KILLS_A_JOB = 10
PEER_KILLS = 20
SCENES = 4
JOB_WITHIN_S = 60.0


@dataclass(frozen=True)
class Result:
    """What has to be the same whatever happened on the way."""

    scenes: str
    frames: tuple[str, ...]
    sheet: str


@pytest.fixture(scope="module")
def forking() -> Iterator[Forks]:
    with forks() as running:
        yield running


@dataclass
class Killable:
    """The storyboard service in a process that dies, and is started again."""

    forks: Forks
    settings: dict[str, Any]
    port: int
    pid: int = 0
    deaths: int = 0

    @property
    def client(self) -> httpx.Client:
        return httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=5, verify=PLAIN)

    def start(self, crash: tuple[str, int] = ("", 0)) -> None:
        self.pid = self.forks.start("storyboard", self.settings, self.port, crash)
        until(lambda: is_up(self.port) or not lives(self.pid))

    def kill(self) -> None:
        kill(self.pid)
        self.deaths += 1

    def dies_before_it_is_done(self, storyboard_id: str | None) -> bool:
        """True when its crash point was reached; it counts as a death."""
        end = time.monotonic() + JOB_WITHIN_S
        while time.monotonic() < end:
            if not lives(self.pid):
                self.deaths += 1
                return True
            if storyboard_id and (found := self.get(storyboard_id)) and found["state"] == "done":
                return False
            time.sleep(0.02)
        raise AssertionError("it neither died nor finished")

    def ask(self, body: dict[str, Any], key: str) -> str | None:
        """The storyboard's id; None when the service died before it answered."""
        with suppress(httpx.HTTPError), self.client as client:
            answer = client.post(STORYBOARDS, json=body, headers={"Idempotency-Key": key})
            assert answer.status_code == 202, answer.text
            return str(answer.json()["id"])
        return None

    def get(self, storyboard_id: str) -> dict[str, Any] | None:
        with suppress(httpx.HTTPError), self.client as client:
            answer = client.get(f"{STORYBOARDS}/{storyboard_id}")
            assert answer.status_code == 200, "an accepted storyboard is lost"
            found: dict[str, Any] = answer.json()
            return found
        return None

    def result(self, storyboard_id: str) -> Result:
        with self.client as client:
            done = client.get(f"{STORYBOARDS}/{storyboard_id}").json()
            assert done["state"] == "done", done["error"]
            assert {frame["state"] for frame in done["frames"]} == {"done"}
            pictures = [client.get(frame["url"]).content for frame in done["frames"]]
            sheet = client.get(done["sheet_url"]).content
        return Result(str(done["scenes"]), tuple(map(digest, pictures)), digest(sheet))

    def finished(self, storyboard_id: str) -> Result:
        def is_over() -> bool:
            found = self.get(storyboard_id)
            return found is not None and found["state"] in ("done", "failed", "cancelled")

        until(is_over, JOB_WITHIN_S)
        return self.result(storyboard_id)


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def killable(forking: Forks, peers: Peers, home: Path, **other: Any) -> Killable:
    told = {"max_claims": 100, "clean_every_s": 3_600, "log_level": "error", **other}
    settings = peers.settings(home, **told).model_dump(
        include={"llm_url", "evaluation_url", "images_url", "home", "poll_s", *told}
    )
    return Killable(forking, settings, free_port())


def kill_points(chance: random.Random) -> Iterator[tuple[str, int] | float]:
    """Every boundary in turn, the first or a later time that it is passed; and moments, in
    seconds.
    """
    while True:
        for boundary in BOUNDARIES:
            yield boundary, chance.choice((1, 1, 2, 3, 5, 8))
        yield from (chance.uniform(0.02, 0.8) for _ in range(len(BOUNDARIES) // 2))


@pytest.mark.timeout(1_200)
def test_killed_at_200_points_no_storyboard_is_lost_and_no_frame_is_drawn_twice(
    forking: Forks, peers: Peers, tmp_path: Path, request_body: dict[str, Any]
) -> None:
    body = {**request_body, "scenes": SCENES}
    service = killable(forking, peers, tmp_path)
    service.start()
    undisturbed = service.finished(str(service.ask(body, "undisturbed")))
    points = kill_points(random.Random(2026))
    reached: Counter[str] = Counter()
    job = 0
    while service.deaths < KILLS:
        job += 1
        drawn, deaths = peers.images.drawn(), service.deaths
        peers.llm.calls.clear()
        service.kill()
        service.deaths -= 1
        storyboard_id = None
        while service.deaths - deaths < KILLS_A_JOB:
            point = next(points)
            service.start(point if isinstance(point, tuple) else ("", 0))
            storyboard_id = service.ask(body, f"job-{job}") or storyboard_id
            if isinstance(point, float):
                time.sleep(point)
                service.kill()
                reached["a moment"] += 1
            elif service.dies_before_it_is_done(storyboard_id):
                reached[point[0]] += 1
            else:
                break  # it was finished before it came to that point again
        kill(service.pid)
        service.start()
        storyboard_id = service.ask(body, f"job-{job}")
        assert storyboard_id is not None
        assert service.finished(storyboard_id) == undisturbed
        until(lambda: peers.images.live() == 0)
        assert peers.images.drawn() - drawn == SCENES, "a frame was drawn twice"
        asked = Counter(call["request_id"] for call in peers.llm.calls)
        assert max(asked.values()) <= 1 + service.deaths - deaths, "more than a step was redone"
    service.kill()
    assert set(reached) == {*BOUNDARIES, "a moment"}, reached


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("victim", "address", "settings"),
    [
        ("images", "images_url", {"steps": 20, "threads": 1, "max_rows": 1, "log_level": "error"}),
        ("writer", "llm_url", {"delay_s": 0.1}),
    ],
)
def test_a_service_behind_it_that_is_killed_costs_time_and_nothing_else(
    forking: Forks, serve: Serve, request_body: dict[str, Any], *, victim: str, address: str,
    settings: dict[str, Any],
) -> None:  # fmt: skip
    body = {**request_body, "scenes": SCENES}
    port = free_port()
    addresses = {address: f"http://127.0.0.1:{port}"}
    pid = forking.start(victim, settings, port)
    until(lambda: is_up(port))
    chance, kills = random.Random(victim), 0
    with serve(**addresses) as service:
        undisturbed = whole(service, service.ended(service.ask(body).json()["id"]))
        while kills < PEER_KILLS // 2:
            storyboard_id = service.ask(body).json()["id"]
            for _ in range(2):
                time.sleep(chance.uniform(0.02, 0.6))
                kill(pid)
                kills += 1
                time.sleep(chance.uniform(0.0, 0.2))
                pid = forking.start(victim, settings, port)
            assert whole(service, service.ended(storyboard_id)) == undisturbed
    kill(pid)


def whole(service: Any, done: dict[str, Any]) -> Result:
    assert done["state"] == "done", done["error"]
    assert {frame["state"] for frame in done["frames"]} == {"done"}, done["notes"]
    pictures = [service.client.get(frame["url"]).content for frame in done["frames"]]
    sheet = service.client.get(done["sheet_url"]).content
    return Result(str(done["scenes"]), tuple(map(digest, pictures)), digest(sheet))
