"""Proposals to send, Korean and English, as people write them, each with a number of its own.

The texts are those of the benchmarks and of the judge's labelled set, whose lengths and faults are
those of real proposals. A number at the head of the title keeps two from having more in common than
the static part of a prompt, as no two people's proposals have; it does not change what a text is.

Pure but for reading the files.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
FILES = ("loadtests/benchmarks/proposals.jsonl", "models/training/judge/proposals/*.jsonl")
FIELDS = ("title", "content", "media_type", "category", "language")
TITLE_CHARACTERS = 100
NUMBERED = {"ko": "기획 {number}: ", "en": "Plan {number}: "}
FIRST_NUMBERS = range(1_000_000, 8_000_000)


def proposal(item: int, language: str, *, seed: int, name: str, repeats: bool) -> dict[str, Any]:
    """The `item`-th proposal of class `name`. With `repeats` it has no number, and the same text
    comes back after a while.
    """
    texts = proposals()[language]
    text = texts[Random(f"{seed}/{name}/text/{item}").randrange(len(texts))]
    if repeats:
        return text
    number = Random(f"{seed}/{name}/numbers").choice(FIRST_NUMBERS) + item
    return {**text, "title": NUMBERED[language].format(number=number) + text["title"]}


@cache
def proposals() -> Mapping[str, Sequence[dict[str, Any]]]:
    """By language, those whose title has room for a number."""
    found: dict[str, list[dict[str, Any]]] = {language: [] for language in NUMBERED}
    for path in (path for pattern in FILES for path in sorted(ROOT.glob(pattern))):
        for line in path.read_text("utf-8").splitlines():
            row = json.loads(line)
            room = TITLE_CHARACTERS - len(NUMBERED[row["language"]]) - len("{number}")
            if len(row["title"]) <= room:
                kept = {field: row[field] for field in FIELDS if row.get(field) is not None}
                found[row["language"]].append(kept)
    return found
