"""One picture of all pictures: a row for each prompt, a column for each checkpoint or setting."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from models.training.compare.drawing import Cells

_CELL_PX = 320
"""The longer side of a picture, which is not enlarged beyond twice its size."""
_GAP_PX, _TITLE_PX, _PROMPT_PX = 6, 26, 210
_TEXT_PX, _SMALL_PX = 15, 13
_PAPER, _INK, _FAINT = (255, 255, 255), (20, 20, 20), (110, 110, 110)
_FONTS = (
    "NotoSansCJK-Regular.ttc", "NotoSansKR-Regular.ttf", "NanumGothic.ttf", "AppleSDGothicNeo.ttc",
    "malgun.ttf", "DejaVuSans.ttf",
)  # fmt: skip
"""Looked for where the system keeps fonts; those with Korean first."""


def grid(cells: Cells, prompts: Sequence[str], seed: int) -> Image.Image:
    """Every column's picture of each prompt with that seed, labelled."""
    first = next(iter(cells.values()))[0].open()
    width, height = _fitted(first.size)
    across = _PROMPT_PX + len(cells) * (width + _GAP_PX)
    sheet = Image.new("RGB", (across, _TITLE_PX + len(prompts) * (height + _GAP_PX)), _PAPER)
    draw = ImageDraw.Draw(sheet)
    for row, prompt in enumerate(prompts):
        top = _TITLE_PX + row * (height + _GAP_PX)
        _write_prompt(draw, f"{row + 1}. {prompt}", (_GAP_PX, top), height)
    for number, (label, drawn) in enumerate(cells.items()):
        left = _PROMPT_PX + number * (width + _GAP_PX)
        draw.text((left, 5), _shortened(label, width), _INK, _font(_TEXT_PX))
        for row, prompt in enumerate(prompts):
            image = next(cell for cell in drawn if (cell.prompt, cell.seed) == (prompt, seed))
            place = (left, _TITLE_PX + row * (height + _GAP_PX))
            sheet.paste(image.open().resize((width, height), Image.Resampling.LANCZOS), place)
    return sheet


def _fitted(size: tuple[int, int]) -> tuple[int, int]:
    scale = min(2.0, _CELL_PX / max(size))
    return round(size[0] * scale), round(size[1] * scale)


def _write_prompt(draw: ImageDraw.ImageDraw, text: str, at: tuple[int, int], height: int) -> None:
    font = _font(_SMALL_PX)
    room = 0.85 * (_PROMPT_PX - 2 * _GAP_PX)  # letters are not all as wide
    characters = max(8, int(len(text) * room / max(1.0, font.getlength(text))))
    lines = max(1, height // (_SMALL_PX + 4))
    wrapped = textwrap.wrap(text, characters, max_lines=lines, placeholder=" ...")
    draw.multiline_text(at, "\n".join(wrapped), _FAINT, font, spacing=3)


def _shortened(label: str, width: int) -> str:
    font = _font(_TEXT_PX)
    while len(label) > 4 and font.getlength(label) > width:
        label = label.removesuffix("...")[:-1].rstrip() + "..."
    return label


def _font(size: int) -> ImageFont.FreeTypeFont:
    """A system font, Pillow's own where there is none."""
    for name in _FONTS:
        try:
            return ImageFont.truetype(name, size)
        except OSError:
            continue
    own: ImageFont.FreeTypeFont = ImageFont.load_default(size)
    return own
