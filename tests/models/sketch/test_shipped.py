"""The weights in the repository, through stock diffusers."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FluxPipeline
from safetensors import safe_open

from models.sketch import measure
from models.sketch.scene import MAX_CAPTION_TOKENS
from models.sketch.styles import STYLES
from models.sketch.train import WEIGHTS

CAPTIONS = measure.held_out_captions(range(60_000_000, 60_000_006), "16:9")


@pytest.fixture(scope="module")
def pipeline() -> Iterator[Any]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield measure.load_pipeline(WEIGHTS, "cpu")
    torch.set_num_threads(before)


def draw(pipeline: Any, captions: list[str] = CAPTIONS, **options: Any) -> np.ndarray:
    return measure.draw_captions(pipeline, captions, "16:9", steps=12, **options)


def test_the_weights_stay_small() -> None:
    total = sum(file.stat().st_size for file in WEIGHTS.rglob("*") if file.is_file())
    assert total < 20_000_000


def test_it_loads_and_draws_without_naming_a_dtype() -> None:
    pipeline = FluxPipeline.from_pretrained(WEIGHTS)
    pipeline.set_progress_bar_config(disable=True)
    image = pipeline(
        CAPTIONS[0],
        width=112,
        height=192,
        num_inference_steps=4,
        max_sequence_length=MAX_CAPTION_TOKENS,
    ).images[0]
    assert image.size == (112, 192)


def test_images_are_neither_blank_nor_alike(pipeline: Any) -> None:
    images = draw(pipeline)
    assert images.std(axis=(1, 2, 3)).min() > 20
    differences = np.abs(np.diff(images.astype(np.int16), axis=0)).mean(axis=(1, 2, 3))
    assert differences.min() > 8


def test_images_are_black_and_white(pipeline: Any) -> None:
    assert measure.look(draw(pipeline)).chroma < 0.05


def test_night_is_drawn_darker_than_day(pipeline: Any) -> None:
    day, night = (
        draw(
            pipeline,
            [
                f"sketch black and white color illustration, a man standing in {place}, "
                f"wide shot, eye level, {time}"
                for place in ("a park", "a street")
            ],
        )
        for time in ("day", "night")
    )
    assert night.mean() < 0.75 * day.mean()


def test_guidance_matters(pipeline: Any) -> None:
    weak, strong = (draw(pipeline, guidance=g).astype(np.int16) for g in (1.0, 4.0))
    assert np.abs(weak - strong).mean() > 3


@pytest.mark.parametrize("style", STYLES)
def test_a_lora_changes_the_look_in_its_direction(pipeline: Any, style: str) -> None:
    captions = [caption.replace("sketch", STYLES[style], 1) for caption in CAPTIONS]
    without = measure.look(draw(pipeline, captions))
    pipeline.load_lora_weights(WEIGHTS / "loras", weight_name=f"{style}.safetensors")
    drawn = measure.look(draw(pipeline, captions))
    pipeline.unload_lora_weights()
    if style == "ink":
        assert drawn.greys < 0.6 * without.greys
    if style == "blueprint":
        assert drawn.blue > 1.5 * drawn.red
    if style == "sepia":
        assert drawn.red > 1.15 * drawn.blue


@pytest.mark.parametrize("style", STYLES)
def test_a_lora_file_says_what_it_is_for(style: str) -> None:
    file = Path(WEIGHTS / "loras" / f"{style}.safetensors")
    with safe_open(file, "pt") as weights:
        header = weights.metadata()
        names = set(weights.keys())
    assert header["trigger"] == STYLES[style]
    assert (header["base"], header["license"]) == ("sketch", "Apache-2.0")
    assert int(header["rank"]) <= 16
    assert {name.removeprefix("transformer.") != name for name in names} == {True}
    assert {name.rsplit(".", 2)[1] for name in names} == {"lora_A", "lora_B"}
