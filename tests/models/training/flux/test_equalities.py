"""What must not change the result: how batches are cut, what is cached, how memory is saved."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from models.training.flux.pictures import LATENT_CACHE, read_items, token_weights
from tests.models.training.flux.conftest import (
    WriteConfig,
    curve,
    draw_pictures,
    prepared,
    train,
)

TOLERANCE = 2e-4


def trained(config: Path) -> dict[str, torch.Tensor]:
    weights: dict[str, torch.Tensor] = load_file(train(config).lora)
    return weights


def furthest(some: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert some.keys() == other.keys()
    return max((some[key] - other[key]).abs().max().item() for key in some)


def losses(config: Path) -> list[float]:
    lora = train(config).lora
    assert lora is not None
    return [line["loss"] for line in curve(lora.parent)]


def test_two_batches_of_one_train_as_one_batch_of_two(
    write_config: WriteConfig, tmp_path: Path
) -> None:
    folder = tmp_path / "wide"
    folder.mkdir()
    one_size = {"datasets.folder_path": str(draw_pictures(folder, wide=4))}
    together = write_config("together", **one_size)
    apart = write_config(
        "apart", **one_size, **{"train.batch_size": 1, "train.gradient_accumulation": 2}
    )
    assert furthest(trained(together), trained(apart)) < TOLERANCE


def test_a_small_batch_counts_by_its_pictures(write_config: WriteConfig, tmp_path: Path) -> None:
    """Three pictures in batches of two, two batches a step: the mean is over pictures."""
    folder = tmp_path / "wide"
    folder.mkdir()
    one_size = {"datasets.folder_path": str(draw_pictures(folder, wide=3)), "train.steps": 1}
    uneven = write_config("uneven", **one_size, **{"train.gradient_accumulation": 2})
    whole = write_config("whole", **one_size, **{"train.batch_size": 3})
    assert losses(uneven) == pytest.approx(losses(whole), rel=1e-5)


@pytest.mark.parametrize(
    "caches",
    [
        {"datasets.cache_latents": False},
        {"datasets.cache_latents_to_disk": True},
        {"train.cache_text_embeddings": False},
        {"train.gradient_checkpointing": True},
    ],
    ids=lambda caches: "".join(caches),
)
def test_caches_and_checkpointing_change_nothing(
    write_config: WriteConfig, pictures: Path, caches: dict[str, bool]
) -> None:
    plain = trained(write_config("plain"))
    assert furthest(plain, trained(write_config("cached", **caches))) < TOLERANCE


def test_latents_on_the_disk_are_read_again_and_broken_ones_made_again(
    write_config: WriteConfig, tmp_path: Path
) -> None:
    folder = tmp_path / "own"
    folder.mkdir()
    config = write_config(
        **{
            "datasets.folder_path": str(draw_pictures(folder, wide=2)),
            "datasets.cache_latents_to_disk": True,
        }
    )
    first = prepared(config).trainer._latents.of(0)
    files = sorted((folder / LATENT_CACHE).glob("*.safetensors"))
    assert len(files) == 2
    written = [file.stat().st_mtime_ns for file in files]
    assert torch.equal(prepared(config).trainer._latents.of(0), first)
    assert [file.stat().st_mtime_ns for file in files] == written
    for file in files:
        file.write_bytes(file.read_bytes()[:40])
    assert torch.equal(prepared(config).trainer._latents.of(0), first)
    Image.new("RGB", (64, 48)).save(folder / "0.png")
    assert not torch.equal(prepared(config).trainer._latents.of(0), first)


def test_cached_encoders_leave_the_memory(write_config: WriteConfig) -> None:
    cached = prepared(write_config("cached"))
    assert (cached.pipeline.text_encoder, cached.pipeline.text_encoder_2) == (None, None)
    assert cached.pipeline.vae is None
    kept = prepared(write_config("kept", **{"train.cache_text_embeddings": False}))
    assert kept.pipeline.text_encoder_2 is not None


def test_encodings_are_the_pipelines(write_config: WriteConfig, tiny_base: Path) -> None:
    from diffusers import FluxPipeline

    config = write_config(**{"datasets.cache_latents": False, "model.model_kwargs": {}})
    trainer = prepared(config).trainer
    pipeline = FluxPipeline.from_pretrained(tiny_base)
    tokens, pooled, _ = pipeline.encode_prompt("ink night", None, max_sequence_length=512)
    (ours,) = prepared(
        write_config(**{"train.cache_text_embeddings": False, "model.model_kwargs": {}})
    ).trainer._encode(["ink night"])
    assert torch.allclose(ours.tokens_TE, tokens[0], atol=1e-5)
    assert torch.allclose(ours.pooled_P, pooled[0], atol=1e-5)
    pixels = pipeline.image_processor.preprocess(Image.open(trainer._items[0].example.picture))
    mean = pipeline.vae.encode(pixels).latent_dist.mean[0]
    normal = (mean - pipeline.vae.config.shift_factor) * pipeline.vae.config.scaling_factor
    assert torch.allclose(trainer._latents.of(0), normal, atol=1e-5)


def test_a_list_of_resolutions_mirrors_and_repeats_make_items(write_config: WriteConfig) -> None:
    from models.training.config.reading import read_config

    config = write_config(
        **{
            "datasets.resolution": [64, 32],
            "datasets.flip_x": True,
            "datasets.num_repeats": 3,
        }
    )
    items = read_items(read_config(config).process, patch_px=8)
    assert len(items) == 5 * 2 * 2 * 3
    areas = {item.bucket.width * item.bucket.height for item in items}
    assert (min(areas), max(areas)) == (32 * 32, 64 * 48)
    latents = prepared(config).trainer._latents
    numbers = {item: n for n, item in enumerate(prepared(config).trainer._items)}
    straight, mirrored = (
        next(n for item, n in numbers.items() if item.mirror == (flip, False) and n < 12)
        for flip in (False, True)
    )
    assert not torch.equal(latents.of(straight), latents.of(mirrored))


def test_masks_say_which_tokens_count(write_config: WriteConfig, tmp_path: Path) -> None:
    from models.training.config.reading import read_config

    folder, masks = tmp_path / "own", tmp_path / "masks"
    folder.mkdir()
    masks.mkdir()
    draw_pictures(folder, wide=1)
    half = np.zeros((48, 64), dtype=np.uint8)
    half[:, 32:] = 255
    Image.fromarray(half).save(masks / "0.png")
    where = {"datasets.folder_path": str(folder), "datasets.mask_path": str(masks)}
    (item,) = read_items(read_config(write_config(**where)).process, patch_px=8)
    weights = token_weights(item, columns=8, rows=6).view(6, 8)
    assert weights.mean().item() == pytest.approx(1.0)
    assert not weights[:, :4].any()
    assert torch.equal(weights[:, 4:], torch.full((6, 4), 2.0))
