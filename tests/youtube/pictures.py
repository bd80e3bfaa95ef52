"""Thumbnails drawn when they are asked for: a simple scene, and text as creators set it.

Nothing is stored. The faulty ones are pictures only in part, or not at all.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from tests.youtube.described import Picture, Size

PIXELS: dict[Size, tuple[int, int]] = {
    "default": (120, 90),
    "medium": (320, 180),
    "high": (480, 360),
    "standard": (640, 480),
    "maxres": (1280, 720),
}
FONT = Path("services/storyboard/typesetting/fonts/NanumGothicBold.ttf")
ROOT = Path(__file__).parents[2]
SYSTEM_FONTS = Path("/usr/share/fonts")
SYSTEM_FONT_NAMES = ("NanumGothicBold.ttf", "NotoSansCJK-Bold.ttc", "DejaVuSans-Bold.ttf")
WIDTH, HEIGHT = 1280, 720
BOMB_SIDE_PX = 30_000
HUGE_BYTES = 24 * 1024 * 1024
Draw = ImageDraw.ImageDraw


@lru_cache(maxsize=256)
def jpeg(picture: Picture, size: Size) -> bytes:
    """The whole frame at `size`; the 4:3 sizes have black bars, as YouTube's have."""
    width, height = PIXELS[size]
    inner = (width, width * 9 // 16)
    canvas = Image.new("RGB", (width, height), "black")
    scene = _scene(picture).resize(inner, Image.Resampling.LANCZOS)
    canvas.paste(scene, (0, (height - inner[1]) // 2))
    return _encoded(canvas, "JPEG", quality=88)


@lru_cache(maxsize=1)
def placeholder() -> bytes:
    """What YouTube sends along with 404: a small grey picture."""
    return _encoded(Image.new("RGB", PIXELS["default"], (204, 204, 204)), "JPEG", quality=70)


def avatar(title: str, side_px: int) -> bytes:
    image = Image.new("RGB", (side_px, side_px), _colour(title))
    centre = (side_px / 2, side_px / 2)
    letter = title[:1] or "?"
    ImageDraw.Draw(image).text(centre, letter, "white", _font(side_px // 2), anchor="mm")
    return _encoded(image, "JPEG", quality=85)


def bomb() -> bytes:
    """A PNG of a few kilobytes that says it has 900 million pixels; it has the first rows."""
    header = struct.pack(">IIBBBBB", BOMB_SIDE_PX, BOMB_SIDE_PX, 8, 2, 0, 0, 0)
    row = b"\x00" * (1 + 3 * BOMB_SIDE_PX)
    rows = zlib.compress(row * 200, 9)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        _chunk(kind, data) for kind, data in ((b"IHDR", header), (b"IDAT", rows), (b"IEND", b""))
    )


def _chunk(kind: bytes, data: bytes) -> bytes:
    checksum = zlib.crc32(kind + data)
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)


@lru_cache(maxsize=64)
def _scene(picture: Picture) -> Image.Image:
    image = Image.new("RGB", (WIDTH, HEIGHT), _colour(picture.scene + picture.text))
    draw = ImageDraw.Draw(image)
    SCENES[picture.scene](draw)
    if picture.text:
        _write(draw, picture.text)
    return image


def _write(draw: Draw, text: str) -> None:
    """At the bottom, as large as fits in two thirds of the height, white with a dark rim."""
    lines = text.split("\n")
    longest = max(lines, key=len)
    size = min(110, int(HEIGHT * 0.6 / len(lines) / 1.25))
    while size > 24 and _font(size).getlength(longest) > WIDTH - 80:
        size -= 4
    top = HEIGHT - 40 - size * 1.25 * len(lines)
    for n, line in enumerate(lines):
        place = (40, top + n * size * 1.25)
        draw.text(place, line, "white", _font(size), stroke_width=6, stroke_fill="black")


@lru_cache(maxsize=64)
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """The font that the storyboards' sheets are set in, else the system's, else Pillow's own, which
    has no Hangul.
    """
    found = next((p for n in SYSTEM_FONT_NAMES for p in SYSTEM_FONTS.rglob(n)), None)
    path = ROOT / FONT if (ROOT / FONT).exists() else found
    return ImageFont.load_default(size) if path is None else ImageFont.truetype(str(path), size)


def _colour(text: str) -> tuple[int, int, int]:
    n = zlib.crc32(text.encode())
    return 60 + n % 120, 60 + (n >> 8) % 120, 60 + (n >> 16) % 120


def _encoded(image: Image.Image, kind: str, **options: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _plain(draw: Draw) -> None:
    draw.rectangle((0, 0, WIDTH, 24), "white")


def _kitchen(draw: Draw) -> None:
    draw.rectangle((0, 430, WIDTH, HEIGHT), "#8a5a33")
    draw.ellipse((420, 250, 860, 520), "#e9e4da", "#444444", 8)
    draw.ellipse((490, 290, 790, 470), "#d8572a")
    for x in (540, 620, 700):
        draw.ellipse((x, 340, x + 50, 380), "#6aa84f")


def _landscape(draw: Draw) -> None:
    draw.rectangle((0, 0, WIDTH, 420), "#87bfe8")
    draw.polygon([(0, 480), (360, 140), (700, 480)], "#4f7f52")
    draw.polygon([(420, 480), (860, 200), (1280, 480)], "#3d6b46")
    draw.rectangle((0, 470, WIDTH, HEIGHT), "#6aa84f")
    draw.ellipse((1040, 60, 1160, 180), "#ffd966")


def _city(draw: Draw) -> None:
    draw.rectangle((0, 0, WIDTH, HEIGHT), "#20304a")
    for n, x in enumerate(range(20, WIDTH, 160)):
        top = 160 + 70 * (n % 3)
        draw.rectangle((x, top, x + 130, HEIGHT), "#3b4a63")
        for y in range(top + 20, HEIGHT, 60):
            draw.rectangle((x + 20, y, x + 50, y + 26), "#ffe08a")


def _desk(draw: Draw) -> None:
    draw.rectangle((0, 520, WIDTH, HEIGHT), "#a5794b")
    draw.rectangle((380, 180, 900, 500), "#222222")
    draw.rectangle((400, 200, 880, 480), "#3f6fa5")
    draw.rectangle((610, 500, 670, 540), "#222222")


def _chart(draw: Draw) -> None:
    draw.rectangle((0, 0, WIDTH, HEIGHT), "#101820")
    points = [(80, 560), (280, 500), (480, 520), (680, 360), (880, 300), (1180, 80)]
    draw.line(points, "#3ddc84", 16)
    draw.polygon([(1140, 70), (1210, 50), (1190, 130)], "#3ddc84")


def _news(draw: Draw) -> None:
    draw.rectangle((0, 0, WIDTH, HEIGHT), "#1f3a68")
    draw.ellipse((540, 120, 740, 320), "#d9b38c")
    draw.rectangle((460, 320, 820, 560), "#2b2b2b")
    draw.rectangle((0, 540, WIDTH, HEIGHT), "#a31919")


def _pitch(draw: Draw) -> None:
    draw.rectangle((0, 0, WIDTH, HEIGHT), "#2e7d32")
    draw.line((640, 0, 640, HEIGHT), "white", 8)
    draw.ellipse((500, 220, 780, 500), None, "white", 8)
    draw.ellipse((610, 330, 670, 390), "white", "black", 6)


def _ring(draw: Draw) -> None:
    draw.rectangle((0, 420, WIDTH, HEIGHT), "#d9d9d9")
    for y in (220, 300, 380):
        draw.line((0, y, WIDTH, y), "#b71c1c", 14)
    for x, colour in ((420, "#c62828"), (760, "#1565c0")):
        _person(draw, x, 200, colour)


def _chat(draw: Draw) -> None:
    draw.rectangle((0, 0, WIDTH, HEIGHT), "#9bbbd4")
    draw.rounded_rectangle((60, 60, 760, 180), 30, "white")
    draw.rounded_rectangle((520, 220, 1220, 340), 30, "#ffeb33")


def _cards(draw: Draw) -> None:
    draw.ellipse((-100, 60, WIDTH + 100, HEIGHT + 300), "#146b3a")
    for n, (suit, colour) in enumerate((("A", "black"), ("K", "#c00000"), ("Q", "black"))):
        x = 300 + n * 190
        draw.rounded_rectangle((x, 120, x + 170, 370), 16, "white", "black", 4)
        draw.text((x + 85, 245), suit, colour, _font(120), anchor="mm")
    for n, colour in enumerate(("#c62828", "#1565c0", "#111111")):
        draw.ellipse((960, 330 - n * 40, 1130, 400 - n * 40), colour, "white", 8)


def _cash(draw: Draw) -> None:
    for n in range(7):
        x, y = 120 + n * 130, 120 + (n * 67) % 220
        draw.rectangle((x, y, x + 280, y + 130), "#7fb069", "#2f5d34", 6)
        draw.ellipse((x + 105, y + 30, x + 175, y + 100), "#d5e8c8", "#2f5d34", 4)


def _pills(draw: Draw) -> None:
    for n in range(12):
        x, y = 160 + (n * 173) % 900, 120 + (n * 97) % 300
        draw.rounded_rectangle((x, y, x + 60, y + 36), 18, "white", "#888888", 3)
        draw.rounded_rectangle((x + 60, y, x + 120, y + 36), 18, "#d32f2f", "#888888", 3)
    draw.polygon([(480, 480), (820, 480), (780, 560), (520, 560)], "#f5f5f5")


def _syringe(draw: Draw) -> None:
    draw.rectangle((360, 260, 860, 350), "#e3f2fd", "#455a64", 6)
    draw.rectangle((560, 270, 850, 340), "#8e24aa")
    draw.rectangle((220, 295, 360, 315), "#455a64")
    draw.rectangle((200, 240, 222, 370), "#455a64")
    draw.line((860, 305, 1080, 305), "#90a4ae", 6)


def _knife(draw: Draw) -> None:
    draw.rectangle((0, 0, WIDTH, HEIGHT), "#1b1b1b")
    draw.polygon([(360, 330), (960, 260), (1010, 300), (360, 400)], "#cfd8dc", "#78909c")
    draw.rectangle((180, 325, 370, 405), "#4e342e")
    for x, y in ((700, 380), (780, 440), (620, 470), (860, 390)):
        draw.ellipse((x, y, x + 44, y + 60), "#b71c1c")


def _gun(draw: Draw) -> None:
    draw.rectangle((340, 220, 900, 320), "#263238")
    draw.polygon([(380, 320), (520, 320), (470, 540), (340, 540)], "#37474f")
    draw.arc((510, 300, 620, 410), 0, 180, "#263238", 14)


def _bottles(draw: Draw) -> None:
    for n in range(5):
        x = 240 + n * 170
        draw.rectangle((x, 220, x + 90, 520), "#2e7d32")
        draw.rectangle((x + 28, 120, x + 62, 220), "#2e7d32")
        draw.rectangle((x + 6, 320, x + 84, 420), "white")


def _fire(draw: Draw) -> None:
    draw.rectangle((0, 0, WIDTH, HEIGHT), "#2b1a12")
    for x in range(80, 1200, 150):
        draw.polygon([(x, 560), (x + 75, 180 + x % 140), (x + 150, 560)], "#ff7043")
        draw.polygon([(x + 40, 560), (x + 75, 330), (x + 110, 560)], "#ffca28")


def _figure(draw: Draw) -> None:
    """Two bare silhouettes on a bed: suggestive, and no more than that."""
    draw.rectangle((0, 0, WIDTH, HEIGHT), "#4a1830")
    draw.rounded_rectangle((180, 400, 1100, 600), 40, "#e8c7d4")
    for x in (380, 640):
        draw.ellipse((x, 250, x + 90, 340), "#d9a98b")
        draw.rounded_rectangle((x + 60, 320, x + 360, 430), 50, "#d9a98b")


def _skull(draw: Draw) -> None:
    draw.rectangle((0, 0, WIDTH, HEIGHT), "#0d0d0d")
    draw.ellipse((460, 80, 820, 420), "#e0e0d1")
    draw.rectangle((550, 380, 730, 500), "#e0e0d1")
    for x in (530, 680):
        draw.ellipse((x, 210, x + 80, 300), "#7f0000")


def _roof(draw: Draw) -> None:
    """Somebody at the edge of a roof."""
    _city(draw)
    draw.rectangle((0, 400, 620, HEIGHT), "#5d5d5d")
    _person(draw, 540, 180, "#ffb300")


def _person(draw: Draw, x: int, y: int, colour: str) -> None:
    draw.ellipse((x + 20, y, x + 80, y + 60), "#d9a98b")
    draw.rectangle((x + 15, y + 60, x + 85, y + 150), colour)
    draw.rectangle((x + 20, y + 150, x + 45, y + 225), "#333333")
    draw.rectangle((x + 55, y + 150, x + 80, y + 225), "#333333")


SCENES: dict[str, Callable[[Draw], None]] = {
    "plain": _plain, "kitchen": _kitchen, "landscape": _landscape, "city": _city, "desk": _desk,
    "chart": _chart, "news": _news, "pitch": _pitch, "ring": _ring, "chat": _chat,
    "cards": _cards, "cash": _cash, "pills": _pills, "syringe": _syringe, "knife": _knife,
    "gun": _gun, "bottles": _bottles, "fire": _fire, "figure": _figure, "skull": _skull,
    "roof": _roof,
}  # fmt: skip
