"""One question to the model, and an answer that counts or a named reason why it does not."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from langchain_core.utils.json import parse_partial_json
from pydantic import BaseModel

from services.evaluation.journal import Entry
from services.evaluation.policy import SECOND_RUN_SEED, SECOND_RUN_TEMPERATURE
from services.evaluation.prompts.library import Prompt, PromptLibrary
from services.shared.language_model import Call, LanguageModel, Message, Reply, accepted
from services.shared.passages import Passages
from services.shared.proposals import Proposal

A = TypeVar("A", bound=BaseModel)


@dataclass(frozen=True)
class Interviewer:
    """Asks `model` in the words of `library`; knows nothing of stages or verdicts."""

    model: LanguageModel
    library: PromptLibrary

    def call(
        self,
        name: str,
        version: str,
        proposal: Proposal,
        passages: Passages,
        entry: Entry,
        *,
        call_id: str,
        model: str | None,
        findings: Sequence[str] = (),
    ) -> Call:
        """The call that puts prompt `name` to `proposal`, noted in `entry`; the second attempt of
        a step is not greedy. Raises UnknownPrompt.
        """
        prompt = self.library.get(version, name)
        call = Call(
            messages=messages_of(prompt, proposal, passages, findings),
            schema_name=prompt.head.answer,
            schema=self.library.schema(prompt, proposal.answer_language),
            max_tokens=prompt.head.max_tokens,
            call_id=call_id,
            model=model,
            temperature=SECOND_RUN_TEMPERATURE if entry.attempt > 1 else 0.0,
            seed=SECOND_RUN_SEED if entry.attempt > 1 else 1,
        )
        entry.call, entry.prompt = call, prompt.name
        return call

    async def ask(self, call: Call, answer: type[A], entry: Entry) -> A:
        """Raises the ModelError family."""
        entry.reply = await self.model.ask(call)
        return _accept(entry, answer)

    async def stream(self, call: Call, answer: type[A], entry: Entry) -> AsyncIterator[str | A]:
        """What is new in the answer's `text` as it is written; last the answer itself."""
        written, told = "", ""
        async for piece in self.model.stream(call):
            if isinstance(piece, Reply):
                entry.reply = piece
                continue
            written += piece
            text = _text_so_far(written)
            if text.startswith(told) and len(text) > len(told):
                yield text[len(told) :]
                told = text
        yield _accept(entry, answer)


def messages_of(
    prompt: Prompt, proposal: Proposal, passages: Passages, findings: Sequence[str] = ()
) -> tuple[Message, ...]:
    """What a model is sent to put `prompt` to `proposal`: by the service, and in training."""
    return tuple(
        prompt.render(
            passages,
            media_type=proposal.media_type,
            category=proposal.category,
            language=proposal.answer_language,
            findings=findings,
        )
    )


def _accept(entry: Entry, answer: type[A]) -> A:
    found = accepted(entry.reply, answer)
    entry.output = found.model_dump()
    return found


def _text_so_far(written: str) -> str:
    try:
        parsed = parse_partial_json(written)
    except ValueError:
        return ""
    text = parsed.get("text") if isinstance(parsed, dict) else None
    return text if isinstance(text, str) else ""
