"""The model to fine-tune: what it allows, and its parts."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from models.training import bases
from models.training.config.schema import Model
from models.training.errors import BaseUnusable

_TRANSFORMER = "transformer"
_PARTS = (_TRANSFORMER, *"vae text_encoder text_encoder_2 tokenizer tokenizer_2 scheduler".split())
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
    max_sequence_length: int
    """Prompt tokens."""

    @property
    def digest(self) -> str:
        """Of all that shapes a training: what else lies in the folder, such as LoRAs, does not."""
        parts = "".join(digest_of(self.folder / part) for part in _PARTS)
        return hashlib.sha256(parts.encode()).hexdigest()


def find_base(model: Model, root: Path) -> Base:
    """What `model.name_or_path` means; raises BaseUnusable with the way out.

    `root` is where pulled weights lie.
    """
    found = bases.find(model.name_or_path, root)
    length = found.row.max_sequence_length if found.row else None
    return Base(
        name=found.name,
        folder=found.folder,
        licence=found.row.licence if found.row else "",
        max_sequence_length=model.model_kwargs.get("max_sequence_length")
        or length
        or bases.SEQUENCE_LENGTH[found.has_guidance],
    )


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
