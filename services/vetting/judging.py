"""Questions to the model about a batch of words or about a picture, and what comes of them.

Borderline claims get a second look with another seed. What the model could not do is a doubt about
the units that it was asked about, never an empty answer.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from pydantic import BaseModel

from services.shared.language_model import (
    AnswerInvalid,
    Call,
    LanguageModel,
    Message,
    ModelError,
    ModelRefused,
    ModelTimedOut,
    ModelUnavailable,
    Usage,
    accepted,
)
from services.shared.proposals import Language
from services.vetting import policy
from services.vetting.answers import MAX_FINDINGS, PictureAnswer, TextAnswer
from services.vetting.cutting import Batch
from services.vetting.findings import Claim, agreed, picture_claims, text_claims
from services.vetting.metrics import Metrics
from services.vetting.pictures import Picture
from services.vetting.prompts.library import PromptLibrary, picture_turn, text_turn
from services.vetting.schemas import Finding, Unseen

A = TypeVar("A", bound=BaseModel)
TOO_LONG = "context_length_exceeded"


@dataclass(frozen=True)
class Looked:
    """What looking came to; sums add up. `answers` counts the model's usable answers."""

    findings: tuple[Finding, ...] = ()
    not_looked_at: tuple[Unseen, ...] = ()
    disagreements: tuple[str, ...] = ()
    usage: Usage = field(default_factory=Usage)
    answers: int = 0
    unavailable: ModelUnavailable | None = None

    def __add__(self, other: Looked) -> Looked:
        return Looked(
            self.findings + other.findings,
            tuple(dict.fromkeys(self.not_looked_at + other.not_looked_at)),
            tuple(dict.fromkeys(self.disagreements + other.disagreements)),
            self.usage + other.usage,
            self.answers + other.answers,
            self.unavailable or other.unavailable,
        )


@dataclass
class _Looks:
    """The looks at one thing: their claims, and what is wrong with them."""

    units: Sequence[str]
    usage: Usage = field(default_factory=Usage)
    answers: int = 0
    doubts: list[str] = field(default_factory=list)

    def looked(self, first: Sequence[Claim], second: Sequence[Claim] | None) -> Looked:
        findings, disagreements = agreed(first, second)
        return Looked(
            tuple(findings),
            tuple(Unseen(what=unit, why=why) for unit in self.units for why in self.doubts),
            tuple(sorted(disagreements)),
            self.usage,
            self.answers,
        )


class Judge:
    """Asks `model` in the words of `library`; knows nothing of verdicts. `show` makes the turn that
    holds a picture and a text.
    """

    def __init__(
        self,
        model: LanguageModel,
        show: Callable[[Picture, str], Message],
        library: PromptLibrary,
        metrics: Metrics,
    ) -> None:
        self.model = model
        self._show = show
        self.library = library
        self._metrics = metrics

    async def read(self, batch: Batch, language: Language, model: str, call_id: str) -> Looked:
        """Findings in a batch of words. One that is too long for the model is read in halves."""
        turn = Message(role="user", content=text_turn(batch, language))
        looks = _Looks(list(dict.fromkeys(passage.unit for passage in batch)))
        call = self._call("text", turn, language, model, call_id)

        async def look(attempt: int) -> list[Claim]:
            answer = await self._ask(_at(call, attempt), TextAnswer, looks)
            claims, has_others = text_claims(answer, batch)
            if has_others:
                looks.doubts.append("citation_not_found")
            if len(answer.findings) == MAX_FINDINGS:
                looks.doubts.append("too_many_findings")
            return claims

        try:
            return await self._twice(look, looks)
        except ModelRefused as error:
            if error.code != TOO_LONG or len(batch) == 1:
                return _failed(error, looks)
        middle = len(batch) // 2
        first = await self.read(batch[:middle], language, model, f"{call_id}a")
        return first + await self.read(batch[middle:], language, model, f"{call_id}b")

    async def see(
        self, picture: Picture, video_id: str, language: Language, model: str, call_id: str
    ) -> Looked:
        """Findings in what a thumbnail shows."""
        message = self._show(picture, picture_turn(language))
        looks = _Looks([f"thumbnail_image:{video_id}"])
        call = self._call("picture", message, language, model, call_id)

        async def look(attempt: int) -> list[Claim]:
            answer = await self._ask(_at(call, attempt), PictureAnswer, looks)
            if len(answer.findings) == MAX_FINDINGS:
                looks.doubts.append("too_many_findings")
            return picture_claims(answer, video_id)

        try:
            return await self._twice(look, looks)
        except ModelRefused as error:
            return _failed(error, looks)

    async def _twice(self, look: Callable[[int], Awaitable[list[Claim]]], looks: _Looks) -> Looked:
        """Raises ModelRefused for a first look that the server did not take."""
        try:
            first = await look(1)
        except ModelRefused:
            raise
        except ModelError as error:
            return _failed(error, looks)
        if not policy.is_borderline(claim.level for claim in first):
            return looks.looked(first, None)
        try:
            return looks.looked(first, await look(2))
        except ModelError as error:
            looks.doubts.append(why(error))
            return looks.looked(first, None)

    def _call(self, name: str, turn: Message, language: Language, model: str, call_id: str) -> Call:
        prompt = self.library.get(name)
        return Call(
            messages=(*prompt.prefix, turn),
            schema_name=prompt.head.answer,
            schema=prompt.schemas[language],
            max_tokens=prompt.head.max_tokens,
            call_id=call_id,
            model=model,
        )

    async def _ask(self, call: Call, answer: type[A], looks: _Looks) -> A:
        """Raises the ModelError family."""
        with self._metrics.timed("vision" if answer is PictureAnswer else "llm", ModelError):
            reply = await self.model.ask(call)
            looks.usage += reply.usage
            found = accepted(reply, answer)
        looks.answers += 1
        return found


def why(error: ModelError) -> str:
    """The stable name of what the model did not do."""
    match error:
        case AnswerInvalid():
            return error.reason
        case ModelTimedOut():
            return "timeout"
        case ModelRefused():
            return "refused_by_model_server"
        case _:
            return "model_unavailable"


def _failed(error: ModelError, looks: _Looks) -> Looked:
    looks.doubts.append(why(error))
    looked = looks.looked([], None)
    return replace(looked, unavailable=error if isinstance(error, ModelUnavailable) else None)


def _at(call: Call, attempt: int) -> Call:
    if attempt == 1:
        return call
    return replace(
        call,
        call_id=f"{call.call_id}-2",
        seed=policy.SECOND_LOOK_SEED,
        temperature=policy.SECOND_LOOK_TEMPERATURE,
    )
