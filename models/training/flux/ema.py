"""The moving average of the LoRA's weights: what is saved and drawn with where it is on.

The decay grows with the steps, min(decay, (1 + n) / (10 + n)), so that the first steps, where the
LoRA is nothing yet, are soon forgotten. AI-Toolkit keeps one decay from the start.
"""

from collections.abc import Mapping

import torch
from torch import Tensor


class Average:
    """Averages copies of weights; `values` is the mean so far."""

    def __init__(self, weights: Mapping[str, Tensor], decay: float) -> None:
        self.values = {name: weight.detach().clone() for name, weight in weights.items()}
        self._decay = decay

    @torch.no_grad()
    def update(self, weights: Mapping[str, Tensor], step: int) -> None:
        """Takes in the weights after step `step`, counted from 1."""
        decay = min(self._decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(
            list(self.values.values()), [weights[name] for name in self.values], 1 - decay
        )

    def load(self, values: Mapping[str, Tensor]) -> None:
        for name, value in self.values.items():
            value.copy_(values[name])
