"""The images service over HTTP, drawing with a tiny random Flux.1-layout pipeline."""

from __future__ import annotations

import base64
import io
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import httpx
import openai
import pytest
import torch
from diffusers import FluxTransformer2DModel
from fastapi import FastAPI
from PIL import Image

from models.catalog import Catalog, HubFile, HubSource, ImageRow, LoraRow
from models.flux.engine import Engine
from models.flux.lora_files import linear_shapes
from models.weights import Manifest
from services.images.app import create_app
from services.images.settings import ImagesSettings
from tests.fakes.scripted_llm import served_app
from tests.models.flux.conftest import write_lora
from tests.models.flux.tiny import HEIGHT, TEXT_TOKENS, WIDTH, tiny_pipeline

GENERATIONS = "/v1/images/generations"
UPLOAD = {"Content-Type": "application/octet-stream"}
STEPS = 4
FOREVER = 1_000  # steps: several seconds, and none of the tests waits for them
HUB, REVISION = "joing-tests/tiny", "main"
READY_WITHIN_S = 120.0
HELD_S = 20.0


@dataclass(frozen=True)
class Served:
    """One running service, and the engine inside it."""

    base_url: str
    app: FastAPI
    client: httpx.Client

    @property
    def engine(self) -> Engine:
        return self.app.state.opening.studio.engine

    def post(self, **body: Any) -> httpx.Response:
        return self.client.post(GENERATIONS, json={"prompt": "a street at night", **body})

    def openai(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.base_url}/v1", api_key="none", max_retries=0)

    def put(self, name: str, file: Path | bytes, **query: str) -> httpx.Response:
        content = file if isinstance(file, bytes) else file.read_bytes()
        return self.client.put(f"/v1/loras/{name}", content=content, headers=UPLOAD, params=query)

    def loras(self) -> dict[str, dict[str, Any]]:
        return {lora["name"]: lora for lora in self.client.get("/v1/loras").json()["data"]}

    def live(self) -> int:
        now = self.engine.snapshot()
        return now.waiting + now.running + now.parked


Serve = Callable[..., Any]


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return tiny_pipeline(tmp_path_factory.mktemp("pipelines") / "tiny")


@pytest.fixture(scope="session")
def lora_files(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """LoRA files for the tiny pipeline, each another one."""
    folder = tmp_path_factory.mktemp("loras")
    linears = linear_shapes(FluxTransformer2DModel.from_pretrained(tiny_folder / "transformer"))
    return {
        name: write_lora(folder / f"{name}.safetensors", linears, rank=4, seed=seed)
        for seed, name in enumerate(("red", "green", "blue", "grey"))
    }


@pytest.fixture(scope="session")
def models_dir(
    tiny_folder: Path, lora_files: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """As `python -m models pull` leaves it: the model and the LoRA `red`, and not `blue`."""
    root = tmp_path_factory.mktemp("models")
    for name, folder in (("tiny", tiny_folder), ("red", lora_files["red"].parent)):
        manifest = Manifest(name=name, version=REVISION, commit="0" * 40, path=folder)
        (root / name).mkdir()
        (root / name / "joing.json").write_text(manifest.model_dump_json())
    return root


@pytest.fixture(scope="session")
def catalog() -> Catalog:
    tiny = ImageRow(
        name="tiny",
        source=HubSource(id=HUB, revision=REVISION),
        licence="Apache-2.0",
        parameters_b=0.0001,
        steps=STEPS,
        max_steps=FOREVER,
        guidance=3.5,
        max_sequence_length=TEXT_TOKENS,
        width=WIDTH,
        height=HEIGHT,
        size_multiple=8,
        min_side_px=16,
        max_pixels=128 * 128,
    )
    loras = [
        LoraRow(
            name=name,
            base="tiny",
            source=HubFile(id=f"joing-tests/{name}", revision=REVISION, file=f"{name}.safetensors"),
            trigger=f"{name} style",
            licence="Apache-2.0",
        )
        for name in ("red", "blue")
    ]
    return Catalog(images=(tiny,), loras=tuple(loras))


@pytest.fixture(scope="session")
def serve(models_dir: Path, catalog: Catalog) -> Serve:
    """A context manager of one service; keywords are its settings."""

    @contextmanager
    def serve_one(home: Path, **settings: Any) -> Iterator[Served]:
        told = {
            "model": "tiny",
            "models_dir": models_dir,
            "home": home,
            "device": "cpu",
            "threads": 1,
            "max_rows": 8,
            "log_level": "error",
            **settings,
        }
        app = create_app(ImagesSettings(**told), catalog)
        with served_app(app) as base_url, httpx.Client(base_url=base_url, timeout=60) as client:
            until(lambda: app.state.opening.is_ready, READY_WITHIN_S)
            yield Served(base_url, app, client)

    return serve_one


@pytest.fixture(scope="session")
def _shared(serve: Serve, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serve(tmp_path_factory.mktemp("home"), max_lora_bytes=2**20) as served:
        yield served


@pytest.fixture
def service(_shared: Served) -> Iterator[Served]:
    """One for most tests. Each finds it idle, and leaves it so."""
    until(lambda: _shared.live() == 0)
    yield _shared
    until(lambda: _shared.live() == 0)


@dataclass
class Hold:
    """`reached` when the service has come there; it goes on when told to `go`."""

    reached: threading.Event = field(default_factory=threading.Event)
    go: threading.Event = field(default_factory=threading.Event)

    def wait(self) -> None:
        self.reached.set()
        assert self.go.wait(HELD_S), "nobody let it go on"


@contextmanager
def held(
    owner: Any, name: str, *, after: bool = False, raises: Exception | None = None
) -> Iterator[Hold]:
    """Whoever calls `owner.name`, in a thread other than the loop's, waits before it or after it.
    With `raises` it then fails.
    """
    hold, real = Hold(), getattr(owner, name)

    def called(*args: Any) -> Any:
        if after:
            result = real(*args)
            hold.wait()
            return result
        hold.wait()
        if raises is not None:
            raise raises
        return real(*args)

    with mock.patch.object(owner, name, called):
        try:
            yield hold
        finally:
            hold.go.set()


def until(holds: Callable[[], object], within_s: float = 20.0) -> None:
    end = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)


def picture(entry: Any) -> Image.Image:
    """What an entry of `data`, or an event, shows."""
    text = entry["b64_json"] if isinstance(entry, dict) else entry.b64_json
    image = Image.open(io.BytesIO(base64.b64decode(text)))
    image.load()
    return image
