"""Each kind of broken data is found, named by its file, and not found in a clean folder."""

from __future__ import annotations

import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image, ImageDraw

from models.training.__main__ import cli
from models.training.dataset.buckets import Bucket
from models.training.dataset.checking import Inspection, Rules, inspect
from models.training.dataset.findings import RULES, Kind
from tests.models.training.dataset.conftest import RESOLUTION, TRIGGER, caption_of, drawn, put

RULES_HERE = Rules((RESOLUTION,), trigger=TRIGGER)
Break = Callable[[Path], object]


def checked(folder: Path, rules: Rules = RULES_HERE) -> Inspection:
    return inspect(folder, rules)


def say(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(text, encoding="utf-8")


def truncated(folder: Path) -> None:
    data = (folder / "b.jpg").read_bytes()
    (folder / "b.jpg").write_bytes(data[: len(data) // 2])


def animated(folder: Path) -> None:
    frames = [drawn(20), drawn(21)]
    frames[0].save(folder / "c.webp", save_all=True, append_images=frames[1:])


def animated_png(folder: Path) -> None:
    drawn(20).save(folder / "a.png", save_all=True, append_images=[drawn(21)])


def bomb(folder: Path) -> None:
    """A PNG of 60 kB whose header says 40,000 x 40,000 pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    head = struct.pack(">IIBBBBB", 40_000, 40_000, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(60_000_000), 1)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", pixels)
    (folder / "a.png").write_bytes(data + chunk(b"IEND", b""))


def wide(folder: Path) -> None:
    """Over our limit and under Pillow's error."""
    Image.new("1", (10_000, 9_000)).save(folder / "a.png")


def transparent(folder: Path) -> None:
    image = drawn(0, mode="RGBA")
    image.putpixel((3, 3), (0, 0, 0, 120))
    image.save(folder / "a.png")


def transparent_palette(folder: Path) -> None:
    drawn(0, mode="P").save(folder / "a.png", transparency=0)


def rotated(folder: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    drawn(1, (256, 192)).save(folder / "b.jpg", exif=exif)


def retouched(folder: Path) -> None:
    """The first picture, smaller, darker, with a mark and lossy."""
    image = Image.open(folder / "a.png").resize((180, 135)).point(lambda level: level * 0.8)
    ImageDraw.Draw(image).rectangle((5, 5, 20, 12), "white")
    image.save(folder / "b.jpg", quality=70)


def linked(folder: Path) -> None:
    outside = folder.parent / "secret.png"
    drawn(9).save(outside)
    (folder / "f.png").symlink_to(outside)


def linked_caption(folder: Path) -> None:
    say(folder.parent, "secret.txt", "a secret")
    (folder / "a.txt").unlink()
    (folder / "a.txt").symlink_to(folder.parent / "secret.txt")


def linked_folder(folder: Path) -> None:
    (folder / "again").symlink_to(folder / "below")


def same_captions(folder: Path) -> None:
    for name in ("a.txt", "b.txt", "c.txt"):
        say(folder, name, caption_of(7))


def blank(folder: Path) -> None:
    Image.new("RGB", (256, 192), "white").save(folder / "b.jpg")


def unlicensed(folder: Path) -> None:
    say(folder, "sources.csv", "picture,source,licence\nc.webp,us,CC0-1.0\n")


BROKEN: list[tuple[Kind, str, Break]] = [
    (Kind.MISSING_CAPTION, "a.png", lambda f: (f / "a.txt").unlink()),
    (Kind.MISSING_CAPTION, "a.png", linked_caption),
    (Kind.EMPTY_CAPTION, "b.jpg", lambda f: say(f, "b.txt", " \n,\n")),
    (Kind.CAPTION_UNREADABLE, "b.jpg", lambda f: (f / "b.txt").write_bytes(b"\xe9t\xe9")),
    (Kind.ORPHAN_CAPTION, "f.txt", lambda f: say(f, "f.txt", caption_of(9))),
    (Kind.UNREADABLE, "b.jpg", truncated),
    (Kind.UNREADABLE, "a.png", lambda f: (f / "a.png").write_text("<html>404</html>")),
    (Kind.UNREADABLE, "a.png", lambda f: (f / "a.png").write_bytes(b"")),
    (Kind.MISLABELLED, "a.png", lambda f: drawn(0).save(f / "a.png", "JPEG")),
    (Kind.MISLABELLED, "b.jpg", lambda f: drawn(1).save(f / "b.jpg", "GIF")),
    (Kind.UNSUPPORTED, "f.gif", lambda f: put(f, "f.gif", 9)),
    (Kind.UNSUPPORTED, "f.BMP", lambda f: put(f, "f.BMP", 9)),
    (Kind.TOO_SMALL, "a.png", lambda f: put(f, "a.png", 0, (300, 72))),
    (Kind.BELOW_RESOLUTION, "a.png", lambda f: put(f, "a.png", 0, (120, 120))),
    (Kind.MUCH_CROPPED, "a.png", lambda f: put(f, "a.png", 0, (1600, 160))),
    (Kind.DUPLICATE, "b2.jpg", lambda f: shutil.copy(f / "b.jpg", f / "b2.jpg")),
    (Kind.NEAR_DUPLICATE, "b.jpg", retouched),
    (Kind.ANIMATED, "c.webp", animated),
    (Kind.ANIMATED, "a.png", animated_png),
    (Kind.TOO_MANY_PIXELS, "a.png", bomb),
    (Kind.TOO_MANY_PIXELS, "a.png", wide),
    (Kind.SHARED_STEM, "a.png", lambda f: put(f, "a.jpg", 9)),
    (Kind.CASE_COLLISION, "a.png", lambda f: put(f, "A.png", 9)),
    (Kind.CASE_COLLISION, "a.png", lambda f: (f / "a.txt").rename(f / "A.txt")),
    (Kind.TRANSPARENT, "a.png", transparent),
    (Kind.TRANSPARENT, "a.png", transparent_palette),
    (Kind.ROTATED, "b.jpg", rotated),
    (Kind.BLANK, "b.jpg", blank),
    (Kind.TRIGGER_MISSING, "a.png", lambda f: say(f, "a.txt", "a dog in a park")),
    (Kind.TRIGGER_INSIDE_WORD, "a.png", lambda f: say(f, "a.txt", "pink styled dogs")),
    (Kind.DASHES, "a.png", lambda f: say(f, "a.txt", f"{TRIGGER} a dog --ar 16:9")),
    (Kind.SAME_CAPTION, "a.png", same_captions),
    (Kind.LINK_LEAVES, "f.png", linked),
    (Kind.LINK_IGNORED, "again", linked_folder),
    (Kind.SOURCES_UNREADABLE, "sources.csv", lambda f: say(f, "sources.csv", "name,url\n")),
    (
        Kind.SOURCES_UNREADABLE,
        "sources.csv",
        lambda f: (f / "sources.csv").write_bytes(b"picture,source,licence\n\xff,,\n"),
    ),
    (
        Kind.SOURCE_WITHOUT_PICTURE,
        "sources.csv",
        lambda f: say(f, "sources.csv", "picture,source,licence\n*,us,CC0\nx.png,us,CC0\n"),
    ),
    (Kind.LICENCE_MISSING, "sources.csv", unlicensed),
    (Kind.LICENCE_MISSING, "sources.csv", lambda f: (f / "sources.csv").unlink()),
    (Kind.NO_PICTURES, ".", lambda f: (shutil.rmtree(f), f.mkdir())),
]


def test_a_clean_folder_has_no_finding(folder: Path) -> None:
    assert checked(folder).findings == []


@pytest.mark.parametrize(("kind", "file", "break_it"), BROKEN)
def test_broken_data_is_found(folder: Path, kind: Kind, file: str, break_it: Break) -> None:
    break_it(folder)
    found = {(finding.kind, finding.file): finding for finding in checked(folder).findings}
    assert (kind, file) in found
    finding = found[kind, file]
    assert finding.severity == RULES[kind].severity
    assert finding.why
    assert finding.fix
    assert "\n" not in str(finding)


def test_every_kind_that_check_knows_is_tried() -> None:
    of_prepare = {Kind.CAPTION_FAILED, Kind.CAPTION_REFUSED}
    assert {kind for kind, _, _ in BROKEN} == set(Kind) - of_prepare == set(RULES) - of_prepare


@pytest.mark.parametrize(
    "harmless",
    [
        lambda f: say(f, "a.txt", "a dog drawn in [trigger], running"),
        lambda f: say(f, "a.txt", f"two pink styled dogs, {TRIGGER}"),
        lambda f: say(f, "a.txt", f"{TRIGGER}, a well-known dog - at night"),
        lambda f: put(f, ".hidden/x.png", 0, (20, 20)),
        lambda f: drawn(0, mode="RGBA").save(f / "a.png"),
        lambda f: (f / "below/e.txt").rename(f / "below/default.txt"),
        lambda f: (f / "notes.md").write_text("what else lies here"),
        lambda f: drawn(1, (192, 256), "L").save(f / "b.jpg"),
    ],
)
def test_what_only_looks_broken_is_not_found(folder: Path, harmless: Break) -> None:
    harmless(folder)
    assert checked(folder).findings == []


def test_different_drawings_on_white_are_no_near_duplicates(tmp_path: Path) -> None:
    """A few black lines on white: hashes come close, pictures do not."""
    for number in range(12):
        image = Image.new("RGB", (256, 192), "white")
        draw = ImageDraw.Draw(image)
        draw.rectangle((20 + 14 * number, 40, 80 + 12 * number, 150), outline="black", width=5)
        image.save(tmp_path / f"{number}.png")
    assert Kind.NEAR_DUPLICATE not in {f.kind for f in checked(tmp_path).findings}


def test_sizes_are_those_of_the_upright_picture(folder: Path) -> None:
    rotated(folder)
    seen = checked(folder).looks["b.jpg"]
    assert (seen.width, seen.height) == (192, 256)


def test_a_smaller_least_side_can_be_asked_for(folder: Path) -> None:
    put(folder, "a.png", 0, (300, 72))
    lenient = Rules((RESOLUTION,), trigger=TRIGGER, min_side=64)
    assert checked(folder, lenient).errors == []


def test_buckets_are_counted_for_each_resolution(folder: Path) -> None:
    found = checked(folder, Rules((64, RESOLUTION), trigger=TRIGGER))
    assert found.buckets(64)[Bucket(64, 48)] == 2
    assert found.buckets(RESOLUTION).total() == 5


def test_progress_reaches_the_end(folder: Path) -> None:
    ticks: list[tuple[int, int]] = []
    inspect(folder, RULES_HERE, lambda done, total: ticks.append((done, total)))
    assert ticks == [(n, 5) for n in range(1, 6)]


def run(*words: str | Path) -> tuple[int, str]:
    result = CliRunner().invoke(cli, ["dataset", *map(str, words)])
    return result.exit_code, result.output


def test_check_exits_with_one_for_errors_only(folder: Path) -> None:
    args = "--trigger", TRIGGER, "--resolution", str(RESOLUTION)
    assert run("check", folder, *args) == (0, "5 pictures, 0 errors, 0 warnings\n")
    say(folder, "orphan.txt", "x")
    code, text = run("check", folder, *args)
    assert code == 0
    assert text.startswith("warning: orphan caption: orphan.txt: it has no picture: delete it")
    truncated(folder)
    code, text = run("check", folder, *args)
    assert code == 1
    assert text.startswith("error: unreadable picture: b.jpg: it cannot be decoded")


def test_check_shows_ten_of_a_kind_or_all(folder: Path) -> None:
    for number in range(12):
        say(folder, f"orphan{number:02}.txt", "x")
    assert "warning: orphan caption: 2 more (--all)" in run("check", folder)[1]
    assert "orphan11.txt" in run("check", folder, "--all")[1]


@pytest.mark.parametrize("verb", ["check", "prepare"])
def test_a_missing_folder_is_one_sentence(tmp_path: Path, verb: str) -> None:
    out = [tmp_path / "out"] if verb == "prepare" else []
    code, text = run(verb, tmp_path / "nowhere", *out)
    assert code == 1
    assert text.startswith("Error: ")
    assert "nowhere is not a folder" in text
    assert len(text.splitlines()) == 1


def test_the_report_does_not_go_into_the_dataset(folder: Path) -> None:
    code, text = run("check", folder, "--report", folder / "report.html")
    assert code == 1
    assert "name a file elsewhere" in text
    assert not (folder / "report.html").exists()
