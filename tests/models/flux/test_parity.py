"""Whatever the batch was composed of, an image is the one that FluxPipeline draws for it alone."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import FluxPipeline

from models.flux.config import EngineConfig, ModelSpec
from models.flux.engine import Engine
from models.flux.request import ImageRequest
from tests.models.flux.conftest import (
    LORAS,
    RecordingRunner,
    engine_on,
    request,
    run_dry,
    write_lora,
)
from tests.models.flux.tiny import HEIGHT, WIDTH, tiny_pipeline, tiny_spec

TOLERANCE = 1e-5
SKETCH_SIZE = (192, 112)
PROMPTS = ("a street at night", "two figures in the rain", "wide shot ink", "거리 밤 비")
MODELS_FOLDER = Path(__file__).resolve().parents[3] / "models"
SKETCH = ModelSpec(
    "sketch", MODELS_FOLDER / "sketch" / "weights", max_sequence_length=32, max_pixels=256 * 256
)


class Reference:
    """Stock FluxPipeline, one image at a time, LoRAs loaded by diffusers."""

    def __init__(self, spec: ModelSpec, lora_folder: Path | None) -> None:
        self.spec = spec
        self.pipeline = FluxPipeline.from_pretrained(spec.folder, dtype=torch.float32)
        self.pipeline.set_progress_bar_config(disable=True)
        self.files = sorted(lora_folder.glob("*.safetensors")) if lora_folder else []
        for file in self.files:
            self.pipeline.load_lora_weights(file, adapter_name=file.stem)

    def latents(self, wanted: ImageRequest, rows: int = 1) -> torch.Tensor:
        """Of the first of `rows` images that differ in nothing but their noise."""
        if wanted.lora is not None:
            self.pipeline.enable_lora()
            self.pipeline.set_adapters([wanted.lora], [wanted.lora_scale])
        elif self.files:
            self.pipeline.disable_lora()
        with torch.inference_mode():
            return self.pipeline(
                [wanted.prompt] * rows,
                width=wanted.width,
                height=wanted.height,
                num_inference_steps=wanted.steps,
                guidance_scale=wanted.guidance or 0.0,
                generator=[torch.Generator().manual_seed(wanted.seed + n) for n in range(rows)],
                max_sequence_length=self.spec.max_sequence_length,
                output_type="latent",
            ).images[0]


@pytest.fixture(scope="session")
def sketch_loras(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random LoRAs on every linear: harder to agree on than styles that touch a few."""
    folder = tmp_path_factory.mktemp("sketch-loras")
    linears = RecordingRunner(SKETCH, EngineConfig(device="cpu", threads=1)).linears
    for seed, name in enumerate(LORAS):
        write_lora(folder / f"{name}.safetensors", linears, 4, seed)
    return folder


def various(count: int, size: tuple[int, int], seed: int) -> list[ImageRequest]:
    """Different in everything; upright and lying pictures have equally many tokens."""
    dice = random.Random(seed)
    return [
        request(
            seed=n,
            prompt=dice.choice(PROMPTS),
            width=size[n % 2],
            height=size[1 - n % 2],
            steps=dice.randint(4, 40),
            guidance=round(dice.uniform(1, 6), 2),
            lora=dice.choice([None, *LORAS]),
            lora_scale=round(dice.uniform(0.3, 1.5), 2),
        )
        for n in range(count)
    ]


def draw_staggered(engine: Engine, wanted: list[ImageRequest]) -> dict[ImageRequest, torch.Tensor]:
    """Latents of each; one comes every few steps."""
    dice = random.Random(7)
    for one in wanted:
        engine.submit([one])
        for _ in range(dice.randint(0, 5)):
            engine.step()
    run_dry(engine)
    return engine.runner.latents


def furthest(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).abs().max())


def test_a_staggered_crowd_equals_each_one_alone(tiny_folder, lora_folder):
    spec = tiny_spec(tiny_folder)
    reference = Reference(spec, lora_folder)
    wanted = various(24, (WIDTH, HEIGHT), seed=1)
    drawn = draw_staggered(engine_on(spec, lora_folder, max_rows=8), wanted)
    for one in wanted:
        assert furthest(drawn[one], reference.latents(one)) < TOLERANCE, one


def test_the_embedded_model_alone_equals_the_pipeline():
    engine, reference = engine_on(SKETCH, max_rows=1), Reference(SKETCH, None)
    wanted = [replace(one, lora=None) for one in various(6, SKETCH_SIZE, seed=1)]
    engine.submit(wanted)
    run_dry(engine)
    for one in wanted:
        assert furthest(engine.runner.latents[one], reference.latents(one)) < TOLERANCE, one


def test_the_embedded_model_in_a_crowd_differs_no_more_than_the_pipeline_from_itself(sketch_loras):
    """A trained model grows the rounding of another batch size beyond 1e-5 over forty steps, in the
    stock pipeline too. That is the measure: what a batch of eight does to it.
    """
    reference = Reference(SKETCH, sketch_loras)
    wanted = various(24, SKETCH_SIZE, seed=1)
    drawn = draw_staggered(engine_on(SKETCH, sketch_loras, max_rows=8), wanted)
    alone = {one: reference.latents(one) for one in wanted}
    rounding = max(furthest(reference.latents(one, rows=8), alone[one]) for one in wanted[:8])
    assert rounding < 0.01
    for one in wanted:
        assert furthest(drawn[one], alone[one]) < max(TOLERANCE, 2 * rounding), one


def test_the_order_in_the_batch_changes_nothing(tiny_folder, lora_folder):
    wanted = [replace(one, steps=12) for one in various(8, (WIDTH, HEIGHT), seed=2)]
    drawn = []
    for order in (wanted, wanted[::-1], random.Random(3).sample(wanted, len(wanted))):
        engine = engine_on(tiny_spec(tiny_folder), lora_folder, max_rows=8)
        engine.submit(order)
        run_dry(engine)
        drawn.append(engine.runner.latents)
    for one in wanted:
        for other in drawn[1:]:
            assert torch.allclose(drawn[0][one], other[one], atol=TOLERANCE, rtol=0)


def test_a_base_row_does_not_feel_its_neighbours_loras(tiny_folder, lora_folder):
    base = request(seed=5, steps=10)
    crowds = []
    for neighbours in ([None] * 3, list(LORAS)):
        engine = engine_on(tiny_spec(tiny_folder), lora_folder)
        crowd = [request(seed=n, steps=10, lora=lora) for n, lora in enumerate(neighbours)]
        engine.submit([base, *crowd])
        run_dry(engine)
        crowds.append(engine.runner.latents[base])
    assert torch.equal(*crowds)


def test_a_place_in_the_batch_keeps_nothing_of_who_had_it(tiny_folder, lora_folder):
    """A strong LoRA leaves; the next one in its row and slot is drawn as if it had never been."""
    engine = engine_on(tiny_spec(tiny_folder), lora_folder, max_rows=1, slots=1)
    before, after = request(seed=1, lora="red", lora_scale=2.0), request(seed=2, lora="blue")
    engine.submit([before])
    run_dry(engine)
    engine.submit([after])
    run_dry(engine)
    fresh = engine_on(tiny_spec(tiny_folder), lora_folder, max_rows=1, slots=1)
    fresh.submit([after])
    run_dry(fresh)
    assert torch.equal(engine.runner.latents[after], fresh.runner.latents[after])


def test_a_lora_at_scale_zero_is_the_base(tiny_folder, lora_folder):
    engine = engine_on(tiny_spec(tiny_folder), lora_folder)
    base, off = request(seed=3), request(seed=3, lora="red", lora_scale=0.0)
    on = request(seed=3, lora="red", lora_scale=1.0)
    engine.submit([base, off, on])
    run_dry(engine)
    drawn = engine.runner.latents
    assert torch.allclose(drawn[base], drawn[off], atol=TOLERANCE, rtol=0)
    assert (drawn[base] - drawn[on]).abs().max() > 0.01


def test_a_model_without_guidance_is_drawn_without(tmp_path):
    spec = tiny_spec(tiny_pipeline(tmp_path, guided=False))
    engine, reference = engine_on(spec), Reference(spec, None)
    wanted = [replace(one, guidance=None, lora=None) for one in various(5, (WIDTH, HEIGHT), 4)]
    engine.submit(wanted)
    run_dry(engine)
    for one in wanted:
        alone = reference.latents(one)
        assert torch.allclose(engine.runner.latents[one], alone, atol=TOLERANCE, rtol=0)


def test_every_size_has_its_own_shift(tiny_folder, lora_folder):
    """With dynamic shifting, sigmas depend on the number of tokens."""
    spec = tiny_spec(tiny_folder)
    engine, reference = engine_on(spec), Reference(spec, None)
    wanted = [request(seed=n, width=16 + 16 * n, height=32, steps=5) for n in range(4)]
    engine.submit(wanted)
    run_dry(engine)
    for one in wanted:
        alone = reference.latents(one)
        assert torch.allclose(engine.runner.latents[one], alone, atol=TOLERANCE, rtol=0)
