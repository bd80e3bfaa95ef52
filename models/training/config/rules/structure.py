"""Rules about the text: what is there, spelt right, in its place and of its kind."""

import re
from collections.abc import Iterator

from models.training.config import keys
from models.training.config.documents import KeyPath, Scalar, dates, dotted, duplicates, walk
from models.training.config.findings import Hit, rule
from models.training.config.keys import KEYS, Key, name_of
from models.training.config.reading import Violation
from models.training.config.view import PROCESS, View

_PLAIN_FLOAT = re.compile(r"[-+]?[0-9][0-9_]*\.[0-9_]*([eE][-+][0-9]+)?|\.[0-9_]+([eE][-+][0-9]+)?")
"""What PyYAML itself takes for a float with digits: a point, and a sign in its exponent."""
_EXPONENT = re.compile(r"[-+]?[0-9._]+[eE][-+]?[0-9]+")
_WORDS_OF_TRUTH = {"true": "true", "false": "false", "yes": "true", "no": "false"}
_TOO_WIDE = ("greater_than", "less_than", "too_short", "too_long", "finite_number")


@rule("env-unset", "error", needs_file=False)
def env_unset(view: View) -> Iterator[Hit]:
    for variable in view.document.unset:
        yield Hit((), {"name": variable.name}, variable.place)


@rule("duplicate-key", "error", needs_file=False)
def duplicate_key(view: View) -> Iterator[Hit]:
    for path, earlier, last in duplicates(view.document):
        yield Hit(path, {"line": earlier.place.line}, last.place)


@rule("date-value", "error", needs_file=False)
def date_value(view: View) -> Iterator[Hit]:
    for path in dates(view.document):
        yield Hit(path, place=view.document.place(path))


@rule("plain-yaml-number", "warning", needs_file=False)
def plain_yaml_number(view: View) -> Iterator[Hit]:
    if not view.document.name.endswith((".yaml", ".yml")):
        return
    for path, node in walk(view.document.root):
        if not isinstance(node, Scalar) or not isinstance(node.value, float) or node.is_quoted:
            continue
        text = view.document.shown(path)
        if _EXPONENT.fullmatch(text) and not _PLAIN_FLOAT.fullmatch(text):
            yield Hit(path, {"number": decimal(node.value)}, node.place)


@rule("unknown-key", "error", needs_file=False)
def unknown_key(view: View) -> Iterator[Hit]:
    for path in _strangers(view):
        if not _homes(path):
            suggested = keys.nearest(str(path[-1]), _section(path))
            yield Hit(path, {"nearest": _listed(suggested)})


@rule("misplaced-key", "error", needs_file=False)
def misplaced_key(view: View) -> Iterator[Hit]:
    for path in _strangers(view):
        if homes := _homes(path):
            yield Hit(path, {"home": _listed(homes)})


@rule("not-for-flux", "warning", needs_file=False)
def not_for_flux(view: View) -> Iterator[Hit]:
    for path, _ in walk(view.document.root):
        if not path or not isinstance(path[-1], str) or path[: len(PROCESS) - 1] != PROCESS[:-1]:
            continue
        if len(path) > len(PROCESS) and path[-1] in keys.ELSEWHERE.get(_section(path), ()):
            yield Hit(path)


@rule("missing-key", "error", needs_file=False)
def missing_key(view: View) -> Iterator[Hit]:
    for violation in view.violations:
        if violation.kind == "missing":
            yield Hit(violation.path, {"home": dotted(violation.path)})


@rule("number-as-text", "error", needs_file=False)
def number_as_text(view: View) -> Iterator[Hit]:
    for violation in _wrong_types(view):
        if (number := _number(violation)) is not None:
            yield Hit(violation.path, {"number": number}, view.document.place(violation.path))


@rule("boolean-as-text", "error", needs_file=False)
def boolean_as_text(view: View) -> Iterator[Hit]:
    for violation in _wrong_types(view):
        if (truth := _truth(violation)) is not None:
            yield Hit(violation.path, {"truth": truth}, view.document.place(violation.path))


@rule("wrong-type", "error", needs_file=False)
def wrong_type(view: View) -> Iterator[Hit]:
    for violation in _wrong_types(view):
        if _number(violation) is None and _truth(violation) is None:
            kind = _key_of(violation.path)
            says = {"kind": kind.kind if kind else "section"}
            yield Hit(violation.path, says, view.document.place(violation.path))


@rule("out-of-range", "error", needs_file=False)
def out_of_range(view: View) -> Iterator[Hit]:
    for violation in view.violations:
        if any(word in violation.kind for word in _TOO_WIDE):
            says = {"range": _limit(violation)}
            yield Hit(violation.path, says, view.document.place(violation.path))


@rule("unknown-choice", "error", needs_file=False)
def unknown_choice(view: View) -> Iterator[Hit]:
    for violation in view.violations:
        if violation.kind == "literal_error":
            says = {"choices": str(violation.context["expected"]).replace("'", "")}
            yield Hit(violation.path, says, view.document.place(violation.path))


@rule("unusual-value", "warning")
def unusual_value(view: View) -> Iterator[Hit]:
    """What the schema refuses is wrong already."""
    refused = {violation.path for violation in view.violations}
    for path, node in walk(view.document.root):
        key = _key_of(path) if path and path not in refused else None
        if key is None or key.advised is None or not isinstance(node, Scalar):
            continue
        low, high = key.advised
        if isinstance(node.value, int | float) and not low <= node.value <= high:
            yield Hit(path, {"range": f"{decimal(low)} .. {decimal(high)}"}, node.place)


@rule("several-processes", "warning")
def several_processes(view: View) -> Iterator[Hit]:
    if len(view.file.config.process) > 1:
        yield Hit(("config", "process"), {"count": len(view.file.config.process)})


def decimal(number: float) -> str:
    """Without an exponent: 0.0001."""
    return f"{number:.12f}".rstrip("0").rstrip(".") if isinstance(number, float) else str(number)


def _strangers(view: View) -> Iterator[KeyPath]:
    for violation in view.violations:
        if violation.kind == "extra_forbidden":
            yield violation.path


def _section(path: KeyPath) -> str:
    return name_of((*path[:-1], "?"))[:-1].rstrip(".")


def _homes(path: KeyPath) -> list[Key]:
    """Where a key of exactly that name belongs."""
    leaf = str(path[-1])
    return [key for key in KEYS.values() if key.leaf == leaf]


def _listed(found: list[Key]) -> str:
    return ", ".join(key.name for key in found[:3]) or "-"


def _key_of(path: KeyPath) -> Key | None:
    return KEYS.get(name_of(path))


def _wrong_types(view: View) -> Iterator[Violation]:
    for violation in view.violations:
        if violation.kind.endswith(("_type", "_parsing", "int_from_float")):
            yield violation


def _number(violation: Violation) -> str | None:
    key = _key_of(violation.path)
    if not isinstance(violation.value, str) or key is None or key.kind not in ("int", "float"):
        return None
    try:
        number = float(violation.value)
    except ValueError:
        return None
    return decimal(number)


def _truth(violation: Violation) -> str | None:
    key = _key_of(violation.path)
    if not isinstance(violation.value, str) or key is None or key.kind != "bool":
        return None
    return _WORDS_OF_TRUTH.get(violation.value.strip().lower())


def _limit(violation: Violation) -> str:
    signs = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<", "min_length": "length >="}
    given = violation.context
    return ", ".join(f"{sign} {given[name]}" for name, sign in signs.items() if name in given)
