"""What the engine is told once, at its start. Knows nothing of torch or of the environment."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Dtype = Literal["auto", "float32", "bfloat16", "float16"]


@dataclass(frozen=True)
class ModelSpec:
    """One Flux.1-layout pipeline and how its makers want it used."""

    name: str
    folder: Path
    """A diffusers pipeline: holds model_index.json."""
    max_sequence_length: int = 512
    """Tokens of the T5 prompt, padded and cut to; what the model was trained with."""
    max_steps: int = 100
    max_pixels: int = 2048 * 2048
    min_side_px: int = 16


@dataclass(frozen=True)
class EngineConfig:
    """Every field has a default that is right for one model on one device."""

    device: str = "auto"
    """`auto` takes CUDA where there is one. Otherwise what torch.device reads, such as cuda:1."""
    dtype: Dtype = "auto"
    """Of weights and activations; `auto` is bfloat16 on CUDA and float32 on a CPU. Latents are
    float32 always."""
    threads: int | None = None
    """CPU threads of one operation; None: the cores that this process may use."""

    max_waiting: int = 64
    """Jobs admitted and not begun. The next one is refused."""
    max_rows: int = 16
    """Rows of one batch at most, whatever the budget."""
    token_budget: int | None = None
    """Image and text tokens of one step; None: found at start, see costs.py."""
    patience: float = 6.0
    """A job without a deadline is due after this many times its own time alone. More favours
    short jobs, and lets long ones wait for longer before they age into the front."""
    safety: float = 1.25
    """Deadlines are promised as if everything took this many times as long as measured."""

    lora_slots: int = 8
    """LoRAs that one batch can hold, besides the base."""
    lora_max_rank: int = 64
    lora_cache_bytes: int = 2 * 2**30
    """Parsed LoRAs kept in host memory so that a slot is filled without reading the file again."""
    text_cache_entries: int = 256

    compile: bool = False
    """Compile the repeated blocks. Costs minutes at start."""
    compile_backend: str = "inductor"
    attention_backend: str | None = None
    """A diffusers attention backend, such as `_native_cudnn`; None leaves torch's choice."""
    float8: bool = False
    """Weights and activations of the blocks' linears in float8, by torchao. Needs compute
    capability 8.9."""
