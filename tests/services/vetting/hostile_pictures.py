"""Pictures made to hurt whoever decodes them, each with what may become of it."""

from __future__ import annotations

import io
import random
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from PIL import Image, TiffImagePlugin

SAFE = "safe"
"""It may be decoded into a clean picture, as long as it costs no more than it may."""


class Hostile(NamedTuple):
    media_type: str
    make: Callable[[], bytes]
    outcomes: frozenset[str]


def hostile(media_type: str, make: Callable[[], bytes], *outcomes: str) -> Hostile:
    return Hostile(media_type, make, frozenset(outcomes))


def file_of(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def noise(width: int, height: int, mode: str = "RGB") -> Image.Image:
    return Image.effect_noise((width, height), 80).convert(mode)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(
    width: int, height: int, rows: Iterable[bytes], *before: bytes, depth: int = 8, colour: int = 2
) -> bytes:
    """A PNG whose rows are compressed one after another: a bomb needs no memory to be made."""
    packer = zlib.compressobj(1)
    pixels = b"".join([*(packer.compress(row) for row in rows), packer.flush()])
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return (
        b"\x89PNG\r\n\x1a\n"
        + b"".join([head, *before, chunk(b"IDAT", pixels)])
        + chunk(b"IEND", b"")
    )


def black(width: int, height: int, bytes_per_pixel: int = 3) -> Iterator[bytes]:
    row = bytes(1 + width * bytes_per_pixel)
    return (row for _ in range(height))


def jpeg_of_size(width: int, height: int) -> bytes:
    """A small JPEG whose frame header lies."""
    data = bytearray(file_of(Image.new("RGB", (16, 16)), "JPEG"))
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = struct.pack(">HH", height, width)
    return bytes(data)


def jpeg_of_many_scans() -> bytes:
    """Thousands of empty refinements of a large picture, each of which walks over all of it."""
    data = file_of(Image.new("RGB", (1700, 1700)), "JPEG", progressive=True, subsampling=0)
    at = data.rindex(b"\xff\xda")
    scan = data[at : data.index(b"\xff\xd9", at)]
    return data[:at] + scan * min(4_000, 4_900_000 // len(scan)) + b"\xff\xd9"


def webp_of_size(width: int, height: int) -> bytes:
    body = struct.pack("<B3x", 0) + (width - 1).to_bytes(3, "little")
    body += (height - 1).to_bytes(3, "little")
    inner = file_of(Image.new("RGB", (16, 16)), "WEBP")[12:]
    whole = b"WEBPVP8X" + struct.pack("<I", len(body)) + body + inner
    return b"RIFF" + struct.pack("<I", len(whole)) + whole


def frames(kind: str, count: int, **options: object) -> bytes:
    images = [Image.new("RGB", (8, 8), (i % 256, i // 256, 0)) for i in range(count)]
    return file_of(images[0], kind, save_all=True, append_images=images[1:], **options)


def tiff_bomb() -> bytes:
    info = TiffImagePlugin.ImageFileDirectory_v2()
    return file_of(Image.new("1", (9_000, 9_000)), "TIFF", compression="group4", tiffinfo=info)


def with_exif_junk() -> bytes:
    start = b"Exif\0\0MM\0*" + struct.pack(">I", 8) + b"\xff\xff"
    junk = start + random.Random(1).randbytes(60_000)
    data = file_of(noise(320, 180), "JPEG")
    return data[:2] + b"\xff\xe1" + struct.pack(">H", len(junk) + 2) + junk + data[2:]


def with_icc_junk() -> bytes:
    junk = b"ICC_PROFILE\0\1\xff" + random.Random(2).randbytes(65_000)
    part = b"\xff\xe2" + struct.pack(">H", len(junk) + 2) + junk
    data = file_of(noise(320, 180), "JPEG")
    return data[:2] + part * 60 + data[2:]


def damaged(data: bytes, seed: int) -> bytes:
    dice, bytes_ = random.Random(seed), bytearray(data)
    for _ in range(200):
        bytes_[dice.randrange(30, len(bytes_))] = dice.randrange(256)
    return bytes(bytes_)


JPEG, PNG, WEBP = "image/jpeg", "image/png", "image/webp"
SVG = b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>"
ZEROS_IN_TEXT = zlib.compress(bytes(100 * 2**20), 1)

PICTURES: dict[str, Hostile] = {
    "png bomb of 900 million pixels": hostile(
        PNG, lambda: png(30_000, 30_000, black(30_000, 300)), "too_many_pixels"),
    "png bomb just over the cap": hostile(
        PNG, lambda: png(2_000, 1_600, black(2_000, 1_600)), "too_many_pixels"),
    "png bomb just under the cap": hostile(
        PNG, lambda: png(2_000, 1_450, black(2_000, 1_450)), SAFE, "too_much_memory"),
    "png whose rows never end": hostile(
        PNG, lambda: png(64, 64, black(64, 500_000)), SAFE, "damaged"),
    "png of 16 bits a channel": hostile(
        PNG, lambda: png(1_700, 1_700, black(1_700, 1_700, 8), depth=16, colour=6),
        SAFE, "too_much_memory", "damaged"),
    "png of one line, a million wide": hostile(
        PNG, lambda: png(1_000_000, 1, black(1_000_000, 1)), SAFE, "damaged"),
    "png of the largest size there is": hostile(
        PNG, lambda: png(2**31 - 1, 2**31 - 1, black(8, 8)), "too_many_pixels"),
    "png without width": hostile(PNG, lambda: png(0, 64, black(64, 64)), "damaged"),
    "png with a bomb for a colour profile": hostile(
        PNG, lambda: png(64, 64, black(64, 64), chunk(b"iCCP", b"x\0\0" + ZEROS_IN_TEXT)),
        SAFE, "damaged"),
    "png with bombs for comments": hostile(
        PNG, lambda: png(64, 64, black(64, 64), *[chunk(b"zTXt", b"x\0\0" + ZEROS_IN_TEXT)] * 9),
        SAFE, "damaged"),
    "png of 400,000 chunks": hostile(
        PNG, lambda: png(64, 64, black(64, 64), *[chunk(b"teXt", b"")] * 400_000), "damaged"),
    "png whose chunk is longer than the file": hostile(
        PNG, lambda: png(64, 64, black(64, 64), struct.pack(">I", 2**31) + b"teXt"), "damaged"),
    "png with a thousand frames": hostile(PNG, lambda: frames("PNG", 1_000), "animated"),
    "png cut off in its header": hostile(
        PNG, lambda: png(64, 64, black(64, 64))[:20], "damaged"),
    "png cut off in its pixels": hostile(
        PNG, lambda: file_of(noise(400, 300), "PNG")[:90_000], "damaged"),
    "jpeg that says 65535 x 65535": hostile(
        JPEG, lambda: jpeg_of_size(65_535, 65_535), "too_many_pixels"),
    "jpeg that says more than it holds": hostile(
        JPEG, lambda: jpeg_of_size(1_700, 1_700), SAFE, "damaged"),
    "jpeg without height": hostile(JPEG, lambda: jpeg_of_size(64, 0), "damaged"),
    "jpeg of thousands of scans": hostile(JPEG, jpeg_of_many_scans, "too_slow_to_decode"),
    "jpeg in CMYK, progressive": hostile(
        JPEG, lambda: file_of(noise(1_700, 1_700, "CMYK"), "JPEG", progressive=True), SAFE),
    "jpeg of nothing but its start": hostile(JPEG, lambda: b"\xff\xd8" * 1_000_000, "damaged"),
    "jpeg with endless fill bytes": hostile(
        JPEG, lambda: b"\xff\xd8" + b"\xff" * 4_000_000, "damaged"),
    "jpeg cut off": hostile(JPEG, lambda: file_of(noise(640, 360), "JPEG")[:30_000], "damaged"),
    "jpeg with junk for EXIF": hostile(JPEG, with_exif_junk, SAFE, "damaged"),
    "jpeg with junk for a profile": hostile(JPEG, with_icc_junk, SAFE, "damaged"),
    "jpeg that is also a web page": hostile(
        JPEG, lambda: file_of(noise(320, 180), "JPEG") + b"<html><script>alert(1)</script>", SAFE),
    "jpeg that is also an archive": hostile(
        JPEG, lambda: file_of(noise(320, 180), "JPEG") + b"PK\3\4" + bytes(4_000_000), SAFE),
    "jpeg with random bytes in it": hostile(
        JPEG, lambda: damaged(file_of(noise(640, 360), "JPEG"), 1), SAFE, "damaged"),
    "webp that says 16384 x 16384": hostile(
        WEBP, lambda: webp_of_size(16_384, 16_384), "too_many_pixels"),
    "webp that says more than it holds": hostile(
        WEBP, lambda: webp_of_size(1_700, 1_700), SAFE, "damaged"),
    "webp bomb": hostile(
        WEBP, lambda: file_of(Image.new("RGB", (2_200, 2_200)), "WEBP", lossless=True, method=0),
        "too_many_pixels"),
    "webp of noise under the cap": hostile(
        WEBP, lambda: file_of(noise(1_700, 1_700, "RGBA"), "WEBP", method=0),
        SAFE, "too_much_memory"),
    "webp with a thousand frames": hostile(
        WEBP, lambda: frames("WEBP", 1_000, method=0), "animated"),
    "webp cut off": hostile(
        WEBP, lambda: file_of(noise(400, 300), "WEBP")[:4_000], "damaged"),
    "webp of nothing but its start": hostile(WEBP, lambda: b"RIFF\xff\xff\xff\xffWEBP", "damaged"),
    "webp with random bytes in it": hostile(
        WEBP, lambda: damaged(file_of(noise(640, 360), "WEBP"), 2), SAFE, "damaged"),
    "gif bomb": hostile(
        "image/gif", lambda: file_of(Image.new("P", (5_000, 5_000)), "GIF"), "type_not_allowed"),
    "gif that calls itself a jpeg": hostile(
        JPEG, lambda: frames("GIF", 2_000), "not_a_picture"),
    "tiff bomb that calls itself a png": hostile(PNG, tiff_bomb, "not_a_picture"),
    "svg that calls itself a png": hostile(PNG, lambda: SVG, "not_a_picture"),
    "svg": hostile("image/svg+xml", lambda: SVG, "type_not_allowed"),
    "web page": hostile(JPEG, lambda: b"<!doctype html><title>404</title>", "not_a_picture"),
    "bmp": hostile(PNG, lambda: file_of(noise(64, 64), "BMP"), "not_a_picture"),
    "postscript": hostile(JPEG, lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9",
        "not_a_picture"),
    "jpeg that calls itself a webp": hostile(
        WEBP, lambda: file_of(noise(64, 64), "JPEG"), "type_mismatch"),
    "nothing": hostile(JPEG, lambda: b"", "not_a_picture"),
    "six megabytes": hostile(
        JPEG, lambda: file_of(noise(64, 64), "JPEG") + bytes(6_000_000), "too_large"),
}  # fmt: skip
