"""A proposal cut into numbered passages, as a model sees it and cites it. Pure.

Every line of the untrusted text that a model sees begins with a number that we put there, so
nothing in the text can pass for one of our own lines. Marks that chat templates treat as control
tokens are spelt with look-alikes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

MAX_PASSAGES = 60
SENTENCE_END = re.compile(r"(?<=[.!?。！？…])\s+|\n+")
# `<|im_end|>`, `<start_of_turn>`, `[INST]`, `[|user|]` and their kin are tokens to a tokenizer
# wherever they stand; with other brackets they are text.
LOOK_ALIKES = str.maketrans({"<": "‹", ">": "›"})


@dataclass(frozen=True)
class Passages:
    """`texts[n - 1]` is passage n. The title is passage 1."""

    texts: tuple[str, ...]

    def quote(self, number: int) -> str | None:
        """The text of passage `number`; None for 0 and for numbers that do not exist."""
        return self.texts[number - 1] if 1 <= number <= len(self.texts) else None

    def numbered(self) -> str:
        return "\n".join(f"[{n}] {defuse(text)}" for n, text in enumerate(self.texts, 1))


def cut(title: str, content: str, features: dict[str, str] | None = None) -> Passages:
    """At most MAX_PASSAGES passages in reading order; neighbours are joined when there are more.

    Line breaks inside the title or a feature become spaces: one passage, one line.
    """
    rest = [
        *(piece.strip() for piece in SENTENCE_END.split(content)),
        *(f"{name}: {value}" for name, value in (features or {}).items()),
    ]
    passages = [" ".join(piece.split()) for piece in rest if piece.strip()]
    size = -(-len(passages) // (MAX_PASSAGES - 1)) or 1
    joined = [" ".join(passages[i : i + size]) for i in range(0, len(passages), size)]
    return Passages((" ".join(title.split()), *joined))


def whole_sentences(text: str) -> str:
    """`text` up to its last full stop: what a bound on length cut off in mid-sentence is dropped.
    Text without any full stop stays as it is.
    """
    ends = [match.end() for match in re.finditer(r"[.!?。！？…](?=\s|$)", text)]
    return text[: ends[-1]] if ends else text


def defuse(text: str) -> str:
    """`text` without anything that a chat template or our own frame could take for structure."""
    return text.translate(LOOK_ALIKES).replace("[|", "[ |").replace("[INST", "[ INST")
