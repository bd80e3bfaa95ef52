"""Trains the autoencoder on crops of panels, then on whole panels.

On a mostly white page the L1 optimum is white, so the loss starts as squared error of pixels and
of their differences and fades to absolute error once lines are drawn. A third of the panels is in
the LoRAs' styles: a VAE that has not seen colour cannot learn it from a LoRA.

Shapes: B panels, C channels, H and W pixels.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from models.sketch.data import HELD_OUT_SEED, Pixels, draw_many
from models.sketch.loop import generator, mixed_precision, trapezoid
from models.sketch.muon import Muon
from models.sketch.scene import Aspect

STYLE_MIX = ("sketch", "ink", "sketch", "blueprint", "sketch", "sepia")
CROP_PX = 80
CROPS = 8
WHOLE = 3
WHOLE_FROM = 0.8
"""The share of the budget after which training sees whole panels."""

_SEED = 1
_MUON_LR, _ADAM_LR = 5e-3, 2e-3


class VaeTask:
    """Holds the VAE in training, and the panels in memory."""

    def __init__(self, vae: Any, panels: dict[Aspect, Pixels], device: str) -> None:
        self.vae = vae.to(device, memory_format=torch.channels_last).train()
        self.panels = panels
        self.device = device
        weights = [weight for weight in vae.parameters() if weight.requires_grad]
        self.optimiser = Muon(
            (weight for weight in weights if weight.ndim > 1),
            (weight for weight in weights if weight.ndim <= 1),
            lr=_MUON_LR,
            adam_lr=_ADAM_LR,
        )

    def step(self, number: int, share: float) -> dict[str, float]:
        source = generator(_SEED, number)
        target_BCHW = self._batch(source, share)
        with mixed_precision(self.device):
            posterior = self.vae.encode(target_BCHW).latent_dist
            noise = torch.randn(posterior.mean.shape, generator=source).to(self.device)
            drawn_BCHW = self.vae.decode(posterior.mean + posterior.std * noise).sample
        drawn_BCHW = drawn_BCHW.float()
        spread = 0.5 * (posterior.mean.float() ** 2 + posterior.var.float() - 1)
        kl = (spread - 0.5 * posterior.logvar.float()).mean()
        error = pixel_loss(drawn_BCHW, target_BCHW, absolute=min(max((share - 0.3) / 0.4, 0), 1))
        (error + (2e-4 + 4e-4 * share) * kl).backward()
        torch.nn.utils.clip_grad_norm_(self.vae.parameters(), 1.0)
        self.optimiser.step(trapezoid(share, decay_from=0.5))
        with torch.no_grad():
            squared = functional.mse_loss(drawn_BCHW, target_BCHW)
        return {
            "error": error.item(),
            "kl": kl.item(),
            "psnr": -10 * math.log10(squared.item() / 4),
        }

    def state(self) -> dict[str, Any]:
        return {"vae": self.vae.state_dict(), "optimiser": self.optimiser.state_dict()}

    def restore(self, state: dict[str, Any]) -> None:
        self.vae.load_state_dict(state["vae"])
        self.optimiser.load_state_dict(state["optimiser"])

    def _batch(self, source: torch.Generator, share: float) -> Tensor:
        aspects = tuple(self.panels)
        panels = self.panels[aspects[_below(len(aspects), source)]]
        whole = share > WHOLE_FROM
        chosen = []
        for _ in range(WHOLE if whole else CROPS):
            panel = panels[_below(len(panels), source)]
            if not whole:
                top = _below(panel.shape[0] - CROP_PX + 1, source)
                left = _below(panel.shape[1] - CROP_PX + 1, source)
                panel = panel[top : top + CROP_PX, left : left + CROP_PX]
            chosen.append(torch.from_numpy(panel.copy()))
        return to_pixels(torch.stack(chosen)).to(self.device, memory_format=torch.channels_last)


def training_panels(count: int) -> dict[Aspect, Pixels]:
    """Half of the count in each aspect, in the mix of styles."""
    half = count // 2
    return {
        "16:9": draw_many(range(half), "16:9", STYLE_MIX),
        "9:16": draw_many(range(half, count), "9:16", STYLE_MIX),
    }


def to_pixels(panels_BHWC: Tensor) -> Tensor:
    """Bytes to (B, C, H, W) in -1 to 1."""
    return panels_BHWC.permute(0, 3, 1, 2).float() / 127.5 - 1


def pixel_loss(drawn_BCHW: Tensor, target_BCHW: Tensor, absolute: float) -> Tensor:
    """Squared error fading to absolute error, of pixels and of the differences between them."""
    error_BCHW = drawn_BCHW - target_BCHW
    parts = (error_BCHW, error_BCHW.diff(dim=2), error_BCHW.diff(dim=3))
    squared = sum((part**2).mean() for part in parts)
    plain = sum(part.abs().mean() for part in parts)
    return (1 - absolute) * squared + absolute * 0.3 * plain


@torch.no_grad()
def psnr(vae: Any, style: str, count: int = 32) -> float:
    """Mean over held-out panels in dB, drawn from the posterior's mean."""
    seeds = range(HELD_OUT_SEED, HELD_OUT_SEED + count)
    panels = torch.from_numpy(draw_many(seeds, "16:9", (style,)))
    values = []
    for target_BCHW in to_pixels(panels).to(vae.device).split(8):
        drawn_BCHW = vae.decode(vae.encode(target_BCHW).latent_dist.mean).sample.clamp(-1, 1)
        squared_B = ((drawn_BCHW - target_BCHW) ** 2).mean(dim=(1, 2, 3)) / 4
        values.append(-10 * squared_B.log10())
    return float(torch.cat(values).mean())


@torch.no_grad()
def set_scaling(vae: Any, count: int = 128) -> None:
    """Write the latents' measured mean and deviation into the config; modifies `vae`."""
    means = []
    for aspect in ("16:9", "9:16"):
        panels = torch.from_numpy(draw_many(range(count // 2), aspect))
        pixels_BCHW = to_pixels(panels).to(vae.device)
        means += [vae.encode(part).latent_dist.mean.flatten() for part in pixels_BCHW.split(16)]
    values = torch.cat(means)
    vae.register_to_config(
        shift_factor=float(values.mean()), scaling_factor=float(1 / values.std())
    )


def _below(limit: int, source: torch.Generator) -> int:
    return int(torch.randint(limit, (), generator=source))
