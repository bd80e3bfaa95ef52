"""Every stage of training, on networks of a few thousand weights."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import FluxPipeline
from rich.console import Console

from models.sketch import flow, nets
from models.sketch.data import draw_many
from models.sketch.distil import DistilTask
from models.sketch.flux import FluxTask
from models.sketch.loop import Budget, Task, train
from models.sketch.muon import orthogonalised
from models.sketch.scene import MAX_CAPTION_TOKENS
from models.sketch.vae import VaeTask

QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def panels() -> list[flow.Panels]:
    vae = nets.build_vae(nets.TINY)
    vae.register_to_config(shift_factor=0.0, scaling_factor=1.0)
    return [flow.encode_panels(vae, range(8), aspect) for aspect in ("16:9", "9:16")]


def vae_task(panels: list[flow.Panels]) -> Task:
    pixels = {"16:9": draw_many(range(4), "16:9"), "9:16": draw_many(range(4), "9:16")}
    return VaeTask(nets.build_vae(nets.TINY), pixels, "cpu")


def flux_task(panels: list[flow.Panels]) -> Task:
    return FluxTask(nets.build(nets.TINY), panels, "cpu")


def distil_task(panels: list[flow.Panels]) -> Task:
    return DistilTask(nets.build(nets.TINY), panels, "cpu")


@pytest.mark.parametrize("make", [vae_task, flux_task, distil_task])
def test_a_resumed_run_repeats_an_unbroken_one(
    make: Callable[[list[flow.Panels]], Task], panels: list[flow.Panels], tmp_path: Path
) -> None:
    unbroken = make(panels)
    train(unbroken, Budget(steps=4), tmp_path / "unbroken.pt", console=QUIET)

    class Stopped(Exception):
        """The process that trained was ended here."""

    broken = make(panels)
    first = broken.step

    def step(number: int, share: float) -> dict[str, float]:
        if number == 2:
            raise Stopped
        return first(number, share)

    broken.step = step  # type: ignore[method-assign]
    with pytest.raises(Stopped):
        train(broken, Budget(steps=4), tmp_path / "broken.pt", checkpoint_every_s=0, console=QUIET)
    resumed = make(panels)
    train(resumed, Budget(steps=4), tmp_path / "broken.pt", console=QUIET)
    assert_same(resumed.state(), unbroken.state())


def assert_same(left: object, right: object) -> None:
    if isinstance(left, torch.Tensor):
        assert torch.equal(left, right)
    elif isinstance(left, dict):
        assert left.keys() == right.keys()
        for key, value in left.items():
            assert_same(value, right[key])
    elif isinstance(left, list | tuple):
        for one, other in zip(left, right, strict=True):
            assert_same(one, other)
    else:
        assert left == right


def test_a_budget_ends_by_whichever_of_steps_and_minutes_is_spent_first() -> None:
    budget = Budget(steps=100, minutes=1.0)
    assert budget.share(step=50, elapsed_s=6) == 0.5
    assert budget.share(step=5, elapsed_s=30) == 0.5
    assert budget.share(step=5, elapsed_s=90) == 1.0


def test_our_batches_follow_the_pipelines_conventions() -> None:
    latents_BCHW = torch.randn(2, 16, 14, 24)
    packed_BLC = FluxPipeline._pack_latents(latents_BCHW, 2, 16, 14, 24)
    ids_L3 = FluxPipeline._prepare_latent_image_ids(1, 7, 12, "cpu", torch.float32)
    assert torch.equal(flow.packed(latents_BCHW), packed_BLC)
    assert torch.equal(flow.image_ids("16:9"), ids_L3)


def test_captions_are_encoded_as_the_pipeline_encodes_them() -> None:
    networks = nets.build(nets.TINY)
    caption = "sketch black and white color illustration, a man waving in a park, close-up"
    pooled_BD, text_BTD = networks.encode([caption])
    stock = nets.assemble(networks).encode_prompt(
        caption, None, max_sequence_length=MAX_CAPTION_TOKENS
    )
    assert torch.allclose(pooled_BD, stock[1])
    assert torch.allclose(text_BTD, stock[0])


def test_orthogonalised_updates_have_singular_values_near_one() -> None:
    torch.manual_seed(0)
    for shape in ((3, 8, 24), (3, 24, 8)):
        values = torch.linalg.svdvals(orthogonalised(torch.randn(shape)))
        assert values.min() > 0.3
        assert values.max() < 1.4
