"""Every rule finds what it is for and lets its near miss pass; both are files."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from models.training.config import rules  # noqa: F401  (registers them)
from models.training.config.documents import load_document, parse_document
from models.training.config.estimates import estimate
from models.training.config.findings import RULES, Finding, findings, words
from models.training.config.keys import Language
from models.training.config.view import View
from models.training.errors import ConfigRefused
from tests.models.training.config.cases import CASES, Case, Edits, Prepare, Room

LANGUAGES: tuple[Language, ...] = ("en", "ko")
TOOLKIT_EXAMPLES = Path(__file__).parents[5] / "shared/data/ai-toolkit"


@pytest.fixture
def room(tmp_path: Path) -> Room:
    (tmp_path / "own").mkdir()
    return Room(output=tmp_path / "output", folder=tmp_path / "own")


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOING_TEST_SET", "ink-storyboard")
    monkeypatch.delenv("JOING_TEST_UNSET", raising=False)


def edited(text: str, edits: Edits) -> str:
    for old, new in edits:
        assert text.count(old) == 1, f"{old!r} stands {text.count(old)} times in the file"
        text = text.replace(old, new)
    return text


def checked(file: Path, language: Language = "en") -> list[Finding]:
    return findings(View(load_document(file)), language)


def written(
    case: Case, edits: Edits, prepare: Prepare | None, room: Room, request: pytest.FixtureRequest
) -> Path:
    text: str = edited(request.getfixturevalue(case.base), edits)
    text = text.replace("OUTPUT", str(room.output))
    if case.own_folder:
        pictures = str(request.getfixturevalue("pictures"))
        text = text.replace(pictures, str(room.folder))
    if prepare is not None:
        prepare(room)
    file = room.folder.parent / f"case{case.suffix}"
    file.write_text(text, encoding="utf-8")
    return file


def test_every_rule_has_a_file_that_triggers_it_and_one_that_does_not() -> None:
    assert sorted(case.rule for case in CASES) == sorted(RULES)
    assert all((case.bad, case.prepare_bad) != (case.good, case.prepare_good) for case in CASES)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.rule)
def test_it_finds_what_it_is_for(case: Case, room: Room, request: pytest.FixtureRequest) -> None:
    file = written(case, case.bad, case.prepare_bad, room, request)
    view = View(load_document(file))
    lines = file.read_text(encoding="utf-8").splitlines()
    for language in LANGUAGES:
        everything = findings(view, language)
        found = [one for one in everything if one.rule == case.rule]
        assert found
        for one in found:
            assert 1 <= one.line <= len(lines)
            assert 1 <= one.column <= len(lines[one.line - 1]) + 1
            assert one.severity == RULES[case.rule].severity
        for one in everything:
            assert_is_said_in(language, one)


def assert_is_said_in(language: Language, finding: Finding) -> None:
    for text in (finding.problem, finding.fix):
        assert text.strip()
        assert not re.search(r"\(를\)|\(는\)|\(가\)|\(으\)|\(와\)|\(이\)", text), text
        quotes_korean = "공원" in text
        assert bool(re.search(r"[가-힣]", text)) == (language == "ko") or quotes_korean


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.rule)
def test_it_lets_its_near_miss_pass(case: Case, room: Room, request: pytest.FixtureRequest) -> None:
    file = written(case, case.good, case.prepare_good, room, request)
    assert case.rule not in {one.rule for one in checked(file)}


def test_each_language_says_every_rule() -> None:
    for name in RULES:
        for language in LANGUAGES:
            assert all(words(name, language))


@pytest.mark.parametrize("base", ["sound", "sound_schnell"])
def test_a_sound_file_has_no_error(
    base: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    file = tmp_path / "sound.yaml"
    file.write_text(request.getfixturevalue(base), encoding="utf-8")
    expected = set() if base == "sound" else {"plain-yaml-number"}
    assert {one.rule for one in checked(file)} == expected


@pytest.mark.skipif(not TOOLKIT_EXAMPLES.is_dir(), reason="AI-Toolkit's examples are not here")
def test_the_examples_of_ai_toolkit_pass() -> None:
    files = sorted(TOOLKIT_EXAMPLES.glob("*.yaml"))
    assert files
    for file in files:
        assert not [one for one in checked(file) if one.severity == "error"]


def test_one_mistake_does_not_hide_another(sound: str, tmp_path: Path) -> None:
    edits = (
        ("batch_size: 1", 'batch_size: "1"'),
        ("type: lora", "type: lora7"),
        ("linear_alpha: 16", "linear_alpha: 4"),
        ("        is_flux: true\n", "        is_fluxx: true\n"),
        ("sampler: flowmatch", "sampler: ddpm"),
    )
    file = tmp_path / "many.yaml"
    file.write_text(edited(sound, edits), encoding="utf-8")
    assert {one.rule for one in checked(file)} == {
        "number-as-text",
        "unknown-choice",
        "alpha-not-honoured",
        "unknown-key",
        "not-flux",
        "sampler-mismatch",
    }


def test_a_finding_names_line_column_key_value_and_fix(sound: str, tmp_path: Path) -> None:
    text = edited(sound, (("        lr: 0.0001", "        learning_rate: 0.0001"),))
    file = tmp_path / "typo.yaml"
    file.write_text(text, encoding="utf-8")
    finding = next(one for one in checked(file) if one.rule == "unknown-key")
    line = text.splitlines()[finding.line - 1]
    assert line[finding.column - 1 :].startswith("learning_rate")
    assert finding.key == "config.process[0].train.learning_rate"
    assert finding.value == "0.0001"
    assert "train.lr" in finding.fix


def test_no_secret_of_the_environment_is_shown(
    sound: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JOING_TEST_TOKEN", "hunter2-hunter2")
    file = tmp_path / "secret.yaml"
    file.write_text(
        edited(sound, (("dtype: bf16", "dtype: ${JOING_TEST_TOKEN}"),)), encoding="utf-8"
    )
    found = checked(file)
    assert "unknown-choice" in {one.rule for one in found}
    assert "hunter2" not in repr(found)


def test_a_caption_that_only_holds_the_trigger_in_a_word_is_shown(
    sound: str, pictures: Path, room: Room
) -> None:
    room.picture("a", caption="a xjo1nkish dog")
    file = room.folder.parent / "inside.yaml"
    file.write_text(sound.replace(str(pictures), str(room.folder)), encoding="utf-8")
    finding = next(one for one in checked(file) if one.rule == "trigger-inside-words")
    assert "xjo1nkish" in finding.problem


def test_a_refused_value_in_a_list_blames_itself_and_not_the_list(
    sound: str, tmp_path: Path
) -> None:
    file = tmp_path / "item.yaml"
    edits = (("caption_dropout_rate: 0.05", "caption_dropout_rate: 5"),)
    file.write_text(edited(sound, edits), encoding="utf-8")
    keys = [one.key for one in checked(file)]
    assert keys == ["config.process[0].datasets[0].caption_dropout_rate"]


SCRAPS = (
    *("", "null", "[]", "{}", "7", "-1", "0", "1e400", ".inf", "true", '"x"', "[1, a]", "{a: 1}"),
    *("[[1], {b: 2}]", "x: y", "- 1", "2026-11-24", "*nothing", "'--'", "|", "&a 3", "!!str 3"),
)
"""What may stand where something else is meant."""


@settings(deadline=None, max_examples=60, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_whatever_is_written_gets_an_answer(data: st.DataObject, sound: str) -> None:
    lines = sound.splitlines()
    for _ in range(data.draw(st.integers(1, 4))):
        index = data.draw(st.integers(0, len(lines) - 1))
        head, colon, _ = lines[index].partition(":")
        scrap = data.draw(st.sampled_from(SCRAPS))
        lines[index] = data.draw(st.sampled_from([f"{head}{colon} {scrap}", scrap, lines[0]]))
    try:
        view = View(parse_document("\n".join(lines), name="x.yaml", environ={}))
    except ConfigRefused:
        return
    for language in LANGUAGES:
        for one in findings(view, language):
            assert one.line >= 1
    if view.has_meaning:
        assert estimate(view).memory.total >= 0
