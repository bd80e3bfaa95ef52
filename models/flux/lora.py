"""The bank: several LoRAs in memory at once, and each row of a batch takes its own.

Every linear of the transformer is wrapped. A wrapped linear holds its part of all slots in two
tensors and gathers one slice for each row with one index tensor, so that a batch may be composed
anew at every step without touching a weight, a name or a compiled graph. Slot 0 is the base: zeros,
for ever.

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
    """Which slot each row of the batch takes, and how strongly. Shared by all wrapped linears.

    As long as the largest batch, and a smaller one uses the beginning: a compiled graph takes what
    a module holds to be of one shape, and a captured one to be in one place.
    """

    def __init__(self, most: int, like: torch.Tensor) -> None:
        """`like` has the bank's dtype and device."""
        self.is_base = True
        """All rows take slot 0: linears do nothing besides their own work."""
        self.slot_B = torch.zeros(most, dtype=torch.long, device=like.device)
        self.scale_B11 = torch.zeros(most, 1, 1, dtype=like.dtype, device=like.device)
        self.rank = 0
        """The highest of these rows' LoRAs; beyond it every slice is zeros."""


class LoraLinear(nn.Module):
    """A linear and its slice of the bank. `base` is called first, so it may be quantised."""

    def __init__(self, base: nn.Linear, slots: int, rank: int, rows: Rows) -> None:
        super().__init__()
        out_features, in_features = base.weight.shape
        self.base = base
        self.rows = rows
        self.is_used = False
        """Some slot holds something for this linear."""
        like = rows.scale_B11
        self.down_SIR: torch.Tensor
        self.up_SRO: torch.Tensor
        self.register_buffer("down_SIR", like.new_zeros(slots, in_features, rank), persistent=False)
        self.register_buffer("up_SRO", like.new_zeros(slots, rank, out_features), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.base(x)
        rows = self.rows
        if rows.is_base or not self.is_used:
            return y
        if x.dim() == 2:  # [B, I]: modulation and embeddings, one vector a row
            self._add_to(y[:, None], x[:, None])
        else:
            self._add_to(y, x)
        return y

    def _add_to(self, y: torch.Tensor, x: torch.Tensor) -> None:
        """In place: `y` was made a moment ago, and a copy of it costs as much as the LoRA."""
        rows, count = self.rows, x.shape[0]
        slot_B = rows.slot_B[:count]
        down_BIR = self.down_SIR[slot_B, :, : rows.rank]
        up_BRO = self.up_SRO[slot_B, : rows.rank]
        y.baddbmm_(torch.bmm(x, down_BIR).mul_(rows.scale_B11[:count]), up_BRO)


def _bank_dtype(weight: torch.Tensor) -> torch.dtype:
    """What the linears compute in: a quantised weight says so too."""
    return weight.dtype if weight.dtype.is_floating_point else torch.bfloat16


class LoraBank:
    """Slots of one transformer. Only the thread that runs the model may call it."""

    def __init__(
        self,
        transformer: nn.Module,
        *,
        slots: int,
        max_rank: int,
        max_rows: int,
        is_compiled: bool = False,
    ) -> None:
        """Wraps every linear of `transformer`, in place; `slots` do not count the base. Batches
        have `max_rows` rows at most.

        With `is_compiled`, linears that no LoRA touches do the arithmetic too: skipping it would be
        another graph for each combination of LoRAs in the bank.
        """
        self._max_rank = max_rank
        self._is_compiled = is_compiled
        bare = {n: m for n, m in transformer.named_modules() if isinstance(m, nn.Linear)}
        weight = next(iter(bare.values())).weight
        self.rows = Rows(max_rows, torch.empty(0, dtype=_bank_dtype(weight), device=weight.device))
        self._linears: dict[str, LoraLinear] = {}
        for name, linear in bare.items():
            wrapped = LoraLinear(linear, slots + 1, max_rank, self.rows)
            wrapped.is_used = is_compiled
            transformer.set_submodule(name, wrapped)
            self._linears[name] = wrapped
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
        count = len(slots)
        self.rows.slot_B[:count] = torch.tensor(slots)
        self.rows.scale_B11[:count, 0, 0] = torch.tensor(scales, dtype=self.rows.scale_B11.dtype)
        self.rows.is_base = not any(slots)
        ranks = [self._held[slot].rank for slot in slots if slot != BASE_SLOT]
        self.rows.rank = self._max_rank if self._is_compiled else max(ranks, default=0)

    def select_zeros(self, count: int) -> None:
        """`count` rows that do the arithmetic of LoRAs on zeros: for warming graphs up."""
        self.select([None] * count, [0.0] * count)
        self.rows.is_base = False
        self.rows.rank = self._max_rank

    def check_integrity(self) -> None:
        """Raises AssertionError unless each slot is free or holds exactly one LoRA."""
        taken = list(self._resident.values())
        assert sorted([*taken, *self._free]) == list(range(1, self.slots + 1)), "a slot is lost"
        assert set(self._held) == set(taken), "a slot holds what nobody put there"
        assert self._pinned <= set(self._resident), "a pinned LoRA was evicted"
        base = next(iter(self._linears.values())).down_SIR
        assert not base[BASE_SLOT].any(), "the base's slot was written to"

    def _load(self, lora: LoraWeights) -> None:
        if not self._free:
            self._evict(next(d for d in self._resident if d not in self._pinned))
        slot = self._free.pop()
        for name, (down_RI, up_OR) in lora.layers.items():
            linear = self._linears[name]
            rank = down_RI.shape[0]
            linear.down_SIR[slot, :, :rank].copy_(down_RI.T)
            linear.up_SRO[slot, :rank].copy_(up_OR.T)
        self._resident[lora.digest] = slot
        self._held[slot] = lora
        self._note_use()

    def _evict(self, digest: str) -> None:
        slot = self._resident.pop(digest)
        for name in self._held.pop(slot).layers:
            linear = self._linears[name]
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
