"""The formulas between noise and picture, as Flux.1 has them.

Shape suffixes, here and in runner.py: B rows of the batch, L image tokens, T text tokens, C
channels of a packed token, D rotary dimensions. Latents are packed: 2x2 patches of the VAE's
channels make one token, row by row. Sources: black-forest-labs/flux `sampling.py` (schedule,
packing); diffusers' FluxPipeline, with which every function here agrees in float32.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from einops import rearrange


@dataclass(frozen=True)
class Schedule:
    """Sigma before each step and after the last one; `timesteps` as the transformer takes them
    (0 to 1). Python floats that are exact float32 values.
    """

    sigmas: tuple[float, ...]
    timesteps: tuple[float, ...]

    @property
    def steps(self) -> int:
        return len(self.timesteps)


def schedule(scheduler: Any, steps: int, image_tokens: int) -> Schedule:
    """`steps` Euler steps for a picture of that many tokens, from a diffusers scheduler, which is
    not changed: shifts that depend on the picture's size are its configuration's affair.
    """
    own = copy.deepcopy(scheduler)
    config = own.config
    sigmas = None if config.get("use_flow_sigmas") else np.linspace(1.0, 1 / steps, steps)
    mu = _shift(config, image_tokens)
    own.set_timesteps(num_inference_steps=steps, sigmas=sigmas, mu=mu)
    return Schedule(
        sigmas=tuple(own.sigmas.tolist()), timesteps=tuple((own.timesteps / 1000).tolist())
    )


def _shift(config: Any, image_tokens: int) -> float:
    """mu: on the line through (base tokens, base shift) and (max tokens, max shift)."""
    x0, x1 = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
    y0, y1 = config.get("base_shift", 0.5), config.get("max_shift", 1.15)
    slope = (y1 - y0) / (x1 - x0)
    return float(image_tokens * slope + (y0 - slope * x0))


def noise(seed: int, channels: int, height: int, width: int, dtype: torch.dtype) -> torch.Tensor:
    """Packed noise [L, C] in float32 for a latent picture of `height` x `width`. Drawn on the CPU
    in `dtype`, so a seed means the same picture on every device and in every place of a batch.
    """
    generator = torch.Generator().manual_seed(seed)
    latents = torch.randn((1, channels, height, width), generator=generator, dtype=dtype)
    return pack(latents)[0].float()


def pack(latents: torch.Tensor) -> torch.Tensor:
    """[B, c, h, w] -> [B, L, C] with L = h/2 * w/2 and C = 4c."""
    return rearrange(latents, "b c (h ph) (w pw) -> b (h w) (c ph pw)", ph=2, pw=2)


def unpack(latents_BLC: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """[B, L, C] -> [B, c, height, width], both even."""
    return rearrange(
        latents_BLC, "b (h w) (c ph pw) -> b c (h ph) (w pw)", h=height // 2, ph=2, pw=2
    )


def position_ids(text_tokens: int, height: int, width: int) -> torch.Tensor:
    """[T + L, 3] for a latent picture: zeros for text, then (0, row, column) of each patch."""
    rows, columns = height // 2, width // 2
    ids = torch.zeros(rows, columns, 3)
    ids[..., 1] = torch.arange(rows)[:, None]
    ids[..., 2] = torch.arange(columns)[None, :]
    return torch.cat([torch.zeros(text_tokens, 3), ids.reshape(-1, 3)])


def euler(
    latents_BLC: torch.Tensor, velocity_BLC: torch.Tensor, delta_B11: torch.Tensor
) -> torch.Tensor:
    """One step along the velocity; `delta_B11` is the next sigma less this one, below 0."""
    return latents_BLC + delta_B11 * velocity_BLC
