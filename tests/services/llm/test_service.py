"""The service as `bentoml serve` runs it, in front of a server with faults: keys, probes, drain."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import psutil
import pytest

from bentos.running import Running, running
from tests.fakes.upstream import Upstream, upstream

CHAT = "/v1/chat/completions"
KEY = {"Authorization": "Bearer one"}
DRAIN_S = 3.0


@pytest.fixture(scope="module")
def fake() -> Iterator[Upstream]:
    with upstream() as server:
        yield server


@pytest.fixture
def service(fake: Upstream) -> Iterator[Running]:
    environment = {
        "JOING_API_KEYS": "one,two",
        "JOING_LLM_URL": fake.base_url,
        "JOING_LLM_DRAIN_S": str(DRAIN_S),
        "JOING_LLM_RETRY_AFTER_S": "9",
    }
    with running(
        "services.llm.service:LLM", environment=environment, start_timeout_s=60
    ) as service:
        yield service


class Streaming(threading.Thread):
    """One request whose reply comes slowly: `events` at 10 a second."""

    def __init__(self, base_url: str, events: int) -> None:
        super().__init__(daemon=True)
        self.base_url = base_url
        self.body = {"script": "stream", "events": events, "pause_s": 0.1}
        self.has_begun = threading.Event()
        self.text = ""
        self.start()
        assert self.has_begun.wait(20)

    def run(self) -> None:
        url = f"{self.base_url}{CHAT}"
        with httpx.stream("POST", url, json=self.body, headers=KEY, timeout=30) as answer:
            for piece in answer.iter_text():
                self.has_begun.set()
                self.text += piece

    def events(self) -> list[str]:
        self.join(30)
        return self.text.strip().split("\n\n")


def until(holds: Callable[[], object], within_s: float = 10) -> None:
    end = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)


def has_ended(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def chat(service: Running, **options: Any) -> httpx.Response:
    return httpx.post(f"{service.base_url}{CHAT}", json={"script": "ok"}, timeout=10, **options)


def refused(service: Running) -> httpx.Response | None:
    answer = chat(service, headers=KEY)
    return answer if answer.status_code == 503 else None


def test_keys_probes_and_a_drain_that_lets_running_replies_end(service: Running) -> None:
    assert chat(service).status_code == 401
    assert chat(service, headers={"Authorization": "Bearer three"}).status_code == 401
    assert chat(service).json()["error"]["code"] == "unauthorized"
    assert chat(service, headers=KEY).status_code == 200
    assert chat(service, headers={"Authorization": "Bearer two"}).status_code == 200
    assert httpx.get(f"{service.base_url}/livez").status_code == 200
    assert httpx.get(f"{service.base_url}/readyz").status_code == 200
    assert "bentoml_service_request_total" in httpx.get(f"{service.base_url}/metrics").text

    streaming = Streaming(service.base_url, events=20)
    os.kill(service.pid, signal.SIGTERM)
    until(lambda: refused(service), 2)
    answer = refused(service)
    assert answer is not None
    assert answer.headers["retry-after"] == "9"
    assert answer.json()["error"]["code"] == "shutting_down"
    assert httpx.get(f"{service.base_url}/readyz").status_code == 503
    assert streaming.events()[-1] == "data: [DONE]"
    assert len(streaming.events()) == 21
    until(lambda: has_ended(service.pid), 5)


def test_a_drain_has_an_end_and_says_so_in_the_stream(service: Running, fake: Upstream) -> None:
    streaming = Streaming(service.base_url, events=600)
    since = time.monotonic()
    os.kill(service.pid, signal.SIGTERM)
    last = json.loads(streaming.events()[-1].removeprefix("data: "))
    assert last["error"]["code"] == "shutting_down"
    until(lambda: has_ended(service.pid), 8)
    assert DRAIN_S <= time.monotonic() - since < DRAIN_S + 5
    until(lambda: fake.running == 0)
