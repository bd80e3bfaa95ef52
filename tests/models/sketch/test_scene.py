"""Scenes and their captions, without torch."""

import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from models.sketch.scene import (
    ACTIONS,
    GROUND_THINGS,
    KINDS,
    MAX_CAPTION_TOKENS,
    MEDIUM,
    PLACES,
    TRIGGERS,
    Scene,
    caption,
    known_words,
    prompt_guide,
    random_scene,
    vocabulary,
    words,
)


def test_every_caption_fits_the_vocabulary_and_the_token_limit() -> None:
    known = set(known_words())
    for seed in range(5000):
        rng = random.Random(seed)
        text = words(caption(random_scene(rng), rng, TRIGGERS[seed % len(TRIGGERS)]))
        assert set(text) <= known
        assert len(text) + 2 <= MAX_CAPTION_TOKENS


def test_the_longest_caption_that_the_grammar_allows_fits() -> None:
    """Three figures of three kinds, which training never names, still leave room."""
    figures = tuple(KINDS)[:3]
    scene = Scene("extreme wide shot", "low angle", "night", "room", figures, "walking", "dog")
    longest = max(
        len(words(caption(scene, random.Random(seed), "ink style"))) for seed in range(500)
    )
    assert longest + 2 <= MAX_CAPTION_TOKENS


def test_a_scene_and_its_caption_follow_from_the_seed() -> None:
    first, second = (
        (random_scene(rng), caption(random_scene(rng), rng))
        for rng in (random.Random(7), random.Random(7))
    )
    assert first == second


def test_a_caption_says_all_that_a_scene_holds() -> None:
    scene = Scene("close-up", "low angle", "night", "park", ("boy", "boy"), "waving", "dog")
    text = caption(scene, random.Random(0), "ink style")
    assert text.startswith(f"ink style {MEDIUM}, two ")
    assert "with a dog" in text
    assert "close-up, low angle, " in text
    assert any(word in text for word in ACTIONS["waving"])
    assert any(place in text for place in PLACES["park"])


def test_an_empty_scene_says_so() -> None:
    scene = Scene("wide shot", "eye level", "day", "beach", thing=GROUND_THINGS[0])
    text = caption(scene, random.Random(0))
    assert "nobody in" in text or "no people in" in text
    assert replace(scene, figures=("man",)) != scene


def test_punctuation_and_capitals_do_not_change_the_words() -> None:
    assert words("Two men, WALKING; close up.") == ["two", "men", "walking", "close-up"]


def test_a_prompt_writer_is_shown_every_slot() -> None:
    guide = prompt_guide()
    assert all(f"<{slot}>" in guide for slot in vocabulary())
    assert MEDIUM in guide


def test_scenes_and_panels_need_no_torch() -> None:
    program = (
        "import sys, models.sketch.scene, models.sketch.panels; "
        "assert not {'torch', 'numpy', 'diffusers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(__file__).parents[3])
