"""Reads a prompt from its file: YAML that says what it is for, then the instructions; examples, one
JSON object a line, in a file beside it.

Knows nothing of what a prompt is about.
"""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field

from services.shared.proposals import Language

E = TypeVar("E", bound=BaseModel)
LANGUAGES: dict[Language, str] = {
    "ko": "Answer language: Korean (한국어).",
    "en": "Answer language: English.",
}


class Head(BaseModel):
    """What every prompt file says about itself."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: str = Field(description="The same as the folder's name.")
    purpose: str
    inputs: list[str]
    answer: str
    max_tokens: int = Field(ge=16, le=4_096, description="Bound on the reply, in tokens.")
    examples: str | None = None
    sources: list[str]


def read_prompt(path: Path, example: type[E]) -> tuple[Head, str, tuple[E, ...]]:
    """The head, the instructions and the examples of one prompt file. Raises ValidationError."""
    _, head, body = path.read_text("utf-8").split("---\n", 2)
    meta = Head.model_validate(yaml.safe_load(head))
    examples: tuple[E, ...] = ()
    if meta.examples:
        lines = (path.parent / meta.examples).read_text("utf-8").splitlines()
        examples = tuple(example.model_validate_json(line) for line in lines if line.strip())
    return meta, body.strip(), examples
