"""What the model is asked to return, as bounded types: the grammar that vLLM enforces.

A passage is cited by its number: the quote is then cut from the source by code and cannot be
invented. Reasons come before levels, so that a level rests on what was written before it.
Parsing is strict: "false", 1.0 or a fenced block is not an answer.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from services.shared.language_model import Answer
from services.shared.passages import MAX_PASSAGES
from services.vetting.schemas import Harm

MAX_FINDINGS = 12
"""Of one answer. One that lists as many may have left something out."""
Reasoning = Annotated[str, Field(min_length=1, max_length=60)]
# A small model takes a category called "language" for the language of its answer.
AskedHarm = Literal[
    "theme", "sexuality", "violence", "horror", "swearing", "drugs", "imitation",
    "hate", "gambling", "fraud", "illegal_trade",
]  # fmt: skip
Share = Annotated[int, Field(ge=0, le=100)]
"""Percent of a picture's width or height."""


def harm(asked: AskedHarm) -> Harm:
    return "language" if asked == "swearing" else asked


class TextClaim(Answer):
    """`how` says whether the author does it, or reports, quotes, or warns against it."""

    passage: int = Field(ge=1, le=MAX_PASSAGES)
    reason: Reasoning
    category: AskedHarm
    how: Literal["does", "reports"]
    level: int = Field(ge=1, le=4)


class TextAnswer(Answer):
    findings: list[TextClaim] = Field(max_length=MAX_FINDINGS)


class PictureClaim(Answer):
    """What one place of a picture shows."""

    reason: Reasoning
    category: AskedHarm
    x: Share
    y: Share
    width: Share
    height: Share
    level: int = Field(ge=1, le=4)


class PictureAnswer(Answer):
    findings: list[PictureClaim] = Field(max_length=MAX_FINDINGS)


ANSWERS: dict[str, type[BaseModel]] = {
    answer.__name__: answer for answer in (TextAnswer, PictureAnswer)
}
