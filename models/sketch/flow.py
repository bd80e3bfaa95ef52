"""Latents and captions in batches, and the flow-matching maths of every transformer stage.

Time and velocity are diffusers' Flux conventions: sigma 1 is noise, a model predicts noise minus
latent, and is given sigma itself as timestep.

Shapes: B panels, L image tokens, T text tokens, C latent channels packed 2x2, D channels.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from models.sketch.data import Pixels, draw_many, scene_of
from models.sketch.nets import UNKNOWN, Networks
from models.sketch.panels import SIZES_PX, draw
from models.sketch.scene import TRIGGERS, Aspect, caption
from models.sketch.vae import to_pixels

FIGURE_WEIGHT = 2.0
"""How much more a token counts where figures and things are: they are small and matter most."""
DROPPED_CAPTIONS = 0.1
UNKNOWN_WORDS = 0.15
"""Share of captions that get words outside the vocabulary, so that those do no harm."""
PATCH_PX = 16
"""Pixels under one image token: 8 by the VAE, 2 by packing."""


@dataclass(frozen=True)
class Panels:
    """Encoded panels of one aspect ratio."""

    aspect: Aspect
    seeds: Sequence[int]
    latents_BLC: Tensor
    """Normalised and packed, bfloat16."""
    weights_BL: Tensor
    """1, or FIGURE_WEIGHT where a figure or a thing is."""

    def save(self, file: Path) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.save({**vars(self), "seeds": list(self.seeds)}, file)

    @classmethod
    def load(cls, file: Path) -> "Panels":
        return cls(**torch.load(file, weights_only=True))


@dataclass(frozen=True)
class Batch:
    """What one training step reads."""

    aspect: Aspect
    captions: list[str]
    latents_BLC: Tensor
    weights_BL: Tensor


@torch.no_grad()
def encode_panels(vae: Any, seeds: Sequence[int], aspect: Aspect) -> Panels:
    """Draw and encode the panels of `seeds`."""
    latents, weights = [], []
    for start in range(0, len(seeds), 512):
        part = seeds[start : start + 512]
        pixels = draw_many(part, aspect)
        for chunk in torch.from_numpy(pixels).split(16):
            posterior = vae.encode(to_pixels(chunk).to(vae.device)).latent_dist
            normal = (posterior.mean - vae.config.shift_factor) * vae.config.scaling_factor
            latents.append(packed(normal).bfloat16().cpu())
        weights.append(_weights(pixels, part, aspect))
    return Panels(aspect, seeds, torch.cat(latents), torch.cat(weights))


def packed(latents_BCHW: Tensor) -> Tensor:
    """Each 2x2 square of latents as one token, rows first."""
    batch, channels, height, width = latents_BCHW.shape
    squares = latents_BCHW.view(batch, channels, height // 2, 2, width // 2, 2)
    return squares.permute(0, 2, 4, 1, 3, 5).reshape(batch, -1, channels * 4)


def random_batch(panels: Panels, size: int, seed: int) -> Batch:
    """`size` panels with fresh captions, which begin with any of the known triggers or none."""
    rng = random.Random(seed)  # noqa: S311  (data, no secret)
    chosen = [rng.randrange(len(panels.seeds)) for _ in range(size)]
    captions = [training_caption(panels.seeds[i], panels.aspect, rng) for i in chosen]
    index = torch.tensor(chosen)
    return Batch(
        panels.aspect, captions, panels.latents_BLC[index].float(), panels.weights_BL[index]
    )


def training_caption(seed: int, aspect: Aspect, rng: random.Random) -> str:
    """The panel's caption, now and then with unknown words, or dropped to the empty prompt."""
    if rng.random() < DROPPED_CAPTIONS:
        return ""
    trigger = rng.choice((TRIGGERS[0],) * 4 + (*TRIGGERS[1:], ""))
    text = caption(scene_of(seed, aspect), rng, trigger)
    if rng.random() < UNKNOWN_WORDS:
        parts = text.split(" ")
        for _ in range(rng.randint(1, 2)):
            parts.insert(rng.randrange(len(parts) + 1), UNKNOWN)
        text = " ".join(parts)
    return text


def noised(batch: Batch, source: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Latents at logit-normal times: (noised_BLC, velocity_BLC, sigma_B)."""
    noise_BLC = torch.randn(batch.latents_BLC.shape, generator=source)
    sigma_B = torch.randn(len(batch.captions), generator=source).sigmoid()
    mix_B11 = sigma_B[:, None, None]
    noised_BLC = (1 - mix_B11) * batch.latents_BLC + mix_B11 * noise_BLC
    return noised_BLC, noise_BLC - batch.latents_BLC, sigma_B


def velocity(
    networks: Networks,
    noised_BLC: Tensor,
    sigma_B: Tensor,
    guidance_B: Tensor,
    encoded: tuple[Tensor, Tensor],
    *,
    aspect: Aspect,
) -> Tensor:
    """The transformer's prediction for latents of one aspect ratio."""
    pooled_BD, text_BTD = encoded
    return networks.transformer(
        hidden_states=noised_BLC,
        timestep=sigma_B,
        guidance=guidance_B,
        pooled_projections=pooled_BD,
        encoder_hidden_states=text_BTD,
        txt_ids=torch.zeros(text_BTD.shape[1], 3, device=noised_BLC.device),
        img_ids=image_ids(aspect).to(noised_BLC.device),
        return_dict=False,
    )[0]


def image_ids(aspect: Aspect) -> Tensor:
    """(L, 3) positions: zero, row, column."""
    width_px, height_px = SIZES_PX[aspect]
    rows, columns = torch.meshgrid(
        torch.arange(height_px // PATCH_PX), torch.arange(width_px // PATCH_PX), indexing="ij"
    )
    return torch.stack([torch.zeros_like(rows), rows, columns], dim=-1).reshape(-1, 3).float()


def weighted_error(drawn_BLC: Tensor, target_BLC: Tensor, weights_BL: Tensor) -> Tensor:
    """Mean squared error in which tokens count by their weight."""
    error_BL = functional.mse_loss(drawn_BLC.float(), target_BLC, reduction="none").mean(-1)
    return (error_BL * weights_BL).sum() / weights_BL.sum()


def _weights(pixels: Pixels, seeds: Sequence[int], aspect: Aspect) -> Tensor:
    """(B, L): where a panel differs from the same panel with nobody and nothing in it."""
    rows = []
    for panel, seed in zip(pixels, seeds, strict=True):
        bare = replace(scene_of(seed, aspect), figures=(), thing=None)
        differs = (panel != np.asarray(draw(bare, seed))).any(-1)
        height, width = differs.shape
        tiles = differs.reshape(height // PATCH_PX, PATCH_PX, width // PATCH_PX, PATCH_PX)
        rows.append(torch.from_numpy(tiles.mean((1, 3)).reshape(-1) > 0.04))
    return 1 + (FIGURE_WEIGHT - 1) * torch.stack(rows).float()
