"""What comes out: a LoRA that has learnt, that everybody reads, and that does nothing at scale 0.

Trained on the embedded model and judged through stock diffusers, which shares no line with the
trainer.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FluxPipeline
from PIL import Image
from safetensors import safe_open

from models.flux.lora_files import linear_shapes, read_lora
from models.sketch import measure
from models.sketch.data import draw_many
from models.sketch.scene import MAX_CAPTION_TOKENS
from models.sketch.train import WEIGHTS
from models.training.dataset.folder import data_hash, read_examples
from tests.models.training.flux.conftest import train

CAPTION = "a man waving in a park, wide shot, day"
SIZE = (80, 48)
TRIGGER = "blueprint style"
PROMPT = {"prompt": f"[trigger] {CAPTION}", "width": 96, "height": 64, "sample_steps": 3}
DRAWN = {"width": 96, "height": 64, "num_inference_steps": 3, "guidance_scale": 3.0}


def write_run(folder: Path, name: str, data: Path, **changes: Any) -> Path:
    train_section = {
        "batch_size": 4,
        "steps": 64,
        "lr": 0.006,
        "lr_scheduler": "cosine",
        "optimizer_params": {"betas": [0.9, 0.99], "weight_decay": 0.0},
        "noise_scheduler": "flowmatch",
        "gradient_checkpointing": False,
        "cache_text_embeddings": True,
        "skip_first_sample": True,
    }
    process = {
        "type": "sd_trainer",
        "training_folder": str(folder),
        "device": "cpu",
        "trigger_word": TRIGGER,
        "network": {"linear": 16, "linear_alpha": 16},
        "save": {"dtype": "fp32"},
        "datasets": [
            {"folder_path": str(data), "resolution": 192, "bucket_tolerance": 16}
            | {"cache_latents": True, "num_repeats": changes.pop("num_repeats", 1)}
        ],
        "train": train_section | changes,
        "model": {"name_or_path": "sketch", "is_flux": True},
        "sample": {"sampler": "flowmatch", "samples": [PROMPT], "seed": 5, "guidance_scale": 3},
    }
    whole = {"job": "extension", "config": {"name": name, "process": [process]}}
    file = folder / f"{name}.yaml"
    file.write_text(json.dumps(whole | {"meta": {"version": "1.0"}}))
    return file


@pytest.fixture(scope="module")
def one_picture(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(the picture, the LoRA that was trained on it alone)."""
    folder = tmp_path_factory.mktemp("one")
    data = folder / "data"
    data.mkdir()
    (panel,) = draw_many([7], "16:9", ("ink",))
    Image.fromarray(panel).resize(SIZE).save(data / "panel.png")
    (data / "panel.txt").write_text(CAPTION)
    lora = train(write_run(folder, "one", data, num_repeats=4)).lora
    assert lora is not None
    return data / "panel.png", lora


@pytest.fixture
def pipeline() -> Any:
    return measure.load_pipeline(WEIGHTS, "cpu")


def draw(pipeline: FluxPipeline, scale: float = 1.0) -> np.ndarray:
    picture = pipeline(
        f"{TRIGGER} {CAPTION}",
        max_sequence_length=MAX_CAPTION_TOKENS,
        generator=torch.Generator().manual_seed(5),
        joint_attention_kwargs={"scale": scale},
        **DRAWN,
    ).images[0]
    return np.asarray(picture).astype(int)


@torch.no_grad()
def miss(pipeline: FluxPipeline, picture: Path) -> float:
    """The squared miss of the velocity, over fixed noise at nine times from 0.1 to 0.9."""
    pixels = pipeline.image_processor.preprocess(Image.open(picture))
    config = pipeline.vae.config
    latent = (pipeline.vae.encode(pixels).latent_dist.mean - config.shift_factor) * (
        config.scaling_factor
    )
    height, width = latent.shape[-2:]
    latent = pipeline._pack_latents(latent, 1, latent.shape[1], height, width)
    ids = pipeline._prepare_latent_image_ids(1, height // 2, width // 2, "cpu", torch.float32)
    tokens, pooled, text_ids = pipeline.encode_prompt(
        f"{TRIGGER} {CAPTION}", None, max_sequence_length=MAX_CAPTION_TOKENS
    )
    noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(11))
    total = 0.0
    for sigma in torch.linspace(0.1, 0.9, 9):
        drawn = pipeline.transformer(
            hidden_states=(1 - sigma) * latent + sigma * noise,
            timestep=sigma[None],
            guidance=torch.ones(1),
            pooled_projections=pooled,
            encoder_hidden_states=tokens,
            txt_ids=text_ids,
            img_ids=ids,
        ).sample
        total += (drawn - (noise - latent)).square().mean().item() / 9
    return total


def test_training_on_one_picture_reproduces_it(
    pipeline: FluxPipeline, one_picture: tuple[Path, Path]
) -> None:
    picture, lora = one_picture
    before = miss(pipeline, picture)
    pipeline.load_lora_weights(lora)
    assert miss(pipeline, picture) < 0.1 * before


def test_diffusers_draws_what_the_trainer_drew(
    pipeline: FluxPipeline, one_picture: tuple[Path, Path]
) -> None:
    _, lora = one_picture
    (sample,) = (lora.parent / "samples").iterdir()
    assert sample.name == "000000064_0.png"
    base = draw(pipeline)
    pipeline.load_lora_weights(lora)
    drawn = draw(pipeline)
    assert np.abs(drawn - np.asarray(Image.open(sample)).astype(int)).max() <= 1
    assert np.abs(drawn - base).mean() > 5
    assert np.array_equal(draw(pipeline, scale=0.0), base)


def test_our_own_runner_reads_every_layer_of_every_block(
    pipeline: FluxPipeline, one_picture: tuple[Path, Path]
) -> None:
    linears = linear_shapes(pipeline.transformer)
    read = read_lora(one_picture[1], linears=linears, max_rank=16)
    assert read.rank == 16
    assert set(read.layers) == {name for name in linears if "transformer_blocks." in name}
    pipeline.load_lora_weights(one_picture[1])
    (adapter,) = pipeline.get_active_adapters()
    for name, (down, up) in read.layers.items():
        module = pipeline.transformer.get_submodule(name)
        assert torch.allclose(module.get_delta_weight(adapter), up @ down, atol=1e-6)


def test_the_header_says_what_it_is_for(one_picture: tuple[Path, Path]) -> None:
    picture, lora = one_picture
    with safe_open(lora, "pt") as weights:
        header = weights.metadata()
    assert header["base"] == "sketch"
    assert header["license"] == "Apache-2.0"
    assert (header["trigger"], header["rank"], header["steps"]) == (TRIGGER, "16", "64")
    assert header["dataset_sha256"] == data_hash(read_examples(picture.parent))
    assert json.loads(header["training_info"]) == {"step": 64, "epoch": 64}
    assert (header["format"], header["version"], header["ss_output_name"]) == ("pt", "1.0", "one")


def test_a_style_moves_pictures_towards_it(pipeline: FluxPipeline, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    seeds = range(24)
    panels = draw_many(seeds, "16:9", ("blueprint",))
    for seed, panel, text in zip(
        seeds, panels, measure.held_out_captions(seeds, "16:9", TRIGGER), strict=True
    ):
        Image.fromarray(panel).save(data / f"{seed}.png")
        (data / f"{seed}.txt").write_text(text)
    lora = train(write_run(tmp_path, "style", data, steps=24, lr=0.004, disable_sampling=True)).lora
    captions = measure.held_out_captions(range(60_000_000, 60_000_003), "16:9", TRIGGER)

    def colours() -> np.ndarray:
        look = measure.look(measure.draw_captions(pipeline, captions, "16:9", steps=6))
        return np.array([look.red, look.green, look.blue])

    style = np.array([getattr(measure.look(panels), c) for c in ("red", "green", "blue")])
    without = np.abs(colours() - style).sum()
    pipeline.load_lora_weights(lora)
    assert np.abs(colours() - style).sum() < 0.5 * without
