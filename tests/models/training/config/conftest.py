"""Pictures to point configurations at, and configurations that nothing is wrong with."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

PICTURES = 20


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty pictures a little above one megapixel, with captions."""
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(PICTURES):
        Image.new("L", (1152, 960), number).save(folder / f"{number:02}.png")
        caption = f"jo1nk black and white color illustration, {number} dogs in a park"
        (folder / f"{number:02}.txt").write_text(caption, encoding="utf-8")
    return folder


@pytest.fixture
def sound(tmp_path: Path, pictures: Path) -> str:
    """The text of a configuration without a finding."""
    return _filled("dev.yaml", tmp_path, pictures)


@pytest.fixture
def sound_schnell(tmp_path: Path, pictures: Path) -> str:
    return _filled("schnell.yaml", tmp_path, pictures)


def _filled(name: str, output: Path, pictures: Path) -> str:
    text = (Path(__file__).parent / "files" / name).read_text(encoding="utf-8")
    return text.replace("OUTPUT", str(output / "output")).replace("DATA", str(pictures))
