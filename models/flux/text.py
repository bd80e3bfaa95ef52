"""Prompts as numbers: CLIP's pooled vector and T5's tokens, each prompt encoded once.

One thread only: fast tokenizers refuse to be shared. Shapes: T text tokens, E width of T5, P width
of CLIP.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class TextEmbedding:
    """What the transformer reads of one prompt."""

    tokens_TE: torch.Tensor
    pooled_P: torch.Tensor


class TextEncoder:
    """Both encoders and a cache of the last `cache_entries` prompts.

    An embedding is shaped by the prompt, by `max_sequence_length` and by the encoders; the last two
    never change here (LoRAs with text layers are refused), so the prompt is the whole key.
    """

    def __init__(
        self,
        clip: Any,
        clip_tokenizer: Any,
        t5: Any,
        t5_tokenizer: Any,
        *,
        max_sequence_length: int,
        cache_entries: int,
    ) -> None:
        self._clip, self._clip_tokenizer = clip, clip_tokenizer
        self._t5, self._t5_tokenizer = t5, t5_tokenizer
        self._max_sequence_length = max_sequence_length
        self._cache_entries = cache_entries
        self._cache: OrderedDict[str, TextEmbedding] = OrderedDict()

    def has(self, prompt: str) -> bool:
        """True when encoding it costs nothing. The one call that any thread may make."""
        return prompt in self._cache

    def forget(self, prompt: str) -> None:
        self._cache.pop(prompt, None)

    def encode(self, prompts: Sequence[str]) -> list[TextEmbedding]:
        """In the order given; what is not cached goes through the encoders together."""
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._cache]
        known = {prompt: self._cache[prompt] for prompt in prompts if prompt in self._cache}
        known |= dict(zip(new, self._compute(new), strict=True)) if new else {}
        for prompt in prompts:
            self._cache[prompt] = known[prompt]
            self._cache.move_to_end(prompt)
        while len(self._cache) > self._cache_entries:
            self._cache.popitem(last=False)
        return [known[prompt] for prompt in prompts]

    def _compute(self, prompts: list[str]) -> list[TextEmbedding]:
        clip_ids = _ids(self._clip_tokenizer, prompts, self._clip_tokenizer.model_max_length)
        t5_ids = _ids(self._t5_tokenizer, prompts, self._max_sequence_length)
        pooled = self._clip(clip_ids.to(self._clip.device)).pooler_output.to(self._clip.dtype)
        tokens = self._t5(t5_ids.to(self._t5.device))[0].to(self._t5.dtype)
        # Clones: a view would keep the whole batch of encodings in memory.
        return [TextEmbedding(t.clone(), p.clone()) for t, p in zip(tokens, pooled, strict=True)]


def _ids(tokenizer: Any, prompts: list[str], length: int) -> torch.Tensor:
    ids: torch.Tensor = tokenizer(
        prompts, padding="max_length", max_length=length, truncation=True, return_tensors="pt"
    ).input_ids
    return ids
