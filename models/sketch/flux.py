"""Trains the transformer and both text encoders from nothing, by flow matching.

Muon moves the matrices inside the blocks, AdamW the rest. An exponential average of the weights is
what is shipped. Guidance is fed at random and means nothing yet; `distil` gives it its meaning.
"""

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from models.sketch.flow import Panels, noised, random_batch, velocity, weighted_error
from models.sketch.loop import generator, mixed_precision, trapezoid
from models.sketch.muon import Muon
from models.sketch.nets import Networks

BATCH = 32
GUIDANCE = (1.0, 5.0)
"""Least and most; training draws uniformly between them."""

_SEED = 2
_MUON_LR, _ADAM_LR = 0.01, 1e-3
_AVERAGE = 0.998


class AveragedTraining:
    """Weights in training, their exponential average and the optimiser: what two stages share."""

    weights: torch.nn.ModuleDict
    average: torch.nn.ModuleDict
    optimiser: Muon

    def learn(self, error: Tensor, number: int, share: float, decay: float) -> dict[str, float]:
        """One step down `error`; the average forgets by `decay`, faster in the beginning."""
        error.backward()
        torch.nn.utils.clip_grad_norm_(self.weights.parameters(), 1.0)
        self.optimiser.step(trapezoid(share))
        update_average(self.average, self.weights, min(decay, (1 + number) / (10 + number)))
        return {"error": error.item()}

    def state(self) -> dict[str, Any]:
        return {
            "weights": self.weights.state_dict(),
            "average": self.average.state_dict(),
            "optimiser": self.optimiser.state_dict(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.weights.load_state_dict(state["weights"])
        self.average.load_state_dict(state["average"])
        self.optimiser.load_state_dict(state["optimiser"])


class FluxTask(AveragedTraining):
    """Holds the networks in training, their average and the encoded panels."""

    def __init__(self, networks: Networks, panels: list[Panels], device: str) -> None:
        self.networks, self.panels, self.device = networks, panels, device
        self.weights = networks.trained().to(device).train()
        self.average = copy.deepcopy(self.weights).eval()
        matrices, others = split_weights(self.weights)
        self.optimiser = Muon(matrices, others, lr=_MUON_LR, adam_lr=_ADAM_LR)

    def step(self, number: int, share: float) -> dict[str, float]:
        source = generator(_SEED, number)
        panels = self.panels[number % len(self.panels)]
        batch = random_batch(panels, BATCH, seed=_SEED * 1_000_003 + number)
        parts = [part.to(self.device) for part in noised(batch, source)]
        noised_BLC, target_BLC, sigma_B = parts
        with mixed_precision(self.device):
            encoded = self.networks.encode(batch.captions)
            guidance_B = random_guidance(len(batch.captions), source).to(self.device)
            drawn_BLC = velocity(
                self.networks, noised_BLC, sigma_B, guidance_B, encoded, aspect=batch.aspect
            )
        error = weighted_error(drawn_BLC, target_BLC, batch.weights_BL.to(self.device))
        return self.learn(error, number, share, _AVERAGE)

    def averaged(self) -> Networks:
        """The networks with averaged weights, for drawing and shipping."""
        return with_weights(self.networks, self.average)


def split_weights(weights: torch.nn.ModuleDict) -> tuple[list[Tensor], list[Tensor]]:
    """Matrices that multiply tokens inside the transformer's blocks, and everything else."""
    matrices: list[Tensor] = []
    others: list[Tensor] = []
    for name, weight in weights.named_parameters():
        inside = "transformer_blocks" in name and ".linear." not in name
        (matrices if inside and weight.ndim == 2 else others).append(weight)
    return matrices, others


def random_guidance(count: int, source: torch.Generator) -> Tensor:
    least, most = GUIDANCE
    return least + (most - least) * torch.rand(count, generator=source)


@torch.no_grad()
def update_average(average: torch.nn.Module, weights: torch.nn.Module, decay: float) -> None:
    """Move `average` towards `weights`."""
    pairs: Iterator[tuple[Tensor, Tensor]] = zip(
        average.parameters(), weights.parameters(), strict=True
    )
    for mean, weight in pairs:
        mean.lerp_(weight, 1 - decay)


def with_weights(networks: Networks, weights: torch.nn.ModuleDict) -> Networks:
    """The same VAE and tokenizers around other weights."""
    return Networks(
        vae=networks.vae,
        transformer=weights["transformer"],
        clip=weights["clip"],
        t5=weights["t5"],
        clip_tokenizer=networks.clip_tokenizer,
        t5_tokenizer=networks.t5_tokenizer,
    )
