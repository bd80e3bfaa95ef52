"""What the image engine is measured against: diffusers' FluxPipeline and PEFT, as they are used.

One image at a time, a batch for each LoRA, and PEFT's own batch of several LoRAs. Same weights,
same number format, same threads, same process as the engine.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from diffusers import FluxPipeline
from peft.tuners.lora import LoraLayer

from models.flux.request import ImageRequest
from models.flux.runner import Row

BASE = "__base__"  # PEFT's name for a row without an adapter


class StockFlux:
    """A pipeline with every LoRA loaded by diffusers."""

    def __init__(
        self,
        folder: Path,
        loras: Mapping[str, Path],
        *,
        max_sequence_length: int,
        dtype: torch.dtype,
    ) -> None:
        self.pipeline = FluxPipeline.from_pretrained(folder, dtype=dtype, local_files_only=True)
        self.pipeline.set_progress_bar_config(disable=True)
        self._max_sequence_length = max_sequence_length
        for name, file in loras.items():
            self.pipeline.load_lora_weights(file, adapter_name=name)
        self._has_loras = bool(loras)

    def one_at_a_time(self, wanted: Iterable[ImageRequest]) -> list[float]:
        """Draws in order; when each was finished, seconds after the first began."""
        began = time.perf_counter()
        finished = []
        for request in wanted:
            self.draw([request])
            finished.append(time.perf_counter() - began)
        return finished

    def in_static_batches(self, wanted: Iterable[ImageRequest]) -> float:
        """One batch for each LoRA; seconds in all. Steps, sizes and guidance must be equal."""
        began = time.perf_counter()
        for _, group in groupby(sorted(wanted, key=_lora), key=_lora):
            self.draw(list(group))
        return time.perf_counter() - began

    def first_come_first_served(
        self, arrivals: Sequence[tuple[float, ImageRequest]]
    ) -> list[float]:
        """Latency of each, from the second at which it arrived to the one at which it was there."""
        began = time.perf_counter()
        latencies = []
        for arrival_s, request in arrivals:
            time.sleep(max(0.0, arrival_s - (time.perf_counter() - began)))
            self.draw([request])
            latencies.append(time.perf_counter() - began - arrival_s)
        return latencies

    def draw(self, batch: Sequence[ImageRequest]) -> list[Any]:
        """One call of the pipeline for requests that differ in prompt and seed only."""
        first = batch[0]
        if first.lora is not None:
            self.pipeline.enable_lora()
            self.pipeline.set_adapters([first.lora], [first.lora_scale])
        elif self._has_loras:
            self.pipeline.disable_lora()
        with torch.inference_mode():
            images: list[Any] = self.pipeline(
                [request.prompt for request in batch],
                width=first.width,
                height=first.height,
                num_inference_steps=first.steps,
                guidance_scale=first.guidance,
                generator=[torch.Generator().manual_seed(request.seed) for request in batch],
                max_sequence_length=self._max_sequence_length,
            ).images
        return images

    def mixed_step(self, rows: Sequence[Row]) -> float:
        """Seconds of one forward pass with an adapter of its own for each row, as PEFT has it."""
        transformer = self.pipeline.transformer
        names = [row.request.lora or BASE for row in rows]
        count, dtype = len(rows), transformer.dtype
        text_ids = torch.zeros(rows[0].text.tokens_TE.shape[0], 3)
        request = rows[0].request
        scale = self.pipeline.vae_scale_factor * 2
        image_ids = FluxPipeline._prepare_latent_image_ids(
            1, request.height // scale, request.width // scale, "cpu", torch.float32
        )
        inputs = {
            "hidden_states": torch.stack([row.latents_LC for row in rows]).to(dtype),
            "encoder_hidden_states": torch.stack([row.text.tokens_TE for row in rows]),
            "pooled_projections": torch.stack([row.text.pooled_P for row in rows]),
            "timestep": torch.full((count,), 0.5, dtype=dtype),
            "guidance": torch.full((count,), float(request.guidance or 0.0)),
            "txt_ids": text_ids,
            "img_ids": image_ids,
        }
        self.pipeline.enable_lora()
        with torch.inference_mode(), adapter_of_each_row(transformer, names):
            began = time.perf_counter()
            transformer(**inputs, return_dict=False)
            return time.perf_counter() - began


@contextmanager
def adapter_of_each_row(transformer: torch.nn.Module, names: list[str]) -> Iterator[None]:
    """PEFT's mixed batches on a diffusers model, by the hooks that PeftModel would set itself."""

    def name_adapters(_module: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, Any]:
        return args, {**kwargs, "adapter_names": names}

    handles = [
        module.register_forward_pre_hook(name_adapters, with_kwargs=True)
        for module in transformer.modules()
        if isinstance(module, LoraLayer)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _lora(request: ImageRequest) -> str:
    return request.lora or ""
