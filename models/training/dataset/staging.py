"""A folder that appears whole or not at all: OUT, and what stands beside it while it is made.

`OUT.partial` is worked in, `.OUT.replaced` is the OUT before for the moment between two renames,
and `.OUT.lock` keeps a second process out. In `OUT.partial` a journal says which pictures are done;
it is there from the first moment to the last, and tells the folder from a person's. Every file is
written under another name and renamed, so that a killed run leaves nothing torn that looks whole.

Nothing that the same command could not make again is ever deleted. Knows files and the manifest, no
picture library.
"""

import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from filelock import FileLock, Timeout
from pydantic import ValidationError

from models.training.dataset import manifest
from models.training.dataset.folder import file_hash
from models.training.dataset.manifest import Manifest, Prepared, read_manifest
from models.training.errors import DatasetUnusable
from models.training.storage import full_disk, partial_of, write_whole

JOURNAL = ".journal.jsonl"
BESIDE = ("report.html",)
"""What may stand in OUT beside pictures, captions and the manifest; and folders with a dot."""


@contextmanager
def staged(out: Path) -> Iterator["Staging"]:
    """The only work on OUT there is, with what a killed run left put right.

    Raises DatasetUnusable when another process is at it, and OutOfDisk.
    """
    out = out.resolve()
    try:
        with full_disk(out):
            out.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(out.with_name(f".{out.name}.lock"), timeout=0):
                yield Staging(out)
    except Timeout as error:
        raise DatasetUnusable(
            f"{out} is being prepared by another process: wait until it is done"
        ) from error


class Staging:
    """`folder` is where the next OUT is made. `before` is what OUT holds now, if it is there.

    Raises DatasetUnusable where a person's work would be lost.
    """

    def __init__(self, out: Path) -> None:
        self.out = out
        self.folder = out.with_name(f"{out.name}.partial")
        self._replaced = out.with_name(f".{out.name}.replaced")
        self._recover()
        self.before = _read_intact(out)

    def take_over(self, recipes: Mapping[str, str]) -> dict[str, Prepared]:
        """What is done already of the pictures named, by name; all else in `folder` goes.

        `recipes` says of each picture's name which recipe it is wanted by.
        """

        def is_wanted(entry: Prepared) -> bool:
            return recipes.get(entry.name) == entry.recipe

        self.folder.mkdir(parents=True, exist_ok=True)
        known = self._known()
        self._write_journal(known)
        done = {e.name: e for e in known if is_wanted(e) and _is_intact(self.folder, e)}
        for entry in self.before.pictures if self.before else ():
            if entry.name not in done and is_wanted(entry):
                _copy(self.out, self.folder, entry)
                done[entry.name] = entry
        self._write_journal(done.values())
        self._sweep(done)
        return done

    def add(self, name: str, png: bytes, caption: str) -> None:
        """A picture and its caption; `note` makes them count."""
        file = self.folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, png)
        write_whole(file.with_suffix(".txt"), f"{caption}\n".encode())

    def note(self, entry: Prepared) -> None:
        """The picture is done. Call it from one thread."""
        with (self.folder / JOURNAL).open("a", encoding="utf-8") as journal:
            journal.write(f"{entry.model_dump_json()}\n")

    def discard(self) -> None:
        """OUT is as it should be."""
        _remove(self.folder, last=JOURNAL)

    def publish(self, made: Manifest) -> None:
        """`folder` becomes OUT."""
        write_whole(self.folder / manifest.FILE, made.text().encode())
        (self.folder / JOURNAL).unlink()
        if self.out.exists():
            self.out.rename(self._replaced)
        self.folder.rename(self.out)
        if self._replaced.exists():
            _remove(self._replaced, last=manifest.FILE)

    def _recover(self) -> None:
        """A run may have been killed between the two renames of `publish`, or after them."""
        old = self._replaced
        if not old.exists():
            return
        if any(old.iterdir()) and read_manifest(old) is None:
            raise DatasetUnusable(f"{old} is in the way: move it elsewhere")
        if self.out.exists():
            _remove(old, last=manifest.FILE)
        else:
            old.rename(self.out)

    def _known(self) -> list[Prepared]:
        """What an earlier run finished. A line of the journal that is cut off does not count."""
        whole = read_manifest(self.folder)
        file = self.folder / JOURNAL
        if not file.is_file():
            if whole is None and any(path != partial_of(file) for path in self.folder.iterdir()):
                raise DatasetUnusable(f"{self.folder} is in the way: move it elsewhere")
            return list(whole.pictures) if whole else []
        entries = []
        for line in file.read_bytes().splitlines():
            try:
                entries.append(Prepared.model_validate_json(line))
            except ValidationError:
                continue
        return entries

    def _write_journal(self, entries: Iterable[Prepared]) -> None:
        lines = "".join(f"{entry.model_dump_json()}\n" for entry in entries)
        write_whole(self.folder / JOURNAL, lines.encode())

    def _sweep(self, done: Mapping[str, Prepared]) -> None:
        """Take away what an earlier run left that this one does not want."""
        wanted = {self.folder / name for name in done}
        wanted |= {file.with_suffix(".txt") for file in wanted} | {self.folder / JOURNAL}
        for root, folders, files in os.walk(self.folder, topdown=False):
            for name in files:
                if (file := Path(root) / name) not in wanted:
                    file.unlink()
            for name in folders:
                if not any((below := Path(root) / name).iterdir()):
                    below.rmdir()


def _read_intact(out: Path) -> Manifest | None:
    """What OUT holds, all of it as it was written."""
    if not out.exists():
        return None
    before = read_manifest(out)
    if before is None:
        if any(out.iterdir()):
            raise DatasetUnusable(f"{out} holds what was not prepared: choose an empty folder")
        out.rmdir()
        return None
    if strays := _strays(out, before):
        raise DatasetUnusable(f"{strays[0]} was not prepared and would be lost: move it elsewhere")
    for entry in before.pictures:
        if not _is_intact(out, entry):
            raise DatasetUnusable(
                f"{out / entry.name} or its caption was changed since it was prepared: make the "
                "change in the original folder, or choose another folder to prepare into"
            )
    return before


def _strays(out: Path, before: Manifest) -> list[Path]:
    """Files of a person's. Folders that begin with _ or . are trainers' caches."""
    ours = {out / name for name in (manifest.FILE, *BESIDE)}
    for entry in before.pictures:
        ours |= {out / entry.name, (out / entry.name).with_suffix(".txt")}
    strays: list[Path] = []
    for root, folders, files in os.walk(out):
        folders[:] = [name for name in folders if not name.startswith(("_", "."))]
        shown = [Path(root) / name for name in files if not name.startswith(".")]
        strays += [file for file in shown if file not in ours]
    return sorted(strays)


def _is_intact(folder: Path, entry: Prepared) -> bool:
    """True when picture and caption are the bytes that were written."""
    file = folder / entry.name
    try:
        caption = file.with_suffix(".txt").read_bytes()
        return file_hash(file) == entry.sha256 and caption == f"{entry.caption}\n".encode()
    except FileNotFoundError:
        return False


def _copy(out: Path, partial: Path, entry: Prepared) -> None:
    for name in (entry.name, str(PurePosixPath(entry.name).with_suffix(".txt"))):
        target = partial / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(out / name, target)


def _remove(folder: Path, *, last: str) -> None:
    """A folder of ours, which the file `last` tells from others until nothing else is in it."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != last:
            path.unlink()
    (folder / last).unlink(missing_ok=True)
    folder.rmdir()
