"""A channel's pictures and the text in them: what a vetting needs, and how it may fail.

PictureError
├── PictureRefused      it came and is not what it should be, or must not be asked for
└── PictureUnavailable  it did not come; a later try may go better
TextReadError           the picture is there and its text could not be read
├── OcrUnavailable      the program or a model is missing: for the operator
├── OcrTimedOut         it took longer than allowed, and was ended
├── OcrBusy             too many pictures wait already
└── OcrFailed           the program crashed, or answered nonsense

Nothing here means "no text" or "harmless": whoever catches one of these has not looked at the
picture. Pure: knows nothing of HTTP, processes or image libraries.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol

RefusalReason = Literal[
    "address_not_allowed", "animated", "damaged", "encoded", "host_not_allowed", "not_a_picture",
    "redirect_refused", "too_large", "too_many_pixels", "too_slow_to_decode", "too_much_memory",
    "type_mismatch", "type_not_allowed", "url_not_allowed",
]  # fmt: skip
AbsenceReason = Literal[
    "busy", "decoder_failed", "host_error", "no_url", "not_found", "not_resolved", "timeout",
    "unreachable",
]  # fmt: skip

MAX_PIXELS = 3_000_000


@dataclass(frozen=True)
class Picture:
    """A clean picture: decoded and encoded anew by us. `source_url` is the one that answered."""

    data: bytes = field(repr=False)
    media_type: str
    width: int
    height: int
    source_url: str
    sha256: str = ""
    """Of `data`, in hexadecimal; computed when it is not given."""

    def __post_init__(self) -> None:
        if not self.sha256:
            object.__setattr__(self, "sha256", hashlib.sha256(self.data).hexdigest())


class Box(NamedTuple):
    """A rectangle in shares of the picture's width and height, from its upper left corner."""

    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True)
class ReadText:
    """One line of text in a picture. `confidence` is the reader's own, from 0 to 1."""

    text: str
    box: Box
    confidence: float


class Sized(Protocol):
    """A size of a thumbnail, as YouTube describes it; None where it does not say."""

    @property
    def url(self) -> str: ...
    @property
    def width(self) -> int | None: ...
    @property
    def height(self) -> int | None: ...


def urls_to_try(sizes: Iterable[Sized], max_pixels: int = MAX_PIXELS) -> list[str]:
    """Their URLs in the order given, without those that say they are over the cap: YouTube's
    largest sizes (2560 x 1440 and more) show no more than the next, and would be refused.
    """
    return [s.url for s in sizes if (s.width or 0) * (s.height or 0) <= max_pixels]


class PictureError(Exception):
    """Base of everything that a PictureSource may raise. `url` is what was asked for."""

    def __init__(self, reason: str, url: str = "", detail: str = "") -> None:
        super().__init__(f"{reason}: {url}{f' ({detail})' if detail else ''}")
        self.reason = reason
        self.url = url
        self.detail = detail


class PictureRefused(PictureError):
    def __init__(self, reason: RefusalReason, url: str = "", detail: str = "") -> None:
        super().__init__(reason, url, detail)


class PictureUnavailable(PictureError):
    def __init__(self, reason: AbsenceReason, url: str = "", detail: str = "") -> None:
        super().__init__(reason, url, detail)


class TextReadError(Exception):
    """Base of everything that a TextReader may raise. `reason` is a stable name."""

    reason = "ocr_failed"


class OcrUnavailable(TextReadError):
    reason = "ocr_unavailable"


class OcrTimedOut(TextReadError):
    reason = "ocr_timed_out"


class OcrBusy(TextReadError):
    reason = "ocr_busy"


class OcrFailed(TextReadError):
    reason = "ocr_failed"


class PictureSource(Protocol):
    """Raises PictureRefused and PictureUnavailable."""

    async def fetch(self, urls: Sequence[str]) -> Picture:
        """The first of `urls` (one picture, from best to smallest) that is there."""
        ...


class TextReader(Protocol):
    """Raises the TextReadError family. An empty list means: looked, and found no text."""

    async def read(self, picture: Picture) -> list[ReadText]: ...
