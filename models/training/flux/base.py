"""The model to fine-tune: which one is meant, where it lies, what it allows, and its parts.

Asks no network: what is not here is said with the command that fetches it.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from models.catalog import HubSource, ImageReference, ImageRow, load_catalog
from models.errors import UnknownModel
from models.training.config.schema import Model
from models.training.errors import BaseUnusable
from models.weights import locate_image

_TRANSFORMER = "transformer"
_PARTS = (_TRANSFORMER, *"vae text_encoder text_encoder_2 tokenizer tokenizer_2 scheduler".split())
_SEQUENCE_LENGTH = {True: 512, False: 256}
"""Prompt tokens of FLUX.1-dev, which has a guidance embedding, and of schnell, which has none."""
_HASHED_WHOLE_BYTES = 512 * 2**20
_SAMPLE_BYTES = 2**20


@dataclass(frozen=True)
class Base:
    """One FluxPipeline folder and what is known of it."""

    name: str
    """A catalog row's name where there is one: what the LoRA's metadata says."""
    folder: Path
    licence: str
    """The row's, which a LoRA inherits; empty for a model that is no row."""
    max_sequence_length: int | None
    """Prompt tokens; None: what its layout is used with."""

    def sequence_length(self) -> int:
        if self.max_sequence_length is not None:
            return self.max_sequence_length
        config = json.loads((self.folder / _TRANSFORMER / "config.json").read_text("utf-8"))
        return _SEQUENCE_LENGTH[bool(config.get("guidance_embeds"))]

    @property
    def digest(self) -> str:
        """Of all that shapes a training: what else lies in the folder, such as LoRAs, does not."""
        parts = "".join(digest_of(self.folder / part) for part in _PARTS)
        return hashlib.sha256(parts.encode()).hexdigest()


def find_base(model: Model, root: Path) -> Base:
    """What `model.name_or_path` means; raises BaseUnusable with the way out.

    `root` is where pulled weights lie.
    """
    catalog = load_catalog()
    try:
        meant = catalog.find_image(model.name_or_path)
    except UnknownModel as unknown:
        raise BaseUnusable(f"model.name_or_path: {unknown}") from unknown
    row = _row_of(meant, catalog.images)
    folder = locate_image(row or meant, root) or locate_image(meant, root)
    if folder is None:
        raise BaseUnusable(
            f"{model.name_or_path} is not here yet: run `python -m models pull "
            f"{model.name_or_path}`"
        )
    if not (folder / _TRANSFORMER / "config.json").is_file():
        raise BaseUnusable(f"{folder} holds no transformer/config.json: name a FluxPipeline folder")
    asked = model.model_kwargs.get("max_sequence_length")
    return Base(
        name=row.name if row else _plain_name(meant),
        folder=folder,
        licence=row.licence if row else "",
        max_sequence_length=asked or (row.max_sequence_length if row else None),
    )


def _row_of(meant: ImageReference, rows: tuple[ImageRow, ...]) -> ImageRow | None:
    """The row itself, or the one of the same repository: its licence is inherited either way."""
    if isinstance(meant, ImageRow):
        return meant
    if isinstance(meant, HubSource):
        same = (r for r in rows if isinstance(r.source, HubSource) and r.source.id == meant.id)
        return next(same, None)
    return None


def _plain_name(meant: ImageReference) -> str:
    return meant.id if isinstance(meant, HubSource) else Path(str(meant)).name


def load_encoders(base: Base, dtype: torch.dtype) -> Any:
    """A FluxPipeline without its transformer, on the CPU, VAE in float32. Raises BaseUnusable."""
    from diffusers import FluxPipeline

    dtypes = {"default": dtype, "vae": torch.float32}
    pipeline = _loaded(
        base,
        lambda: FluxPipeline.from_pretrained(base.folder, transformer=None, dtype=dtypes, **_LOCAL),
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def load_transformer(base: Base, dtype: torch.dtype) -> Any:
    """The FluxTransformer2DModel, frozen, on the CPU. Raises BaseUnusable."""
    from diffusers import FluxTransformer2DModel

    transformer = _loaded(
        base,
        lambda: FluxTransformer2DModel.from_pretrained(
            base.folder, subfolder=_TRANSFORMER, dtype=dtype, **_LOCAL
        ),
    )
    return transformer.requires_grad_(False).train()


_LOCAL = {"local_files_only": True}


def _loaded(base: Base, load: Any) -> Any:
    try:
        return load()
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, AttributeError) as broken:
        raise BaseUnusable(
            f"{base.folder} cannot be loaded as a FluxPipeline: {broken}"
        ) from broken


def digest_of(folder: Path) -> str:
    """SHA-256, hex, over names and contents of the weights and configurations below `folder`.

    Of files above 512 MiB only the size, the first and the last MiB are read.
    """
    total = hashlib.sha256()
    for file in sorted(folder.rglob("*")):
        if file.suffix in (".safetensors", ".json") and file.is_file():
            total.update(f"{file.relative_to(folder).as_posix()}\0{file.stat().st_size}\0".encode())
            for chunk in _chunks(file):
                total.update(chunk)
    return total.hexdigest()


def _chunks(file: Path) -> Iterator[bytes]:
    with file.open("rb") as opened:
        if file.stat().st_size > _HASHED_WHOLE_BYTES:
            yield opened.read(_SAMPLE_BYTES)
            opened.seek(-_SAMPLE_BYTES, 2)
            yield opened.read(_SAMPLE_BYTES)
            return
        while chunk := opened.read(_SAMPLE_BYTES):
            yield chunk
