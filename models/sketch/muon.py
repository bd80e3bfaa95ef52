"""Muon with AdamW beside it: orthogonalised momentum for matrices, AdamW for everything else.

From "Muon: An optimizer for hidden layers in neural networks" (Jordan et al., 2024). Unlike
`torch.optim.Muon` it takes convolutions too, as matrices of (out, in * height * width), and
orthogonalises all matrices of one shape in one batched product, which matters for small models.
"""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5


class Muon:
    """Both optimisers behind one `step`. Gradients are read and cleared; weights are modified."""

    def __init__(
        self,
        matrices: Iterable[Tensor],
        others: Iterable[Tensor],
        *,
        lr: float,
        adam_lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
    ) -> None:
        self.matrices = list(matrices)
        self.lr, self.momentum, self.weight_decay = lr, momentum, weight_decay
        self.adam_lr = adam_lr
        self.adam = torch.optim.AdamW(list(others), lr=adam_lr, betas=(0.9, 0.99), weight_decay=0.0)
        self.buffers = [torch.zeros_like(matrix) for matrix in self.matrices]

    @torch.no_grad()
    def step(self, factor: float) -> None:
        """One update with both learning rates multiplied by `factor`."""
        by_shape: dict[tuple[int, int], list[int]] = defaultdict(list)
        for i, matrix in enumerate(self.matrices):
            if matrix.grad is not None:
                by_shape[(matrix.shape[0], matrix[0].numel())].append(i)
        for shape, members in by_shape.items():
            self._update(shape, members, self.lr * factor)
        for group in self.adam.param_groups:
            group["lr"] = self.adam_lr * factor
        self.adam.step()
        self.adam.zero_grad()

    def _update(self, shape: tuple[int, int], members: list[int], lr: float) -> None:
        moved = []
        for i in members:
            gradient = self.matrices[i].grad
            self.buffers[i].lerp_(gradient, 1 - self.momentum)
            moved.append(gradient.lerp(self.buffers[i], self.momentum).reshape(shape))
            self.matrices[i].grad = None
        scale = max(1.0, shape[0] / shape[1]) ** 0.5
        for i, update in zip(members, orthogonalised(torch.stack(moved)), strict=True):
            matrix = self.matrices[i]
            matrix.mul_(1 - lr * self.weight_decay)
            matrix.add_(update.view_as(matrix), alpha=-lr * scale)

    def state_dict(self) -> dict[str, Any]:
        return {"adam": self.adam.state_dict(), "buffers": self.buffers}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.adam.load_state_dict(state["adam"])
        for buffer, saved in zip(self.buffers, state["buffers"], strict=True):
            buffer.copy_(saved)


def orthogonalised(matrices_NRC: Tensor) -> Tensor:
    """Each matrix with its singular values moved near 1, by Newton-Schulz iteration."""
    a, b, c = _COEFFICIENTS
    wide = matrices_NRC.shape[1] <= matrices_NRC.shape[2]
    x = matrices_NRC if wide else matrices_NRC.mT
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(_ITERATIONS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x if wide else x.mT
