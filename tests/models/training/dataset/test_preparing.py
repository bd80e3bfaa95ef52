"""What is prepared is upright, opaque, in its bucket and captioned; it appears whole or not at all,
and the same command over the same folder makes the same bytes however often it was killed."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from filelock import FileLock
from PIL import Image, ImageCms

from models.training.__main__ import cli
from models.training.dataset.captioning import Captioner, Seer
from models.training.dataset.checking import inspect
from models.training.dataset.findings import Kind
from models.training.dataset.folder import data_hash, file_hash, read_examples
from models.training.dataset.manifest import Manifest, read_manifest
from models.training.dataset.preparing import Preparation, Recipe, prepare
from models.training.errors import DatasetUnusable, OutOfDisk
from tests.models.training.dataset.conftest import RESOLUTION, TRIGGER, caption_of, drawn, put
from tests.models.training.dataset.seeing_server import Act, SeeingServer, seeing_server

STYLE = "black and white color illustration"
RECIPE = Recipe(RESOLUTION, trigger=TRIGGER, style_words=STYLE)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "made" / "out"


@pytest.fixture
def server() -> Iterator[SeeingServer]:
    with seeing_server() as running:
        yield running


def contents(folder: Path) -> dict[str, str]:
    """Every file below, and its bytes' hash."""
    return {
        str(file.relative_to(folder)): file_hash(file)
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def read(folder: Path) -> Manifest:
    made = read_manifest(folder)
    assert made is not None
    return made


def captioned(folder: Path, out: Path, server: SeeingServer, **settings: object) -> Preparation:
    seer = replace(Seer(server.url, "eyes", timeout_s=5), **settings)  # type: ignore[arg-type]
    with Captioner(seer) as captioner:
        return prepare(folder, out, RECIPE, captioner=captioner)


def test_pictures_and_captions_are_as_a_trainer_wants_them(folder: Path, out: Path) -> None:
    before = contents(folder)
    done = prepare(folder, out, RECIPE)
    assert contents(folder) == before
    names = ["a.png", "b.png", "below/d.png", "below/e.png", "c.png"]
    assert [example.picture for example in read_examples(out)] == [out / name for name in names]
    for picture in done.manifest.pictures:
        with Image.open(out / picture.name) as image:
            assert (image.mode, image.format) == ("RGB", "PNG")
            assert image.size == picture.bucket
        assert all(side % 16 == 0 for side in picture.bucket)
        assert picture.bucket[0] * picture.bucket[1] <= RESOLUTION**2
        assert picture.caption.startswith(f"{TRIGGER} {STYLE}, ")
        assert (out / picture.name).with_suffix(".txt").read_text() == f"{picture.caption}\n"
    assert not [path for path in out.parent.iterdir() if path.name.endswith(".partial")]


def test_the_manifest_tells_where_everything_comes_from(folder: Path, out: Path) -> None:
    prepare(folder, out, RECIPE)
    made = read(out)
    told = json.loads((out / "dataset.json").read_text())
    assert (told["version"], told["trigger"], told["resolution"]) == (1, TRIGGER, RESOLUTION)
    assert made.data_hash == data_hash(read_examples(out))
    by_name = {picture.original: picture for picture in made.pictures}
    first = by_name["a.png"]
    assert (first.source, first.licence) == ("https://example.org/a", "CC-BY-4.0")
    assert (by_name["below/e.JPEG"].licence, made.licences) == ("CC0-1.0", ("CC-BY-4.0", "CC0-1.0"))
    assert first.original_sha256 == file_hash(folder / "a.png")
    assert first.sha256 == file_hash(out / "a.png")
    assert first.size == (256, 192)


def test_exif_transparency_and_colour_profiles_are_applied(folder: Path, out: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    half = Image.new("RGB", (256, 192), "red")
    half.paste("blue", (0, 0, 256, 96))
    half.save(folder / "b.jpg", exif=exif, quality=95)
    clear = drawn(0, mode="RGBA")
    clear.paste((0, 0, 0, 0), (0, 0, 128, 192))
    clear.save(folder / "a.png")
    Image.linear_gradient("L").convert("I;16").point(lambda v: v * 256).save(folder / "c16.png")
    (folder / "c16.txt").write_text(caption_of(9))
    done = prepare(folder, out, RECIPE)
    with Image.open(out / "b.png") as image:
        top, bottom = image.getpixel((50, 5)), image.getpixel((50, image.height - 6))
        assert top[0] - top[2] > 150
        assert bottom[2] - bottom[0] > 150
        assert not image.getexif()
    with Image.open(out / "a.png") as image:
        assert image.getpixel((5, 5)) == (255, 255, 255)
    with Image.open(out / "c16.png") as image:
        low, high = image.convert("L").getextrema()
        assert low < 10
        assert high > 240
    assert {(f.kind, f.file) for f in done.mended} >= {
        (Kind.ROTATED, "b.jpg"),
        (Kind.TRANSPARENT, "a.png"),
    }


def test_colours_of_another_profile_become_srgb(folder: Path, out: Path) -> None:
    """In this profile the strongest red is our blue, and the other way round."""
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    swapped = srgb.replace(b"rXYZ", b"----").replace(b"bXYZ", b"rXYZ").replace(b"----", b"bXYZ")
    picture = Image.new("RGB", (256, 192), "red")
    picture.paste("white", (0, 0, 128, 192))
    picture.save(folder / "a.png", icc_profile=swapped)
    prepare(folder, out, RECIPE)
    with Image.open(out / "a.png") as image:
        red, _, blue = image.getpixel((image.width - 5, 5))
        assert red < 30
        assert blue > 220
        assert set(image.info) == set()


def test_what_is_broken_is_left_out_and_named(folder: Path, out: Path) -> None:
    (folder / "a.png").write_bytes(b"no picture")
    (folder / "b.txt").unlink()
    drawn(5).save(folder / "c.webp", "PNG")
    drawn(6).save(folder / "f.gif")
    drawn(7).save(folder / "g.png", "GIF")
    (folder / "g.txt").write_text("a dog --v 5")
    done = prepare(folder, out, RECIPE)
    assert done.skipped == ["a.png", "b.jpg", "f.gif", "g.png"]
    assert {finding.file for finding in done.findings} == set(done.skipped)
    assert (Kind.MISLABELLED, "c.webp") in {(f.kind, f.file) for f in done.mended}
    assert len(read(out).pictures) == 3


def test_what_is_prepared_passes_the_check(folder: Path, out: Path) -> None:
    put(folder, "long.png", 12, (1200, 300))
    prepare(folder, out, replace(RECIPE, resolution=147))
    assert inspect(out, replace(RECIPE, resolution=147).rules).findings == []


def test_a_missing_licence_is_kept_as_missing_and_named(folder: Path, out: Path) -> None:
    (folder / "sources.csv").write_text("picture,source,licence\na.png,us,CC0-1.0\n")
    done = prepare(folder, out, RECIPE)
    assert done.manifest.licences == ("", "CC0-1.0")
    (finding,) = done.findings
    assert finding.kind == Kind.LICENCE_MISSING
    assert "4 of 5" in finding.why


def test_sources_that_cannot_be_read_stop_everything(folder: Path, out: Path) -> None:
    (folder / "sources.csv").write_text("name;licence\n")
    with pytest.raises(DatasetUnusable, match=r"sources\.csv.*no column licence, picture, source"):
        prepare(folder, out, RECIPE)
    assert not out.exists()


def test_nothing_to_prepare_leaves_no_folder(folder: Path, out: Path) -> None:
    for caption in folder.rglob("*.txt"):
        caption.unlink()
    with pytest.raises(DatasetUnusable, match=r"no picture of .* can be prepared"):
        prepare(folder, out, RECIPE)
    assert not out.exists()


def test_again_changes_nothing_and_prepares_nothing(folder: Path, out: Path) -> None:
    prepare(folder, out, RECIPE)
    first, inode = contents(out), out.stat().st_ino
    assert prepare(folder, out, RECIPE).kept == 5
    assert contents(out) == first
    assert out.stat().st_ino == inode


def test_changes_are_followed_and_the_rest_is_kept(folder: Path, out: Path, tmp_path: Path) -> None:
    prepare(folder, out, RECIPE)
    (folder / "a.txt").write_text("a cat in a kitchen")
    (folder / "c.webp").unlink()
    (folder / "c.txt").unlink()
    put(folder, "below/f.png", 30)
    done = prepare(folder, out, RECIPE)
    assert done.kept == 3
    assert not (out / "c.png").exists()
    fresh = prepare(folder, tmp_path / "fresh", RECIPE)
    assert fresh.manifest == done.manifest
    assert contents(tmp_path / "fresh") == contents(out)


def test_another_resolution_makes_other_pictures(folder: Path, out: Path) -> None:
    prepare(folder, out, RECIPE)
    assert prepare(folder, out, replace(RECIPE, resolution=128)).kept == 0
    assert read(out).resolution == 128


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda out: (out / "a.txt").write_text("by hand"), "changed since"),
        (lambda out: (out / "a.png").unlink(), "changed since"),
        (lambda out: (out / "notes.md").write_text("mine"), "would be lost"),
        (lambda out: (out / "dataset.json").unlink(), "not prepared"),
        (lambda out: (out / "dataset.json").write_text("{}"), "no manifest"),
    ],
)
def test_nothing_of_a_persons_is_overwritten(
    folder: Path, out: Path, spoil: object, message: str
) -> None:
    prepare(folder, out, RECIPE)
    assert callable(spoil)
    spoil(out)
    before = contents(out)
    with pytest.raises(DatasetUnusable, match=message):
        prepare(folder, out, replace(RECIPE, resolution=128))
    assert contents(out) == before


@pytest.mark.parametrize("name", ["out.partial", ".out.replaced"])
def test_folders_of_the_names_that_it_works_in_are_respected(
    folder: Path, out: Path, name: str
) -> None:
    prepare(folder, out, RECIPE)
    theirs = out.with_name(name)
    theirs.mkdir()
    (theirs / "thesis.txt").write_text("mine")
    with pytest.raises(DatasetUnusable, match=f"{name} is in the way"):
        prepare(folder, out, replace(RECIPE, resolution=128))
    assert (theirs / "thesis.txt").read_text() == "mine"


def test_a_trainers_caches_go_with_the_pictures_they_are_of(folder: Path, out: Path) -> None:
    prepare(folder, out, RECIPE)
    (out / "_latent_cache").mkdir()
    (out / "_latent_cache" / "a.safetensors").write_bytes(b"x")
    prepare(folder, out, RECIPE)
    assert (out / "_latent_cache").exists()
    prepare(folder, out, replace(RECIPE, resolution=128))
    assert not (out / "_latent_cache").exists()


@pytest.mark.parametrize("where", ["", "below/out", "..", "."])
def test_out_and_folder_do_not_overlap(folder: Path, where: str) -> None:
    with pytest.raises(DatasetUnusable, match="overlaps"):
        prepare(folder, folder / where, RECIPE)


def test_two_at_once_are_refused(folder: Path, out: Path) -> None:
    out.parent.mkdir(parents=True)
    with FileLock(out.with_name(".out.lock")), pytest.raises(DatasetUnusable, match="another"):
        prepare(folder, out, RECIPE)


def test_a_run_killed_between_the_two_renames_is_taken_up(folder: Path, out: Path) -> None:
    prepare(folder, out, RECIPE)
    first = contents(out)
    out.rename(out.with_name(".out.replaced"))
    assert prepare(folder, out, RECIPE).kept == 5
    assert contents(out) == first
    shutil.copytree(out, out.with_name(".out.replaced"))
    prepare(folder, out, RECIPE)
    assert not out.with_name(".out.replaced").exists()


def test_a_torn_journal_and_a_torn_picture_are_done_again(folder: Path, out: Path) -> None:
    prepare(folder, out, RECIPE)
    first = contents(out)
    partial = out.with_name("out.partial")
    shutil.copytree(out, partial)
    entries = [picture.model_dump_json() for picture in read(out).pictures]
    (partial / ".journal.jsonl").write_text("\n".join(entries)[:-20])
    (partial / "a.png").write_bytes((partial / "a.png").read_bytes()[:100])
    (partial / "dataset.json").unlink()
    (partial / "stray.png").write_bytes(b"left by a kill")
    shutil.rmtree(out)
    assert prepare(folder, out, RECIPE).kept == 3
    assert contents(out) == first


COMMAND = (sys.executable, "-m", "models.training", "dataset", "prepare")
OPTIONS = ("--resolution", str(RESOLUTION), "--trigger", TRIGGER, "--style-words", STYLE)


def test_killed_at_any_time_it_ends_in_the_same_bytes(
    folder: Path, out: Path, tmp_path: Path, server: SeeingServer
) -> None:
    """SIGKILL to the process that a person would start, while it waits for one more caption."""
    for number in range(40, 50):
        put(folder, f"more/{number}.png", number).with_suffix(".txt").unlink()
    options = [*OPTIONS, "--caption-with", server.url, "--model", "eyes", "--concurrency", "1"]
    argv = [*COMMAND, str(folder), str(out), *options]
    for answered in (2, 4):
        server.acts.extend([*[None] * answered, Act(delay_s=60)])
        process = subprocess.Popen(argv, stdout=subprocess.DEVNULL)
        ends = time.monotonic() + 60
        while server.acts and process.poll() is None and time.monotonic() < ends:
            time.sleep(0.02)
        process.kill()
        assert process.wait(60) == -signal.SIGKILL
        assert not out.exists()
    words = ["dataset", "prepare", str(folder)]
    last = CliRunner().invoke(cli, [*words, str(out), *options])
    kept = re.search(r"15 pictures prepared .*\((\d+) of them before\)", last.output)
    assert kept, last.output
    assert 6 <= int(kept[1]) < 15
    whole = tmp_path / "whole" / "out"
    assert CliRunner().invoke(cli, [*words, str(whole), *options]).exit_code == 0
    assert contents(whole) == contents(out)


CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate"}


def crashed(after: int, folder: Path, out: Path, recipe: Recipe) -> bool:
    """Prepares in a child process that ends, without a word, before its change number `after`."""
    changes = 0

    def count(event: str, args: tuple[object, ...]) -> None:
        nonlocal changes
        flags = args[2] if event == "open" and isinstance(args[2], int) else 0
        writes = flags & (os.O_WRONLY | os.O_RDWR)
        if event in CHANGES or writes:
            changes += 1
            if changes > after:
                os._exit(9)

    if (child := os.fork()) == 0:
        status = 1
        try:
            sys.addaudithook(count)
            prepare(folder, out, recipe)
            status = 0
        finally:
            os._exit(status)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, 9)
    return code == 9


def test_a_crash_before_any_change_to_the_disk_is_survived(folder: Path, tmp_path: Path) -> None:
    """With an older OUT to keep from and to replace; OUT is whole or absent, and comes to be."""
    for name in ("c.webp", "c.txt", "b.jpg", "b.txt", "below"):
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    put(folder, "b.png", 1, (96, 96))
    recipe = Recipe(96, trigger=TRIGGER)
    first, wanted, out = tmp_path / "first", tmp_path / "wanted", tmp_path / "out"
    prepare(folder, first, recipe)
    (folder / "b.txt").write_text("a cat")
    prepare(folder, wanted, recipe)
    whole = contents(first), contents(wanted)
    after = 0
    while True:
        shutil.copytree(first, out)
        if not crashed(after, folder, out, recipe):
            break
        assert not out.exists() or contents(out) in whole
        prepare(folder, out, recipe)
        assert contents(out) == whole[1]
        assert {path.name for path in tmp_path.iterdir() if path.is_dir()} == {
            "first", "out", "pictures", "wanted",
        }  # fmt: skip
        shutil.rmtree(out)
        after += 1
    assert after > 20


@contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """A limit on the size of files stands for a disk that takes no more."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)


@pytest.mark.parametrize("full_at", ["a.png", "dataset.json"])
def test_a_full_disk_is_one_sentence_and_goes_on_later(
    tmp_path: Path, out: Path, full_at: str
) -> None:
    """Small pictures: the manifest is the largest file, and is never left in part."""
    folder, whole, recipe = tmp_path / "many", tmp_path / "whole", Recipe(32, trigger=TRIGGER)
    for name in "abcdefghijklmnop":
        put(folder, f"{name}.png", ord(name), (32, 32))
    prepare(folder, whole, recipe)
    limit = (whole / full_at).stat().st_size - 1
    with files_up_to(limit), pytest.raises(OutOfDisk, match="run the same command again"):
        prepare(folder, out, recipe)
    assert not out.exists()
    prepare(folder, out, recipe)
    assert contents(out) == contents(whole)


def test_a_model_writes_the_captions_that_are_missing(
    folder: Path, out: Path, server: SeeingServer
) -> None:
    (folder / "a.txt").unlink()
    (folder / "b.txt").write_text("\n")
    done = captioned(folder, out, server)
    assert len(server.calls) == 2
    by_name = {picture.name: picture for picture in done.manifest.pictures}
    assert by_name["a.png"].caption.startswith(f"{TRIGGER} {STYLE}, a 176 by 128 grey")
    assert (by_name["a.png"].captioned_by, by_name["c.png"].captioned_by) == ("eyes", "")
    assert done.skipped == []
    assert done.findings == []


def test_captions_are_asked_for_once(folder: Path, out: Path, server: SeeingServer) -> None:
    (folder / "a.txt").unlink()
    captioned(folder, out, server)
    captioned(folder, out, server)
    assert len(server.calls) == 1
    captioned(folder, out, server, template="<who> alone")
    assert len(server.calls) == 2


def test_a_refused_picture_is_a_finding_and_no_others_loss(
    folder: Path, out: Path, server: SeeingServer
) -> None:
    for caption in folder.glob("*.txt"):
        caption.unlink()
    server.acts.extend([Act(refusal="no people"), Act("a dog", finish_reason="length")])
    done = captioned(folder, out, server, concurrency=1)
    kinds = {f.kind for f in done.findings} - {Kind.MISSING_CAPTION}
    assert kinds == {Kind.CAPTION_REFUSED, Kind.CAPTION_FAILED}
    assert len(done.skipped) == 2
    assert captioned(folder, out, server).skipped == []


def test_a_server_that_goes_away_loses_no_caption(
    folder: Path, out: Path, server: SeeingServer
) -> None:
    for caption in folder.rglob("*.txt"):
        caption.unlink()
    server.acts.extend([Act("a first dog"), Act("a second dog"), Act(status=401, body=b"no key")])
    with pytest.raises(DatasetUnusable, match="401"):
        captioned(folder, out, server, concurrency=1)
    assert not out.exists()
    asked_before = len(server.calls)
    done = captioned(folder, out, server)
    assert done.kept >= 2
    assert len(server.calls) == asked_before + 5 - done.kept


def test_no_more_are_asked_for_at_once_than_allowed(
    folder: Path, out: Path, server: SeeingServer
) -> None:
    for caption in folder.rglob("*.txt"):
        caption.unlink()
    server.acts.extend(Act(f"dog number {n}", delay_s=0.1) for n in range(5))
    captioned(folder, out, server, concurrency=2)
    assert server.busiest == 2


def test_the_command_says_what_it_did(folder: Path, out: Path, server: SeeingServer) -> None:
    (folder / "a.txt").write_text("a dog")
    (folder / "b.txt").unlink()
    words = ["dataset", "prepare", str(folder), str(out), *OPTIONS]
    told = CliRunner().invoke(cli, [*words, "--caption-with", server.url, "--model", "eyes"])
    assert told.exit_code == 0, told.output
    assert "mended: trigger missing: 1" in told.output
    assert "5 pictures prepared" in told.output
    assert len(server.keys) == 1
    for wrong in (["--caption-with", server.url], ["--style-words", "x", "--trigger", ""]):
        refused = CliRunner().invoke(cli, [*words, *wrong])
        assert refused.exit_code == 2, refused.output
