"""Reads the prompt files and renders them into the messages that a model is sent.

The static part (instructions, examples) comes first and is the same for every proposal, so that
vLLM's prefix cache serves it; the proposal stands in the last user turn and nowhere else.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from services.evaluation.answers import ANSWERS
from services.evaluation.errors import UnknownPrompt
from services.shared.language_model import Message, json_schema
from services.shared.passages import Passages, cut
from services.shared.prompt_files import LANGUAGES, Head, read_prompt
from services.shared.proposals import Language

FOLDER = Path(__file__).parent


class Example(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    language: Language
    media_type: str
    category: str | None = None
    title: str
    content: str
    findings: list[str] = []
    answer: dict[str, Any]


@dataclass(frozen=True)
class Prompt:
    """One prompt of one version, ready to render. `name` is such as `content@2`."""

    name: str
    head: Head
    instructions: str
    examples: tuple[Example, ...]

    @property
    def answer_type(self) -> type[BaseModel]:
        return ANSWERS[self.head.answer]

    @cached_property
    def prefix(self) -> tuple[Message, ...]:
        """The messages that are the same for every proposal."""
        messages = [Message(role="system", content=self.instructions)]
        for example in self.examples:
            passages = cut(example.title, example.content)
            turn = proposal_turn(passages, example.media_type, example.category, example.language)
            answer = json.dumps(example.answer, ensure_ascii=False, separators=(",", ":"))
            messages.append(Message(role="user", content=turn))
            messages.append(Message(role="assistant", content=answer))
        return tuple(messages)

    def render(
        self,
        passages: Passages,
        *,
        media_type: str,
        category: str | None,
        language: Language,
        findings: Sequence[str] = (),
    ) -> list[Message]:
        turn = proposal_turn(passages, media_type, category, language, findings)
        return [*self.prefix, Message(role="user", content=turn)]


def proposal_turn(
    passages: Passages,
    media_type: str,
    category: str | None,
    language: Language,
    findings: Sequence[str] = (),
) -> str:
    """The user turn. Lines that begin with a number are the author's; the others are ours."""
    lines = [f"Format: {media_type}. Category: {category or 'not given'}.", passages.numbered()]
    if findings:
        lines += ["Findings:", *(f"- {finding}" for finding in findings)]
    lines.append(LANGUAGES[language])
    return "\n".join(lines)


class PromptLibrary:
    """Every prompt of every version, read once. `version` is a folder's name."""

    def __init__(self, folder: Path = FOLDER) -> None:
        self._prompts = {
            (path.parent.name, path.stem): _read(path) for path in sorted(folder.glob("*/*.md"))
        }
        self._schemas = {
            (name, language): json_schema(answer, language)
            for name, answer in ANSWERS.items()
            for language in LANGUAGES
        }

    @property
    def versions(self) -> list[str]:
        return sorted({version for version, _ in self._prompts})

    def get(self, version: str, name: str) -> Prompt:
        """Raises UnknownPrompt, naming the versions that exist."""
        try:
            return self._prompts[version, name]
        except KeyError:
            raise UnknownPrompt(
                f"There is no prompt version {version!r}; there are {', '.join(self.versions)}."
            ) from None

    def schema(self, prompt: Prompt, language: Language) -> dict[str, Any]:
        """The JSON schema of the prompt's answer, in `language`."""
        return self._schemas[prompt.head.answer, language]


def _read(path: Path) -> Prompt:
    head, instructions, examples = read_prompt(path, Example)
    return Prompt(f"{path.stem}@{path.parent.name}", head, instructions, examples)
