"""What a check finds, and the register of rules that find it.

A rule is a function from a `View` to hits; its id names its words in `rules.toml`, in both
languages. Knows no rule: `rules` does.
"""

import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from models.training.config.documents import KeyPath, Place, dotted
from models.training.config.keys import Language
from models.training.config.korean import with_particles
from models.training.config.view import View

Severity = Literal["error", "warning"]

_WORDS = Path(__file__).with_name("rules.toml")


@dataclass(frozen=True)
class Hit:
    """Where a rule applies. `says` fills the words; `key` and `value` are there already."""

    path: KeyPath
    says: Mapping[str, object] = field(default_factory=dict)
    place: Place | None = None
    """Where `path` alone would lead elsewhere."""


Finder = Callable[[View], Iterable[Hit]]


@dataclass(frozen=True)
class Rule:
    """One way for a configuration to be wrong."""

    id: str
    severity: Severity
    find: Finder
    needs_file: bool
    """It looks at the configuration's meaning, not at its text: not asked of what has none."""


@dataclass(frozen=True)
class Finding:
    """One line of a report. Lines and columns count from 1."""

    rule: str
    severity: Severity
    key: str
    """The path in full; empty for the file as a whole."""
    line: int
    column: int
    value: str
    """As it stands in the file, shortened."""
    problem: str
    fix: str


RULES: dict[str, Rule] = {}
"""All rules by id. Importing `models.training.config.rules` fills it."""


def rule(name: str, severity: Severity, *, needs_file: bool = True) -> Callable[[Finder], Finder]:
    """Registers a function as a rule."""

    def register(find: Finder) -> Finder:
        if name in RULES:
            raise RuntimeError(f"two rules are called {name}")
        RULES[name] = Rule(name, severity, find, needs_file)
        return find

    return register


def findings(view: View, language: Language = "en") -> list[Finding]:
    """Everything that every rule finds, in the file's order."""
    found = [
        _finding(one, hit, view, language)
        for one in RULES.values()
        if view.has_meaning or not one.needs_file
        for hit in one.find(view)
    ]
    return sorted(found, key=lambda finding: (finding.line, finding.column, finding.rule))


def words(rule_id: str, language: Language) -> tuple[str, str]:
    """The problem and the fix, with their blanks."""
    problem, fix = _words()[rule_id][language]
    return problem, fix


def _finding(found_by: Rule, hit: Hit, view: View, language: Language) -> Finding:
    place = hit.place or view.document.key_place(hit.path)
    value = shortened(view.document.shown(hit.path))
    blanks = _Blanks({"key": str(hit.path[-1]) if hit.path else "", "value": value, **hit.says})
    problem, fix = (text.format_map(blanks) for text in words(found_by.id, language))
    if language == "ko":
        problem, fix = with_particles(problem), with_particles(fix)
    return Finding(
        rule=found_by.id,
        severity=found_by.severity,
        key=dotted(hit.path),
        line=place.line,
        column=place.column,
        value=value,
        problem=problem,
        fix=fix,
    )


class _Blanks(dict[str, object]):
    """A blank that a rule left empty is an error of ours, with its name."""

    def __missing__(self, name: str) -> object:
        raise KeyError(f"a rule's words ask for {{{name}}}")


def shortened(text: str, length: int = 60) -> str:
    """On one line, its middle left out where it is long."""
    line = " ".join(text.split())
    return line if len(line) <= length else f"{line[: length - 20]}...{line[-16:]}"


_CACHE: dict[str, dict[Language, list[str]]] = {}


def _words() -> dict[str, dict[Language, list[str]]]:
    if not _CACHE:
        _CACHE.update(tomllib.loads(_WORDS.read_text(encoding="utf-8")))
    return _CACHE


def errors(found: Iterable[Finding]) -> Iterator[Finding]:
    """Those that make `check` fail."""
    return (finding for finding in found if finding.severity == "error")
