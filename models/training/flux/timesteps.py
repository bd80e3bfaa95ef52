"""Flow matching: at which times the model is asked, what it should answer, and what a miss costs.

Time is sigma, diffusers' Flux convention: 1 is noise, 0 the picture, and the transformer is told
sigma itself. x = (1 - sigma) latent + sigma noise, and the answer is noise - latent (rectified
flow, arXiv 2209.03003). Sigma has a distribution, written as its quantile function, so that a
preference for high or low noise is a change of the uniform number that goes in. Pure: tensors in,
tensors out.

Shapes: B pictures of a batch, L image tokens, C latent channels packed 2x2.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor

TimestepType = Literal["sigmoid", "linear", "shift"]
Preference = Literal["balanced", "content", "style"]
Quantile = Callable[[Tensor], Tensor]


def quantile_of(kind: TimestepType, scheduler: Mapping[str, Any], image_tokens: int) -> Quantile:
    """What turns uniform numbers in [0, 1) into sigmas for pictures of that many tokens.

    sigmoid: logit-normal (arXiv 2403.03206, section 3.1). linear: uniform. shift: uniform, then
    moved towards noise as the pipeline's own scheduler does it when drawing at this size;
    `scheduler` is its configuration.
    """
    if kind == "sigmoid":
        return lambda uniform_B: torch.special.ndtri(uniform_B).sigmoid()
    if kind == "linear":
        return lambda uniform_B: uniform_B
    shift = _shift(scheduler, image_tokens)
    return lambda uniform_B: shift * uniform_B / (1 + (shift - 1) * uniform_B)


def _shift(scheduler: Mapping[str, Any], image_tokens: int) -> float:
    """The scheduler's factor; with dynamic shifting e^mu, mu on the line through its two points."""
    if not scheduler.get("use_dynamic_shifting"):
        return float(scheduler.get("shift", 1.0))
    x0, x1 = scheduler.get("base_image_seq_len", 256), scheduler.get("max_image_seq_len", 4096)
    y0, y1 = scheduler.get("base_shift", 0.5), scheduler.get("max_shift", 1.15)
    return math.exp(y0 + (image_tokens - x0) * (y1 - y0) / (x1 - x0))


def preferred(uniform_B: Tensor, preference: Preference) -> Tensor:
    """Uniform numbers moved towards 1 for content, towards 0 for style, by AI-Toolkit's cube.

    What is in a picture is decided at high noise, how it is drawn at low noise (arXiv 2302.08453,
    section 3.4).
    """
    if preference == "content":
        return 1 - uniform_B**3
    return uniform_B**3 if preference == "style" else uniform_B


def noised(latents_BLC: Tensor, noise_BLC: Tensor, sigma_B: Tensor) -> tuple[Tensor, Tensor]:
    """(input_BLC, target_BLC) of the transformer."""
    sigma_B11 = sigma_B[:, None, None]
    return (1 - sigma_B11) * latents_BLC + sigma_B11 * noise_BLC, noise_BLC - latents_BLC


def bell(sigma_B: Tensor, *, flat_below_half: bool = False) -> Tensor:
    """AI-Toolkit's weights for `linear_timesteps`, mean 1: most in the middle, none at the ends.

    exp(-2 (sigma - 1/2)^2) less its minimum; with `flat_below_half` (`linear_timesteps2`) low
    noise counts as much as the middle.
    """
    at = (sigma_B - 0.5).clamp(min=0) if flat_below_half else sigma_B - 0.5
    least = math.exp(-0.5)
    mean = math.sqrt(math.pi / 2) * math.erf(math.sqrt(0.5)) - least
    return (torch.exp(-2 * at**2) - least) / mean


def loss_per_picture(
    drawn_BLC: Tensor, target_BLC: Tensor, weights_BL: Tensor, *, squared: bool = True
) -> Tensor:
    """[B], float32: the mean square (or absolute value) of the miss, tokens counting by weight."""
    miss_BLC = drawn_BLC.float() - target_BLC.float()
    miss_BL = (miss_BLC.square() if squared else miss_BLC.abs()).mean(-1)
    return (miss_BL * weights_BL).mean(-1)
