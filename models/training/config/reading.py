"""From a file to a `TrainingFile`: what the trainer trains by.

Refuses what the schema refuses, and what AI-Toolkit would stop at or quietly take differently
(unset `${ENV}`, dates, keys written twice). What is merely unwise is for `rules`. `[name]` is
replaced as AI-Toolkit does, everywhere. Keys that AI-Toolkit has for other models (`is_xl`) are
passed over; `keys.ELSEWHERE` lists them.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from models.training.config.documents import (
    Document,
    KeyPath,
    Map,
    Node,
    Place,
    dates,
    dotted,
    duplicates,
    load_document,
)
from models.training.config.keys import without_elsewhere
from models.training.config.schema import TrainingFile
from models.training.errors import ConfigRefused


@dataclass(frozen=True)
class Violation:
    """One thing that the schema refuses. `kind` and `context` are pydantic's error type and ctx."""

    path: KeyPath
    kind: str
    message: str
    context: Mapping[str, Any]
    value: Any


def read_config(file: Path, environ: Mapping[str, str] | None = None) -> TrainingFile:
    """The configuration in `file`; raises ConfigRefused naming file, line and key.

    `environ` is os.environ unless given.
    """
    return config_of(load_document(file, environ))


def config_of(document: Document) -> TrainingFile:
    """`read_config` for a document at hand."""
    for place, why in _faults(document):
        raise ConfigRefused(f"{document.name}:{place.line}:{place.column}: {why}")
    return TrainingFile.model_validate(without_elsewhere(with_name(document.plain())))


def _faults(document: Document) -> Iterator[tuple[Place, str]]:
    for variable in document.unset:
        yield variable.place, f"${{{variable.name}}} is not set in the environment: set it"
    for path, _, second in duplicates(document):
        yield second.place, f"{dotted(path)} is written twice: keep one"
    for path in dates(document):
        yield document.place(path), f"{dotted(path)}: YAML reads a date here: put it in quotes"
    for violation in violations(document.root, document.plain()):
        place = document.key_place(violation.path)
        yield place, f"{dotted(violation.path)}: {violation.message}"


def violations(root: Node, plain: Any) -> list[Violation]:
    """Everything that the schema refuses, in the schema's order; none means that it validates."""
    if not isinstance(plain, dict):
        return [Violation((), "dict_type", "a configuration is a mapping", {}, plain)]
    try:
        TrainingFile.model_validate(without_elsewhere(with_name(plain)))
    except ValidationError as invalid:
        found = (_violation(root, error) for error in refusals(invalid))
        return _deepest({violation.path: violation for violation in found})
    return []


def _deepest(found: Mapping[KeyPath, Violation]) -> list[Violation]:
    """Where a value may be of two kinds, pydantic blames it once for each: the one that got
    further into it knows better.
    """
    outer = {path[:depth] for path in found for depth in range(len(path))}
    return [violation for path, violation in found.items() if path not in outer]


def refusals(invalid: ValidationError) -> list[Any]:
    """pydantic's errors but those that only follow from others: a list whose items are all refused
    is too short "after validation".
    """
    errors: list[Any] = invalid.errors(include_url=False)
    return [error for error in errors if not (error["type"] == "too_short" and error["input"])]


def _violation(root: Node, error: Any) -> Violation:
    path = _written_part(root, error["loc"])
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "extra_forbidden":
        message = "AI-Toolkit knows no such key for a Flux LoRA, and would pass over it"
    elif error["type"] == "missing":
        path = tuple(error["loc"])
        message = "is missing"
    else:
        message = f"{message}, not {error['input']!r}"[:300]
    return Violation(path, error["type"], message, error.get("ctx", {}), error["input"])


def _written_part(root: Node, location: tuple[str | int, ...]) -> KeyPath:
    """pydantic's location without the names of a union's branches, which stand in no file."""
    path: KeyPath = ()
    node: Node | None = root
    for step in location:
        if isinstance(node, Map) and isinstance(step, str):
            entry = node.entry(step)
            node = entry.node if entry else None
        elif node is not None and not isinstance(node, Map) and isinstance(step, int):
            items = getattr(node, "items", ())
            node = items[step] if step < len(items) else None
        else:
            continue
        if node is None:
            break
        path = (*path, step)
    return path


def with_name(plain: Any) -> Any:
    """`[name]` replaced by config.name in every text and key."""
    try:
        name = plain["config"]["name"]
    except (KeyError, TypeError):
        return plain
    return _replaced(plain, name) if isinstance(name, str) else plain


def _replaced(value: Any, name: str) -> Any:
    if isinstance(value, str):
        return value.replace("[name]", name)
    if isinstance(value, tuple):
        return tuple(_replaced(item, name) for item in value)
    if isinstance(value, dict):
        return {_replaced(key, name): _replaced(item, name) for key, item in value.items()}
    return value
