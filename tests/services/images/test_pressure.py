"""More than fits: callers who leave, full queues, deadlines, shutdown, a broken engine."""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from pydantic import SecretStr

from models.flux.errors import QueueFull
from services.images.app import create_app, is_alive, is_ready, metrics
from services.images.errors import as_problem
from services.images.settings import ImagesSettings
from tests.fakes.scripted_llm import served_app
from tests.services.images.conftest import FOREVER, GENERATIONS, Serve, Served, held, until
from tests.services.images.test_loras import start_drawing


def ask(service: Served, answers: list[httpx.Response], **body: Any) -> threading.Thread:
    thread = threading.Thread(target=lambda: answers.append(service.post(**body)), daemon=True)
    thread.start()
    return thread


def hang_up(service: Served, **body: Any) -> None:
    """Asks for what takes long, and leaves while it is drawn."""

    async def leave() -> None:
        async with httpx.AsyncClient(base_url=service.base_url) as client:
            post = asyncio.create_task(client.post(GENERATIONS, json={"prompt": "rain", **body}))
            while not service.engine.snapshot().running:
                await asyncio.sleep(0.01)
            post.cancel()

    asyncio.run(leave())


@pytest.mark.parametrize("stream", [False, True])
def test_a_caller_who_hangs_up_frees_the_rows(service: Served, stream: bool) -> None:
    hang_up(service, steps=FOREVER, n=1 if stream else 8, stream=stream)
    until(lambda: service.live() == 0, 3)
    assert service.post().status_code == 200


def test_a_stream_that_is_left_after_a_partial_picture(service: Served) -> None:
    stream = service.openai().images.generate(
        prompt="rain", stream=True, partial_images=3, extra_body={"steps": 400}
    )
    assert next(iter(stream)).type == "image_generation.partial_image"
    stream.close()
    until(lambda: service.live() == 0, 3)


def refuses_at_once(service: Served) -> None:
    """Three callers, of whom one streams, are told when to come back."""
    since = time.monotonic()
    for stream in (False, True):
        refused = service.post(stream=stream)
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "queue_full"
        assert int(refused.headers["Retry-After"]) >= 1
    assert time.monotonic() - since < 1, "refusals do not wait"
    with pytest.raises(openai.InternalServerError):
        service.openai().images.generate(prompt="rain")
    assert 'joing_images_refused_total{reason="queue_full"} 3.0' in metrics(service.app)


def test_a_full_queue_says_when_to_come_back(serve: Serve, tmp_path: Path) -> None:
    with serve(tmp_path, max_rows=1, max_waiting=8, drain_s=0.1) as service:
        answers: list[httpx.Response] = []
        with held(service.engine.runner, "step") as hold:
            threads = [ask(service, answers, steps=FOREVER)]
            until(hold.reached.is_set)
            threads.append(ask(service, answers, n=8, steps=FOREVER))
            until(lambda: service.engine.snapshot().waiting == 8)
            refuses_at_once(service)
        asyncio.run(service.app.state.opening.drain())
        for thread in threads:
            thread.join(20)
        assert [answer.status_code for answer in answers] == [503, 503]


@pytest.mark.parametrize(("foreseen_s", "told"), [(0.0, "1"), (0.2, "1"), (2.0, "2"), (2.01, "3")])
def test_the_time_to_come_back_is_rounded_up(foreseen_s: float, told: str) -> None:
    full = QueueFull("4 images are waiting already", foreseen_s)
    problem = as_problem(full, retry_after_s=9)
    assert problem.headers is not None
    assert problem.headers["Retry-After"] == told


def test_deadlines(service: Served) -> None:
    drawing = start_drawing(service, steps=300)
    kept = service.post(deadline_s=30)
    assert kept.status_code == 200
    assert kept.json()["data"][0]["duration_ms"] < 30_000
    drawing.join(60)


def test_a_deadline_that_others_make_impossible(serve: Serve, tmp_path: Path) -> None:
    """It would have to go first, and an earlier image would then be late."""
    with serve(tmp_path, max_rows=1) as service:
        service.post(steps=50)
        eta_s = foreseen_s(service, steps=400)
        answers: list[httpx.Response] = []
        first = ask(service, answers, steps=400, deadline_s=eta_s * 1.1)
        until(lambda: service.engine.snapshot().running)
        refused = service.post(steps=100, deadline_s=eta_s * 0.6)
        assert refused.status_code == 503, refused.text
        assert refused.json()["error"]["code"] == "deadline_unmeetable"
        assert int(refused.headers["Retry-After"]) >= 1
        first.join(60)
        assert answers[0].status_code == 200


def foreseen_s(service: Served, **body: Any) -> float:
    """What an idle engine promises."""
    with service.client.stream(
        "POST", GENERATIONS, json={"prompt": "rain", "stream": True, **body}
    ) as answer:
        eta_s = float(answer.headers["X-Eta-S"])
    until(lambda: service.live() == 0)
    return eta_s


def test_a_drain_finishes_what_is_drawn_and_refuses_the_rest(serve: Serve, tmp_path: Path) -> None:
    with serve(tmp_path, max_rows=1, drain_s=30) as service:
        answers: dict[str, httpx.Response] = {}

        def keep(name: str, **body: Any) -> threading.Thread:
            thread = threading.Thread(
                target=lambda: answers.update({name: service.post(**body)}), daemon=True
            )
            thread.start()
            return thread

        drawn = keep("drawn", steps=150)
        until(lambda: service.engine.snapshot().running)
        waiting = keep("waiting", steps=FOREVER)
        until(lambda: service.engine.snapshot().waiting)
        drain = threading.Thread(target=lambda: asyncio.run(service.app.state.opening.drain()))
        drain.start()
        waiting.join(10)
        late = service.post()
        assert drawn.is_alive()
        for refused in (answers["waiting"], late):
            assert refused.status_code == 503
            assert refused.json()["error"]["code"] == "shutting_down"
            assert int(refused.headers["Retry-After"]) >= 1
        assert not is_ready(service.app)
        assert is_alive(service.app)
        drawn.join(60)
        drain.join(10)
        assert answers["drawn"].status_code == 200


def test_a_drain_has_an_end_and_says_so_in_the_stream(serve: Serve, tmp_path: Path) -> None:
    with serve(tmp_path, drain_s=0.5) as service:
        stream = service.openai().images.generate(
            prompt="rain", stream=True, partial_images=3, extra_body={"steps": FOREVER}
        )
        until(lambda: service.engine.snapshot().running)
        asyncio.run(service.app.state.opening.drain())
        with pytest.raises(openai.APIError) as ended:
            list(stream)
        assert ended.value.code == "shutting_down"


def test_an_engine_that_breaks_tells_everybody(serve: Serve, tmp_path: Path) -> None:
    """The fault is put where a real one would be: in the runner that draws a step."""
    with serve(tmp_path) as service:

        def fault(_rows: Any) -> None:
            raise RuntimeError("/srv/secret/path")

        service.engine.runner.step = fault  # type: ignore[method-assign]
        for _ in range(3):
            broken = service.post()
            assert broken.status_code == 500
            assert "secret" not in broken.text
        until(lambda: not is_alive(service.app))
        assert not is_ready(service.app)
        after = service.post()
        assert (after.status_code, after.json()["error"]["code"]) == (503, "engine_stopped")
        assert int(after.headers["Retry-After"]) >= 1


def test_metrics(service: Served) -> None:
    before = metrics(service.app)
    service.post(n=3, steps=5)
    after = metrics(service.app)

    def grown(sample: str) -> float:
        def value(text: str) -> float:
            (line,) = [line for line in text.splitlines() if line.startswith(f"{sample} ")]
            return float(line.rsplit(" ", 1)[1])

        return value(after) - value(before)

    assert grown('joing_images_ended_total{outcome="finished"}') == 3
    assert grown("joing_images_seconds_count") == 3
    assert grown("joing_images_batch_rows_sum") == 15
    assert grown("joing_images_step_seconds_count") >= 5
    for gauge in ("waiting", "running", "parked", "loras_resident", "token_budget"):
        assert f"\njoing_images_{gauge} " in after


def test_before_the_model_is_there(tmp_path: Path) -> None:
    """Its weights are missing: the process lives, is not ready, and tries again."""
    settings = ImagesSettings(
        model=str(tmp_path), home=tmp_path, retry_open_s=0.05, retry_after_s=7, log_level="error"
    )
    app = create_app(settings)
    with served_app(app) as base_url:
        answer = httpx.post(f"{base_url}{GENERATIONS}", json={"prompt": "rain"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "model_starting")
        assert answer.headers["Retry-After"] == "7"
        assert httpx.get(f"{base_url}/v1/loras").json()["code"] == "model_starting"
        assert (is_ready(app), is_alive(app)) == (False, True)
        assert "joing_images_ended_total" in metrics(app)


def test_weights_that_come_later_are_found(serve: Serve, tiny_folder: Path, tmp_path: Path) -> None:
    later = tmp_path / "later"
    later.mkdir()
    app = create_app(
        ImagesSettings(
            model=str(later), home=tmp_path, retry_open_s=0.05, width=64, height=48, threads=1,
            max_sequence_length=16, max_rows=2, device="cpu", log_level="error",
        )
    )  # fmt: skip
    with served_app(app) as base_url:
        assert not is_ready(app)
        for part in tiny_folder.iterdir():
            if part.name != "model_index.json":
                (later / part.name).symlink_to(part)
        (later / "model_index.json").symlink_to(tiny_folder / "model_index.json")
        until(lambda: is_ready(app), 60)
        answer = httpx.post(f"{base_url}{GENERATIONS}", json={"prompt": "rain", "steps": 2})
        assert answer.status_code == 200
        assert answer.json()["data"][0]["guidance"] == 3.5


def test_keys(serve: Serve, tmp_path: Path) -> None:
    with serve(tmp_path, api_keys=SecretStr("one,two")) as service:
        refused = service.post()
        assert (refused.status_code, refused.json()["error"]["code"]) == (401, "unauthorized")
        assert service.client.get("/v1/loras").status_code == 401
        assert service.client.delete("/v1/loras/red").status_code == 401
        for key in ("one", "two"):
            client = openai.OpenAI(base_url=f"{service.base_url}/v1", api_key=key, max_retries=0)
            assert client.images.generate(prompt="rain").data
