"""What the generator draws, measured on its pixels."""

from dataclasses import replace
from statistics import mean

import numpy as np
import pytest

from models.sketch.measure import look
from models.sketch.panels import SIZES_PX, STYLES, draw
from models.sketch.scene import ANGLES, PLACES, SHOTS, Scene

SCENE = Scene("wide shot", "eye level", "day", "park", ("man",), "standing")


def pixels(scene: Scene, seed: int = 0, style: str = "sketch") -> np.ndarray:
    return np.asarray(draw(scene, seed, style))


@pytest.mark.parametrize("style", STYLES)
def test_a_panel_follows_from_scene_seed_and_style(style: str) -> None:
    assert np.array_equal(pixels(SCENE, 3, style), pixels(SCENE, 3, style))
    assert not np.array_equal(pixels(SCENE, 3, style), pixels(SCENE, 4, style))


def test_every_kind_of_scene_can_be_drawn_in_both_aspects() -> None:
    for aspect, (width, height) in SIZES_PX.items():
        for place in PLACES:
            for shot in SHOTS:
                for angle in ANGLES:
                    scene = Scene(shot, angle, "day", place, ("girl", "person"), aspect=aspect)
                    assert pixels(scene).shape == (height, width, 3)


@pytest.mark.parametrize("place", PLACES)
def test_night_is_darker_than_day(place: str) -> None:
    day = replace(SCENE, place=place)
    assert pixels(replace(day, time="night")).mean() < 0.75 * pixels(day).mean()


@pytest.mark.parametrize("shot", SHOTS[1:])
def test_each_further_figure_changes_more_of_the_panel(shot: str) -> None:
    empty = replace(SCENE, shot=shot, figures=())
    changed = [
        mean(
            float((pixels(replace(empty, figures=("man",) * n), s) != pixels(empty, s)).mean())
            for s in range(4)
        )
        for n in (1, 2, 3)
    ]
    assert changed[0] < changed[1] < changed[2]


def test_a_closer_shot_gives_the_figure_more_of_the_panel() -> None:
    shares = []
    for shot in SHOTS:
        scene = replace(SCENE, shot=shot)
        shares.append((pixels(scene) != pixels(replace(scene, figures=()))).mean())
    assert shares == sorted(shares, reverse=True)


def test_the_styles_look_as_promised() -> None:
    looks = {style: look(pixels(SCENE, 0, style)[None]) for style in STYLES}
    assert looks["sketch"].chroma == 0
    assert looks["ink"].greys < 0.5 * looks["sketch"].greys
    assert looks["ink"].ink > looks["sketch"].ink
    assert looks["blueprint"].blue > 1.5 * looks["blueprint"].red
    assert looks["sepia"].red > 1.15 * looks["sepia"].blue
