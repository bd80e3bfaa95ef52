"""The storyboard sheet (콘티) as a PDF to print, or as one picture; set by Typst.

Pure: the same storyboard and frames give the same bytes. What callers and models wrote goes to
Typst as data and is never read as markup (typesetting/sheet.typ).
"""

from __future__ import annotations

import io
import json
import re
import tempfile
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from PIL import Image, UnidentifiedImageError

from services.shared.proposals import Language
from services.storyboard.errors import SheetError
from services.storyboard.schemas import Scene, Storyboard

HERE = Path(__file__).parent / "typesetting"
PNG_PPI = {"lying": 137.0, "upright": 194.0}
"""A sheet of 297 or 210 mm becomes a picture of 1,602 or 1,604 pixels."""
LYING_COLUMNS, UPRIGHT_COLUMNS = 3, 4
USUAL_RATIO = 9 / 16
ZERO_WIDTH_SPACE = "\u200b"
LONG_WORD = re.compile(r"[!-~]{25,}")
ENLARGED_TO_PX = 640
"""Smaller frames are enlarged to it smoothly; what shows a PDF would show their pixels."""

LABELS: dict[Language, dict[str, str]] = {
    "ko": {
        "storyboard": "스토리보드 · 콘티",
        "notes": "알림",
        "scenes": "장면",
        "length": "길이",
        "style": "스타일",
        "date": "날짜",
        "cast": "등장인물",
        "places": "장소",
        "base": "기본",
        "missing": "그림 없음",
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
        "seconds": "초",
    },
    "en": {
        "storyboard": "STORYBOARD",
        "notes": "Notes",
        "scenes": "Scenes",
        "length": "Length",
        "style": "Style",
        "date": "Date",
        "cast": "Cast",
        "places": "Places",
        "base": "base",
        "missing": "No picture",
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
        "seconds": " s",
    },
}


def compose(
    storyboard: Storyboard, frames: Mapping[int, bytes], form: Literal["pdf", "png"]
) -> bytes:
    """The sheet of `storyboard`; `frames` are image files by scene, missing ones stay empty.

    Takes about half a second of one core, without Python's lock: run it in a thread, a bounded
    number at a time. Raises SheetError, naming the scene whose file is no picture.
    """
    import typst

    data = _data(storyboard, frames, form)
    with tempfile.TemporaryDirectory(prefix="joing-sheet-") as folder:
        root = Path(folder)
        (root / "sheet.typ").write_bytes((HERE / "sheet.typ").read_bytes())
        for n, file in frames.items():
            (root / _file(n)).write_bytes(_enlarged(n, file))
        try:
            made = typst.compile(
                root / "sheet.typ",
                root=root,
                font_paths=[HERE / "fonts"],
                ignore_system_fonts=True,
                format=form,
                ppi=PNG_PPI["upright" if data["upright"] else "lying"],
                sys_inputs={"data": json.dumps(_breakable(data))},
                timestamp=int(storyboard.created_at.timestamp()),
            )
        except typst.TypstError as error:
            raise SheetError(f"The sheet cannot be set: {error}") from error
    return b"".join(made) if isinstance(made, list) else made


def _breakable(shown: Any) -> Any:
    """`shown` with places where long words may be broken over lines."""
    match shown:
        case str():
            return LONG_WORD.sub(lambda word: ZERO_WIDTH_SPACE.join(word[0]), shown)
        case list():
            return [_breakable(part) for part in shown]
        case dict():
            return {name: _breakable(part) for name, part in shown.items()}
        case _:
            return shown


def _data(storyboard: Storyboard, frames: Mapping[int, bytes], form: str) -> dict[str, Any]:
    """Everything that sheet.typ shows."""
    say = LABELS[storyboard.language]
    ratio = _ratio(storyboard)
    starts = _starts(storyboard.scenes)
    return {
        "form": form,
        "language": storyboard.language,
        "title": storyboard.title,
        "date": _date(storyboard.created_at),
        "labels": say,
        "ratio": ratio,
        "upright": ratio > 1,
        "columns": UPRIGHT_COLUMNS if ratio > 1 else LYING_COLUMNS,
        "facts": [
            [say["scenes"], str(len(storyboard.scenes))],
            [say["length"], clock(storyboard.duration_s)],
            [say["style"], storyboard.style or say["base"]],
            [say["date"], f"{storyboard.created_at:%Y-%m-%d}"],
        ],
        "people": _people(storyboard, say),
        "cells": [
            _cell(scene, starts[scene.n], scene.n in frames, say) for scene in storyboard.scenes
        ],
        "notes": [note.message for note in storyboard.notes],
    }


def _cell(scene: Scene, start_s: float, is_there: bool, say: Mapping[str, str]) -> dict[str, Any]:
    camera = " · ".join(say[part] for part in (scene.shot, scene.angle, scene.time))
    return {
        "n": scene.n,
        "frame": _file(scene.n) if is_there else None,
        "alt": f"{scene.n}. {scene.action}",
        "missing": say["missing"],
        "camera": camera,
        "duration": f"{scene.duration_s:g}{say['seconds']}",
        "clock": clock(start_s),
        "place": scene.place,
        "action": scene.action,
        "dialogue": scene.dialogue,
    }


def _people(storyboard: Storyboard, say: Mapping[str, str]) -> list[list[str]]:
    lines = [
        [say["cast"], ", ".join(one.name for one in storyboard.cast)],
        [say["places"], ", ".join(one.name for one in storyboard.settings)],
    ]
    return [line for line in lines if line[1]]


def clock(seconds: float) -> str:
    """m:ss, rounded down."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def _starts(scenes: list[Scene]) -> dict[int, float]:
    """When each scene begins, in seconds."""
    starts, at_s = {}, 0.0
    for scene in scenes:
        starts[scene.n] = at_s
        at_s += scene.duration_s
    return starts


def _ratio(storyboard: Storyboard) -> float:
    """Height over width of a frame."""
    if not storyboard.width or not storyboard.height:
        return USUAL_RATIO
    return storyboard.height / storyboard.width


def _date(moment: datetime) -> dict[str, int]:
    return {"year": moment.year, "month": moment.month, "day": moment.day}


def _file(n: int) -> str:
    return f"frame-{n}.png"


def _enlarged(n: int, file: bytes) -> bytes:
    try:
        with Image.open(io.BytesIO(file)) as image:
            picture = image.convert("RGB")
    except (UnidentifiedImageError, OSError, ValueError, Image.DecompressionBombError) as error:
        raise SheetError(f"The frame of scene {n} is no picture: {error}") from error
    if picture.width < ENLARGED_TO_PX:
        height = round(picture.height * ENLARGED_TO_PX / picture.width)
        picture = picture.resize((ENLARGED_TO_PX, height), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    picture.save(out, "PNG", compress_level=3)
    return out.getvalue()
