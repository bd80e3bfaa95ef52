"""The bank on a few linears: what a row gets, what is evicted, what stays."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from models.flux.errors import LoraInUse
from models.flux.lora import LoraBank
from models.flux.lora_files import LoraWeights

RANK = 4


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Linear(6, 5)
        self.vector = nn.Linear(6, 3)
        self.plain = nn.Linear(6, 2)


def lora(name: str, rank: int = 2, layers=("tokens", "vector")) -> LoraWeights:
    random = torch.Generator().manual_seed(sum(name.encode()))
    outputs = {"tokens": 5, "vector": 3, "plain": 2}
    weights = {
        layer: (
            torch.randn(rank, 6, generator=random),
            torch.randn(outputs[layer], rank, generator=random),
        )
        for layer in layers
    }
    return LoraWeights(digest=name, rank=rank, layers=weights, metadata={})


@pytest.fixture
def model() -> Small:
    torch.manual_seed(0)
    return Small()


@pytest.fixture
def bank(model: Small) -> LoraBank:
    return LoraBank(model, slots=2, max_rank=RANK, max_rows=4)


@torch.inference_mode()
def test_each_row_gets_its_own_delta_at_its_own_scale(model, bank):
    a, b = lora("a"), lora("b", rank=4)
    bank.pin([a, b])
    bank.select(["a", None, "b", "a"], [1.0, 1.0, 0.5, -2.0])
    for layer, x in (("tokens", torch.randn(4, 7, 6)), ("vector", torch.randn(4, 6))):
        wrapped = getattr(model, layer)
        got = wrapped(x)
        for row, (weights, scale) in enumerate(((a, 1.0), (None, 0), (b, 0.5), (a, -2.0))):
            expected = wrapped.base(x[row])
            if weights is not None:
                down_RI, up_OR = weights.layers[layer]
                expected = expected + scale * x[row] @ down_RI.T @ up_OR.T
            assert torch.allclose(got[row], expected, atol=1e-5)


def test_layers_that_no_lora_touches_do_nothing_more(model, bank):
    bank.pin([lora("a")])
    bank.select(["a"], [1.0])
    x = torch.randn(1, 3, 6)
    assert torch.equal(model.plain(x), model.plain.base(x))


def test_the_least_recently_used_is_evicted_and_leaves_nothing(bank):
    for name in ("a", "b"):
        bank.pin([lora(name)])
    bank.pin([lora("a")])
    bank.pin([lora("c", layers=("plain",))])
    assert bank.resident == {"a", "c"}
    bank.check_integrity()
    held = [linear.down_SIR[slot].any() for linear in bank._linears.values() for slot in (1, 2)]
    assert sum(map(bool, held)) == 3  # a in two layers, c in one, nothing of b


def test_what_is_pinned_is_never_evicted(bank):
    bank.pin([lora("a"), lora("b")])
    with pytest.raises(LoraInUse, match="2 slots"):
        bank.pin([lora("a"), lora("b"), lora("c")])
    assert bank.resident == {"a", "b"}
    bank.pin([lora("b"), lora("c")])
    assert bank.resident == {"b", "c"}
    bank.check_integrity()


def test_pinning_the_same_one_twice_takes_one_slot(bank):
    bank.pin([lora("a"), lora("a")])
    assert bank.resident == {"a"}
    bank.check_integrity()
