"""Estimates agree with what was counted elsewhere, and move the right way."""

from __future__ import annotations

from pathlib import Path

import pytest

from models.training.config.documents import load_document
from models.training.config.estimates import FLUX_1, Estimate, estimate
from models.training.config.view import View


def estimated(text: str, tmp_path: Path) -> Estimate:
    file = tmp_path / "run.yaml"
    file.write_text(text, encoding="utf-8")
    return estimate(View(load_document(file, {})))


@pytest.mark.parametrize(
    ("side", "tflop"), [(256, 10.35), (512, 21.50), (768, 41.93), (1024, 74.38), (1536, 191.9)]
)
def test_a_forward_pass_is_what_pytorch_counts(side: int, tflop: float) -> None:
    """FlopCounterMode on a FluxTransformer2DModel of full size with 512 text tokens."""
    tokens = side * side / 256 + 512
    assert sum(FLUX_1.forward(tokens)) / 1e12 == pytest.approx(tflop, rel=0.01)


def test_a_lora_has_as_many_parameters_as_its_file() -> None:
    """172 MB in bfloat16 for all linear layers of FLUX.1's blocks at rank 16."""
    assert 2 * FLUX_1.lora_parameters(16) == pytest.approx(172e6, rel=0.01)


def test_the_example_for_24_gb_fits_24_gb(sound: str, tmp_path: Path) -> None:
    memory = estimated(sound, tmp_path).memory
    assert 16 < memory.total < 24
    assert memory.base == pytest.approx(11.9e9 * 1.06 / 2**30, rel=0.01)


CHANGES = {
    "quantize": ("quantize: true", "quantize: false"),
    "batch": ("batch_size: 1", "batch_size: 4"),
    "rank": ("linear: 16", "linear: 64"),
    "optimizer": ("adamw8bit", "adamw"),
    "checkpointing": ("batch_size: 1", "batch_size: 1\n        gradient_checkpointing: false"),
    "resolution": ("[ 512, 768, 1024 ]", "[ 512, 768, 1536 ]"),
    "dtype": ("dtype: bf16", "dtype: fp32"),
}


@pytest.mark.parametrize(("old", "new"), CHANGES.values(), ids=CHANGES.keys())
def test_more_of_it_takes_more_memory(old: str, new: str, sound: str, tmp_path: Path) -> None:
    assert sound.count(old) == 1
    changed = estimated(sound.replace(old, new), tmp_path)
    assert changed.memory.total > estimated(sound, tmp_path).memory.total


def test_checkpointing_costs_one_forward(sound: str, tmp_path: Path) -> None:
    text = sound.replace("[ 512, 768, 1024 ]", "1024")
    without = text.replace("batch_size: 1", "batch_size: 1\n        gradient_checkpointing: false")
    more = estimated(text, tmp_path).work.step - estimated(without, tmp_path).work.step
    assert more == pytest.approx(74.38, rel=0.01)


def test_sampling_is_counted_by_rounds_pictures_and_steps(sound: str, tmp_path: Path) -> None:
    samples = estimated(sound, tmp_path).work.samples
    assert samples == pytest.approx(9 * 2 * 20 * 74.38, rel=0.01)  # at 0, 250, ... 2000
    none = sound.replace("batch_size: 1", "batch_size: 1\n        disable_sampling: true")
    assert estimated(none, tmp_path).work.samples == 0


def test_cached_texts_leave_the_encoders_out(sound: str, tmp_path: Path) -> None:
    cached = sound.replace("batch_size: 1", "batch_size: 1\n        cache_text_embeddings: true")
    assert estimated(cached, tmp_path).memory.encoders == 0


def test_the_embedded_base_is_counted_by_its_own_shape(sound: str, tmp_path: Path) -> None:
    small = sound.replace('"black-forest-labs/FLUX.1-dev"', "sketch").replace("cuda:0", "cpu")
    guess = estimated(small.replace("[ 512, 768, 1024 ]", "147"), tmp_path)
    assert guess.memory.total < 1
    assert guess.work.step < 0.02
    assert guess.licence == "Apache-2.0"


def test_an_unknown_base_is_said_to_be_guessed(sound: str, tmp_path: Path) -> None:
    other = sound.replace('"black-forest-labs/FLUX.1-dev"', "someone/a-flux")
    guess = estimated(other, tmp_path)
    assert guess.is_flux_1_assumed
    assert guess.licence is None
