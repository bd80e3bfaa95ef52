"""The process in which text in pictures is read: `python -m` this, see workers.py.

Lines are found by PP-OCRv6's detector, whose model is in rapidocr's wheel. Each line is read twice:
by PP-OCRv6's recogniser (Latin letters, digits, Chinese, Japanese; it knows no Hangul) and by
Tesseract (Korean and English), which needs black letters on white and gets them: the line's colours
are put into groups, and each group, and all but each group, is tried. The more plausible reading
stands. Nothing is downloaded: what is missing is named at the start.
"""

from __future__ import annotations

import importlib.util
import io
import json
import os
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from services.vetting.adapters.workers import refuse_to_serve, serve

LANGUAGES = ("kor", "eng")
PACKAGES = ("rapidocr", "onnxruntime", "tesserocr", "cv2")
MODELS = {
    "Det": "PP-OCRv6_det_small.onnx",
    "Rec": "PP-OCRv6_rec_small.onnx",
    "Cls": "ch_ppocr_mobile_v2.0_cls_mobile.onnx",
}
TESSDATA = (
    "/usr/share/tesseract-ocr/5/tessdata", "/usr/share/tesseract-ocr/4.00/tessdata",
    "/usr/share/tessdata", "/usr/local/share/tessdata", "/opt/homebrew/share/tessdata",
)  # fmt: skip
MAX_LINES = 40
DETECTED_SIDE_PX = 960
LINE_PX = 56
MAX_LINE_PX = 40 * LINE_PX
MARGIN_PX = 14
COLOURS = 5
SURE = 0.93

Pixels = np.ndarray[Any, np.dtype[np.uint8]]
Corners = np.ndarray[Any, np.dtype[np.float32]]
Reading = tuple[str, float]
"""Text, and the reader's confidence from 0 to 1."""


def lacking() -> str:
    """What has to be installed before this can work; empty when nothing is missing."""
    packages = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if packages:
        return f"Python packages are missing: {', '.join(packages)}. Install joing[vetting]."
    if missing := [name for name in MODELS.values() if not (_models() / name).exists()]:
        return f"rapidocr's wheel should hold {', '.join(missing)}. Install rapidocr>=3.10,<4."
    if tessdata() is None:
        needed = ", ".join(f"{name}.traineddata" for name in LANGUAGES)
        return (
            f"Tesseract's {needed} are not in TESSDATA_PREFIX nor in {', '.join(TESSDATA)}. "
            "Debian and Ubuntu: apt-get install tesseract-ocr-kor tesseract-ocr-eng."
        )
    return ""


def tessdata() -> str | None:
    """The first folder that holds all LANGUAGES."""
    prefix = os.environ.get("TESSDATA_PREFIX")
    for folder in (prefix,) if prefix else TESSDATA:
        if all((Path(folder) / f"{name}.traineddata").exists() for name in LANGUAGES):
            return folder
    return None


class Reader:
    """Both engines, loaded. Single-threaded; about 0.3 GB."""

    def __init__(self) -> None:
        tesserocr = import_module("tesserocr")
        paths = {f"{part}.model_path": str(_models() / name) for part, name in MODELS.items()}
        self._lines = import_module("rapidocr").RapidOCR(
            params={
                **paths,
                "Global.log_level": "error",
                "Det.limit_type": "max",
                "Det.limit_side_len": DETECTED_SIDE_PX,
                "EngineConfig.onnxruntime.intra_op_num_threads": 1,
                "EngineConfig.onnxruntime.inter_op_num_threads": 1,
                "EngineConfig.onnxruntime.enable_cpu_mem_arena": False,
            }
        )
        self._tesseract = tesserocr.PyTessBaseAPI(
            path=tessdata(), lang="+".join(LANGUAGES), psm=tesserocr.PSM.SINGLE_LINE
        )

    def read(self, picture: bytes) -> list[dict[str, Any]]:
        """Lines as {text, confidence, box}, from the largest; boxes in shares of the picture."""
        pixels = np.asarray(Image.open(io.BytesIO(picture)).convert("RGB"))
        found = []
        for corners in self._corners(pixels):
            text, confidence = self._line(_straightened(pixels, corners))
            if text:
                box = _box(corners, pixels.shape[1], pixels.shape[0])
                found.append({"text": text, "confidence": confidence, "box": box})
        return found

    def _corners(self, pixels: Pixels) -> list[Corners]:
        """Four corners of each line, clockwise from the upper left of its text; in px."""
        found = self._lines(_bgr(pixels), use_det=True, use_cls=False, use_rec=False)
        corners = [] if found.boxes is None else [np.asarray(b, np.float32) for b in found.boxes]
        return sorted(corners, key=_area, reverse=True)[:MAX_LINES]

    def _line(self, line: Pixels) -> Reading:
        latin = self._recognised(line)
        if latin[1] >= SURE and latin[0].isascii() and _fills(latin[0], line):
            return latin
        return chosen(latin, self._by_tesseract(line))

    def _recognised(self, line: Pixels) -> Reading:
        found = self._lines(_bgr(line), use_det=False, use_cls=False, use_rec=True)
        return (found.txts[0].strip(), float(found.scores[0])) if found.txts else ("", 0.0)

    def _by_tesseract(self, line: Pixels) -> Reading:
        best: Reading = ("", 0.0)
        for image in _black_on_white(line):
            self._tesseract.SetImage(image)
            text = " ".join(self._tesseract.GetUTF8Text().split())
            confidence = self._tesseract.MeanTextConf() / 100
            if text and confidence > best[1]:
                best = (text, confidence)
            if best[1] >= SURE:
                break
        return best


def chosen(latin: Reading, korean: Reading) -> Reading:
    """The recogniser that knows no Hangul skips what it cannot read: a reading of it that is much
    shorter than Tesseract's has left something out.
    """
    needed = 0.85 if latin[0].isascii() else 0.95
    is_whole = len(latin[0].replace(" ", "")) >= 0.8 * len(korean[0].replace(" ", ""))
    if latin[0] and latin[1] >= needed and is_whole:
        return latin
    return korean if korean[0] else latin


def _fills(text: str, line: Pixels) -> bool:
    """True when so many letters are enough for a line of this shape. Capitals are about 0.7 of a
    line's height wide, lower case 0.5, syllables of Hangul 0.9.
    """
    height, width = line.shape[:2]
    return bool(len(text) * 0.8 >= 0.75 * width / height)


def _black_on_white(line: Pixels) -> Iterator[Image.Image]:
    """The line as it is, then each group of its colours as the letters, then as the background."""
    small = _at_height(line)
    yield _framed(Image.fromarray(small), tuple(int(v) for v in small[[0, -1]].mean(axis=(0, 1))))
    groups = _colour_groups(small)
    for letters in (False, True):
        for group in range(COLOURS):
            mask = (groups == group) == letters
            yield _framed(Image.fromarray(mask.astype(np.uint8) * 255), 255)


def _colour_groups(line: Pixels) -> Pixels:
    """The group of each pixel, 0 to COLOURS - 1: k-means on CIELAB, from a fixed seed."""
    cv2 = import_module("cv2")
    lab = cv2.cvtColor(line, cv2.COLOR_RGB2LAB).astype(np.float32).reshape(-1, 3)
    cv2.setRNGSeed(1)
    enough = (cv2.TERM_CRITERIA_EPS + cv2.TERM_CRITERIA_MAX_ITER, 12, 1.0)
    _, groups, _ = cv2.kmeans(lab, COLOURS, None, enough, 1, cv2.KMEANS_PP_CENTERS)
    labels: Pixels = groups.reshape(line.shape[:2])
    return labels


def _straightened(pixels: Pixels, corners: Corners) -> Pixels:
    """The quadrilateral as an upright rectangle."""
    cv2 = import_module("cv2")
    top, right, bottom, left = (
        float(np.linalg.norm(corners[i] - corners[(i + 1) % 4])) for i in range(4)
    )
    width, height = max(4, round(max(top, bottom))), max(4, round(max(left, right)))
    upright = np.array([[0, 0], [width, 0], [width, height], [0, height]], np.float32)
    matrix = cv2.getPerspectiveTransform(corners, upright)
    line: Pixels = cv2.warpPerspective(
        pixels, matrix, (width, height), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE
    )
    return line


def _at_height(line: Pixels) -> Pixels:
    height, width = line.shape[:2]
    new_width = min(MAX_LINE_PX, max(8, round(width * LINE_PX / height)))
    image = Image.fromarray(line).resize((new_width, LINE_PX), Image.Resampling.LANCZOS)
    return np.asarray(image)


def _framed(image: Image.Image, colour: int | tuple[int, ...]) -> Image.Image:
    size = (image.width + 2 * MARGIN_PX, image.height + 2 * MARGIN_PX)
    framed = Image.new(image.mode, size, colour)
    framed.paste(image, (MARGIN_PX, MARGIN_PX))
    return framed


def _box(corners: Corners, width: int, height: int) -> list[float]:
    """x, y, width, height around the corners, as shares of the picture."""
    low = np.clip(corners.min(axis=0) / (width, height), 0, 1)
    high = np.clip(corners.max(axis=0) / (width, height), 0, 1)
    return [round(float(v), 4) for v in (*low, *(high - low))]


def _area(corners: Corners) -> float:
    x, y = corners[:, 0], corners[:, 1]
    return abs(float(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1)))) / 2


def _bgr(pixels: Pixels) -> Pixels:
    return np.ascontiguousarray(pixels[:, :, ::-1])


def _models() -> Path:
    spec = importlib.util.find_spec("rapidocr")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "models"


def main() -> None:
    if lacks := lacking():
        refuse_to_serve(lacks)
        return
    reader = Reader()
    serve(lambda picture: json.dumps(reader.read(picture)).encode())


if __name__ == "__main__":
    main()
