"""The sheet that the demo saves."""

from __future__ import annotations

from PIL import Image

from examples.frames import CAPTION, ENLARGED, MARGIN, Frame, sheet

COLOURS = ("red", "green", "blue", "black")


def test_each_frame_stands_in_its_place_with_room_for_a_caption() -> None:
    frames = [Frame(c, "a scene", Image.new("RGB", (192, 112), c), 1.0) for c in COLOURS]
    page = sheet(frames)
    width, height = 192 * ENLARGED, 112 * ENLARGED
    assert page.size == (2 * width + 3 * MARGIN, 2 * (height + CAPTION) + 3 * MARGIN)
    for n, colour in enumerate(COLOURS):
        middle = (
            MARGIN + n % 2 * (width + MARGIN) + width // 2,
            MARGIN + n // 2 * (height + CAPTION + MARGIN) + height // 2,
        )
        assert page.getpixel(middle) == Image.new("RGB", (1, 1), colour).getpixel((0, 0))
    caption = page.crop((MARGIN, MARGIN + height + 6, MARGIN + width, MARGIN + height + CAPTION))
    assert caption.convert("L").getextrema()[0] < 100
