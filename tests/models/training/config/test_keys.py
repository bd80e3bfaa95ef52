"""The table explains every key, in natural words, and finds what a typo meant."""

from __future__ import annotations

import re

import pytest

from models.training.config.keys import ELSEWHERE, KEYS, Language, find, name_of, nearest
from models.training.config.korean import with_particles

LANGUAGES: tuple[Language, ...] = ("en", "ko")


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_key_says_what_it_does_and_what_to_change_first(language: Language) -> None:
    for key in KEYS.values():
        for text in (key.does[language], key.first[language]):
            assert text.endswith((".", "요.")), key.name
            assert bool(re.search(r"[가-힣]", text)) == (language == "ko"), key.name


def test_korean_sentences_end_in_one_politeness() -> None:
    for key in KEYS.values():
        for text in (key.does["ko"], key.first["ko"]):
            plain = re.sub(r"\([^)]*\)", "", text).rstrip(".")
            for sentence in re.split(r"(?<=[가-힣])\.\s+", plain):
                assert re.search(r"(니다|세요)$", sentence) or sentence.startswith("예:"), text


def test_figures_are_the_same_in_both_languages() -> None:
    """A number that only one language has is a slip: 4000 once became 40000 in a translation."""
    for key in KEYS.values():
        english, korean = (
            set(re.findall(r"\d[\d.]*\d|\d", f"{key.does[language]} {key.first[language]}"))
            for language in LANGUAGES
        )
        assert not {number for number in english ^ korean if float(number) >= 10}, key.name


def test_advice_lies_within_the_hard_limits() -> None:
    for key in KEYS.values():
        if key.advised is None:
            continue
        low, high = key.advised
        assert low < high
        assert key.minimum is None or key.minimum <= low, key.name
        assert key.maximum is None or high <= key.maximum, key.name


def test_no_key_is_ours_and_of_other_models_at_once() -> None:
    for section, names in ELSEWHERE.items():
        ours = {key.leaf for key in KEYS.values() if key.section == section}
        assert not ours & names


@pytest.mark.parametrize(
    ("wanted", "names"),
    [
        ("train.lr", ["train.lr"]),
        ("config.process[0].train.lr", ["train.lr"]),
        ("lr", ["train.lr"]),
        ("ema_decay", ["train.ema_config.ema_decay"]),
        ("width", ["sample.width", "sample.samples.width"]),
        ("learning_rate", ["train.lr"]),
        ("nothing_like_it", []),
    ],
)
def test_a_key_is_found_by_its_name_its_end_or_another_name(wanted: str, names: list[str]) -> None:
    assert [key.name for key in find(wanted)] == names


@pytest.mark.parametrize(
    ("wrong", "section", "meant"),
    [
        ("optimiser", "train", "train.optimizer"),
        ("learning_rat", None, "train.lr"),
        ("max_train_step", "train", "train.steps"),
        ("heightt", "sample", "sample.height"),
        ("folder", "datasets", "datasets.folder_path"),
        ("sampl_steps", None, "sample.sample_steps"),
    ],
)
def test_a_typo_finds_what_was_meant(wrong: str, section: str | None, meant: str) -> None:
    assert nearest(wrong, section)[0].name == meant


def test_positions_drop_out_of_names() -> None:
    assert name_of(("config", "process", 0, "datasets", 1, "flip_x")) == "datasets.flip_x"
    assert name_of(("config", "process", 0, "first_sample", "width")) == "sample.width"
    assert name_of(("config", "name")) == "config.name"


@pytest.mark.parametrize(
    ("open_text", "chosen"),
    [
        ("그림을(를)", "그림을"),
        ("나무을(를)", "나무를"),
        ("16(으)로", "16으로"),
        ("8(으)로", "8로"),
        ("2은(는)", "2는"),
        ("`model`이(가)", "`model`이"),
        ('"[ 1 ]은(는)', '"[ 1 ]은'),
        ("서울(으)로", "서울로"),
        ("key(이)라는", "key라는"),
        ("이름과(와)", "이름과"),
        ("992(이)나", "992나"),
    ],
)
def test_particles_follow_the_last_sound(open_text: str, chosen: str) -> None:
    assert with_particles(open_text) == chosen
