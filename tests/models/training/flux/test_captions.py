"""What captions become in a step."""

from __future__ import annotations

from random import Random

import pytest

from models.training.dataset.captions import fill
from models.training.flux.captions import CaptionRules, caption_of, with_trigger


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("a man", "ink style a man"),
        ("[trigger], a man", "ink style, a man"),
        ("a man in [name]", "a man in ink style"),
        ("a man, Ink style", "a man, Ink style"),
        ("pink styles", "ink style pink styles"),
        ("", "ink style"),
    ],
)
def test_the_trigger_is_put_in_once(written: str, expected: str) -> None:
    assert with_trigger(written, "ink style") == expected


def test_without_a_trigger_placeholders_vanish() -> None:
    assert with_trigger("[trigger] a man", "") == "a man"


def test_a_samples_prompt_gets_no_trigger_that_it_does_not_ask_for() -> None:
    assert fill("a man", "ink") == "a man"
    assert fill("[trigger], a man", "ink") == "ink, a man"


def test_dropped_captions_are_empty_at_the_rate_that_is_asked() -> None:
    rules = CaptionRules("ink", dropout_rate=0.25)
    rng = Random(0)
    dropped = sum(caption_of("a man", rules, rng) == "" for _ in range(4000)) / 4000
    assert dropped == pytest.approx(0.25, abs=0.03)


def test_kept_tokens_stay_in_front_while_the_rest_is_shuffled_and_dropped() -> None:
    rules = CaptionRules(shuffle_tokens=True, keep_tokens=2, token_dropout_rate=0.5)
    rng = Random(0)
    seen = {caption_of("a, b, c, d, e", rules, rng) for _ in range(300)}
    assert all(caption.startswith("a, b") for caption in seen)
    assert {"a, b", "a, b, c, d, e", "a, b, e, d, c"} <= seen


def test_only_shuffled_and_dropped_tokens_cannot_be_foreseen() -> None:
    assert CaptionRules(dropout_rate=0.5).can_be_foreseen
    assert not CaptionRules(shuffle_tokens=True).can_be_foreseen
    assert not CaptionRules(token_dropout_rate=0.1).can_be_foreseen
