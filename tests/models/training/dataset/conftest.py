"""A small clean dataset, drawn here, for tests to break."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

TRIGGER = "ink style"
RESOLUTION = 160


def drawn(seed: int, size: tuple[int, int] = (256, 192), mode: str = "RGB") -> Image.Image:
    """A picture unlike that of any other seed."""
    rng = random.Random(seed)
    image = Image.new("RGB", size, (235, 235, 225))
    draw = ImageDraw.Draw(image)
    for _ in range(9):
        left, top = rng.randrange(size[0]), rng.randrange(size[1])
        box = (left, top, left + rng.randrange(20, 120), top + rng.randrange(20, 120))
        draw.ellipse(box, fill=tuple(rng.randrange(256) for _ in range(3)), outline="black")
    return image.convert(mode)


def caption_of(number: int) -> str:
    return f"{TRIGGER} black and white color illustration, {number} dogs running in a park"


def put(folder: Path, name: str, number: int, size: tuple[int, int] = (256, 192)) -> Path:
    """A picture with its caption."""
    picture = folder / name
    picture.parent.mkdir(parents=True, exist_ok=True)
    drawn(number, size).save(picture)
    picture.with_suffix(".txt").write_text(caption_of(number), encoding="utf-8")
    return picture


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five pictures of three formats, two of them below, with captions, sources and a licence."""
    home = tmp_path / "pictures"
    names = "a.png", "b.jpg", "c.webp", "below/d.png", "below/e.JPEG"
    sizes = (256, 192), (192, 256), (256, 256), (512, 288), (256, 192)
    for number, (name, size) in enumerate(zip(names, sizes, strict=True)):
        put(home, name, number, size)
    (home / "sources.csv").write_text(
        "picture,source,licence\na.png,https://example.org/a,CC-BY-4.0\n*,drawn by us,CC0-1.0\n"
    )
    return home
