"""The bank: several LoRAs in memory at once, and each row of a batch takes its own.

Every linear of the transformer is wrapped. A wrapped linear holds its part of all slots in two tensors
and gathers one slice for each row with one index tensor, so that a batch may be composed anew at
every step without touching a weight, a name or a compiled graph. Slot 0 is the base: zeros, for ever.

Shapes: S slots, I in, O out, R the bank's rank. The request's scale multiplies the R-wide middle.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import nn

from models.flux.errors import LoraInUse
from models.flux.lora_files import LoraWeights

BASE_SLOT = 0


class Rows:
    """Which slot each row of the batch takes, and how strongly. Shared by all wrapped linears."""

    def __init__(self) -> None:
        self.is_base = True
        """All rows take slot 0: linears do nothing besides their own work."""
        self.slot_B = torch.zeros(1, dtype=torch.long)
        self.scale_B11 = torch.zeros(1, 1, 1)
        self.rank = 0
        """The highest of these rows' LoRAs; beyond it every slice is zeros."""


class LoraLinear(nn.Module):
    """A linear and its slice of the bank. `base` is called first, so it may be quantised."""

    def __init__(self, base: nn.Module, slots: int, rank: int, rows: Rows) -> None:
        super().__init__()
        weight = base.weight
        assert isinstance(weight, torch.Tensor)
        out_features, in_features = weight.shape
        self.base = base
        self.rows = rows
        self.is_used = False
        """Some slot holds something for this linear."""
        like = {"dtype": _bank_dtype(weight.dtype), "device": weight.device}
        self.register_buffer(
            "down_SIR", torch.zeros(slots, in_features, rank, **like), persistent=False
        )
        self.register_buffer(
            "up_SRO", torch.zeros(slots, rank, out_features, **like), persistent=False
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.base(x)
        rows = self.rows
        if rows.is_base or not self.is_used:
            return y
        if x.dim() == 2:  # [B, I]: modulation and embeddings, one vector a row
            return self._add(y[:, None], x[:, None])[:, 0]
        return self._add(y, x)

    def _add(self, y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        rows = self.rows
        down_BIR = self.down_SIR[rows.slot_B, :, : rows.rank]
        up_BRO = self.up_SRO[rows.slot_B, : rows.rank]
        return torch.baddbmm(y, torch.bmm(x, down_BIR) * rows.scale_B11, up_BRO)


def _bank_dtype(weight_dtype: torch.dtype) -> torch.dtype:
    """A quantised weight's LoRA stays in bfloat16."""
    return weight_dtype if weight_dtype.is_floating_point else torch.bfloat16


class LoraBank:
    """Slots of one transformer. Only the thread that runs the model may call it."""

    def __init__(
        self, transformer: nn.Module, *, slots: int, max_rank: int, is_compiled: bool = False
    ) -> None:
        """Wraps every linear of `transformer`, in place; `slots` do not count the base.

        With `is_compiled`, linears that no LoRA touches do the arithmetic too: skipping it would be
        another graph for each combination of LoRAs in the bank.
        """
        self.rows = Rows()
        self._max_rank = max_rank
        self._is_compiled = is_compiled
        self._linears = {
            name: LoraLinear(module, slots + 1, max_rank, self.rows)
            for name, module in transformer.named_modules()
            if isinstance(module, nn.Linear)
        }
        for name, wrapped in self._linears.items():
            transformer.set_submodule(name, wrapped)
            wrapped.is_used = is_compiled
        self._free = list(range(slots, BASE_SLOT, -1))
        self._resident: OrderedDict[str, int] = OrderedDict()  # digest -> slot, oldest use first
        self._held: dict[int, LoraWeights] = {}
        self._pinned: set[str] = set()

    @property
    def resident(self) -> frozenset[str]:
        """Digests of the LoRAs that are in a slot."""
        return frozenset(self._resident)

    @property
    def slots(self) -> int:
        """Besides the base's."""
        return len(self._free) + len(self._resident)

    def pin(self, wanted: Sequence[LoraWeights]) -> None:
        """Brings `wanted` into slots and keeps them there until the next call; nothing else is
        pinned after it. Evicts the least recently used. Raises LoraInUse when they are more than
        there are slots: then nothing has changed.
        """
        by_digest = {lora.digest: lora for lora in wanted}
        if len(by_digest) > self.slots:
            raise LoraInUse(f"{len(by_digest)} LoRAs at once; the bank has {self.slots} slots")
        self._pinned = set(by_digest)
        for digest in by_digest:
            if digest in self._resident:
                self._resident.move_to_end(digest)
        for digest, lora in by_digest.items():
            if digest not in self._resident:
                self._load(lora)

    def select(self, loras: Sequence[str | None], scales: Sequence[float]) -> None:
        """The composition of the next forward passes: a pinned LoRA's digest, or None, a row."""
        slots = [BASE_SLOT if lora is None else self._resident[lora] for lora in loras]
        some = next(iter(self._linears.values())).down_SIR
        assert isinstance(some, torch.Tensor)
        self.rows.slot_B = torch.tensor(slots, device=some.device)
        self.rows.scale_B11 = torch.tensor(scales, device=some.device, dtype=some.dtype).view(
            -1, 1, 1
        )
        self.rows.is_base = not any(slots)
        ranks = [self._held[slot].rank for slot in slots if slot != BASE_SLOT]
        self.rows.rank = self._max_rank if self._is_compiled else max(ranks, default=0)

    def drop(self, digest: str) -> None:
        """Empties its slot. Raises LoraInUse while it is pinned; nothing happens if not resident."""
        if digest in self._pinned:
            raise LoraInUse("images that use it are being drawn")
        if digest in self._resident:
            self._evict(digest)

    def check_integrity(self) -> None:
        """Raises AssertionError unless each slot is free or holds exactly one LoRA."""
        taken = list(self._resident.values())
        assert sorted([*taken, *self._free]) == list(range(1, self.slots + 1)), "a slot is lost"
        assert set(self._held) == set(taken), "a slot holds what nobody put there"
        assert self._pinned <= set(self._resident), "a pinned LoRA was evicted"
        base = next(iter(self._linears.values())).down_SIR
        assert isinstance(base, torch.Tensor)
        assert not base[BASE_SLOT].any(), "the base's slot was written to"

    def _load(self, lora: LoraWeights) -> None:
        if not self._free:
            self._evict(next(d for d in self._resident if d not in self._pinned))
        slot = self._free.pop()
        for name, (down_RI, up_OR) in lora.layers.items():
            linear = self._linears[name]
            rank = down_RI.shape[0]
            assert isinstance(linear.down_SIR, torch.Tensor)
            assert isinstance(linear.up_SRO, torch.Tensor)
            linear.down_SIR[slot, :, :rank].copy_(down_RI.T)
            linear.up_SRO[slot, :rank].copy_(up_OR.T)
        self._resident[lora.digest] = slot
        self._held[slot] = lora
        self._note_use()

    def _evict(self, digest: str) -> None:
        slot = self._resident.pop(digest)
        for name in self._held.pop(slot).layers:
            linear = self._linears[name]
            assert isinstance(linear.down_SIR, torch.Tensor)
            assert isinstance(linear.up_SRO, torch.Tensor)
            linear.down_SIR[slot].zero_()
            linear.up_SRO[slot].zero_()
        self._free.append(slot)
        self._note_use()

    def _note_use(self) -> None:
        if self._is_compiled:
            return
        used = {name for lora in self._held.values() for name in lora.layers}
        for name, linear in self._linears.items():
            linear.is_used = name in used
