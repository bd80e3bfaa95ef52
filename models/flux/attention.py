"""Flux attention in which every row of the batch has positions of its own.

Stock Flux takes one set of position ids for the whole batch, so pictures of another aspect ratio
could not share it although they have as many tokens. Here the rotary factors are one complex number
for each row, token and pair of channels, set before each step.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from torch import nn


class RowPositions(nn.Module):
    """In the place of the transformer's `pos_embed`: hands out what was set, whatever the ids."""

    def __init__(self, stock: nn.Module) -> None:
        super().__init__()
        self._stock = stock
        self.rotation_BSD: torch.Tensor | None = None

    def rotation(self, ids: torch.Tensor) -> torch.Tensor:
        """Complex64 [T + L, D/2] for ids [T + L, 3]: e^(i position frequency)."""
        cos_SD, sin_SD = self._stock(ids)
        # The stock module repeats each frequency for both halves of a pair.
        return torch.complex(cos_SD[:, ::2].float(), sin_SD[:, ::2].float())

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        assert self.rotation_BSD is not None, "set before the forward pass"
        return self.rotation_BSD


class RowAttention:
    """An attention processor for FluxAttention, equal to diffusers' own where all rows agree."""

    _attention_backend: Any = None
    _parallel_config: Any = None

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        image_rotary_emb: torch.Tensor | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        query, key, value = _heads(
            attn, hidden_states, (attn.to_q, attn.to_k, attn.to_v), (attn.norm_q, attn.norm_k)
        )
        if encoder_hidden_states is not None:
            text = _heads(
                attn,
                encoder_hidden_states,
                (attn.add_q_proj, attn.add_k_proj, attn.add_v_proj),
                (attn.norm_added_q, attn.norm_added_k),
            )
            query, key, value = (
                torch.cat([of_text, of_image], dim=1)
                for of_text, of_image in zip(text, (query, key, value), strict=True)
            )
        assert image_rotary_emb is not None
        mixed = dispatch_attention_fn(
            rotate(query, image_rotary_emb),
            rotate(key, image_rotary_emb),
            value,
            attn_mask=attention_mask,
            backend=self._attention_backend,
            parallel_config=self._parallel_config,
        )
        mixed = mixed.flatten(2, 3).to(query.dtype)
        if encoder_hidden_states is None:
            return mixed
        text_tokens = encoder_hidden_states.shape[1]
        of_text, of_image = mixed[:, :text_tokens], mixed[:, text_tokens:]
        return attn.to_out[0](of_image), attn.to_add_out(of_text)


def _heads(
    attn: Any, states: torch.Tensor, projections: tuple[Any, Any, Any], norms: tuple[Any, Any]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Query, key (both normed) and value of `states` [B, S, C] as [B, S, heads, D]."""
    query, key, value = (
        project(states).unflatten(-1, (-1, attn.head_dim)) for project in projections
    )
    return norms[0](query), norms[1](key), value


def rotate(heads_BSHD: torch.Tensor, rotation_BSD: torch.Tensor) -> torch.Tensor:
    """Each pair of channels as one complex number, times its row's and token's rotation."""
    pairs = torch.view_as_complex(heads_BSHD.float().unflatten(-1, (-1, 2)))
    turned = torch.view_as_real(pairs * rotation_BSD[:, :, None, :]).flatten(-2)
    return turned.to(heads_BSHD.dtype)
