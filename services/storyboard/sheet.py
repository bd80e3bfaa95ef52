"""The storyboard sheet (콘티) as a PDF to print, or as one picture; set by Typst.

Pure: the same storyboard and frames give the same bytes, with the fonts of this folder and those
inside Typst. What callers and models wrote goes to Typst as data and is never read as markup
(typesetting/sheet.typ). Knows nothing of jobs, storage or where frames come from.
"""

from __future__ import annotations

import io
import json
import math
import re
import tempfile
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, Literal

import typst
from PIL import Image, UnidentifiedImageError

from services.shared.proposals import Language
from services.storyboard.errors import SheetError
from services.storyboard.schemas import Scene, Storyboard

Form = Literal["pdf", "png"]

HERE = Path(__file__).parent / "typesetting"
PAGE_MM, MARGIN_MM, COLUMNS = 297.0, 13.0, 3
MM_PER_INCH = 25.4
PNG_WIDTH_PX = 1604
PNG_PPI = PNG_WIDTH_PX / PAGE_MM * MM_PER_INCH
PRINT_PPI = 300
"""Frames with fewer pixels are enlarged to it: what shows a PDF would show their pixels."""
JPEG_QUALITY = 92

USUAL_RATIO = 9 / 16
LYING_UP_TO = 0.8
"""The height over width up to which a frame stands above its text."""
BESIDE_MM = (42.0, 67.6)
"""The widest and the tallest frame that stands beside its text: two rows of 9:16 and a title fill
a page.
"""

MAX_TEXT, MAX_TITLE, MAX_NAME, MAX_NOTE = 200, 120, 40, 300
MAX_STYLE, MAX_FOOTER = 28, 60
MAX_MARKS = 4
"""Combining marks on one letter; more would climb over the lines above."""
EMOJI = re.compile("[\U0001f000-\U0001faff\u200d\ufe0f\U000e0020-\U000e007f]+")
NO_GLYPH = "□"
DROPPED = "scene_dropped"
NOT_DISPLAYED = "could not be displayed"
"""How Typst says that no font has a character, which PDF/UA forbids."""

LABELS: dict[Language, dict[str, str]] = {
    "ko": {
        "storyboard": "스토리보드(콘티)",
        "notes": "알림",
        "scenes": "장면",
        "length": "길이",
        "style": "스타일",
        "date": "날짜",
        "cast": "등장인물",
        "places": "장소",
        "base": "기본",
        "missing": "그림 없음",
        "scene": "장면 {n}",
        "dropped": "장면 {n}은(는) 심의 기준을 넘어 뺐습니다.",
        "extreme close-up": "익스트림 클로즈업",
        "close-up": "클로즈업",
        "medium shot": "미디엄 숏",
        "wide shot": "와이드 숏",
        "extreme wide shot": "익스트림 와이드 숏",
        "eye level": "눈높이",
        "high angle": "하이 앵글",
        "low angle": "로 앵글",
        "day": "낮",
        "night": "밤",
        "seconds": "{s}초",
    },
    "en": {
        "storyboard": "Storyboard",
        "notes": "Notes",
        "scenes": "Scenes",
        "length": "Length",
        "style": "Style",
        "date": "Date",
        "cast": "Cast",
        "places": "Places",
        "base": "base",
        "missing": "No picture",
        "scene": "Scene {n}",
        "dropped": "Scene {n} was left out: it was over the age limit.",
        "extreme close-up": "Extreme close-up",
        "close-up": "Close-up",
        "medium shot": "Medium shot",
        "wide shot": "Wide shot",
        "extreme wide shot": "Extreme wide shot",
        "eye level": "eye level",
        "high angle": "high angle",
        "low angle": "low angle",
        "day": "day",
        "night": "night",
        "seconds": "{s} s",
    },
}


@dataclass(frozen=True)
class Layout:
    """How cells stand on a page of A4 on its side. Lengths in millimetres."""

    columns: int
    gutter_mm: float
    beside: bool
    """The text stands beside the frame, not below it."""
    frame_mm: tuple[float, float]
    """Width and height."""
    page_mm: float = PAGE_MM
    margin_mm: float = MARGIN_MM


def compose(storyboard: Storyboard, frames: Mapping[int, bytes], form: Form) -> bytes:
    """The sheet of `storyboard`. `frames` are PNG files by scene number; the place of a missing one
    is marked.

    Keeps a core busy for a quarter of a second, or up to two with 24 large frames, the most of it
    without Python's lock: call it in a thread, and bound how many run at once. Raises SheetError,
    which names the scene whose file is no picture. Texts longer than the limits above end in an
    ellipsis.
    """
    layout = layout_of(storyboard)
    shown = _shown_scenes(storyboard)
    data = _data(storyboard, shown, layout, frames.keys(), form)
    with tempfile.TemporaryDirectory(prefix="joing-sheet-") as folder:
        root = Path(folder)
        (root / "sheet.typ").write_bytes((HERE / "sheet.typ").read_bytes())
        for scene in shown:
            if scene.n in frames:
                picture = _picture(scene.n, frames[scene.n], layout, form)
                (root / _file(scene.n)).write_bytes(picture)
        return _compiled(root, data, _moment(storyboard), form)


def layout_of(storyboard: Storyboard) -> Layout:
    """Three to a row: lying frames above their text; upright and nearly square ones beside it, so
    that at least two rows fit on a page.
    """
    width, height = storyboard.width, storyboard.height
    ratio = height / width if width and height else USUAL_RATIO
    is_lying = ratio <= LYING_UP_TO
    gutter_mm = 6.0 if is_lying else 7.0
    column_mm = (PAGE_MM - 2 * MARGIN_MM - (COLUMNS - 1) * gutter_mm) / COLUMNS
    widest, tallest = (column_mm, math.inf) if is_lying else BESIDE_MM
    width_mm = min(widest, tallest / ratio)
    return Layout(COLUMNS, gutter_mm, not is_lying, (width_mm, width_mm * ratio))


def clock(seconds: float) -> str:
    """m:ss, rounded down; a millisecond short of a second counts as the second."""
    whole = int(seconds + 0.001)
    return f"{whole // 60}:{whole % 60:02d}"


def _compiled(root: Path, data: dict[str, Any], moment: datetime, form: Form) -> bytes:
    """Accessible (PDF/UA-1) where the fonts have every character; tagged all the same otherwise."""

    def compiled(standards: typst.PDFStandards) -> Any:
        return typst.compile(
            root / "sheet.typ",
            root=root,
            font_paths=_fonts(),
            ignore_system_fonts=True,
            format=form,
            ppi=PNG_PPI,
            sys_inputs={"data": json.dumps(data)},
            pdf_standards=standards,
            timestamp=moment,
        )

    try:
        if form == "png":
            return bytes(compiled([]))
        try:
            return bytes(compiled(["ua-1"]))
        except typst.TypstError as error:
            if NOT_DISPLAYED not in str(error):
                raise
            return bytes(compiled([]))
    except typst.TypstError as error:
        raise SheetError(f"The sheet cannot be set: {error}") from error


@cache
def _fonts() -> typst.Fonts:
    return typst.Fonts(
        include_system_fonts=False, include_embedded_fonts=True, font_paths=[HERE / "fonts"]
    )


# --- What is shown --------------------------------------------------------------------------------


def _data(
    storyboard: Storyboard, shown: list[Scene], layout: Layout, drawn: Any, form: Form
) -> dict[str, Any]:
    """Everything that sheet.typ shows."""
    say = LABELS[storyboard.language]
    title = _text(storyboard.title, MAX_TITLE) or say["storyboard"]
    return {
        "form": form,
        "language": storyboard.language,
        "labels": say,
        "layout": {name.replace("_", "-"): value for name, value in asdict(layout).items()},
        "title": title,
        "footer": _text(title, MAX_FOOTER),
        "facts": [
            [say["scenes"], str(len(shown))],
            [say["length"], clock(storyboard.duration_s)],
            [say["style"], _text(storyboard.style or say["base"], MAX_STYLE)],
            [say["date"], f"{_moment(storyboard):%Y-%m-%d}"],
        ],
        "people": list(_people(storyboard, say)),
        "cells": list(_cells(shown, drawn, say)),
        "notes": list(_notes(storyboard, say)),
    }


def _cells(shown: list[Scene], drawn: Any, say: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    start_s = 0.0
    for scene in shown:
        end_s = start_s + scene.duration_s
        action = _text(scene.action, MAX_TEXT)
        dialogue = _text(scene.dialogue, MAX_TEXT)
        yield {
            "n": scene.n,
            "frame": _file(scene.n) if scene.n in drawn else None,
            "alt": f"{say['scene'].format(n=scene.n)}: {action}",
            "camera": " · ".join(say[part] for part in (scene.shot, scene.angle, scene.time)),
            "duration": say["seconds"].format(s=f"{round(scene.duration_s, 1):g}"),
            "time-code": f"{clock(start_s)}–{clock(end_s)}",
            "place": _text(scene.place, MAX_NAME),
            "action": action,
            "dialogue": f"“{dialogue}”" if dialogue else "",
        }
        start_s = end_s


def _people(storyboard: Storyboard, say: Mapping[str, str]) -> Iterator[list[str]]:
    for label, named in (("cast", storyboard.cast), ("places", storyboard.settings)):
        if named:
            yield [say[label], ", ".join(_text(one.name, MAX_NAME) for one in named)]


def _notes(storyboard: Storyboard, say: Mapping[str, str]) -> Iterator[str]:
    """The storyboard's own, and one for each dropped scene that they do not name."""
    named = {note.n for note in storyboard.notes if note.code == DROPPED}
    for note in storyboard.notes:
        yield _text(note.message, MAX_NOTE)
    for n in sorted(_dropped(storyboard) - named):
        yield say["dropped"].format(n=n)


def _shown_scenes(storyboard: Storyboard) -> list[Scene]:
    dropped = _dropped(storyboard)
    return [scene for scene in storyboard.scenes if scene.n not in dropped]


def _dropped(storyboard: Storyboard) -> set[int]:
    return {frame.n for frame in storyboard.frames if frame.state == "dropped"}


def _moment(storyboard: Storyboard) -> datetime:
    made = storyboard.created_at.replace(microsecond=0)
    return made if made.tzinfo else made.replace(tzinfo=UTC)


# --- Text and pictures ----------------------------------------------------------------------------


def _text(written: str, limit: int) -> str:
    """One paragraph of at most `limit` characters, of what a font can show."""
    composed = unicodedata.normalize("NFC", EMOJI.sub(NO_GLYPH, written))
    visible = "".join(" " if unicodedata.category(c) in ("Cc", "Zl", "Zp") else c for c in composed)
    text = " ".join(_few_marks(visible).split())
    return text if len(text) <= limit else text[: limit - 1].rstrip() + "…"


def _few_marks(text: str) -> str:
    kept, marks = [], 0
    for character in text:
        marks = marks + 1 if unicodedata.combining(character) else 0
        if marks <= MAX_MARKS:
            kept.append(character)
    return "".join(kept)


def _picture(n: int, file: bytes, layout: Layout, form: Form) -> bytes:
    """The frame as the sheet holds it: a JPEG of at least PRINT_PPI, or a PNG of the pixels shown.

    Raises SheetError.
    """
    picture = _opened(n, file)
    ppi = PRINT_PPI if form == "pdf" else PNG_PPI
    box = [round(side_mm / MM_PER_INCH * ppi) for side_mm in layout.frame_mm]
    scale = min(box[0] / picture.width, box[1] / picture.height)
    if scale > 1 or form == "png":
        size = [max(1, round(side * scale)) for side in picture.size]
        picture = picture.resize((size[0], size[1]), Image.Resampling.LANCZOS, reducing_gap=2)
    out = io.BytesIO()
    if form == "pdf":
        picture.save(out, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    else:
        picture.save(out, "PNG", compress_level=1)
    return out.getvalue()


def _opened(n: int, file: bytes) -> Image.Image:
    """On white where it is transparent."""
    try:
        with Image.open(io.BytesIO(file), formats=["PNG"]) as image:
            if not image.has_transparency_data:
                return image.convert("RGB")
            drawn = image.convert("RGBA")
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise SheetError(f"The frame of scene {n} is no picture: {error}") from error
    except Image.DecompressionBombError as error:
        raise SheetError(f"The frame of scene {n} is too large a picture: {error}") from error
    white = Image.new("RGBA", drawn.size, "white")
    return Image.alpha_composite(white, drawn).convert("RGB")


def _file(n: int) -> str:
    return f"frame-{n}.picture"
