"""Renders the prompt files into the messages that a model is sent.

What is the same for every storyboard comes first, so that vLLM's prefix cache serves it; then the
proposal and the outline, the same for all scenes of one; the number of the scene is last. What a
caller or a model wrote stands in the last user turn and nowhere else.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from services.shared.language_model import Message
from services.shared.passages import cut, defuse
from services.shared.prompt_files import LANGUAGES, Head, read_prompt
from services.shared.proposals import Language, MediaType, Proposal
from services.storyboard.answers import BeatAnswer, OutlineAnswer, Vocabulary

FOLDER = Path(__file__).parent
SLOTS = {
    "outline": {"who": "`look` of a person", "place": "`look` of a place"},
    "scene": {"doing": "`doing`", "thing": "`thing`"},
}


class Example(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    language: Language
    media_type: MediaType
    category: str | None
    title: str
    content: str
    scenes: int = 0
    outline: OutlineAnswer | None = None
    n: int = 0
    objections: list[str] = []
    answer: dict[str, Any]

    @property
    def proposal(self) -> Proposal:
        return Proposal.model_validate(
            self.model_dump(include={"language", "media_type", "category", "title", "content"})
        )


class PromptLibrary:
    """The prompts of one version, for an image model that understands `vocabulary`."""

    def __init__(self, version: str, vocabulary: Vocabulary | None = None) -> None:
        """Raises KeyError for a version that there is not, naming those there are."""
        versions = sorted(path.name for path in FOLDER.iterdir() if (path / "outline.md").exists())
        if version not in versions:
            raise KeyError(f"There is no prompt version {version!r}; there are {versions}.")
        self.version = version
        self._vocabulary = vocabulary
        self._heads: dict[str, Head] = {}
        self._prefixes: dict[str, tuple[Message, ...]] = {}
        for name in SLOTS:
            head, instructions, examples = _file(version, name)
            self._heads[name] = head
            self._prefixes[name] = _prefix(instructions + self._words(name), examples)

    def head(self, name: str) -> Head:
        return self._heads[name]

    def outline(self, proposal: Proposal, scenes: int) -> list[Message]:
        return [*self._prefixes["outline"], _said(_outline_turn(proposal, scenes))]

    def scene(
        self,
        proposal: Proposal,
        outline: OutlineAnswer,
        beats: Sequence[BeatAnswer],
        n: int,
        objections: Sequence[str] = (),
    ) -> list[Message]:
        """For scene `n`, from 1; `objections` to its earlier version."""
        turn = _scene_turn(proposal, outline, beats, n, objections)
        return [*self._prefixes["scene"], _said(turn)]

    def _words(self, name: str) -> str:
        if self._vocabulary is None:
            return ""
        lines = [
            f"{said} is one of: {', '.join(self._vocabulary[slot])}."
            for slot, said in SLOTS[name].items()
        ]
        return "\n\nThe picture is drawn from few words. " + " ".join(lines)


@cache
def _file(version: str, name: str) -> tuple[Head, str, tuple[Example, ...]]:
    """Read once: a library is made for every call to the model."""
    return read_prompt(FOLDER / version / f"{name}.md", Example)


def _prefix(instructions: str, examples: Sequence[Example]) -> tuple[Message, ...]:
    messages = [Message(role="system", content=instructions)]
    for example in examples:
        if example.outline is None:
            turn = _outline_turn(example.proposal, example.scenes)
        else:
            beats = example.outline.scenes
            turn = _scene_turn(
                example.proposal, example.outline, beats, example.n, example.objections
            )
        answer = json.dumps(example.answer, ensure_ascii=False, separators=(",", ":"))
        messages += [_said(turn), Message(role="assistant", content=answer)]
    return tuple(messages)


def _said(turn: str) -> Message:
    return Message(role="user", content=turn)


def _material(proposal: Proposal) -> list[str]:
    """Lines that begin with a number are the author's; the others are ours."""
    passages = cut(proposal.title, proposal.content, proposal.additional_features)
    return [
        f"Format: {proposal.media_type}. Category: {proposal.category or 'not given'}.",
        passages.numbered(),
    ]


def _outline_turn(proposal: Proposal, scenes: int) -> str:
    asked = f"Write exactly {scenes} scenes. {LANGUAGES[proposal.answer_language]}"
    return "\n".join([*_material(proposal), asked])


def _scene_turn(
    proposal: Proposal,
    outline: OutlineAnswer,
    beats: Sequence[BeatAnswer],
    n: int,
    objections: Sequence[str],
) -> str:
    beat = beats[n - 1]
    lines = [
        *_material(proposal),
        *(f"Person {i}: {one_line(p.name)}, {p.look}." for i, p in enumerate(outline.cast, 1)),
        *(f"Place {i}: {one_line(s.name)}, {s.look}." for i, s in enumerate(outline.settings, 1)),
        *(f"Scene {i}: {one_line(other.happens)}" for i, other in enumerate(beats, 1)),
        LANGUAGES[proposal.answer_language],
    ]
    who = f"person {beat.who}" if beat.who else "nobody"
    lines.append(f"Write scene {n} with {who} in place {beat.where}: {one_line(beat.happens)}")
    if objections:
        lines.append(f"Its earlier version was not allowed: {', '.join(objections)}.")
    return "\n".join(lines)


def one_line(text: str) -> str:
    """What a model wrote, as it may stand in one of our own lines."""
    return defuse(" ".join(text.split()))
