"""One tiny pipeline, LoRA files for it, and engines on it, for all tests of the engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from models.flux.config import EngineConfig, ModelSpec
from models.flux.costs import Costs
from models.flux.engine import Engine
from models.flux.library import LoraLibrary
from models.flux.lora_files import read_lora
from models.flux.request import ImageRequest
from models.flux.runner import Row, Runner
from models.flux.scheduler import BatchLimits, Scheduler
from tests.models.flux.tiny import HEIGHT, WIDTH, tiny_pipeline, tiny_spec

LORAS = ("red", "green", "blue")
RANKS = {"red": 4, "green": 8, "blue": 2}
OpenEngine = Callable[..., Engine]


class RecordingRunner(Runner):
    """Keeps the latents of every picture that it finishes, by request."""

    def __init__(self, spec: ModelSpec, config: EngineConfig) -> None:
        super().__init__(spec, config)
        self.latents: dict[ImageRequest, torch.Tensor] = {}

    def finish(self, row: Row):
        self.latents[row.request] = row.latents_LC.clone()
        return super().finish(row)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_pipeline(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def lora_folder(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """NAME.safetensors for each of LORAS, on every linear of the tiny transformer."""
    folder = tmp_path_factory.mktemp("loras")
    linears = Runner(tiny_spec(tiny_folder), EngineConfig(device="cpu", threads=1)).linears
    for seed, name in enumerate(LORAS):
        write_lora(folder / f"{name}.safetensors", linears, RANKS[name], seed)
    return folder


def write_lora(file: Path, linears, rank: int, seed: int, strength: float = 0.3) -> Path:
    random = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, (inputs, outputs) in linears.items():
        down = torch.randn(rank, inputs, generator=random) / inputs**0.5
        up = torch.randn(outputs, rank, generator=random) * strength / rank**0.5
        tensors[f"transformer.{name}.lora_A.weight"] = down
        tensors[f"transformer.{name}.lora_B.weight"] = up
    save_file(tensors, file)
    return file


def engine_on(
    spec: ModelSpec,
    lora_folder: Path | None = None,
    *,
    runner: Runner | None = None,
    max_rows: int = 6,
    max_waiting: int = 64,
    slots: int = 4,
    clock=None,
    observer=None,
    **config: object,
) -> Engine:
    """Not started: tests call `step` themselves. Costs are invented, so nothing here is timed."""
    options = EngineConfig(device="cpu", threads=1, lora_slots=slots, lora_max_rank=16, **config)
    runner = runner or RecordingRunner(spec, options)
    scheduler = Scheduler(
        BatchLimits(max_rows, 10**9, slots),
        Costs(((64, 0.01), (640, 0.05)), 0.002, 0.0001),
        max_waiting=max_waiting,
        text_tokens=runner.limits.text_tokens,
    )
    library = LoraLibrary(
        lambda file: read_lora(file, linears=runner.linears, max_rank=16), cache_bytes=2**28
    )
    for file in sorted(lora_folder.glob("*.safetensors")) if lora_folder else ():
        library.add(file.stem, file)
    timed = {"clock": clock} if clock else {}
    return Engine(runner, library, scheduler, observer=observer, **timed)


@pytest.fixture
def open_engine(tiny_folder: Path, lora_folder: Path) -> Iterator[OpenEngine]:
    opened: list[Engine] = []

    def open_one(**options: object) -> Engine:
        engine = engine_on(tiny_spec(tiny_folder), lora_folder, **options)
        opened.append(engine)
        return engine

    yield open_one
    for engine in opened:
        engine.stop()
        engine.check_integrity()


def request(seed: int = 0, **changes: object) -> ImageRequest:
    asked = {
        "prompt": "a street at night",
        "width": WIDTH,
        "height": HEIGHT,
        "steps": 4,
        "guidance": 3.5,
    }
    return ImageRequest(seed=seed, **{**asked, **changes})


def run_dry(engine: Engine, limit: int = 5_000) -> None:
    """Steps until nothing is left to do."""
    for _ in range(limit):
        if not engine.step():
            return
        engine.check_integrity()
    raise AssertionError(f"not idle after {limit} steps")
