"""Pictures of every column for every prompt and seed, each drawn once and kept.

Drawn by the image runner's own code (models/flux), one at a time: what is compared here is, to
the last bit of rounding, what the image service draws with the same LoRA, scale, seed and settings.
A picture lies in FOLDER/KEY.png; its key is made of the weights' hashes and everything else that
makes it what it is, so that a run that was stopped goes on, and another seed is another file.
"""

from __future__ import annotations

import hashlib
import io
import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from models.flux.config import EngineConfig
from models.flux.errors import FluxError, InvalidRequest, LoraRefused, NotFinite
from models.flux.errors import OutOfMemory as EngineOutOfMemory
from models.flux.library import LoraEntry, LoraLibrary
from models.flux.loading import choose_device, choose_dtype
from models.flux.lora_files import read_lora
from models.flux.request import ImageRequest
from models.training.compare.bases import DrawingModel
from models.training.errors import BaseUnusable, CheckpointUnusable, ConfigRefused, OutOfMemory
from models.training.flux.base import digest_of
from models.training.storage import write_whole

if TYPE_CHECKING:
    from models.flux.runner import Runner

MAX_RANK = 512
_SLOTS = 4
_CACHE_BYTES = 2 * 2**30

OnPicture = Callable[[], None]
"""Called after each picture, drawn or found."""


@dataclass(frozen=True)
class Column:
    """One way of drawing: a model, perhaps a LoRA, and settings."""

    label: str
    model: DrawingModel
    steps: int
    guidance: float | None
    width: int
    height: int
    lora: Path | None = None
    lora_digest: str | None = None
    """SHA-256 of its bytes, hex."""
    lora_scale: float = 1.0


@dataclass(frozen=True)
class Cell:
    """One picture. `seconds` is None for one that was found: it was drawn in another run."""

    prompt: str
    seed: int
    file: Path
    seconds: float | None

    def open(self) -> Image.Image:
        with Image.open(self.file) as opened:
            return opened.convert("RGB")


Cells = dict[str, list[Cell]]
"""By column's label, in the order of prompts, then seeds."""


def draw_all(
    columns: Sequence[Column],
    prompts: Sequence[str],
    seeds: Sequence[int],
    folder: Path,
    *,
    device: str = "auto",
    threads: int | None = None,
    on_picture: OnPicture = lambda: None,
) -> Cells:
    """Draws what is not there yet. A model is loaded only where a picture of it is missing, and
    one at a time; within a model, columns take turns, so that their times can be compared.

    Raises BaseUnusable, CheckpointUnusable, ConfigRefused (a setting that the model cannot draw),
    OutOfMemory and OutOfDisk. What is drawn by then is kept.
    """
    cells: Cells = {column.label: [] for column in columns}
    for model in _models(columns):
        mine = [column for column in columns if column.model == model]
        digest = f"{digest_of(model.spec.folder)} {choose_dtype('auto', choose_device(device))}"
        painter: Painter | None = None
        for prompt in prompts:
            for seed in seeds:
                for column in mine:
                    request = _request(column, prompt, seed)
                    file = folder / f"{_key(column, request, digest)}.png"
                    seconds = None
                    if not _is_picture(file):
                        painter = painter or Painter(mine, device=device, threads=threads)
                        image, seconds = painter.draw(column, request)
                        write_whole(file, _png(image, column, request))
                    cells[column.label].append(Cell(prompt, seed, file, seconds))
                    on_picture()
    return cells


class Painter:
    """One loaded model and the LoRAs of its columns."""

    def __init__(
        self, columns: Sequence[Column], *, device: str = "auto", threads: int | None = None
    ) -> None:
        """Raises BaseUnusable; CheckpointUnusable for a file that the engine refuses."""
        from models.flux.runner import Runner

        model, files = columns[0].model, {c.lora for c in columns if c.lora is not None}
        rank = max((_rank_of(file) for file in files), default=1)
        config = EngineConfig(
            device=device,
            threads=threads,
            max_rows=1,
            lora_slots=max(1, min(_SLOTS, len(files))),
            lora_max_rank=rank,
        )
        with _as_training_errors(str(model.spec.folder)):
            self._runner: Runner = Runner(model.spec, config)
        self._library = LoraLibrary(
            lambda file: read_lora(file, linears=self._runner.linears, max_rank=rank),
            cache_bytes=_CACHE_BYTES,
        )
        self._entries: dict[Path, LoraEntry] = {}
        for file in sorted(files):
            with _as_training_errors(str(file)):
                self._entries[file] = self._library.add(str(file), file)
        self._is_warm = False

    def draw(self, column: Column, request: ImageRequest) -> tuple[Image.Image, float]:
        """The picture, and the seconds from its encoded prompt to its pixels."""
        with _as_training_errors(column.label):
            self._runner.limits.check(request)
            if not self._is_warm:
                self._is_warm = True
                self._draw(column, ImageRequest(**{**asdict(request), "steps": 1}))
            return self._draw(column, request)

    def _draw(self, column: Column, request: ImageRequest) -> tuple[Image.Image, float]:
        lora = None if column.lora is None else self._library.weights(self._entries[column.lora])
        (row,) = self._runner.begin([request], [lora])
        self._wait()
        began = time.perf_counter()
        for _ in range(request.steps):
            self._runner.step([row])
        image = self._runner.finish(row)
        self._wait()
        return image, time.perf_counter() - began

    def _wait(self) -> None:
        if self._runner.device.type == "cuda":
            torch.cuda.synchronize(self._runner.device)


def _request(column: Column, prompt: str, seed: int) -> ImageRequest:
    return ImageRequest(
        prompt=prompt,
        width=column.width,
        height=column.height,
        steps=column.steps,
        seed=seed,
        guidance=column.guidance if column.model.has_guidance else None,
        lora=None if column.lora is None else str(column.lora),
        lora_scale=column.lora_scale,
    )


def _key(column: Column, request: ImageRequest, base_digest: str) -> str:
    """`base_digest` tells weights, and the precision that they are drawn in."""
    made_of = {
        **asdict(request),
        "lora": column.lora_digest,
        "base": base_digest,
        "max_sequence_length": column.model.spec.max_sequence_length,
    }
    return hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:32]


def _png(image: Image.Image, column: Column, request: ImageRequest) -> bytes:
    """With its own making written into it."""
    text = PngInfo()
    for key in ("prompt", "seed", "steps", "guidance", "lora_scale"):
        text.add_itxt(key, str(getattr(request, key)))
    text.add_itxt("model", column.model.name)
    text.add_itxt("lora_digest", column.lora_digest or "")
    file = io.BytesIO()
    image.save(file, "PNG", pnginfo=text)
    return file.getvalue()


def _is_picture(file: Path) -> bool:
    """True for one that is whole."""
    try:
        with Image.open(file) as opened:
            opened.load()
    except OSError:
        return False
    return True


def _models(columns: Iterable[Column]) -> list[DrawingModel]:
    return list(dict.fromkeys(column.model for column in columns))


def _rank_of(file: Path) -> int:
    """The longest first side of its down matrices; what it really is, `read_lora` finds out."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "pt") as opened:
            ranks = [
                opened.get_slice(key).get_shape()[0]
                for key in opened.keys()  # noqa: SIM118  (it is no dictionary)
                if key.endswith((".lora_A.weight", ".lora_down.weight", ".down.weight"))
            ]
    except (OSError, SafetensorError) as broken:
        raise CheckpointUnusable(f"{file} is no readable .safetensors file: {broken}") from broken
    if (rank := max(ranks, default=1)) > MAX_RANK:
        raise CheckpointUnusable(f"{file} has rank {rank}; at most {MAX_RANK} is drawn")
    return rank


@contextmanager
def _as_training_errors(what: str) -> Iterator[None]:
    """What the engine raises, as this package's errors about `what`."""
    try:
        yield
    except LoraRefused as refused:
        raise CheckpointUnusable(f"{what}: {refused}") from refused
    except InvalidRequest as wrong:
        raise ConfigRefused(f"{what}: {wrong}") from wrong
    except EngineOutOfMemory as full:
        raise OutOfMemory(
            f"{what}: a picture does not fit into memory ({full}): try another --device or --size"
        ) from full
    except NotFinite as broken:
        raise CheckpointUnusable(
            f"{what}: {broken}. Its training diverged: leave it out, or lower the learning rate"
        ) from broken
    except FluxError as broken:
        raise BaseUnusable(f"{what}: {broken}") from broken
