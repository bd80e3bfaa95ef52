"""Distils guidance into the guidance embedding, so that one batch row draws one image.

The student predicts, in one pass and told the strength g, what the frozen teacher predicts in two:
`empty + g * (captioned - empty)`. After "On Distillation of Guided Diffusion Models" (Meng et al.,
2023), which is also how FLUX.1-dev came by its guidance input. The text encoders stay as they are.
"""

import copy

import torch

from models.sketch.flow import Panels, noised, random_batch, velocity, weighted_error
from models.sketch.flux import AveragedTraining, random_guidance, split_weights, with_weights
from models.sketch.loop import generator, mixed_precision
from models.sketch.muon import Muon
from models.sketch.nets import Networks

BATCH = 24

_SEED = 3
_MUON_LR, _ADAM_LR = 0.003, 5e-4
_AVERAGE = 0.98


class DistilTask(AveragedTraining):
    """Holds teacher, student and the student's average; `teacher` is not modified."""

    def __init__(self, teacher: Networks, panels: list[Panels], device: str) -> None:
        self.panels, self.device = panels, device
        frozen = teacher.trained().to(device).eval().requires_grad_(False)
        self.teacher = with_weights(teacher, frozen)
        self.weights = _transformer_only(copy.deepcopy(frozen))
        self.student = with_weights(teacher, self.weights)
        self.average = copy.deepcopy(self.weights)
        matrices, others = split_weights(self.weights)
        self.optimiser = Muon(matrices, others, lr=_MUON_LR, adam_lr=_ADAM_LR)

    def step(self, number: int, share: float) -> dict[str, float]:
        source = generator(_SEED, number)
        panels = self.panels[number % len(self.panels)]
        batch = random_batch(panels, BATCH, seed=_SEED * 1_000_003 + number)
        noised_BLC, _, sigma_B = (part.to(self.device) for part in noised(batch, source))
        guidance_B = random_guidance(BATCH, source).to(self.device)
        with mixed_precision(self.device):
            with torch.no_grad():
                encoded = self.teacher.encode(batch.captions + [""] * BATCH)
                captioned_BLC, empty_BLC = (
                    velocity(
                        self.teacher,
                        noised_BLC.repeat(2, 1, 1),
                        sigma_B.repeat(2),
                        guidance_B.repeat(2),
                        encoded,
                        aspect=batch.aspect,
                    )
                    .float()
                    .chunk(2)
                )
            pooled_BD, text_BTD = (part[:BATCH] for part in encoded)
            drawn_BLC = velocity(
                self.student,
                noised_BLC,
                sigma_B,
                guidance_B,
                (pooled_BD, text_BTD),
                aspect=batch.aspect,
            )
        target_BLC = empty_BLC + guidance_B[:, None, None] * (captioned_BLC - empty_BLC)
        error = weighted_error(drawn_BLC, target_BLC, batch.weights_BL.to(self.device))
        return self.learn(error, number, share, _AVERAGE)

    def averaged(self) -> Networks:
        """The student, to draw with and to ship."""
        return with_weights(self.teacher, self.average)


def _transformer_only(weights: torch.nn.ModuleDict) -> torch.nn.ModuleDict:
    weights["transformer"].requires_grad_(True).train()
    return weights
