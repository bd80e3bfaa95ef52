"""What the model is asked to return, as bounded types: the grammar that vLLM enforces.

Every integer, string and array is bounded, so that an answer always ends. A passage is cited by
its number: the quote is then cut from the text by code and cannot be invented. Reasons and
citations come before scores, so that a score rests on what was written before it.
Parsing is strict: "false", 1.0 or a fenced block is not an answer.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, Field

from services.evaluation.schemas import CRITERIA, Aspect, Criterion
from services.shared.language_model import Answer
from services.shared.passages import MAX_PASSAGES

REASON_CHARACTERS = 100
# A small model takes a key called "language" for the language of its answer.
ASKED_AS: dict[Criterion, str] = {"language": "swearing"}

Citation = Annotated[
    int, Field(ge=0, le=MAX_PASSAGES, description="Number of a passage; 0 when there is none.")
]
Reasoning = Annotated[str, Field(min_length=1, max_length=REASON_CHARACTERS)]


class _Judged(Answer):
    reason: Reasoning
    passage: Citation
    score: int


class _Judged30(_Judged):
    score: int = Field(ge=0, le=30)


class _Judged40(_Judged):
    score: int = Field(ge=0, le=40)


class ContentAnswer(Answer):
    """Three criteria, each with a reason, the passage it rests on, and points."""

    message: _Judged30
    target: _Judged30
    relevance: _Judged40

    def judged(self) -> dict[Aspect, _Judged]:
        return {"message": self.message, "target": self.target, "relevance": self.relevance}


class _Claim(Answer):
    passage: Citation
    level: int = Field(ge=0, le=4)


class DeliberationAnswer(Answer):
    """Seven criteria, each with the passage that decides it and a level; 0 and 0 for none."""

    theme: _Claim
    sexuality: _Claim
    violence: _Claim
    horror: _Claim
    swearing: _Claim
    drugs: _Claim
    imitation: _Claim

    def claims(self) -> dict[Criterion, _Claim]:
        return {
            criterion: getattr(self, ASKED_AS.get(criterion, criterion)) for criterion in CRITERIA
        }


class SummaryAnswer(Answer):
    text: str = Field(min_length=1, max_length=240)
    keywords: list[Annotated[str, Field(min_length=1, max_length=20)]] = Field(
        min_length=4, max_length=8
    )


class _SuggestionAnswer(Answer):
    about: str = Field(min_length=1, max_length=40)
    change: str = Field(min_length=1, max_length=120)


class FeedbackAnswer(Answer):
    text: str = Field(min_length=1, max_length=240)
    suggestions: list[_SuggestionAnswer] = Field(min_length=1, max_length=3)


ANSWERS: dict[str, type[BaseModel]] = {
    answer.__name__: answer
    for answer in (ContentAnswer, DeliberationAnswer, SummaryAnswer, FeedbackAnswer)
}
