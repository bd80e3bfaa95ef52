"""Reads the prompt files and renders them into the messages that a model is sent.

The static part (instructions, examples) comes first and is the same for every channel, so that
vLLM's prefix cache serves it; the channel's words stand in the last user turn and nowhere else.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from services.shared.language_model import Message, json_schema
from services.shared.passages import defuse
from services.shared.prompt_files import LANGUAGES, Head, read_prompt
from services.shared.proposals import Language
from services.shared.settings import ConfigurationError
from services.vetting.answers import ANSWERS
from services.vetting.cutting import Passage
from services.vetting.schemas import Source

FOLDER = Path(__file__).parent
NAMES = ("text", "picture")
ON_THE_CHANNEL = "channel"


class Example(BaseModel):
    """`passages` are [video, source, text]; the video `channel` is the channel's own page."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    language: Language
    passages: list[tuple[str, Source, str]]
    answer: dict[str, Any]

    def turn(self) -> str:
        cut = [
            Passage(None if video == ON_THE_CHANNEL else video, source, text)
            for video, source, text in self.passages
        ]
        return text_turn(cut, self.language)


@dataclass(frozen=True)
class Prompt:
    """`name` is such as `text@1`; `prefix` is the same for every channel."""

    name: str
    head: Head
    prefix: tuple[Message, ...]
    schemas: dict[Language, dict[str, Any]]


class PromptLibrary:
    """The prompts of one version."""

    def __init__(self, version: str) -> None:
        """Raises ConfigurationError for a version that there is not, naming those there are."""
        versions = sorted(path.parent.name for path in FOLDER.glob("*/text.md"))
        if version not in versions:
            raise ConfigurationError(
                f"JOING_VETTING_PROMPT_VERSION: there is no {version!r}; there are "
                f"{', '.join(versions)}."
            )
        self.version = version
        self._prompts = {name: _read(FOLDER / version / f"{name}.md") for name in NAMES}

    def get(self, name: str) -> Prompt:
        return self._prompts[name]


def text_turn(passages: Sequence[Passage], language: Language) -> str:
    """The user turn. Lines that begin with a number are the author's; the others are ours."""
    lines: list[str] = []
    videos: list[str | None] = []
    for number, passage in enumerate(passages, 1):
        if not videos or videos[-1] != passage.video_id:
            videos.append(passage.video_id)
            lines.append("The channel's page:" if passage.video_id is None else "A video:")
        lines.append(f"[{number}] {passage.source}: {defuse(passage.text)}")
    return "\n".join([*lines, LANGUAGES[language]])


def picture_turn(language: Language) -> str:
    return f"The thumbnail of a video.\n{LANGUAGES[language]}"


def _read(path: Path) -> Prompt:
    head, instructions, examples = read_prompt(path, Example)
    prefix = [Message(role="system", content=instructions)]
    for example in examples:
        answer = json.dumps(example.answer, ensure_ascii=False, separators=(",", ":"))
        prefix += [
            Message(role="user", content=example.turn()),
            Message(role="assistant", content=answer),
        ]
    schemas = {language: json_schema(ANSWERS[head.answer], language) for language in LANGUAGES}
    return Prompt(f"{path.stem}@{path.parent.name}", head, tuple(prefix), schemas)
