"""The page says what was found, fetches nothing, runs nothing, and is the same every time."""

from __future__ import annotations

import base64
import re
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image

from models.training.__main__ import cli
from models.training.dataset import report
from models.training.dataset.folder import list_folder
from tests.models.training.dataset.conftest import RESOLUTION, TRIGGER, put

OPTIONS = ("--resolution", str(RESOLUTION), "--trigger", TRIGGER)
MARKUP = "<script>alert(1)</script> & a dog"


class Page(HTMLParser):
    """Tags with their attributes, and every table cell's text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.cells: list[str] = []
        self._in_cell = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._in_cell = tag == "td"
        if self._in_cell:
            self.cells.append("")

    def handle_data(self, data: str) -> None:
        if self._in_cell:
            self.cells[-1] += data

    def handle_endtag(self, tag: str) -> None:
        if tag == "td":
            self._in_cell = False


def checked(folder: Path, page: Path) -> str:
    words = ["dataset", "check", str(folder), "--report", str(page), *OPTIONS]
    result = CliRunner().invoke(cli, words)
    assert f"report: {page}" in result.output
    return page.read_text(encoding="utf-8")


@pytest.fixture
def page(tmp_path: Path) -> Path:
    return tmp_path / "reports" / "check.html"


def test_findings_captions_buckets_and_licences_are_in_it(folder: Path, page: Path) -> None:
    (folder / "a.txt").write_text(MARKUP)
    (folder / "b.jpg").write_bytes(b"nothing")
    text = checked(folder, page)
    shown = Page(text)
    for cell in (MARKUP, "unreadable picture", "b.jpg", "trigger missing", "CC-BY-4.0", "512x288"):
        assert cell in shown.cells
    assert f"Buckets at {RESOLUTION}" in text
    assert "<b>5</b> pictures" in text
    assert "<b>1</b> errors" in text


def test_it_fetches_nothing_and_runs_nothing(folder: Path, page: Path) -> None:
    (folder / "a.txt").write_text(MARKUP)
    put(folder, 'x"><img src=http:..1.png', 40)
    text = checked(folder, page)
    tags = Page(text).tags
    assert {tag for tag, _ in tags}.isdisjoint({"script", "link", "iframe", "a"})
    sources = [attrs["src"] for _, attrs in tags if "src" in attrs]
    assert len(sources) == 1
    assert str(sources[0]).startswith("data:image/jpeg;base64,")
    assert not re.search(r"url\(|@import", text)


def test_the_sheet_is_beside_the_page_and_in_it(folder: Path, page: Path) -> None:
    text = checked(folder, page)
    with Image.open(page.with_suffix(".png")) as sheet:
        assert sheet.format == "PNG"
        size = sheet.size
    data = re.findall(r"base64,([^\"]+)", text)[0]
    with Image.open(BytesIO(base64.b64decode(data))) as embedded:
        assert embedded.size == size


def test_the_same_folder_gives_the_same_bytes(folder: Path, page: Path) -> None:
    first = checked(folder, page), page.with_suffix(".png").read_bytes()
    assert (checked(folder, page), page.with_suffix(".png").read_bytes()) == first


def test_many_pictures_are_sampled_but_none_with_a_finding(
    folder: Path, page: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "SHOWN", 6)
    for number in range(50, 60):
        put(folder, f"many{number}.png", number)
    (folder / "many57.txt").write_text("a dog without a trigger")
    text = checked(folder, page)
    assert "6 of 15 pictures, those with findings first" in text
    assert "a dog without a trigger" in Page(text).cells


def test_a_finding_frames_its_picture(folder: Path, page: Path) -> None:
    (folder / "b.txt").unlink()
    (folder / "c.txt").write_text("a dog without a trigger")
    checked(folder, page)
    with Image.open(page.with_suffix(".png")) as sheet:
        colours = {colour for _, colour in sheet.getcolors(2**20)}
    assert {(0xC6, 0x28, 0x28), (0xE6, 0x95, 0x00)} <= colours


def test_a_folder_without_a_readable_picture_has_a_page(tmp_path: Path, page: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.png").write_bytes(b"nothing")
    text = checked(tmp_path / "data", page)
    assert "No picture could be decoded." in text
    assert "There are no captions." in text


def test_what_is_prepared_has_its_page_and_no_picture_more(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (folder / "a.txt").write_text("a dog")
    (folder / "b.txt").unlink()
    result = CliRunner().invoke(cli, ["dataset", "prepare", str(folder), str(out), *OPTIONS])
    assert result.exit_code == 0, result.output
    shown = Page((out / "report.html").read_text(encoding="utf-8"))
    for cell in ("missing caption", "trigger missing", f"{TRIGGER}, a dog", "176x128"):
        assert cell in shown.cells
    assert (out / ".report" / "contact-sheet.png").is_file()
    assert len(list_folder(out).pictures) == 4
