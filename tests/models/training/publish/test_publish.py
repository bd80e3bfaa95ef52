"""From a checkpoint to a picture of the real image service, with nothing in between but HTTP."""

from __future__ import annotations

import base64
import io
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from diffusers import FluxPipeline
from fastapi import FastAPI
from PIL import Image
from safetensors.torch import load_file, save_file

from models.catalog import load_catalog
from models.sketch.train import WEIGHTS
from models.training.__main__ import cli
from models.training.errors import PublishRefused
from models.training.publish.chosen import NAME, TEXT, Chosen, choose
from models.training.publish.service import ImageService, Outcome
from services.images.app import create_app
from services.images.schemas import LORA_NAME, TEXT_ABOUT_A_LORA
from services.images.settings import ImagesSettings
from tests.fakes.scripted_llm import served_app

INK = WEIGHTS / "loras" / "ink.safetensors"
ROUNDING = 1e-4
"""Of latents: merged and added weights round differently, and a trained model grows it (1.4e-5
seen). Another LoRA, or none, is apart by more than 1."""
SEPIA = WEIGHTS / "loras" / "sepia.safetensors"
KEY = "the-tests-own-key"
PROMPT = "ink style black and white color illustration, a man standing in a park, wide shot"
STEPS = 6


@dataclass
class Served:
    url: str
    app: FastAPI
    home: Path
    first: Outcome
    """Of a publication that began before the model was open."""

    def loras(self) -> dict[str, dict[str, Any]]:
        return {one["name"]: one for one in self.get("/v1/loras").json()["data"]}

    def get(self, path: str) -> httpx.Response:
        return httpx.get(self.url + path, headers={"Authorization": f"Bearer {KEY}"}, timeout=30)

    def draw(self, **body: Any) -> httpx.Response:
        return httpx.post(
            f"{self.url}/v1/images/generations",
            json={"prompt": PROMPT, "seed": 3, "steps": STEPS, **body},
            headers={"Authorization": f"Bearer {KEY}"},
            timeout=60,
        )


def chosen(name: str, file: Path = INK, **told: Any) -> Chosen:
    said = {"trigger": None, "licence": None, **told}
    return choose(name, file, None, catalog=load_catalog(), models_dir=Path("/nowhere"), **said)


def publish(service: Served | str, one: Chosen, key: str | None = KEY, wait_s: float = 60) -> Any:
    url = service if isinstance(service, str) else service.url
    return ImageService(url, key, wait_s=wait_s).publish(one)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The service of this repository with the sketch model, of which the first LoRA is published
    while the model is still being opened.
    """
    torch.set_num_threads(1)
    home = tmp_path_factory.mktemp("home")
    settings = ImagesSettings(
        model="sketch",
        home=home,
        device="cpu",
        threads=1,
        max_rows=1,
        lora_slots=2,
        lora_max_rank=8,
        max_lora_bytes=1_000_000,
        api_keys=KEY,
        retry_after_s=1,
        log_level="error",
    )
    app = create_app(settings)
    with served_app(app) as url:
        first = publish(url, chosen("first"))
        yield Served(url, app, home / "loras" / "sketch", first.outcome)


def test_a_service_that_is_starting_is_waited_for(service: Served) -> None:
    assert service.first is Outcome.CREATED


def test_a_published_lora_is_drawn_by_its_name_as_diffusers_draws_it(service: Served) -> None:
    """Without a restart."""
    assert service.draw(model="my-ink").status_code == 404
    served = publish(service, chosen("my-ink"))
    assert (served.outcome, served.trigger, served.rank) == (Outcome.CREATED, "ink style", 8)
    with latents_of(service) as latents:
        answer = service.draw(model="my-ink")
    assert answer.status_code == 200, answer.text
    drawn = Image.open(io.BytesIO(base64.b64decode(answer.json()["data"][0]["b64_json"])))
    pipeline = FluxPipeline.from_pretrained(WEIGHTS, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.load_lora_weights(INK.parent, weight_name=INK.name)
    for output, ours in (("latent", latents[0]), ("pil", drawn)):
        theirs = pipeline(
            PROMPT,
            width=192,
            height=112,
            num_inference_steps=STEPS,
            guidance_scale=3.0,
            max_sequence_length=32,
            generator=torch.Generator().manual_seed(3),
            output_type=output,
        ).images[0]
        apart = np.abs(np.asarray(theirs, dtype=float) - np.asarray(ours, dtype=float)).max()
        assert apart < ROUNDING if output == "latent" else apart <= 1


@contextmanager
def latents_of(service: Served) -> Iterator[list[torch.Tensor]]:
    """What the engine hands to its decoder meanwhile."""
    runner, seen = service.app.state.opening.studio.engine.runner, []
    finish = runner.finish

    def noting(row: Any) -> Any:
        seen.append(row.latents_LC.clone())
        return finish(row)

    runner.finish = noting
    try:
        yield seen
    finally:
        runner.finish = finish


def test_publishing_twice_changes_nothing_and_another_file_replaces(service: Served) -> None:
    publish(service, chosen("twice"))
    card = service.home / "twice.json"
    before = card.stat().st_mtime_ns, service.loras()["twice"]
    assert publish(service, chosen("twice")).outcome is Outcome.UNCHANGED
    assert (card.stat().st_mtime_ns, service.loras()["twice"]) == before
    other = chosen("twice", SEPIA)
    assert publish(service, other).outcome is Outcome.REPLACED
    assert service.loras()["twice"]["digest"] == other.digest
    assert publish(service, chosen("twice", SEPIA, trigger="갈색 풍")).trigger == "갈색 풍"


def test_a_lora_of_the_services_own_catalog(service: Served) -> None:
    """Its own file is there already; another one is refused, and changes nothing."""
    assert publish(service, chosen("ink")).outcome is Outcome.UNCHANGED
    before = service.loras()["ink"]
    with pytest.raises(PublishRefused, match="the service's catalog"):
        publish(service, chosen("ink", SEPIA))
    assert {**service.loras()["ink"], "resident": None} == {**before, "resident": None}


def changed(folder: Path, what: str) -> Path:
    weights = load_file(INK)
    name = next(iter(weights))
    metadata = {"base": "sketch", "trigger": "ink style", "license": "Apache-2.0"}
    if what == "another model's":
        weights = {"transformer.nowhere.lora_A.weight": torch.ones(2, 2)}
    elif what == "not finite":
        weights[name] = torch.full_like(weights[name], float("nan"))
    elif what == "high rank":
        weights = {
            key: torch.cat([w, w], dim=0 if "lora_A" in key else 1).half()[:, : w.shape[1] * 2]
            for key, w in list(weights.items())[:8]
        }
    elif what == "large":
        metadata["notes"] = "a" * 1_000_000
    elif what == "for another base":
        metadata["base"] = "flux.1-schnell"
    file = folder / f"{what.replace(' ', '-')}.safetensors"
    save_file(weights, file, metadata)
    return file


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("another model's", r"422: .*lora_refused.* is no layer of this transformer"),
        ("not finite", r"422: .*lora_refused"),
        ("high rank", r"422: .*rank 16"),
        ("large", r"413|bytes than it takes"),
        ("for another base", r"trained on flux\.1-schnell, and http\S+ draws with sketch"),
    ],
)
def test_what_the_service_refuses_is_told_in_its_words(
    service: Served, tmp_path: Path, what: str, words: str
) -> None:
    before = service.loras().keys()
    with pytest.raises(PublishRefused, match=words):
        publish(service, chosen("refused", changed(tmp_path, what)))
    assert service.loras().keys() == before


def test_a_wrong_key_is_refused_and_no_key_is_shown(service: Served) -> None:
    with pytest.raises(PublishRefused, match="401") as refused:
        publish(service, chosen("nobody"), key="wrong-and-secret")
    assert "wrong-and-secret" not in str(refused.value)
    with pytest.raises(PublishRefused, match="401"):
        publish(service, chosen("nobody"), key=None)


def test_names_and_texts_follow_the_services_rules() -> None:
    assert (NAME, TEXT) == (LORA_NAME, TEXT_ABOUT_A_LORA)
    for name in ("A", "-a", ".a", "", "a" * 65, "a b", "a/b", "../a", "ㄱ", "a\n"):
        with pytest.raises(PublishRefused, match="cannot be a LoRA's name"):
            chosen(name)
    with pytest.raises(PublishRefused, match="--trigger must be one line"):
        chosen("a", trigger="two\nlines")


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("nowhere", "no URL"),
        ("file:///etc/passwd", "no URL"),
        ("http://me:secret@127.0.0.1:1", "holds a name or password"),
    ],
)
def test_what_is_no_address(url: str, words: str) -> None:
    with pytest.raises(PublishRefused, match=words) as refused:
        publish(url, chosen("a"))
    assert "secret" not in str(refused.value)


def test_nobody_listens() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(PublishRefused, match="cannot be reached"):
        publish(f"http://127.0.0.1:{port}", chosen("a"))


class _Echo(BaseHTTPRequestHandler):
    """No image service: a page, a redirect or a 503, and it repeats the key that it was sent."""

    def do_GET(self) -> None:
        status = int(self.path.split("/")[1])
        body = self.headers["Authorization"].encode()
        self.send_response(status)
        if status == 302:
            self.send_header("Location", "/200/v1/loras")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None: ...


@pytest.mark.parametrize(
    ("status", "words"),
    [(200, "is no image service"), (302, "answered 302"), (503, r"asked for 1 s"), (500, "500")],
)
def test_another_kind_of_server(status: int, words: str) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Echo)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with pytest.raises(PublishRefused, match=words) as refused:
            publish(f"http://127.0.0.1:{server.server_port}/{status}", chosen("a"), wait_s=1)
        assert KEY not in str(refused.value)
    finally:
        server.shutdown()
        server.server_close()


def invoke(*words: object, **environment: str) -> Result:
    return CliRunner().invoke(cli, ["publish", *map(str, words)], env=environment)


def test_from_the_command_line(service: Served, tmp_path: Path) -> None:
    words = ("from-cli", "--from", INK, "--to", service.url, "--out", tmp_path / "card")
    result = invoke(*words, "--key-env", "MY_KEY", MY_KEY=KEY)
    assert result.exit_code == 0, result.output
    assert "created" in result.output
    assert KEY not in result.output
    assert service.loras()["from-cli"]["licence"] == "Apache-2.0"
    assert (tmp_path / "card" / "from-cli.safetensors").read_bytes() == INK.read_bytes()
    again = invoke(*words, "--key-env", "MY_KEY", MY_KEY=KEY)
    assert "unchanged" in again.output
    assert invoke(*words, "--key-env", "NOT_SET").exit_code == 2
    refused = invoke(*words, JOING_KEY="wrong")
    assert refused.exit_code == 1
    assert "401" in refused.output
    assert "Traceback" not in refused.output
