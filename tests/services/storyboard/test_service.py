"""The service behind the gateway, and as `bentoml serve` runs it."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import httpx

from bentos.running import running
from services.gateway.app import create_app as create_gateway
from services.gateway.settings import GatewaySettings
from tests.fakes.scripted_llm import served_app
from tests.services.storyboard.conftest import STORYBOARDS, Peers, Serve, ended, parsed, until

ONE, TWO = {"Authorization": "Bearer one"}, {"Authorization": "Bearer two"}
EXIT_WITHIN_S = 15.0


def test_behind_the_gateway_each_key_has_its_own_storyboards(
    serve: Serve, peers: Peers, request_body: dict[str, Any]
) -> None:
    keys = "internal,one,two"
    with serve(api_keys=keys, max_unfinished_per_key=1) as service:
        settings = GatewaySettings(
            evaluation_url=peers.evaluation_url,
            llm_url=peers.llm.base_url,
            storyboard_url=service.base_url,
            api_keys=keys,
            log_level="error",
        )
        with (
            served_app(create_gateway(settings)) as url,
            httpx.Client(base_url=url, timeout=30, headers=ONE) as client,
        ):
            headers = {"Idempotency-Key": "k"}
            answer = client.post(STORYBOARDS, json=request_body, headers=headers)
            again = client.post(STORYBOARDS, json=request_body, headers=headers)
            assert again.json()["id"] == answer.json()["id"]
            assert again.headers["Idempotent-Replayed"] == "true"
            place = answer.headers["Location"]
            assert client.get(place, headers=TWO).status_code == 404
            other = client.post(STORYBOARDS, json=request_body, headers={**TWO, **headers})
            assert other.status_code == 202, "another key, another quota, another job"
            assert other.json()["id"] != answer.json()["id"]
            done = ended(client, answer.json()["id"], 60)
            assert done["state"] == "done"
            with client.stream("GET", f"{place}/events", headers={"Last-Event-ID": "3"}) as events:
                told = list(parsed(events.iter_lines()))
            assert (told[0]["id"], told[-1]["event"]) == ("4", "result")
            sheet = client.get(done["sheet_url"], params={"format": "pdf"})
            assert sheet.headers["content-type"] == "application/pdf"
            assert client.get(done["frames"][0]["url"]).headers["content-type"] == "image/png"
            assert client.delete(place, params={"purge": True}).status_code == 204
            described = client.get("/openapi.json").json()["paths"]
            assert f"{STORYBOARDS}/{{storyboard_id}}/events" in described


def test_bentoml_serves_it_and_a_sigterm_ends_streams_and_keeps_jobs(
    peers: Peers, tmp_path: Path, request_body: dict[str, Any]
) -> None:
    peers.llm.delay_s = 1.0
    environment = {
        "JOING_HOME": str(tmp_path),
        "JOING_API_KEYS": "one",
        "JOING_LLM_URL": peers.llm.base_url,
        "JOING_EVALUATION_URL": peers.evaluation_url,
        "JOING_IMAGES_URL": peers.images.base_url,
    }
    target = "services.storyboard.service:Storyboards"
    with running(target, environment=environment, start_timeout_s=120) as service:
        with httpx.Client(base_url=service.base_url, timeout=30, headers=ONE) as client:
            storyboard_id = client.post(STORYBOARDS, json=request_body).json()["id"]
            follower = Follower(service.base_url, storyboard_id)
            until(lambda: follower.events)
            text = client.get("/metrics").text
            assert "joing_storyboard_ended_total" in text
            assert "bentoml_service_request_total" in text
        began = time.monotonic()
        os.kill(service.pid, signal.SIGTERM)
        follower.thread.join(EXIT_WITHIN_S)
        assert not follower.thread.is_alive(), "the stream holds the process"
        assert time.monotonic() - began < EXIT_WITHIN_S
    with (
        running(target, environment=environment, start_timeout_s=120) as service,
        httpx.Client(base_url=service.base_url, timeout=30, headers=ONE) as client,
    ):
        assert ended(client, storyboard_id, 60)["state"] == "done"


class Follower:
    """Reads the events of a storyboard in a thread."""

    def __init__(self, base_url: str, storyboard_id: str) -> None:
        self.events: list[dict[str, Any]] = []
        self._url = f"{base_url}{STORYBOARDS}/{storyboard_id}/events"
        self.thread = threading.Thread(target=self._read, daemon=True)
        self.thread.start()

    def _read(self) -> None:
        with httpx.stream("GET", self._url, headers=ONE, timeout=60) as answer:
            for event in parsed(answer.iter_lines()):
                self.events.append(event)
