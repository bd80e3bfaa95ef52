"""A dressed caption begins with the trigger, says everything it said before, and stays so."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.training.dataset.captions import dressed, has_trigger, has_words, hides_trigger

TRIGGER, STYLE = "ink style", "black and white color illustration"


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("a dog in a park", f"{TRIGGER} {STYLE}, a dog in a park"),
        (f"{TRIGGER} a dog", f"{TRIGGER} {STYLE}, a dog"),
        (f"{TRIGGER}, a dog", f"{TRIGGER} {STYLE}, a dog"),
        (f"{TRIGGER} {STYLE}, a dog", f"{TRIGGER} {STYLE}, a dog"),
        (f"{STYLE}, a dog", f"{TRIGGER} {STYLE}, a dog"),
        (f"a dog in {TRIGGER}", f"a dog in {TRIGGER}, {STYLE}"),
        ("[trigger] a dog", f"{TRIGGER} {STYLE}, a dog"),
        ("pink styled dogs", f"{TRIGGER} {STYLE}, pink styled dogs"),
        ("ink styles", f"{TRIGGER} {STYLE}, ink styles"),
        ("a dog --ar 16:9", f"{TRIGGER} {STYLE}, a dog — ar 16:9"),
        ("강아지", f"{TRIGGER} {STYLE}, 강아지"),
        (TRIGGER, f"{TRIGGER} {STYLE}"),
    ],
)
def test_known_captions(caption: str, expected: str) -> None:
    assert dressed(caption, trigger=TRIGGER, style_words=STYLE) == expected


def test_without_style_words_only_the_trigger_is_put_in_front() -> None:
    assert dressed("a dog", trigger=TRIGGER) == f"{TRIGGER}, a dog"
    assert dressed(f"{TRIGGER} a dog", trigger=TRIGGER) == f"{TRIGGER} a dog"
    assert dressed("a dog") == "a dog"


@given(
    st.lists(st.sampled_from([TRIGGER, STYLE, "a dog", "pink", ",", "--", "[name]"]), min_size=1)
)
def test_dressing_twice_is_dressing_once(parts: list[str]) -> None:
    once = dressed(" ".join(parts), trigger=TRIGGER, style_words=STYLE)
    assert has_words(once, TRIGGER)
    assert has_words(once, STYLE)
    assert "--" not in once
    assert dressed(once, trigger=TRIGGER, style_words=STYLE) == once


def test_a_trigger_in_other_words_is_hidden() -> None:
    assert hides_trigger("a person drinking", "ink")
    assert hides_trigger("a dog in pink style", "ink style")
    assert hides_trigger("a dog in ink styles", "ink style")
    assert hides_trigger("먹물스타일로 그린 개", "먹물")
    assert not hides_trigger("a person drinking ink", "ink")
    assert has_trigger("a [trigger] dog", "ink")
