"""Labelled proposals as the chats that a judge is trained on.

    python -m services.evaluation.examples PROPOSALS.jsonl... --out CHATS.jsonl [--balanced]

One line a stage and proposal: `id`, `stage`, `messages` exactly as the service would send them at
that prompt version, and `answer`, the label in the JSON that the stage's grammar yields. What the
service could not have been asked is refused with its file and line, and so is a label that cites a
passage which the proposal does not have. A label that the grammar cannot say is left out and named:
a reason in Korean begins with a Hangul syllable. Balanced, the chats of a rarer outcome are
repeated: a judge that sees few proposals fail learns to pass them all.

Knows nothing of models or training.
"""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import click
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from services.evaluation import policy
from services.evaluation.answers import ContentAnswer, DeliberationAnswer
from services.evaluation.errors import UnknownPrompt
from services.evaluation.judging import messages_of
from services.evaluation.nodes import passages_of
from services.evaluation.prompts.library import PromptLibrary
from services.evaluation.schemas import Outcome
from services.evaluation.settings import EvaluationSettings
from services.shared.language_model import Message
from services.shared.proposals import Category, Language, MediaType, Proposal

JudgingStage = Literal["content", "deliberation"]
STAGES: tuple[JudgingStage, ...] = ("content", "deliberation")
PROMPT_VERSION = "judge"


class ProposalUnusable(Exception):
    """A line that is no labelled proposal; the message names its file and number."""


class LabelledProposal(BaseModel):
    """A proposal of ours with what a careful judge would answer."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str = Field(min_length=1)
    topic: str = Field(min_length=1)
    language: Language
    media_type: MediaType
    category: Category
    title: str
    content: str
    content_label: ContentAnswer
    deliberation_label: DeliberationAnswer

    @model_validator(mode="after")
    def _cites_what_is_there(self) -> LabelledProposal:
        last = len(passages_of(self.proposal()).texts)
        cited: dict[str, int] = {n: p.passage for n, p in self.content_label.judged().items()}
        cited |= {name: claim.passage for name, claim in self.deliberation_label.claims().items()}
        for name, passage in cited.items():
            if passage > last:
                raise ValueError(f"{name} cites passage {passage} of {last}")
        for name, claim in self.deliberation_label.claims().items():
            if (claim.level > 0) != (claim.passage > 0):
                raise ValueError(
                    f"{name} has level {claim.level} and passage {claim.passage}: "
                    "both are 0, or neither"
                )
        return self

    def proposal(self) -> Proposal:
        """As a client would send it. Raises ValidationError."""
        return Proposal(
            title=self.title,
            content=self.content,
            media_type=self.media_type,
            category=self.category,
            language=self.language,
        )

    def label(self, stage: JudgingStage) -> ContentAnswer | DeliberationAnswer:
        return self.content_label if stage == "content" else self.deliberation_label

    def outcome(self, stage: JudgingStage, settings: EvaluationSettings) -> Outcome:
        """What the label of `stage` amounts to."""
        passages = passages_of(self.proposal())
        if stage == "content":
            threshold = settings.content_threshold
            return policy.content_stage(self.content_label, passages, threshold).outcome
        limit = settings.deliberation_limit
        return policy.deliberation_stage(self.deliberation_label, passages, limit).outcome


class Chat(BaseModel):
    """One line of the output: the shape that models/training/judge reads."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str
    stage: JudgingStage
    messages: tuple[Message, ...]
    answer: str


def read_labelled(file: Path) -> list[LabelledProposal]:
    """Raises ProposalUnusable for the first line that is none, OSError for no file."""
    found = []
    for number, line in enumerate(file.read_text("utf-8").splitlines(), 1):
        try:
            found.append(LabelledProposal.model_validate_json(line))
        except ValidationError as error:
            fault = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(map(str, fault["loc"]))
            why = fault["msg"].removeprefix("Value error, ")
            raise ProposalUnusable(f"{file}:{number}: {where or 'line'}: {why}") from None
    return found


def chats(
    labelled: LabelledProposal, library: PromptLibrary, version: str = PROMPT_VERSION
) -> Iterator[Chat]:
    """One chat a stage, without those whose answer the grammar cannot say. Raises UnknownPrompt."""
    proposal = labelled.proposal()
    for stage in STAGES:
        prompt = library.get(version, stage)
        answer = labelled.label(stage).model_dump()
        if is_sayable(answer, library.schema(prompt, labelled.language)):
            yield Chat(
                id=labelled.id,
                stage=stage,
                messages=messages_of(prompt, proposal, passages_of(proposal)),
                answer=json.dumps(answer, ensure_ascii=False, separators=(",", ":")),
            )


def balanced(chats: Sequence[tuple[Chat, Outcome]]) -> list[Chat]:
    """Each as often as brings its outcome nearest to the commonest one of its stage."""
    numbers = Counter((chat.stage, outcome) for chat, outcome in chats)
    most = {stage: max(n for (of, _), n in numbers.items() if of == stage) for stage, _ in numbers}
    return [
        chat
        for chat, outcome in chats
        for _ in range(round(most[chat.stage] / numbers[chat.stage, outcome]))
    ]


def is_sayable(answer: dict[str, Any], schema: dict[str, Any]) -> bool:
    """True when every string keeps to the pattern of its place; the types have checked the rest."""
    for key, value in answer.items():
        below = schema["properties"][key]
        if isinstance(value, dict):
            if not is_sayable(value, below):
                return False
        elif "pattern" in below and not re.fullmatch(below["pattern"], value):
            return False
    return True


@click.command()
@click.argument("proposals", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="A file to write.")
@click.option("--prompt-version", default=PROMPT_VERSION, show_default=True)
@click.option("--balanced", "balance", is_flag=True, help="Repeat the chats of rarer outcomes.")
def main(proposals: tuple[Path, ...], out: Path, prompt_version: str, balance: bool) -> None:
    """Write labelled proposals as the chats that a judge is trained on."""
    library, settings = PromptLibrary(), EvaluationSettings()
    try:
        labelled = [one for file in proposals for one in read_labelled(file)]
        with_outcomes = [
            (chat, one.outcome(chat.stage, settings))
            for one in labelled
            for chat in chats(one, library, prompt_version)
        ]
        said = balanced(with_outcomes) if balance else [chat for chat, _ in with_outcomes]
        lines = [chat.model_dump_json() for chat in said]
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text("".join(f"{line}\n" for line in lines), "utf-8")
    except (ProposalUnusable, UnknownPrompt, OSError) as error:
        raise click.ClickException(str(error)) from error
    kept = {(chat.id, chat.stage) for chat in said}
    for one, stage in itertools.product(labelled, STAGES):
        if (one.id, stage) not in kept:
            click.echo(f"{one.id}: {stage}: left out, the grammar cannot say it", err=True)
    click.echo(f"{out}: {len(lines)} chats")


if __name__ == "__main__":
    main()
