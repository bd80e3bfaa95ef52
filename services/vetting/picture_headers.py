"""What a picture file says of itself: its kind and size, before any decoder runs.

Reads at most MAX_PARTS parts of a file, whatever the file claims. Pure: a few microseconds, no
image library. Formats: PNG (W3C PNG, 3rd edition), JPEG (ITU T.81), WebP (RFC 9649).
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from services.vetting.pictures import PictureRefused

MAX_PARTS = 1_000
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
JPEG_START = b"\xff\xd8\xff"
# Start of frame: C0 to CF without DHT, JPG and DAC.
JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
JPEG_SCAN, JPEG_END = 0xDA, 0xD9
JPEG_BARE = frozenset({0x01, *range(0xD0, 0xD8)})
WEBP_ANIMATED = 0x02


class Header(NamedTuple):
    """Width and height in px, both at least 1."""

    media_type: str
    width: int
    height: int


def read_header(data: bytes) -> Header:
    """Raises PictureRefused: not_a_picture, animated or damaged."""
    try:
        media_type, (width, height) = _kind_and_size(data)
    except (struct.error, IndexError):
        raise PictureRefused("damaged", detail="it ends within its header") from None
    if width < 1 or height < 1:
        raise PictureRefused("damaged", detail=f"a size of {width} x {height} px")
    return Header(media_type, width, height)


def _kind_and_size(data: bytes) -> tuple[str, tuple[int, int]]:
    if data.startswith(PNG_SIGNATURE):
        return "image/png", _png_size(data)
    if data.startswith(JPEG_START):
        return "image/jpeg", _jpeg_size(data)
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "image/webp", _webp_size(data)
    raise PictureRefused("not_a_picture", detail="neither JPEG nor PNG nor WebP")


def _png_size(data: bytes) -> tuple[int, int]:
    """The size in IHDR. An acTL chunk before the pixels makes it an animation."""
    length, kind, width, height = struct.unpack_from(">I4sII", data, 8)
    if (length, kind) != (13, b"IHDR"):
        raise PictureRefused("damaged", detail="no IHDR at the start of a PNG")
    at = 8
    for _ in range(MAX_PARTS):
        length, kind = struct.unpack_from(">I4s", data, at)
        if kind == b"acTL":
            raise PictureRefused("animated", detail="an animated PNG")
        if kind == b"IDAT":
            return width, height
        at += 12 + length
    raise PictureRefused("damaged", detail=f"no pixels within {MAX_PARTS} chunks")


def _jpeg_size(data: bytes) -> tuple[int, int]:
    """The size in the first frame header."""
    at = 2
    for _ in range(MAX_PARTS):
        marker, at = _jpeg_marker(data, at)
        if marker in JPEG_BARE:
            continue
        if marker in (JPEG_SCAN, JPEG_END):
            break
        (length,) = struct.unpack_from(">H", data, at)
        if marker in JPEG_FRAMES:
            height, width = struct.unpack_from(">HH", data, at + 3)
            return width, height
        at += max(2, length)
    raise PictureRefused("damaged", detail="no frame header in a JPEG")


def _jpeg_marker(data: bytes, at: int) -> tuple[int, int]:
    """The marker at `at`, which any number of FF may precede, and the position after it."""
    if data[at] != 0xFF:
        raise PictureRefused("damaged", detail="no marker where a JPEG needs one")
    for place in range(at, at + MAX_PARTS):
        if data[place] != 0xFF:
            return data[place], place + 1
    raise PictureRefused("damaged", detail="endless fill bytes in a JPEG")


def _webp_size(data: bytes) -> tuple[int, int]:
    kind = data[12:16]
    if kind == b"VP8X":
        if data[20] & WEBP_ANIMATED:
            raise PictureRefused("animated", detail="an animated WebP")
        return _uint24(data, 24) + 1, _uint24(data, 27) + 1
    if kind == b"VP8L":
        bits = struct.unpack_from("<I", data, 21)[0]
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", data, 26)
        return width & 0x3FFF, height & 0x3FFF
    raise PictureRefused("damaged", detail="a WebP without a picture")


def _uint24(data: bytes, at: int) -> int:
    return int.from_bytes(struct.pack("3B", *data[at : at + 3]), "little")
