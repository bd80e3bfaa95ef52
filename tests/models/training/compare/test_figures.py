"""What the figures say of pictures whose answer is known."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from models.sketch.classifier import QUESTIONS
from models.sketch.data import draw_many
from models.sketch.scene import TRIGGERS, caption, random_scene
from models.training.compare import features, likeness
from models.training.compare.asked import asked
from models.training.compare.following import SketchScorer, choose_scorer
from models.training.compare.judge import held_out_accuracies, load_judge, styled_panels


def panels(style: str, seeds: range) -> list[Image.Image]:
    return [Image.fromarray(pixels) for pixels in draw_many(seeds, "16:9", (style,))]


TRAINED = panels("ink", range(64))
SHAPES = [likeness.shape_of(image) for image in TRAINED]


@pytest.mark.parametrize("style", ["sketch", "blueprint", "sepia"])
def test_another_style_is_far_and_other_pictures_of_the_same_style_are_not(style: str) -> None:
    ink = features.vectors(TRAINED[:24])
    same = features.style_distance(features.vectors(panels("ink", range(900, 924))), ink)
    other = features.style_distance(features.vectors(panels(style, range(900, 924))), ink)
    assert abs(same["all"]) < 0.5 < other["all"]


def test_colour_is_told_from_drawing() -> None:
    """Tinted pictures differ in colour and in nothing else."""
    grey = panels("sketch", range(12))
    tint = [
        Image.merge("RGB", (i.split()[0], i.split()[1], i.split()[2].point(lambda v: v // 2)))
        for i in grey
    ]
    found = features.style_distance(features.vectors(tint), features.vectors(grey))
    assert found["colour"] > 1
    assert found["edges"] < found["colour"] / 4


def test_a_copy_of_another_size_has_the_same_features() -> None:
    one = features.vectors(TRAINED[:6])
    larger = features.vectors([i.resize((768, 448), Image.Resampling.LANCZOS) for i in TRAINED[:6]])
    for group in features.GROUPS:
        assert np.abs(one[group] - larger[group]).max() < 0.5, group


def test_lightness_is_cielabs() -> None:
    image = Image.new("RGB", (2, 2), (255, 0, 0))
    assert features.lab_of(image)[0, 0] == pytest.approx([53.24, 80.09, 67.20], abs=0.05)


def test_the_error_is_about_what_other_pictures_would_have_made_of_it() -> None:
    ink = features.vectors(TRAINED)
    sets = [features.vectors(panels("sketch", range(n, n + 12))) for n in range(0, 120, 12)]
    spread = np.std([features.style_distance(one, ink)["all"] for one in sets])
    errors = [features.distance_error(one, ink) for one in sets]
    assert 0.5 * spread < np.mean(errors) < 2 * spread


def test_one_picture_is_no_set() -> None:
    one = features.vectors(TRAINED[:1])
    with pytest.raises(ValueError, match="needs 2"):
        features.style_distance(one, one)


def changed(image: Image.Image, how: str) -> Image.Image:
    if how == "mirrored":
        return ImageOps.mirror(image)
    if how == "paler":
        return ImageEnhance.Contrast(image).enhance(0.6)
    if how == "scaled":
        return image.resize((384, 224), Image.Resampling.BICUBIC)
    noise = np.random.default_rng(0).normal(0, 12, (image.height, image.width, 3))
    return Image.fromarray(np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8))


@pytest.mark.parametrize("how", ["mirrored", "paler", "scaled", "noisy"])
def test_planted_copies_are_found(how: str) -> None:
    neighbours = likeness.neighbour_distances(SHAPES)
    planted = [likeness.shape_of(changed(TRAINED[n], how)) for n in range(0, 64, 8)]
    found = likeness.nearest(planted, SHAPES)
    assert [one.index for one in found] == list(range(0, 64, 8))
    assert all(likeness.is_suspect(one, neighbours) for one in found)


def test_new_panels_of_the_same_style_are_no_copies() -> None:
    neighbours = likeness.neighbour_distances(SHAPES)
    fresh = [likeness.shape_of(image) for image in panels("ink", range(5_000, 5_064))]
    found = likeness.nearest(fresh, SHAPES)
    assert sum(likeness.is_suspect(one, neighbours) for one in found) <= 2


def test_identical_pictures_have_no_variety_and_strangers_have_much() -> None:
    assert likeness.diversity([SHAPES[0]] * 3) == (0.0, 0.0)
    forms, bits = likeness.diversity(SHAPES[:6])
    assert forms > 0.5
    assert bits > 0.3
    assert likeness.diversity(SHAPES[:1]) is None


def test_blank_pictures_are_alike() -> None:
    white, grey = (likeness.shape_of(Image.new("RGB", (64, 64), c)) for c in ("white", "grey"))
    assert likeness.diversity([white, grey]) == (0.0, 0.0)


def test_what_is_asked_is_read_out_of_any_caption() -> None:
    for seed in range(400):
        dice = random.Random(seed)
        scene = random_scene(dice)
        text = caption(scene, dice, dice.choice((*TRIGGERS, "")))
        assert asked(text) == {name: answer(scene) for name, (_, answer) in QUESTIONS.items()}, text


def test_what_is_no_caption_asks_for_nothing() -> None:
    assert asked("a street at night") == {}
    assert "place" not in asked("a man in a park in a kitchen, wide shot")
    assert "figures" not in asked("a man and three women in a park, wide shot")


def test_the_judge_is_as_good_as_its_file_says() -> None:
    judge, told = load_judge()
    seen = held_out_accuracies(judge, 80)
    assert all(seen[name] > told[name] - 0.15 for name in QUESTIONS)
    assert min(told.values()) > 0.85


def test_pictures_of_their_own_prompts_score_higher_than_of_others() -> None:
    real = styled_panels(70_000_000, 24, "16:9")
    images = [Image.fromarray(pixels) for pixels in real.pixels]
    prompts = [caption(scene, random.Random(1)) for scene in real.scenes]
    scorer = SketchScorer()
    own, others = scorer.score(images, prompts), scorer.score(images, prompts[7:] + prompts[:7])
    assert np.mean(own) > 0.85 > np.mean(others) + 0.2
    assert scorer.score(images[:1], ["a street"]) == [None]


def test_nothing_is_scored_where_nobody_can_tell() -> None:
    assert choose_scorer(None, None) is None


def test_a_clip_folder_scores_pictures(tmp_path: Path) -> None:
    scorer = choose_scorer(None, tiny_clip(tmp_path))
    red, blue = Image.new("RGB", (40, 30), "red"), Image.new("RGB", (40, 30), "blue")
    scores = scorer.score([red, red, blue], ["a red wall", "a red wall", "a red wall"])
    assert scores[0] == pytest.approx(scores[1])
    assert scores[0] != pytest.approx(scores[2])
    assert all(-1 <= score <= 1 for score in scores)


def tiny_clip(folder: Path) -> Path:
    """Random weights in the layout of a real one."""
    import torch
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import (
        CLIPConfig,
        CLIPImageProcessor,
        CLIPModel,
        CLIPProcessor,
        PreTrainedTokenizerFast,
    )

    torch.manual_seed(0)
    text = {"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2,
            "num_hidden_layers": 1, "vocab_size": 16, "max_position_embeddings": 16,
            "eos_token_id": 3, "bos_token_id": 0, "pad_token_id": 1}  # fmt: skip
    vision = {"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2,
              "num_hidden_layers": 1, "image_size": 32, "patch_size": 16}  # fmt: skip
    CLIPModel(
        CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)
    ).save_pretrained(folder)
    words = ["<bos>", "<pad>", "<unk>", "<eos>", "a", "red", "wall"]
    raw = Tokenizer(WordLevel({word: n for n, word in enumerate(words)}, unk_token="<unk>"))
    raw.pre_tokenizer = Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="<pad>", unk_token="<unk>", eos_token="<eos>",
        bos_token="<bos>", model_max_length=16,
    )  # fmt: skip
    images = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    CLIPProcessor(images, tokenizer).save_pretrained(folder)
    return folder
