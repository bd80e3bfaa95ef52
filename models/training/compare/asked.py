"""What a prompt in the sketch model's grammar asks to see: the right answers to its judge.

The reverse of `models.sketch.scene.caption`. A question that the prompt does not answer, or answers
twice, is left out. Pure: knows nothing of pictures.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from models.sketch.scene import ANGLES, KINDS, NOBODY, PLACES, SHOTS, TIMES, words

Answer = str | int

_NUMBERS = {"a": 1, "an": 1, "one": 1, "two": 2, "three": 3}
_MOST_FIGURES = 3
_NOUNS = "|".join(sorted({noun for kind in KINDS.values() for pair in kind for noun in pair}))
_GROUP = re.compile(rf"\b({'|'.join(_NUMBERS)}) ({_NOUNS})\b")


def asked(prompt: str) -> dict[str, Answer]:
    """Question (of models/sketch/classifier.py) and right answer."""
    text = " ".join(words(prompt))
    shot = _only(text, {shot: (shot,) for shot in SHOTS})
    if shot is None:  # no caption: what it leaves out means nothing
        return {}
    found: dict[str, Answer | None] = {
        "shot": shot,
        "angle": _only(text, {angle: (angle,) for angle in ANGLES}, "eye level"),
        "figures": _figures(text),
        "place": _only(text, PLACES),
        "time": _only(text, TIMES, "day"),
    }
    return {question: answer for question, answer in found.items() if answer is not None}


def _only(
    text: str, phrases: Mapping[str, Sequence[str]], otherwise: str | None = None
) -> str | None:
    """The one meaning that the text has a phrase of; `otherwise` where it has none; None for two.

    Longer phrases are taken out first: "extreme close-up" is no "close-up".
    """
    meanings = {phrase: meaning for meaning, alike in phrases.items() for phrase in alike}
    found = set()
    for phrase in sorted(meanings, key=len, reverse=True):
        pattern = rf"(?<![\w-]){re.escape(phrase)}(?![\w-])"
        text, times = re.subn(pattern, "|", text)
        if times:
            found.add(meanings[phrase])
    if not found:
        return otherwise
    return found.pop() if len(found) == 1 else None


def _figures(text: str) -> int | None:
    if any(phrase in text for phrase in NOBODY):
        return 0
    count = sum(_NUMBERS[number] for number, _ in _GROUP.findall(text))
    return count if 1 <= count <= _MOST_FIGURES else None
