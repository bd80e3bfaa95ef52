"""A dataset as it lies on the disk, in AI-Toolkit's layout: pictures, with captions beside them.

The folder is walked recursively. What begins with a dot and folders named `_controls` are no data.
A picture's caption is the text file of the same stem, else `default.txt` of its own folder, else
the default that the caller has. Knows file names, bytes and text; decodes no picture.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from models.training.errors import DatasetUnusable

PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
"""What AI-Toolkit takes for a picture, in any case."""

OTHER_PICTURE_SUFFIXES = tuple(
    ".avif .bmp .gif .heic .heif .ico .jfif .jp2 .jpe .jxl .psd .svg .tga .tif .tiff".split()
)
"""Pictures that AI-Toolkit passes over without a word."""

CONTROLS = "_controls"
"""Where AI-Toolkit keeps the control pictures that it makes itself."""


@dataclass(frozen=True)
class Example:
    """One picture and what it shows. `caption` is one line and may be empty."""

    picture: Path
    caption: str


@dataclass
class Listing:
    """What lies in a folder, each list sorted by path. Paths begin with the folder."""

    folder: Path
    pictures: list[Path] = field(default_factory=list)
    captions: list[Path] = field(default_factory=list)
    unsupported: list[Path] = field(default_factory=list)
    outside: list[Path] = field(default_factory=list)
    """Links to what is not in the folder. None of them is in another list."""
    linked_folders: list[Path] = field(default_factory=list)
    """Links to folders inside of the folder: nobody follows them."""

    def name(self, file: Path) -> str:
        """The file's path below the folder, with slashes on every system."""
        return file.relative_to(self.folder).as_posix()


def read_examples(
    folder: Path, *, caption_ext: str = "txt", default_caption: str | None = None
) -> list[Example]:
    """Every picture below the folder with its caption, sorted by path.

    An empty caption counts as none. Raises DatasetUnusable for a folder without pictures, a picture
    without a caption (an empty `default_caption` allows it), a caption that is not UTF-8, and links
    that leave the folder.
    """
    listing = list_folder(folder, caption_ext=caption_ext)
    if listing.outside:
        raise DatasetUnusable(
            f"{listing.outside[0]} is a link to what is not in {folder}: copy the file into it"
        )
    if not listing.pictures:
        raise DatasetUnusable(f"{folder} holds no picture: put .jpg, .png or .webp files into it")
    return [
        Example(picture, _caption_of(picture, caption_ext, default_caption))
        for picture in listing.pictures
    ]


def data_hash(examples: Sequence[Example]) -> str:
    """SHA-256, in hexadecimal, over names, picture bytes and captions, in the order given.

    Names are relative to the deepest folder that holds every picture: a moved dataset keeps its
    hash.
    """
    total = hashlib.sha256()
    if not examples:
        return total.hexdigest()
    root = os.path.commonpath([example.picture.parent for example in examples])
    for example in examples:
        name = example.picture.relative_to(root).as_posix()
        parts = name.encode(), bytes.fromhex(file_hash(example.picture)), example.caption.encode()
        for part in parts:
            total.update(len(part).to_bytes(8, "big") + part)
    return total.hexdigest()


def file_hash(file: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def list_folder(folder: Path, *, caption_ext: str = "txt") -> Listing:
    """Raises DatasetUnusable when `folder` is no folder."""
    if not folder.is_dir():
        raise DatasetUnusable(f"{folder} is not a folder: name the one that holds the pictures")
    listing = Listing(folder)
    home = folder.resolve()
    for path in sorted(_walk(folder), key=lambda path: path.relative_to(folder).as_posix()):
        if path.is_symlink() and not path.resolve().is_relative_to(home):
            listing.outside.append(path)
        elif path.is_dir():
            listing.linked_folders.append(path)
        else:
            _sort_in(path, listing, caption_ext)
    return listing


def _walk(folder: Path) -> Iterator[Path]:
    """Every file, and every link to a folder, that does not begin with a dot."""
    for root, folders, files in os.walk(folder):
        here = Path(root)
        shown = [name for name in folders if not name.startswith(".") and name != CONTROLS]
        folders[:] = shown
        yield from (here / name for name in shown if (here / name).is_symlink())
        yield from (here / name for name in files if not name.startswith("."))


def _sort_in(path: Path, listing: Listing, caption_ext: str) -> None:
    suffix = path.suffix.lower()
    if suffix in PICTURE_SUFFIXES:
        listing.pictures.append(path)
    elif suffix in OTHER_PICTURE_SUFFIXES:
        listing.unsupported.append(path)
    elif path.suffix == f".{caption_ext.lstrip('.')}":
        listing.captions.append(path)


def caption_file(picture: Path, caption_ext: str = "txt") -> Path | None:
    """Where the picture's caption stands: beside it, or the folder's default. None: nowhere."""
    ext = caption_ext.lstrip(".")
    beside = picture.with_suffix(f".{ext}")
    defaults = picture.with_name(f"default.{ext}"), picture.with_name("default.txt")
    return next((file for file in (beside, *defaults) if file.is_file()), None)


def read_caption(file: Path) -> str:
    """The caption as one line; of a JSON file, its `caption`. Raises DatasetUnusable."""
    try:
        text = file.read_bytes().decode("utf-8-sig")
        if file.suffix == ".json":
            text = json.loads(text)["caption"]
    except UnicodeDecodeError as error:
        raise DatasetUnusable(
            f"{file} is not UTF-8 (byte {error.start}): save it as UTF-8"
        ) from error
    except (ValueError, LookupError, TypeError) as error:
        raise DatasetUnusable(f'{file} is not JSON with a "caption": mend it') from error
    return one_line(text)


def one_line(text: str) -> str:
    """Lines and empty parts joined by single commas, as AI-Toolkit reads captions."""
    parts = text.replace("\r", ",").replace("\n", ",").split(",")
    return ", ".join(part.strip() for part in parts if part.strip())


def _caption_of(picture: Path, caption_ext: str, default_caption: str | None) -> str:
    file = caption_file(picture, caption_ext)
    caption = read_caption(file) if file else ""
    if caption or default_caption is not None:
        return caption or default_caption or ""
    beside = picture.with_suffix(f".{caption_ext.lstrip('.')}")
    raise DatasetUnusable(f"{picture} has no caption: write {beside.name} beside it")
