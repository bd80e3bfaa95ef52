"""Rules about the run's name and the trigger word: what they collide with."""

import re
from collections.abc import Iterator
from pathlib import Path

from models.sketch import scene
from models.training.config.documents import KeyPath
from models.training.config.findings import Hit, rule, shortened
from models.training.config.view import PROCESS, View

NAME: KeyPath = ("config", "name")
TRIGGER: KeyPath = (*PROCESS, "trigger_word")

_UNSAFE = re.compile(r'[/\\:*?"<>|\[\]\x00-\x1f]')
_SHORTEST_TRIGGER = 4
_COMMON = frozenset(
    "art artwork black book boy cartoon character color colour comic dog drawing face film frame "
    "girl illustration image ink man manga model movie object paint painting panel pencil person "
    "photo picture portrait scene shot simple sketch sketched storyboard style subject token "
    "trigger woman word work".split()
)
"""Words of captions that a model already has an idea of."""
_INSIDE_OF = (
    "apart are article artist black catch century character concept cover dark desk drawing "
    "environment face figure ground hand heart illustration image into kitchen landscape light "
    "middle morning night office outside painting paper party person picture place portrait "
    "present restaurant room scene shadow shoulder sketch smart standing start storyboard street "
    "studio style talking theater together walking wall water weather white window woman".split()
)
"""Words that captions of pictures are full of."""


@rule("name-characters", "error")
def name_characters(view: View) -> Iterator[Hit]:
    name = view.file.config.name
    found = _UNSAFE.search(name)
    if found or name != name.strip() or name.strip(".") != name:
        yield Hit(NAME, {"character": found[0] if found else "."})


@rule("run-already-there", "warning")
def run_already_there(view: View) -> Iterator[Hit]:
    folder = _output(view) / view.file.config.name
    if folder.is_dir() and any(folder.glob("*.safetensors")):
        yield Hit(NAME, {"folder": folder.name})


@rule("name-prefix", "warning")
def name_prefix(view: View) -> Iterator[Hit]:
    name = view.file.config.name
    for other in _siblings(_output(view)):
        short, long = sorted((name, other), key=len)
        if other != name and long.startswith(f"{short}_"):
            yield Hit(NAME, {"other": other, "pattern": f"{short}_*"})


@rule("name-case", "warning")
def name_case(view: View) -> Iterator[Hit]:
    name = view.file.config.name
    for other in _siblings(_output(view)):
        if other != name and other.casefold() == name.casefold():
            yield Hit(NAME, {"other": other})


@rule("processes-collide", "error")
def processes_collide(view: View) -> Iterator[Hit]:
    first, *others = [str(Path(p.training_folder)) for p in view.file.config.process]
    for index, folder in enumerate(others, start=1):
        if folder == first:
            yield Hit(("config", "process", index))


@rule("trigger-common-word", "warning")
def trigger_common_word(view: View) -> Iterator[Hit]:
    """A base with a vocabulary of its own has no made-up words to offer."""
    if view.row is not None and view.row.vocabulary is not None:
        return
    for path, trigger in _triggers(view):
        if trigger.strip().lower() in _COMMON:
            yield Hit(path)


@rule("trigger-inside-words", "warning")
def trigger_inside_words(view: View) -> Iterator[Hit]:
    """The test for a trigger is a substring search, so a caption with "start" has "art"."""
    for path, trigger in _triggers(view):
        if (word := _word_around(view, trigger)) is not None:
            yield Hit(path, {"word": word, "trigger": trigger})


@rule("trigger-short", "warning")
def trigger_short(view: View) -> Iterator[Hit]:
    for path, trigger in _triggers(view):
        if len(trigger.strip()) < _SHORTEST_TRIGGER:
            yield Hit(path, {"least": _SHORTEST_TRIGGER})


@rule("trigger-spaces", "error")
def trigger_spaces(view: View) -> Iterator[Hit]:
    for path, trigger in _triggers(view):
        if trigger != trigger.strip():
            yield Hit(path)


@rule("trigger-flags", "error")
def trigger_flags(view: View) -> Iterator[Hit]:
    for path, trigger in _triggers(view):
        if "--" in trigger:
            yield Hit(path)


@rule("trigger-unknown-word", "warning")
def trigger_unknown_word(view: View) -> Iterator[Hit]:
    """For a base that understands a vocabulary and no more."""
    if view.row is None or view.row.vocabulary is None:
        return
    known = set(scene.known_words())
    for path, trigger in _triggers(view):
        if unknown := [word for word in scene.words(trigger) if word not in known]:
            says = {"words": ", ".join(unknown), "known": ", ".join(scene.TRIGGERS)}
            yield Hit(path, says)


@rule("trigger-placeholder", "warning")
def trigger_placeholder(view: View) -> Iterator[Hit]:
    if view.process.trigger_word is not None:
        return
    for index, item in enumerate(view.process.sample.items):
        if "[trigger]" in item.prompt:
            path = (*PROCESS, "sample", *_at(view, index))
            yield Hit(path, place=view.document.place(path))


@rule("trigger-never-drawn", "warning")
def trigger_never_drawn(view: View) -> Iterator[Hit]:
    trigger = view.process.trigger_word
    prompts = [item.prompt for item in view.process.sample.items]
    if trigger is None or not prompts or view.process.train.disable_sampling:
        return
    if not any("[trigger]" in prompt or trigger in prompt for prompt in prompts):
        yield Hit((*PROCESS, "sample", *_at(view, 0)[:1]))


def _at(view: View, index: int) -> KeyPath:
    has_samples = view.process.sample.samples is not None
    return ("samples", index, "prompt") if has_samples else ("prompts", index)


def _triggers(view: View) -> Iterator[tuple[KeyPath, str]]:
    if view.process.trigger_word is not None:
        yield TRIGGER, view.process.trigger_word
    for index, dataset in enumerate(view.process.datasets):
        if dataset.trigger_word is not None:
            yield (*PROCESS, "datasets", index, "trigger_word"), dataset.trigger_word


def _word_around(view: View, trigger: str) -> str | None:
    """A word of the captions, or a usual one, that holds the trigger and more."""
    texts = [text for _, _, survey in view.surveys for _, text in survey.captions]
    around = re.compile(rf"\w*{re.escape(trigger)}\w*")
    for text in (*texts, " ".join(_INSIDE_OF)):
        for found in around.finditer(text):
            if found[0] != trigger:
                return shortened(found[0])
    return None


def _output(view: View) -> Path:
    return Path(view.process.training_folder).expanduser()


def _siblings(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []
