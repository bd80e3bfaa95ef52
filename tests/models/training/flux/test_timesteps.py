"""Flow matching's mathematics, against diffusers' scheduler and against integrals."""

from __future__ import annotations

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from models.training.flux.timesteps import bell, loss_per_picture, noised, preferred, quantile_of

UNIFORM = torch.linspace(0.0005, 0.9995, 1000)
FLUX = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15)


def test_sigmoid_times_are_logit_normal() -> None:
    sigma = quantile_of("sigmoid", {}, 256)(UNIFORM)
    logits = sigma.logit()
    assert logits.mean().abs() < 1e-3
    assert logits.std() == pytest.approx(1.0, abs=0.01)


@pytest.mark.parametrize("tokens", [84, 256, 1024, 4096])
def test_shifted_times_are_the_schedulers(tokens: int) -> None:
    sigma = quantile_of("shift", FLUX.config, tokens)(UNIFORM)
    mu = 0.5 + (tokens - 256) * (1.15 - 0.5) / (4096 - 256)
    assert torch.allclose(sigma, torch.as_tensor(FLUX.time_shift(mu, 1.0, UNIFORM)), atol=1e-6)


def test_a_static_shift_is_the_schedulers_too() -> None:
    static = FlowMatchEulerDiscreteScheduler(shift=3.0)
    static.set_timesteps(sigmas=UNIFORM.flip(0).tolist())
    sigma = quantile_of("shift", static.config, 84)(UNIFORM)
    assert torch.allclose(sigma.flip(0), static.sigmas[:-1], atol=1e-6)


def test_content_asks_at_high_noise_and_style_at_low() -> None:
    content, style = (preferred(UNIFORM, kind).mean() for kind in ("content", "style"))
    assert content == pytest.approx(0.75, abs=1e-3)
    assert style == pytest.approx(0.25, abs=1e-3)
    assert torch.equal(preferred(UNIFORM, "balanced"), UNIFORM)


def test_one_euler_step_along_the_target_gives_the_latents_back() -> None:
    latents, noise = torch.randn(2, 6, 4), torch.randn(2, 6, 4)
    sigma = torch.tensor([0.3, 0.9])
    at, target = noised(latents, noise, sigma)
    assert torch.allclose(at - sigma[:, None, None] * target, latents, atol=1e-6)


def test_the_bell_has_mean_one_and_its_half_is_flat() -> None:
    assert bell(UNIFORM).mean() == pytest.approx(1.0, abs=1e-3)
    assert bell(torch.tensor([0.0, 1.0])).abs().max() < 1e-6
    half = bell(UNIFORM, flat_below_half=True)
    assert torch.allclose(half[UNIFORM < 0.5], bell(torch.tensor([0.5])))
    assert torch.equal(half[UNIFORM > 0.5], bell(UNIFORM)[UNIFORM > 0.5])


def test_a_token_that_does_not_count_costs_nothing() -> None:
    drawn, target = torch.zeros(1, 2, 3), torch.zeros(1, 2, 3)
    drawn[0, 0] = 9.0
    assert loss_per_picture(drawn, target, torch.tensor([[0.0, 2.0]])).item() == 0
    assert loss_per_picture(drawn, target, torch.ones(1, 2)).item() == pytest.approx(81 / 2)
    assert loss_per_picture(drawn, target, torch.ones(1, 2), squared=False).item() == 4.5
