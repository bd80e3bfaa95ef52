"""A channel's words cut into numbered passages, as a model sees and cites them. Pure.

Every passage is one line, normalised, and short enough to stand as a quote; together they are all
of the text, so that nothing hides behind a long beginning.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from services.shared.passages import MAX_PASSAGES, SENTENCE_END
from services.shared.text import normalise
from services.vetting.pictures import Box, ReadText
from services.vetting.ports import Channel, Video
from services.vetting.schemas import Source

PASSAGE_CHARACTERS = 240
# A field with more pieces than this has them joined up to PASSAGE_CHARACTERS.
LOOSE_PIECES = 20


@dataclass(frozen=True)
class Passage:
    """`video_id` None is the channel's own page. `box` and `read`, the reader's confidence, are of
    text in a thumbnail.
    """

    video_id: str | None
    source: Source
    text: str
    box: Box | None = None
    read: float = 1.0

    @property
    def unit(self) -> str:
        """What it is a part of, as coverage names it."""
        name = "thumbnail_text" if self.source == "thumbnail" else "text"
        return f"{name}:{self.video_id or 'channel'}"


Batch = tuple[Passage, ...]
"""Passages for one call; passage n of the call is the element n - 1."""


def channel_passages(channel: Channel, description_characters: int) -> tuple[list[Passage], bool]:
    """The channel's own words, and True when its description was longer than allowed."""
    description, is_cut = _capped(channel.description, description_characters)
    pieces = [*_lines([channel.title]), *_sentences(description), *_listed(channel.keywords)]
    return [Passage(None, "channel", piece) for piece in pieces], is_cut


def video_passages(video: Video, description_characters: int) -> tuple[list[Passage], bool]:
    """A video's words, and True when its description was longer than allowed."""
    description, is_cut = _capped(video.description, description_characters)
    pieces: list[tuple[Source, str]] = [
        *(("title", piece) for piece in _lines([video.title])),
        *(("description", piece) for piece in _sentences(description)),
        *(("tags", piece) for piece in _listed(video.tags)),
    ]
    return [Passage(video.id, source, piece) for source, piece in pieces], is_cut


def thumbnail_passages(video_id: str, lines: Iterable[ReadText]) -> list[Passage]:
    return [
        Passage(video_id, "thumbnail", piece, line.box, line.confidence)
        for line in lines
        for piece in _lines([line.text])
    ]


def batches(passages: Sequence[Passage], *, videos: int, characters: int) -> list[Batch]:
    """In order; each with parts of at most `videos` videos, and, unless it is one passage, at most
    `characters`.
    """
    made: list[list[Passage]] = []
    for passage in passages:
        if not made or not _fits(made[-1], passage, videos, characters):
            made.append([])
        made[-1].append(passage)
    return [tuple(batch) for batch in made]


def _fits(batch: Sequence[Passage], passage: Passage, videos: int, characters: int) -> bool:
    ids = {p.video_id for p in batch} | {passage.video_id}
    length = sum(len(p.text) for p in batch) + len(passage.text)
    return len(batch) < MAX_PASSAGES and len(ids) <= videos and length <= characters


def _capped(description: str, characters: int) -> tuple[str, bool]:
    """Normalised first: that can make text many times as long."""
    whole = normalise(description)
    return whole[:characters], len(whole) > characters


def _sentences(text: str) -> list[str]:
    pieces = _lines(SENTENCE_END.split(text))
    return pieces if len(pieces) <= LOOSE_PIECES else list(_joined(pieces, " "))


def _listed(words: Iterable[str]) -> list[str]:
    return list(_joined(_lines(words), ", "))


def _lines(texts: Iterable[str]) -> list[str]:
    """Each text as one line, cut where it is longer than a passage."""
    lines = (" ".join(normalise(text).split()) for text in texts)
    return [
        line[start : start + PASSAGE_CHARACTERS].strip()
        for line in lines
        for start in range(0, len(line), PASSAGE_CHARACTERS)
        if line[start : start + PASSAGE_CHARACTERS].strip()
    ]


def _joined(pieces: Sequence[str], separator: str) -> Iterator[str]:
    """Neighbours joined up to PASSAGE_CHARACTERS."""
    so_far = ""
    for piece in pieces:
        longer = f"{so_far}{separator}{piece}" if so_far else piece
        if so_far and len(longer) > PASSAGE_CHARACTERS:
            yield so_far
            longer = piece
        so_far = longer
    if so_far:
        yield so_far
