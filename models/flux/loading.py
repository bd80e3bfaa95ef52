"""A pipeline folder as parts that can draw, or ModelUnusable with the reason."""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import nn

from models.flux.config import Dtype, ModelSpec
from models.flux.errors import ModelUnusable

INDEX = "model_index.json"
PIPELINE = "FluxPipeline"
FLOAT8_CAPABILITY = (8, 9)


def load_pipeline(spec: ModelSpec, dtype: torch.dtype, device: torch.device) -> Any:
    """A diffusers FluxPipeline on `device`, used for its parts only. Asks no network."""
    from diffusers import FluxPipeline

    _check_index(spec)
    try:
        pipeline = FluxPipeline.from_pretrained(spec.folder, dtype=dtype, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as broken:
        raise ModelUnusable(f"{spec.folder} cannot be loaded: {broken}") from broken
    for part in (
        pipeline.transformer,
        pipeline.vae,
        pipeline.text_encoder,
        pipeline.text_encoder_2,
    ):
        part.requires_grad_(False).eval().to(device)
    return pipeline


def _check_index(spec: ModelSpec) -> None:
    try:
        index = json.loads((spec.folder / INDEX).read_text("utf-8"))
    except (OSError, ValueError) as missing:
        raise ModelUnusable(f"{spec.folder} holds no readable {INDEX}") from missing
    kind = index.get("_class_name") if isinstance(index, dict) else None
    if kind != PIPELINE:
        raise ModelUnusable(f"{spec.folder} is a {kind}; this engine draws with a {PIPELINE}")


def choose_device(name: str) -> torch.device:
    """Raises ModelUnusable for a device that is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as unknown:
        raise ModelUnusable(f"{name!r} is no device; auto, cpu and cuda:0 are") from unknown
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ModelUnusable(f"{name} was asked for, and torch sees no CUDA device")
    return device


def choose_dtype(name: Dtype, device: torch.device) -> torch.dtype:
    """`auto`: bfloat16 on CUDA; float32 on CPUs, where it was the faster one (docs/log.md)."""
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    named: torch.dtype = getattr(torch, name)
    return named


def quantise_to_float8(transformer: nn.Module) -> None:
    """The blocks' linears in float8, scaled as they run. Raises ModelUnusable elsewhere."""
    if not torch.cuda.is_available() or torch.cuda.get_device_capability() < FLOAT8_CAPABILITY:
        raise ModelUnusable("float8 needs a GPU of compute capability 8.9 or higher")
    try:
        from torchao.quantization import (  # type: ignore[import-not-found,unused-ignore]
            Float8DynamicActivationFloat8WeightConfig,
            quantize_,
        )
    except ImportError as missing:
        raise ModelUnusable("float8 needs the package torchao") from missing
    for name, blocks in transformer.named_children():
        if name.endswith("transformer_blocks"):
            quantize_(blocks, Float8DynamicActivationFloat8WeightConfig())
