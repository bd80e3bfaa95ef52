"""A new configuration passes its own check and reads as numbers everywhere."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest
import yaml

from models.errors import UnknownModel
from models.sketch import scene
from models.training.config import rules  # noqa: F401  (registers them)
from models.training.config.documents import load_document
from models.training.config.findings import findings
from models.training.config.keys import KEYS, Language, name_of
from models.training.config.reading import read_config
from models.training.config.templates import Choices, columns, new_config
from models.training.config.view import View

LANGUAGES: tuple[Language, ...] = ("en", "ko")
MODELS = ("sketch", "flux.1-dev", "flux.1-schnell", "someone/a-flux")


def written(text: str, tmp_path: Path) -> Path:
    file = tmp_path / "new.yaml"
    file.write_text(text, encoding="utf-8")
    return file


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("model", MODELS)
def test_it_passes_its_own_check(model: str, language: Language, tmp_path: Path) -> None:
    file = written(new_config(Choices(model), language), tmp_path)
    assert {one.rule for one in findings(View(load_document(file)))} == {"folder-missing"}


@pytest.mark.parametrize("model", MODELS)
def test_plain_yaml_reads_what_ai_toolkit_reads(model: str, tmp_path: Path) -> None:
    text = new_config(Choices(model), "ko")
    plain = yaml.safe_load(text)
    assert load_document(written(text, tmp_path)).plain() == _tuples(plain)
    train = plain["config"]["process"][0]["train"]
    assert isinstance(train["lr"], float)
    assert isinstance(train["max_grad_norm"], float)


def _tuples(value: object) -> object:
    if isinstance(value, dict):
        return {key: _tuples(inner) for key, inner in value.items()}
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_key_has_its_comment_in_that_language(language: Language) -> None:
    lines = new_config(Choices("flux.1-dev"), language).splitlines()
    for before, line in itertools.pairwise(lines):
        if (
            re.match(r" *[a-z_]+:", line)
            and not line.startswith('  name: "[name]')
            and (not line.startswith("  version"))
        ):
            assert before.lstrip().startswith("#"), line
    comments = " ".join(line for line in lines if line.lstrip().startswith("#"))
    assert bool(re.search(r"[가-힣]", comments)) == (language == "ko")


def test_each_comment_is_the_tables(tmp_path: Path) -> None:
    text = new_config(Choices("flux.1-dev"), "ko")
    said = " ".join(
        line.strip().lstrip("# ") for line in text.splitlines() if line.lstrip().startswith("#")
    )
    document = load_document(written(text, tmp_path))
    process = document.plain()["config"]["process"][0]
    for section, inner in process.items():
        for word in inner if isinstance(inner, dict) else ():
            key = KEYS[name_of((section, word))]
            assert key.does["ko"] in said
            assert key.first["ko"] in said


def test_lines_fit_a_screen() -> None:
    for language in LANGUAGES:
        for line in new_config(Choices("sketch"), language).splitlines():
            assert line.lstrip().startswith("- ") or columns(line) <= 100, line


def test_what_was_chosen_stands_there(tmp_path: Path) -> None:
    choices = Choices("flux.1-schnell", name="잉크", trigger="jo1nk", folder='a "b" \\ c')
    file = read_config(written(new_config(choices, "ko"), tmp_path), {})
    assert file.config.name == "잉크"
    assert file.process.trigger_word == "jo1nk"
    assert file.process.datasets[0].folder_path == 'a "b" \\ c'
    assert file.process.model.assistant_lora_path
    assert file.process.sample.guidance_scale == 1


def test_the_embedded_base_gets_words_that_it_knows(tmp_path: Path) -> None:
    process = read_config(written(new_config(Choices("sketch"), "en"), tmp_path), {}).process
    known = set(scene.known_words())
    texts = [process.trigger_word or "", *process.sample.prompts]
    for text in texts:
        assert set(scene.words(text.replace("[trigger]", ""))) <= known
    assert process.device == "cpu"
    assert process.train.dtype == "fp32"


def test_an_unknown_model_is_refused() -> None:
    with pytest.raises(UnknownModel, match="flux-dev"):
        new_config(Choices("flux-dev"), "en")
