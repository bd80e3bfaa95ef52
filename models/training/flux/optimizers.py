"""Optimisers and learning rates by AI-Toolkit's names; what cannot be had here is refused.

A learning rate is a function of the step alone, so there is no state of it to save.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from models.training.config.schema import Train
from models.training.errors import ConfigRefused

_EPS = 1e-6
"""AI-Toolkit's, for all of Adam's kind."""


def make_optimizer(train: Train, parameters: Sequence[Tensor]) -> Any:
    """Raises ConfigRefused for parameters that it does not take and for 8 bits without CUDA."""
    settings = {"lr": train.lr} | train.optimizer_params
    try:
        if train.optimizer == "adafactor":
            return _adafactor(parameters, settings)
        if train.optimizer == "adamw8bit":
            return _eight_bit(parameters, {"eps": _EPS} | settings)
        kind = torch.optim.AdamW if train.optimizer == "adamw" else torch.optim.Adam
        return kind(parameters, **({"eps": _EPS, "fused": True} | settings))
    except (TypeError, ValueError) as unknown:
        raise ConfigRefused(f"train.optimizer_params for {train.optimizer}: {unknown}") from unknown


def _adafactor(parameters: Sequence[Tensor], settings: Mapping[str, Any]) -> Any:
    """With the learning rate that is given, as AI-Toolkit sets it up."""
    from transformers.optimization import Adafactor

    own: dict[str, Any] = {"relative_step": False, "scale_parameter": False, "warmup_init": False}
    return Adafactor(parameters, **own | dict(settings))


def _eight_bit(parameters: Sequence[Tensor], settings: Mapping[str, Any]) -> Any:
    if parameters[0].device.type != "cuda":
        raise ConfigRefused("train.optimizer is adamw8bit, which needs a GPU: use adamw")
    try:
        from bitsandbytes.optim import AdamW8bit  # type: ignore[import-not-found,unused-ignore]
    except ImportError as missing:
        raise ConfigRefused(
            "train.optimizer is adamw8bit, which needs the package bitsandbytes: install it or "
            "use adamw"
        ) from missing
    return AdamW8bit(parameters, **settings)


def learning_rate(train: Train, step: int) -> float:
    """For step `step`, counted from 0.

    After `num_warmup_steps` of a line from nothing: constant, or down to `eta_min` at the last step
    along a line or half a cosine. A warm-up belongs to any of them, not only to
    constant_with_warmup.
    """
    warmup = int(train.lr_scheduler_params.get("num_warmup_steps", 0))
    if step < warmup:
        return train.lr * (step + 1) / (warmup + 1)
    share = (step - warmup) / max(train.steps - warmup, 1)
    if train.lr_scheduler.startswith("constant"):
        return train.lr
    fall = share if train.lr_scheduler == "linear" else (1 - math.cos(math.pi * share)) / 2
    least = float(train.lr_scheduler_params.get("eta_min", 0.0))
    return least + (train.lr - least) * (1 - fall)
