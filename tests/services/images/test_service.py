"""The service as `bentoml serve` runs it, and behind the gateway."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest

from bentos.running import Running, running
from services.gateway.app import ROUTES, create_app
from services.gateway.settings import GatewaySettings
from tests.fakes.scripted_llm import served_app
from tests.models.flux.tiny import HEIGHT, TEXT_TOKENS, WIDTH
from tests.services.images.conftest import FOREVER, GENERATIONS, UPLOAD, Served, picture, until

KEY = {"Authorization": "Bearer one"}
DRAIN_S = 20.0


def test_bentoml_serves_it_and_a_sigterm_lets_running_images_end(
    tiny_folder: Path, tmp_path: Path
) -> None:
    environment = {
        "JOING_API_KEYS": "one",
        "JOING_HOME": str(tmp_path),
        "JOING_IMAGE_MODEL": str(tiny_folder),
        "JOING_IMAGES_WIDTH": str(WIDTH),
        "JOING_IMAGES_HEIGHT": str(HEIGHT),
        "JOING_IMAGES_MAX_SEQUENCE_LENGTH": str(TEXT_TOKENS),
        "JOING_IMAGES_MAX_STEPS": str(FOREVER),
        "JOING_IMAGES_MAX_ROWS": "1",
        "JOING_IMAGES_THREADS": "1",
        "JOING_IMAGES_DEVICE": "cpu",
        "JOING_IMAGES_DRAIN_S": str(DRAIN_S),
    }
    target = "services.images.service:Images"
    with running(target, environment=environment, start_timeout_s=120) as service:
        assert httpx.get(f"{service.base_url}/livez").status_code == 200
        assert post(service, {}).status_code == 401
        assert post(service, KEY, n=2).status_code == 200
        text = httpx.get(f"{service.base_url}/metrics").text
        assert 'joing_images_ended_total{outcome="finished"} 2.0' in text.splitlines()
        assert "bentoml_service_request_total" in text
        families = [line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")]
        assert len(families) == len(set(families)), "a family appears twice"

        drawn = Posting(service, steps=600)
        until(lambda: metric(service, "running"))
        waiting = Posting(service, steps=FOREVER)
        until(lambda: metric(service, "waiting"))
        os.kill(service.pid, signal.SIGTERM)
        until(lambda: post(service, KEY).status_code == 503, 5)
        late = post(service, KEY)
        assert late.json()["error"]["code"] == "shutting_down"
        assert int(late.headers["Retry-After"]) >= 1
        assert httpx.get(f"{service.base_url}/readyz").status_code == 503
        assert waiting.status() == 503
        assert drawn.status() == 200
        until(lambda: has_ended(service.pid), 15)


def post(service: Running, headers: dict[str, str], **body: Any) -> httpx.Response:
    body = {"prompt": "rain", "steps": 2, **body}
    return httpx.post(f"{service.base_url}{GENERATIONS}", json=body, headers=headers, timeout=60)


class Posting(threading.Thread):
    """One call under way."""

    def __init__(self, service: Running, **body: Any) -> None:
        super().__init__(daemon=True)
        self._service, self._body = service, body
        self._answer: httpx.Response | None = None
        self.start()

    def run(self) -> None:
        self._answer = post(self._service, KEY, **self._body)

    def status(self) -> int:
        self.join(60)
        assert self._answer is not None, "it was answered nothing"
        return self._answer.status_code


def metric(service: Running, gauge: str) -> float:
    text = httpx.get(f"{service.base_url}/metrics").text
    lines = [line for line in text.splitlines() if line.startswith(f"joing_images_{gauge} ")]
    return float(lines[0].rsplit(" ", 1)[1])


def has_ended(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


# --- behind the gateway ---------------------------------------------------------------------------


@pytest.fixture
def gateway(service: Served) -> Iterator[httpx.Client]:
    nowhere = "http://127.0.0.1:9"
    settings = GatewaySettings(
        evaluation_url=nowhere,
        llm_url=nowhere,
        images_url=service.base_url,
        max_lora_bytes=2**19,
        log_level="error",
    )
    with (
        served_app(create_app(settings)) as base_url,
        httpx.Client(base_url=base_url, timeout=60) as client,
    ):
        yield client


def test_pictures_and_streams_pass_through(gateway: httpx.Client) -> None:
    client = openai.OpenAI(base_url=f"{gateway.base_url}/v1", api_key="none", max_retries=0)
    assert picture(client.images.generate(prompt="비", size="48x64").data[0]).size == (48, 64)
    stream = client.images.generate(prompt="rain", stream=True, partial_images=2)
    assert float(stream.response.headers["X-Eta-S"]) > 0
    assert [event.type.rpartition(".")[2] for event in stream] == [
        "partial_image",
        "partial_image",
        "completed",
    ]
    with pytest.raises(openai.NotFoundError):
        client.images.generate(prompt="rain", model="nobody")


def test_hanging_up_at_the_gateway_frees_the_row(gateway: httpx.Client, service: Served) -> None:
    body = {"prompt": "rain", "steps": FOREVER}
    with pytest.raises(httpx.ReadTimeout):
        gateway.post(GENERATIONS, json=body, timeout=0.5)
    until(lambda: service.live() == 0, 3)


def test_loras_pass_through(
    gateway: httpx.Client, service: Served, lora_files: dict[str, Path]
) -> None:
    content = lora_files["green"].read_bytes()
    padded = content + b"\0" * (300_000 - len(content))
    answer = gateway.put("/v1/loras/passed", content=content, headers=UPLOAD)
    assert answer.status_code == 201
    pieces = iter([content[:100], content[100:]])
    query = {"trigger": "한 줄"}
    again = gateway.put("/v1/loras/passed", content=pieces, headers=UPLOAD, params=query)
    assert (again.status_code, again.json()["trigger"]) == (200, "한 줄")
    assert gateway.get("/v1/loras").json() == service.client.get("/v1/loras").json()
    refused = gateway.put("/v1/loras/passed", content=padded, headers=UPLOAD)
    assert (refused.status_code, refused.json()["code"]) == (422, "lora_refused")
    assert gateway.put("/v1/loras/red", json={"from_catalog": True}).status_code == 200
    assert gateway.delete("/v1/loras/passed").status_code == 204
    assert gateway.delete("/v1/loras/passed").json()["code"] == "lora_not_found"


def test_an_upload_over_the_gateways_limit_stops_there(gateway: httpx.Client) -> None:
    for content in (b"a" * (2**19 + 1), iter([b"a" * 2**18] * 3)):
        answer = gateway.put("/v1/loras/big", content=content, headers=UPLOAD)
        assert (answer.status_code, answer.json()["code"]) == (413, "too_large")


def test_the_gateway_describes_what_it_passes_on(gateway: httpx.Client) -> None:
    paths = gateway.get("/openapi.json").json()["paths"]
    for method, path in ROUTES["images"]:
        assert method.lower() in paths[path]


def test_a_gateway_without_images_says_so() -> None:
    settings = GatewaySettings(
        evaluation_url="http://127.0.0.1:9", llm_url="http://127.0.0.1:9", log_level="error"
    )
    with served_app(create_app(settings)) as base_url:
        answer = httpx.post(f"{base_url}{GENERATIONS}", json={"prompt": "rain"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "images_unavailable")
        assert httpx.get(f"{base_url}/v1/loras").json()["code"] == "images_unavailable"
