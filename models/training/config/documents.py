"""A configuration's text as a tree that knows where each value stands, and edits that lose nothing.

Read exactly as AI-Toolkit reads (`toolkit/config.py`): `${ENV}` replaced in the text before it is
parsed, comments included; YAML 1.1 by PyYAML with `1e-4` a float; `.json` and `.jsonc` by `json`.
Refused: what is long, deep or grows through aliases, before it costs time or memory.

The text itself is kept. Saving what was loaded is byte-equal because nothing is written anew, and
`with_value` replaces one scalar's characters and no others. Lines and columns count from 1 and
belong to the text as it stands in the file. Knows no key of AI-Toolkit's.
"""

import datetime
import json
import math
import os
import re
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from decimal import Decimal
from pathlib import Path
from typing import Any, cast

import yaml

from models.training.errors import ConfigRefused
from models.training.storage import write_whole

MAX_BYTES = 128 * 1024
MAX_EVENTS = 20_000
MAX_DEPTH = 24
MAX_NODES = 50_000
SUFFIXES = (".yaml", ".yml", ".json", ".jsonc")

KeyPath = tuple[str | int, ...]
"""From the root: mapping keys and list positions."""

_ENV = re.compile(r"\$\{([^}]+)\}")
_PROPERTIES = re.compile(r"(?:[&!]\S*\s+)+")
_UNPRINTABLE = re.compile("[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff\ud800-\udfff]")
"""What JSON leaves as it is, and YAML refuses or takes for the end of a line."""
_JSON_SUFFIXES = (".json", ".jsonc")


class _Loader(yaml.SafeLoader):
    """PyYAML's, with AI-Toolkit's wider idea of a float."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"""^(?:[-+]?[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?
        |[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+
        |\.[0-9_]+(?:[eE][-+][0-9]+)?
        |[-+]?[0-9][0-9_]*(?::[0-5]?[0-9])+\.[0-9_]*
        |[-+]?\.(?:inf|Inf|INF)
        |\.(?:nan|NaN|NAN))$""",
        re.VERBOSE,
    ),
    list("-+0123456789."),
)


@dataclass(frozen=True, slots=True)
class Place:
    """Where something stands. `start` and `end` are offsets into the file's text."""

    line: int
    column: int
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Scalar:
    """One value. `is_quoted` includes block scalars."""

    value: Any
    place: Place
    is_quoted: bool
    is_alias: bool = False


@dataclass(frozen=True, slots=True)
class Entry:
    """One `key: value`. `is_merged`: it came through `<<` and stands elsewhere."""

    key: str
    place: Place
    node: "Node"
    is_merged: bool = False


@dataclass(frozen=True, slots=True)
class Map:
    """Entries in the file's order, duplicates included: the last of a name counts."""

    entries: tuple[Entry, ...]
    place: Place
    is_alias: bool = False

    def entry(self, key: str) -> Entry | None:
        """What a reader of the mapping gets: the last of that name, merged ones yielding."""
        own = [entry for entry in self.entries if entry.key == key]
        written = [entry for entry in own if not entry.is_merged]
        return (written or own)[-1] if own else None


@dataclass(frozen=True, slots=True)
class List:
    """Items in order."""

    items: tuple["Node", ...]
    place: Place
    is_alias: bool = False


Node = Scalar | Map | List
"""`is_alias`: an alias brought it, and its place is where the anchor stands."""


@dataclass(frozen=True)
class UnsetVariable:
    """A `${NAME}` that the environment does not have."""

    name: str
    place: Place


@dataclass(frozen=True)
class Document:
    """One file's text and its tree. Immutable; `with_value` makes another."""

    name: str
    text: str
    root: Node
    unset: tuple[UnsetVariable, ...] = ()
    environ: Mapping[str, str] = field(default_factory=dict, repr=False)

    def at(self, path: KeyPath) -> Node | None:
        """The node at `path`, or None where nothing is written."""
        node: Node | None = self.root
        for step in path:
            node = _step(node, step)
        return node

    def place(self, path: KeyPath) -> Place:
        """Where `path` stands; where it is not written, the nearest section that is."""
        node: Node = self.root
        for step in path:
            if (inner := _step(node, step)) is None:
                break
            node = inner
        return node.place

    def key_place(self, path: KeyPath) -> Place:
        """Where the key itself stands, rather than its value."""
        parent = self.at(path[:-1])
        if isinstance(parent, Map) and isinstance(path[-1], str) and (e := parent.entry(path[-1])):
            return e.place
        return self.place(path)

    def shown(self, path: KeyPath) -> str:
        """The value at `path` as the file has it: `${ENV}` unreplaced, so no secret is shown."""
        node = self.at(path)
        return "" if node is None else self.text[node.place.start : node.place.end].strip()

    def plain(self) -> Any:
        """The tree as dicts, tuples and scalars."""
        return _plain(self.root)

    def writes(self, path: KeyPath) -> bool:
        """Whether a scalar stands at `path` itself, rather than being brought there by an alias."""
        nodes = [self.at(path[:depth]) for depth in range(len(path) + 1)]
        return isinstance(nodes[-1], Scalar) and not any(node and node.is_alias for node in nodes)

    def with_value(self, path: KeyPath, value: str | int | float | bool | None) -> "Document":
        """The same text with the scalar at `path` replaced; everything else stays as it is.

        An anchor on it stays, so what refers to it changes too. Raises KeyError where `writes` is
        False, and ValueError for a number that is none.
        """
        node = self.at(path)
        if not isinstance(node, Scalar) or not self.writes(path):
            raise KeyError(f"{dotted(path)} is no value that {self.name} writes")
        start, end = node.place.start, node.place.end
        space = " " if start == end else ""  # a key with nothing after its colon
        text = self.text[:start] + space + written(value) + self.text[end:]
        return parse_document(text, name=self.name, environ=self.environ)


def written(value: str | int | float | bool | None) -> str:
    """A scalar as both YAML and JSON read it, in one line and without an exponent."""
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{value} is no number that a configuration can hold")
        return f"{Decimal(repr(value)):f}"
    return _UNPRINTABLE.sub(_escaped, json.dumps(value, ensure_ascii=False))


def _escaped(character: re.Match[str]) -> str:
    return f"\\u{ord(character[0]):04x}"


def dotted(path: KeyPath) -> str:
    """`config.process[0].train.lr`."""
    parts = [f"[{step}]" if isinstance(step, int) else f".{step}" for step in path]
    return "".join(parts).removeprefix(".")


def load_document(file: Path, environ: Mapping[str, str] | None = None) -> Document:
    """The file as it is on disk; `environ` is os.environ unless given.

    Raises ConfigRefused, naming the line, for what is too long, no UTF-8, no YAML or JSON, or
    bigger than it looks.
    """
    if file.suffix not in SUFFIXES:
        raise ConfigRefused(f"{file}: AI-Toolkit reads {', '.join(SUFFIXES)}, not {file.suffix!r}")
    with file.open("rb") as stream:
        data = stream.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise ConfigRefused(
            f"{file}: longer than {MAX_BYTES // 1024} KiB, so it is no configuration"
        )
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise ConfigRefused(f"{file}:{line}: byte {error.start} is no UTF-8: save it so") from error
    return parse_document(text, name=str(file), environ=os.environ if environ is None else environ)


def parse_document(text: str, *, name: str, environ: Mapping[str, str]) -> Document:
    """`load_document` for text at hand. The suffix of `name` decides between YAML and JSON."""
    source = _Source(name, text, environ)
    try:
        root = _Builder(source).root()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        at = source.place(mark.index, mark.index) if mark else Place(1, 1, 0, 0)
        raise source.refusal(at, error.problem or error.context or "no YAML") from error
    except yaml.reader.ReaderError as error:
        at = source.place(error.position, error.position)
        raise source.refusal(at, "a character that YAML does not allow") from error
    return Document(name, text, root, source.unset, environ)


def write_config(document: Document, file: Path) -> None:
    """Write the text, whole or not at all, byte for byte as it was loaded."""
    write_whole(file, document.text.encode("utf-8"))


class _Source:
    """The text, what the environment makes of it, and the way back from there."""

    def __init__(self, name: str, text: str, environ: Mapping[str, str]) -> None:
        self.name = name
        self.text = text
        self.is_json = name.endswith(_JSON_SUFFIXES)
        self._line_starts = [0, *(match.end() for match in re.finditer("\n", text))]
        self._replacements: list[tuple[int, int, int, int]] = []
        """Start and end after replacement, start and end before it."""
        self.unset: tuple[UnsetVariable, ...] = ()
        self.expanded = self._expand(environ)

    def _expand(self, environ: Mapping[str, str]) -> str:
        pieces: list[str] = []
        unset: list[UnsetVariable] = []
        done = length = 0
        for match in _ENV.finditer(self.text):
            value = environ.get(match[1])
            if value is None:
                unset.append(UnsetVariable(match[1], self._located(match.start(), match.end())))
                continue
            before = self.text[done : match.start()]
            length += len(before)
            self._replacements.append((length, length + len(value), match.start(), match.end()))
            pieces += [before, value]
            length += len(value)
            done = match.end()
        self.unset = tuple(unset)
        return "".join([*pieces, self.text[done:]])

    def place(self, start: int, end: int) -> Place:
        """Offsets into `expanded` to a place in the text."""
        return self._located(self._origin(start, is_end=False), self._origin(end, is_end=True))

    def _origin(self, offset: int, *, is_end: bool) -> int:
        """An offset inside of a replacement becomes the variable's start, or its end."""
        shift = 0
        for new_start, new_end, old_start, old_end in self._replacements:
            if offset < new_start or (is_end and offset == new_start < new_end):
                break
            if is_end and offset < new_end:
                return old_end
            if not is_end and (offset < new_end or offset == new_start):
                return old_start
            shift = old_end - new_end
        return offset + shift

    def _located(self, start: int, end: int) -> Place:
        line = bisect_right(self._line_starts, start)
        return Place(line, start - self._line_starts[line - 1] + 1, start, end)

    def refusal(self, place: Place, why: str) -> ConfigRefused:
        return ConfigRefused(f"{self.name}:{place.line}:{place.column}: {why}")


class _Builder:
    """Nodes from PyYAML's nodes, bounded."""

    def __init__(self, source: _Source) -> None:
        self._source = source
        # A tab is whitespace to JSON and never stands in one of its strings.
        self._text = source.expanded.replace("\t", " ") if source.is_json else source.expanded
        self._constructor = _Loader("")
        self._nodes = 0
        self._built: set[int] = set()

    def root(self) -> Node:
        if self._source.is_json:
            self._refuse_what_is_no_json()
        self._refuse_what_is_big()
        node = yaml.compose(self._text, Loader=_Loader)
        if node is None:
            raise self._source.refusal(Place(1, 1, 0, 0), "nothing is written here")
        return self._build(node, 0)

    def _refuse_what_is_big(self) -> None:
        depth = 0
        for count, event in enumerate(yaml.parse(self._text, Loader=_Loader)):
            if isinstance(event, yaml.CollectionStartEvent):
                depth += 1
            elif isinstance(event, yaml.CollectionEndEvent):
                depth -= 1
            if depth > MAX_DEPTH or count > MAX_EVENTS:
                limit = f"{MAX_DEPTH} levels" if depth > MAX_DEPTH else f"{MAX_EVENTS} values"
                index = cast(yaml.Mark, event.start_mark).index
                at = self._source.place(index, index)
                raise self._source.refusal(at, f"more than {limit}: no configuration is so large")

    def _refuse_what_is_no_json(self) -> None:
        try:
            json.loads(self._source.expanded)
        except json.JSONDecodeError as error:
            at = self._source.place(error.pos, error.pos)
            raise self._source.refusal(at, f"no JSON: {error.msg}") from error
        except RecursionError:
            pass  # how deep is too deep, the events tell

    def _place(self, node: yaml.Node) -> Place:
        """Without its anchor and tag, which PyYAML counts in."""
        start, end = node.start_mark.index, node.end_mark.index
        properties = _PROPERTIES.match(self._text, start, end)
        return self._source.place(properties.end() if properties else start, end)

    def _build(self, node: yaml.Node, depth: int) -> Node:
        self._nodes += 1
        place = self._place(node)
        if self._nodes > MAX_NODES or depth > MAX_DEPTH:
            raise self._source.refusal(place, "aliases (*name) make this far larger than it looks")
        is_alias = id(node) in self._built
        self._built.add(id(node))
        if isinstance(node, yaml.ScalarNode):
            return Scalar(self._value(node, place), place, node.style is not None, is_alias)
        if isinstance(node, yaml.SequenceNode) and node.tag.endswith(":seq"):
            items = tuple(self._build(item, depth + 1) for item in node.value)
            return List(items, place, is_alias)
        if isinstance(node, yaml.MappingNode) and node.tag.endswith(":map"):
            return Map(tuple(self._entries(node, depth)), place, is_alias)
        raise self._source.refusal(place, f"{node.tag} is no plain value, list or mapping")

    def _entries(self, node: yaml.MappingNode, depth: int) -> Iterator[Entry]:
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise self._source.refusal(self._place(key), "a key must be one word")
            if key.tag.endswith(":merge"):
                yield from self._merged(value, depth)
            else:
                yield Entry(key.value, self._place(key), self._build(value, depth + 1))

    def _merged(self, node: yaml.Node, depth: int) -> Iterator[Entry]:
        """What `<<` brings: of several mappings the first wins, so it comes last."""
        built = self._build(node, depth + 1)
        maps = built.items if isinstance(built, List) else (built,)
        for inner in reversed(maps):
            if not isinstance(inner, Map):
                raise self._source.refusal(inner.place, "<< takes a mapping")
            yield from (replace(entry, is_merged=True) for entry in inner.entries)

    def _value(self, node: yaml.ScalarNode, place: Place) -> Any:
        if self._source.is_json:
            return json.loads(self._source.expanded[node.start_mark.index : node.end_mark.index])
        try:
            return self._constructor.construct_object(node)
        except ValueError as error:  # a date that is none, a number of thousands of digits
            raise self._source.refusal(
                place,
                f"{node.value[:40]!r} is {node.tag[18:]} to YAML, "
                f"and cannot be read as one: {error}",
            ) from error


def dates(document: Document) -> Iterator[KeyPath]:
    """Where YAML reads a date: AI-Toolkit passes the file through JSON, which has none."""
    for path, node in walk(document.root):
        if isinstance(node, Scalar) and isinstance(node.value, datetime.date):
            yield path


def duplicates(document: Document) -> Iterator[tuple[KeyPath, Entry, Entry]]:
    """Keys written twice in one mapping: the path, what is passed over and what counts."""
    for path, node in walk(document.root):
        if not isinstance(node, Map):
            continue
        last: dict[str, Entry] = {}
        for entry in node.entries:
            if entry.is_merged:
                continue
            if earlier := last.get(entry.key):
                yield (*path, entry.key), earlier, entry
            last[entry.key] = entry


def walk(node: Node, path: KeyPath = ()) -> Iterator[tuple[KeyPath, Node]]:
    """Every node with its path, parents first."""
    yield path, node
    if isinstance(node, Map):
        for entry in node.entries:
            yield from walk(entry.node, (*path, entry.key))
    elif isinstance(node, List):
        for index, item in enumerate(node.items):
            yield from walk(item, (*path, index))


def _step(node: Node | None, step: str | int) -> Node | None:
    if isinstance(node, Map) and isinstance(step, str):
        entry = node.entry(step)
        return entry.node if entry else None
    if isinstance(node, List) and isinstance(step, int) and 0 <= step < len(node.items):
        return node.items[step]
    return None


def _plain(node: Node) -> Any:
    if isinstance(node, Scalar):
        return node.value
    if isinstance(node, List):
        return tuple(_plain(item) for item in node.items)
    keys = dict.fromkeys(entry.key for entry in node.entries)
    return {key: _plain(cast(Entry, node.entry(key)).node) for key in keys}
