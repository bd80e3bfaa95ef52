"""Several storyboard services on one real PostgreSQL share the work."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.postgres import Postgres
from tests.services.storyboard.conftest import STORYBOARDS, Peers, Serve, until
from tests.services.storyboard.forking import forks, free_port, is_up, kill
from tests.services.storyboard.relay import Relay

JOBS, SCENES = 50, 3
LEASE_S = 2.0
ALL_WITHIN_S = 240.0
MANY = {"max_unfinished_per_key": 1_000, "max_running_per_key": 100}


def all_ended(client: httpx.Client, ids: list[str], within_s: float = ALL_WITHIN_S) -> Counter[str]:
    states: dict[str, str] = {}

    def are_over() -> bool:
        for storyboard_id in ids:
            if states.get(storyboard_id) not in ("done", "failed", "cancelled"):
                found = client.get(f"{STORYBOARDS}/{storyboard_id}").json()
                states[storyboard_id] = found["state"]
        return all(state in ("done", "failed", "cancelled") for state in states.values())

    until(are_over, within_s)
    return Counter(states.values())


@pytest.mark.timeout(400)
def test_fifty_jobs_are_each_done_once_though_one_of_two_replicas_dies(
    peers: Peers, postgres: Postgres, tmp_path: Path, request_body: dict[str, Any]
) -> None:
    told = {"lease_s": LEASE_S, "log_level": "error", **MANY}
    settings = peers.settings(tmp_path, database_url=postgres.new_database(), **told).model_dump(
        include={
            "llm_url", "evaluation_url", "images_url", "home", "poll_s", "database_url", *told
        }
    )  # fmt: skip
    ports = [free_port(), free_port()]
    before = peers.images.drawn()
    body = {**request_body, "scenes": SCENES}
    with forks() as forking, httpx.Client(timeout=30) as client:
        pids = [forking.start("storyboard", settings, port) for port in ports]
        until(lambda: all(is_up(port) for port in ports))
        client.base_url = httpx.URL(f"http://127.0.0.1:{ports[1]}")
        ids = []
        for n in range(JOBS):
            answer = httpx.post(
                f"http://127.0.0.1:{ports[n % 2]}{STORYBOARDS}", json=body, timeout=30
            )
            ids.append(answer.json()["id"])
        until(lambda: peers.images.drawn() - before > 10)
        kill(pids[0])
        assert all_ended(client, ids) == {"done": JOBS}
        for storyboard_id in ids[::10]:
            sheet = client.get(f"{STORYBOARDS}/{storyboard_id}/sheet")
            assert sheet.status_code == 200
    until(lambda: peers.images.live() == 0)
    assert peers.images.drawn() - before == JOBS * SCENES, "each frame was drawn once"


def test_a_replica_cut_off_from_the_database_is_replaced_and_comes_too_late(
    peers: Peers, postgres: Postgres, serve: Serve, tmp_path: Path, request_body: dict[str, Any]
) -> None:
    peers.llm.delay_s = 1.0
    url = postgres.new_database()
    with Relay(postgres.port) as relay:
        cut_off = url.replace(str(postgres.port), str(relay.port))
        with serve(database_url=cut_off, lease_s=LEASE_S, home=tmp_path / "one") as one:
            storyboard_id = one.ask({**request_body, "scenes": SCENES}).json()["id"]
            until(lambda: one.get(storyboard_id)["cast"])
            relay.cut()
            artifacts = str(tmp_path / "one" / "storyboards")
            with serve(
                database_url=url, lease_s=LEASE_S, home=tmp_path / "two", artifacts_url=artifacts
            ) as two:
                done = two.ended(storyboard_id, within_s=40)
                assert done["state"] == "done", done["error"]
                events = two.events(storyboard_id)
                relay.mend()
                time.sleep(2 * LEASE_S)
                assert two.get(storyboard_id) == done
                assert two.events(storyboard_id) == events
                told = [(e["event"], e["data"].get("n"), e["data"].get("state")) for e in events]
                for n in range(1, SCENES + 1):
                    assert told.count(("frame", n, "done")) == 1
                assert [int(event["id"]) for event in events] == list(range(1, len(events) + 1))


def test_cancelling_at_one_replica_stops_the_other(
    peers: Peers, postgres: Postgres, serve: Serve, tmp_path: Path, request_body: dict[str, Any]
) -> None:
    peers.llm.delay_s = 30.0
    url = postgres.new_database()
    with (
        serve(database_url=url, home=tmp_path / "one", max_running=1) as one,
        serve(database_url=url, home=tmp_path / "two", max_running=1) as two,
    ):
        storyboard_id = one.ask(request_body).json()["id"]
        until(lambda: peers.llm.running)
        for service in (one, two):
            service.client.delete(f"{STORYBOARDS}/{storyboard_id}")
        until(lambda: not peers.llm.running, within_s=3)
        assert two.get(storyboard_id)["state"] == "cancelled"


def test_a_stopped_replica_gives_its_jobs_back_at_once(
    peers: Peers, postgres: Postgres, serve: Serve, tmp_path: Path, request_body: dict[str, Any]
) -> None:
    peers.llm.delay_s = 1.0
    url = postgres.new_database()
    shared = str(tmp_path / "pictures")
    told = {"database_url": url, "artifacts_url": shared, "lease_s": 120.0}
    with serve(home=tmp_path / "one", **told) as one:
        storyboard_id = one.ask({**request_body, "scenes": SCENES}).json()["id"]
        until(lambda: one.get(storyboard_id)["cast"])
    with serve(home=tmp_path / "two", **told) as two:
        ended = two.ended(storyboard_id, within_s=90)
        assert ended["state"] == "done", "before its lease of two minutes ends"
