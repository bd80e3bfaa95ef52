"""A document keeps its text, knows its places, reads as AI-Toolkit reads, and has limits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.training.config.documents import (
    MAX_BYTES,
    Document,
    Map,
    Scalar,
    dotted,
    load_document,
    parse_document,
    walk,
    write_config,
)
from models.training.errors import ConfigRefused

FILES = Path(__file__).parent / "files"
CORPUS = {
    "comments": "# 첫 줄\njob: extension   # 뒤의 주석\n\n\n# 끝\n",
    "anchors": "a: &x {b: 1, c: [1, 2]}\nd: *x\ne:\n  <<: *x\n  b: 3\n",
    "korean": "이름: '스토리보드'\nmeta:\n  설명: \"흑백 그림 # 주석 아님\"\n",
    "blocks": "text: |\n  one\n  two\nfolded: >-\n  three\n  four\nlast: 1\n",
    "windows": "job: extension\r\nconfig:\r\n  name: x\r\n",
    "no final newline": "job: extension",
    "marks": "---\njob: 'it''s'\nother: \"a\\tb\"\n...\n",
    "bom": "\ufeffjob: extension\n",
    "flow": "a: {b: [1, 2 , {c: d}], e: 'f'}\n",
}


def parsed(text: str, name: str = "x.yaml", **environ: str) -> Document:
    return parse_document(text, name=name, environ=environ)


@pytest.mark.parametrize("text", CORPUS.values(), ids=CORPUS.keys())
def test_what_is_loaded_is_saved_byte_for_byte(text: str, tmp_path: Path) -> None:
    file, copy = tmp_path / "a.yaml", tmp_path / "b.yaml"
    file.write_bytes(text.encode("utf-8"))
    write_config(load_document(file, {}), copy)
    assert copy.read_bytes() == file.read_bytes()


values = (
    st.text(max_size=12)
    | st.booleans()
    | st.integers(-(10**12), 10**12)
    | st.floats(allow_nan=False, allow_infinity=False, min_value=-1e9, max_value=1e9)
)
plain_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**9), 10**9)
    | st.text("ab #:-'\"한글\n", max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text("abc한", min_size=1, max_size=4), inner, max_size=3)
    ),
    max_leaves=12,
)


@settings(deadline=None, max_examples=50)
@given(st.dictionaries(st.text("abc한", min_size=1, max_size=4), plain_values, min_size=1))
def test_json_reads_as_json_reads_it(tree: dict[str, object]) -> None:
    text = json.dumps(tree, ensure_ascii=False, indent="\t")
    assert _lists(parsed(text, "x.json").plain()) == json.loads(text)


def _lists(value: object) -> object:
    if isinstance(value, dict):
        return {key: _lists(inner) for key, inner in value.items()}
    return [_lists(item) for item in value] if isinstance(value, tuple) else value


def test_json_strings_keep_their_surrogate_pairs() -> None:
    assert parsed(r'{"a": "\ud83c\udfa8"}', "x.json").plain() == {"a": "🎨"}


@pytest.mark.parametrize("name", ["dev.yaml", "schnell.yaml"])
@settings(deadline=None, max_examples=20)
@given(number=st.integers(0, 10**6), value=values)
def test_an_edit_changes_one_value_and_nothing_else(
    name: str, number: int, value: str | bool | int | float
) -> None:
    document = load_document(FILES / name, {})
    paths = [path for path, _ in walk(document.root) if document.writes(path)]
    path = paths[number % len(paths)]
    node = document.at(path)
    assert node is not None
    changed = document.with_value(path, value)
    after = changed.at(path)
    assert isinstance(after, Scalar)
    assert after.value == value
    assert changed.text[: node.place.start] == document.text[: node.place.start]
    tail = len(document.text) - node.place.end
    assert changed.text[len(changed.text) - tail :] == document.text[node.place.end :]


def test_an_edit_keeps_anchors_and_fills_what_is_empty() -> None:
    document = parsed("a: &every 250  # steps\nb: *every\nc:\n")
    assert document.shown(("a",)) == "250"
    assert document.with_value(("a",), 100).text == "a: &every 100  # steps\nb: *every\nc:\n"
    assert document.with_value(("a",), 100).plain()["b"] == 100
    assert document.with_value(("c",), 1e-05).plain()["c"] == 1e-05
    assert "e-" not in document.with_value(("c",), 1e-05).text
    with pytest.raises(ValueError, match="nan"):
        document.with_value(("a",), float("nan"))


def test_an_edit_of_what_an_alias_brought_is_refused() -> None:
    document = parsed("a: &x {b: 1}\nc: *x\nd:\n  <<: *x\n")
    for path in (("c", "b"), ("d", "b"), ("nowhere",), ("a",)):
        with pytest.raises(KeyError):
            document.with_value(path, 2)


def test_yaml_reads_as_ai_toolkit_reads_it() -> None:
    text = "a: 1e-4\nb: 1.5e4\nc: 2E+3\nd: yes\ne: 010\nf: 1_000\ng: '1e-4'\nh: 1e\ni: .5e-3\n"
    assert parsed(text).plain() == {
        "a": 1e-4, "b": 1.5e4, "c": 2000.0, "d": True, "e": 8, "f": 1000, "g": "1e-4", "h": "1e",
        "i": 5e-4,
    }  # fmt: skip


def test_places_are_those_of_the_text_whatever_the_environment_puts_there() -> None:
    text = "a: ${LONG}${SHORT}\nb: [${LONG}, 2]  # ${SHORT}\nc: 7\n"
    document = parsed(text, LONG="x" * 50, SHORT="")
    assert document.plain() == {"a": "x" * 50, "b": ("x" * 50, 2), "c": 7}
    assert (document.place(("c",)).line, document.place(("c",)).column) == (3, 4)
    assert document.shown(("c",)) == "7"
    assert document.shown(("b", 0)) == "${LONG}"
    assert document.shown(("b", 1)) == "2"
    assert document.shown(("a",)) == "${LONG}${SHORT}"


def test_an_unset_variable_is_known_even_in_a_comment() -> None:
    (unset,) = parsed("a: 1\n# ${NOT_THERE}\n").unset
    assert (unset.name, unset.place.line, unset.place.column) == ("NOT_THERE", 2, 3)


def test_the_last_of_a_duplicate_counts_and_a_merge_yields() -> None:
    document = parsed("x: &x {a: 1, b: 2}\ny:\n  a: 3\n  a: 4\n  <<: *x\n")
    assert document.plain()["y"] == {"a": 4, "b": 2}
    assert isinstance(document.root, Map)


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{now}: &{now} [{', '.join([f'*{before}'] * 9)}]\n"
    for before, now in zip("abcdefgh", "bcdefghi", strict=True)
)
TOO_MUCH = {
    "aliases": (BOMB, "x.yaml", "aliases"),
    "deep": ("[" * 5000, "x.yaml", "levels"),
    "deep json": ("[" * 50_000 + "]" * 50_000, "x.json", "levels"),
    "many": ("a: [" + "1, " * 60_000 + "]", "x.yaml", "values"),
    "itself": ("a: &a [*a]", "x.yaml", "aliases"),
    "digits": ("a: " + "9" * 6000, "x.yaml", "int"),
}


@pytest.mark.parametrize(("text", "name", "why"), TOO_MUCH.values(), ids=TOO_MUCH.keys())
def test_what_grows_is_refused_before_it_grows(text: str, name: str, why: str) -> None:
    with pytest.raises(ConfigRefused, match=why):
        parsed(text, name)


def test_a_long_file_is_refused_unread(tmp_path: Path) -> None:
    file = tmp_path / "long.yaml"
    file.write_bytes(b"# " + b"x" * (10 * 2**20))
    with pytest.raises(ConfigRefused, match=f"longer than {MAX_BYTES // 1024} KiB"):
        load_document(file, {})


BROKEN = {
    "syntax": ("a: [1, 2\nb: 3\n", "x.yaml", r"x.yaml:2:"),
    "two documents": ("a: 1\n---\nb: 2\n", "x.yaml", r"x.yaml:2:1"),
    "empty": ("# nothing\n", "x.yaml", "nothing is written"),
    "object": ("a: !!python/object:os.system {}\n", "x.yaml", "x.yaml:1:30"),
    "key": ("[1, 2]: x\n", "x.yaml", "a key must be"),
    "date": ("a: 2026-13-45\n", "x.yaml", "timestamp"),
    "json comment": ('{"a": 1 // no\n}', "x.jsonc", r"x.jsonc:1:9: no JSON"),
    "control": ("a: \x00\n", "x.yaml", "x.yaml:1:4"),
    "merge": ("a: {<<: 3}\n", "x.yaml", "takes a mapping"),
}


@pytest.mark.parametrize(("text", "name", "why"), BROKEN.values(), ids=BROKEN.keys())
def test_what_cannot_be_read_names_its_line(text: str, name: str, why: str) -> None:
    with pytest.raises(ConfigRefused, match=why):
        parsed(text, name)


@pytest.mark.parametrize(
    ("data", "name", "why"),
    [(b"a: \xff\n", "x.yaml", "x.yaml:1: byte 3 is no UTF-8"), (b"a: 1\n", "x.toml", ".toml")],
)
def test_what_is_no_text_is_refused(data: bytes, name: str, why: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ConfigRefused, match=why):
        load_document(tmp_path / name, {})


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    file.write_text("a: 1\n")
    document = parsed("a: 2\n")
    (tmp_path / "taken").mkdir()
    with pytest.raises(OSError, match="taken"):
        write_config(document, tmp_path / "taken")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["taken", "x.yaml"]


def test_paths_are_shown_as_people_write_them() -> None:
    assert dotted(("config", "process", 0, "train", "lr")) == "config.process[0].train.lr"
