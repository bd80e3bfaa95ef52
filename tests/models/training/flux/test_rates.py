"""Learning rates, optimisers, averages."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from models.training.config.schema import Train
from models.training.errors import ConfigRefused
from models.training.flux.ema import Average
from models.training.flux.optimizers import learning_rate, make_optimizer


def rates(**train: Any) -> list[float]:
    settings = Train(lr=1.0, **{"steps": 100} | train)
    return [learning_rate(settings, step) for step in range(settings.steps + 1)]


def test_a_constant_rate_stays() -> None:
    assert set(rates(lr_scheduler="constant")) == {1.0}


@pytest.mark.parametrize("kind", ["constant_with_warmup", "linear", "cosine"])
def test_a_warm_up_rises_to_the_whole_rate(kind: str) -> None:
    warm = rates(lr_scheduler=kind, lr_scheduler_params={"num_warmup_steps": 10})
    assert 0 < warm[0] < warm[5] < warm[9] < warm[10] == 1.0


@pytest.mark.parametrize(("kind", "half"), [("linear", 0.6), ("cosine", 0.6)])
def test_a_falling_rate_ends_at_its_least(kind: str, half: float) -> None:
    fall = rates(lr_scheduler=kind, lr_scheduler_params={"eta_min": 0.2})
    assert fall[0] == 1.0
    assert fall[50] == pytest.approx(half)
    assert fall[100] == pytest.approx(0.2)
    assert fall == sorted(fall, reverse=True)


def test_a_cosine_is_flat_at_its_ends() -> None:
    fall = rates(lr_scheduler="cosine")
    assert fall[0] - fall[1] < 0.1 * (fall[50] - fall[51])


@pytest.mark.parametrize("name", ["adam", "adamw", "adafactor"])
def test_every_optimiser_goes_downhill(name: str) -> None:
    weight = torch.full((4, 4), 5.0, requires_grad=True)
    optimizer = make_optimizer(Train(optimizer=name, lr=0.1), [weight])
    for _ in range(20):
        optimizer.zero_grad()
        weight.square().sum().backward()
        optimizer.step()
    assert weight.abs().max() < 4.5


def test_eight_bits_need_a_gpu_and_say_so() -> None:
    with pytest.raises(ConfigRefused, match="adamw8bit"):
        make_optimizer(Train(optimizer="adamw8bit"), [torch.zeros(2, requires_grad=True)])


def test_an_optimisers_unknown_parameter_is_refused_by_name() -> None:
    with pytest.raises(ConfigRefused, match="betta"):
        make_optimizer(Train(optimizer_params={"betta": 1}), [torch.zeros(2, requires_grad=True)])


def test_an_average_is_the_weighted_mean_of_what_it_saw() -> None:
    average = Average({"w": torch.tensor([0.0])}, decay=0.5)
    expected = 0.0
    for step, value in enumerate((4.0, 2.0, 8.0), start=1):
        average.update({"w": torch.tensor([value])}, step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * value
    assert average.values["w"].item() == pytest.approx(expected)


def test_the_first_weights_are_soon_forgotten_whatever_the_decay() -> None:
    average = Average({"w": torch.tensor([100.0])}, decay=0.9999)
    for step in range(1, 60):
        average.update({"w": torch.tensor([1.0])}, step)
    assert average.values["w"].item() == pytest.approx(1.0, abs=0.01)
