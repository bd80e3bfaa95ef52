"""A checked folder made into one that can be trained on: OUT, which appears whole or not at all.

Pictures are prepared in `OUT.partial`, each with its caption and then a line in a journal. A run
that was killed goes on from the journal; what it had finished is kept where nothing that it depends
on has changed. The manifest is written last, and OUT appears in one rename. Nothing that could not
be made again by the same command is ever deleted.

The original folder is read only. Knows no terminal and no torch.
"""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path, PurePosixPath

from filelock import FileLock, Timeout
from pydantic import ValidationError

from models.training.dataset import manifest
from models.training.dataset.buckets import Bucket, bucket_for, fit
from models.training.dataset.captioning import Captioner, CaptioningFailed, CaptioningRefused
from models.training.dataset.captions import dressed
from models.training.dataset.checking import Inspection, Rules, Tick, inspect
from models.training.dataset.findings import Finding, Kind, in_order
from models.training.dataset.folder import data_hash, file_hash, read_examples
from models.training.dataset.manifest import Manifest, Prepared
from models.training.dataset.pictures import PictureUnusable, upright_rgb
from models.training.errors import DatasetUnusable, OutOfDisk

RECIPE_VERSION = 1
"""Raised when the same picture and settings come to be prepared to other bytes."""

_MENDED = {Kind.TRIGGER_INSIDE_WORD, Kind.MISLABELLED}
"""Errors that preparing takes away; a mislabelled picture is still one of three formats."""
_CAPTIONED = {Kind.MISSING_CAPTION, Kind.EMPTY_CAPTION}
"""Errors that a model which sees takes away."""
_MENDS = {Kind.TRIGGER_MISSING, Kind.DASHES, Kind.ROTATED, Kind.TRANSPARENT, *_MENDED, *_CAPTIONED}
_TAKEN = ("JPEG", "PNG", "WEBP")
_JOURNAL = ".journal.jsonl"
_BESIDE = ("report.html",)
"""What `finish` may put beside the pictures."""
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True)
class Recipe:
    """How pictures and captions are to come out. Sizes in pixels."""

    resolution: int
    multiple: int = 16
    min_side: int | None = None
    trigger: str = ""
    style_words: str = ""

    @property
    def rules(self) -> Rules:
        return Rules((self.resolution,), self.multiple, self.min_side, self.trigger)


@dataclass(frozen=True)
class Order:
    """One picture to prepare. `caption` is None where a model is to write it."""

    original: Path
    original_name: str
    name: str
    bucket: Bucket
    caption: str | None
    recipe: str


@dataclass
class Preparation:
    """What came of it."""

    inspection: Inspection
    manifest: Manifest
    findings: list[Finding]
    """What is left of the original folder's, and the captioning's."""
    mended: list[Finding]
    """What the prepared pictures no longer have."""
    kept: int
    """Pictures that an earlier run had prepared."""

    @property
    def skipped(self) -> list[str]:
        """Pictures of the original folder that were not prepared, sorted."""
        listing = self.inspection.listing
        names = {listing.name(file) for file in (*listing.pictures, *listing.unsupported)}
        return sorted(names - {picture.original for picture in self.manifest.pictures})


Finish = Callable[[Path, Preparation], None]
"""Writes what belongs beside the pictures (the report) into the folder given."""


def prepare(
    folder: Path,
    out: Path,
    recipe: Recipe,
    *,
    captioner: Captioner | None = None,
    finish: Finish = lambda folder, done: None,
    tick: Tick = lambda done, total: None,
) -> Preparation:
    """Raises DatasetUnusable when nothing can be prepared, or OUT holds what is not ours."""
    _refuse_overlap(folder, out)
    with _alone(out), _disk_errors(out):
        _recover(out)
        before = _intact(out)
        inspection = inspect(folder, recipe.rules, tick)
        run = _Run(inspection, recipe, out, captioner)
        run.take_over(before)
        run.work(tick)
        done = run.finished()
        if before == done.manifest:
            _remove(run.partial, last=_JOURNAL)
            finish(out, done)
        else:
            finish(run.partial, done)
            _write(run.partial / manifest.FILE, done.manifest.text().encode())
            (run.partial / _JOURNAL).unlink()
            _publish(run.partial, out)
        return done


class _Run:
    """The work in `partial`: what is done, and what is still to do."""

    def __init__(
        self, inspection: Inspection, recipe: Recipe, out: Path, captioner: Captioner | None
    ) -> None:
        self.partial = _partial(out)
        self.out = out
        self._inspection = inspection
        self._recipe = recipe
        self._captioner = captioner
        self._orders = {order.name: order for order in _orders(inspection, recipe, captioner)}
        self._done: dict[str, Prepared] = {}
        self._kept = 0
        self._findings: list[Finding] = []

    def take_over(self, before: Manifest | None) -> None:
        """Keep what the journal and the finished folder have that is still right."""
        self.partial.mkdir(parents=True, exist_ok=True)
        known = _known(self.partial)
        self._write_journal(known)
        for entry in known:
            if self._is_ordered(entry) and _is_intact(self.partial, entry):
                self._done[entry.name] = entry
        for entry in before.pictures if before else ():
            if entry.name not in self._done and self._is_ordered(entry):
                _copy(self.out, self.partial, entry)
                self._done[entry.name] = entry
        self._kept = len(self._done)
        self._write_journal(self._done.values())
        _sweep(self.partial, self._done)

    def _write_journal(self, entries: Iterable[Prepared]) -> None:
        """While the journal is there, the folder is known for ours."""
        lines = "".join(f"{entry.model_dump_json()}\n" for entry in entries)
        _write(self.partial / _JOURNAL, lines.encode())

    def _is_ordered(self, entry: Prepared) -> bool:
        order = self._orders.get(entry.name)
        return order is not None and order.recipe == entry.recipe

    def work(self, tick: Tick) -> None:
        """Prepare what is left, a few at a time; a server that is not there ends it all."""
        left = [order for name, order in self._orders.items() if name not in self._done]
        workers = (
            self._captioner.seer.concurrency if self._captioner else min(4, os.cpu_count() or 1)
        )
        pool = ThreadPoolExecutor(max_workers=workers)
        try:
            running = {pool.submit(self._prepared, order): order for order in left}
            for number, future in enumerate(as_completed(running)):
                self._note(running[future], future.result())
                tick(number + 1, len(left))
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _note(self, order: Order, result: Prepared | Finding) -> None:
        if isinstance(result, Finding):
            self._findings.append(result)
            return
        with (self.partial / _JOURNAL).open("a", encoding="utf-8") as journal:
            journal.write(f"{result.model_dump_json()}\n")
        self._done[order.name] = result

    def _prepared(self, order: Order) -> Prepared | Finding:
        """Writes the picture, then its caption."""
        try:
            png = _png(order)
            caption = order.caption
            if caption is None:
                assert self._captioner is not None, "only a captioner's orders lack a caption"
                caption = self._dressed(self._captioner.caption(png))
        except PictureUnusable as error:
            return Finding(Kind.UNREADABLE, order.original_name, str(error))
        except CaptioningRefused as error:
            return Finding(Kind.CAPTION_REFUSED, order.original_name, str(error))
        except CaptioningFailed as error:
            return Finding(Kind.CAPTION_FAILED, order.original_name, str(error))
        file = self.partial / order.name
        file.parent.mkdir(parents=True, exist_ok=True)
        _write(file, png)
        _write(file.with_suffix(".txt"), f"{caption}\n".encode())
        return self._entry(order, png, caption)

    def _dressed(self, caption: str) -> str:
        recipe = self._recipe
        return dressed(caption, trigger=recipe.trigger, style_words=recipe.style_words)

    def _entry(self, order: Order, png: bytes, caption: str) -> Prepared:
        seen = self._inspection.looks[order.original_name]
        source = self._inspection.sources.find(order.original_name)
        seer = self._captioner.seer.model if order.caption is None and self._captioner else ""
        return Prepared(
            name=order.name,
            sha256=hashlib.sha256(png).hexdigest(),
            original=order.original_name,
            original_sha256=seen.sha256,
            size=(seen.width, seen.height),
            bucket=order.bucket,
            caption=caption,
            captioned_by=seer,
            source=source.source,
            licence=source.licence,
            recipe=order.recipe,
        )

    def finished(self) -> Preparation:
        """Everything is in `partial` but the report and the manifest."""
        findings = in_order(self._inspection.findings + self._findings)
        if not self._done:
            worst = findings[0] if findings else "the folder is empty"
            raise DatasetUnusable(
                f"no picture of {self._inspection.listing.folder} can be prepared ({worst})"
            )
        pictures = tuple(self._done[name] for name in sorted(self._done))
        made = Manifest(
            trigger=self._recipe.trigger,
            style_words=self._recipe.style_words,
            resolution=self._recipe.resolution,
            multiple=self._recipe.multiple,
            data_hash=data_hash(read_examples(self.partial)),
            licences=tuple(sorted({picture.licence for picture in pictures})),
            pictures=pictures,
        )
        prepared = {picture.original for picture in pictures}
        mended = [f for f in findings if f.kind in _MENDS and f.file in prepared]
        left = [f for f in findings if f.kind not in _MENDS or f.file not in prepared]
        return Preparation(self._inspection, made, left, mended, self._kept)


def _orders(inspection: Inspection, recipe: Recipe, captioner: Captioner | None) -> Iterator[Order]:
    """What of the folder can be prepared."""
    if inspection.sources.problem:
        raise DatasetUnusable(f"{inspection.listing.folder / str(inspection.sources.problem)}")
    mended = _MENDED | (_CAPTIONED if captioner else set())
    broken = {finding.file for finding in inspection.errors if finding.kind not in mended}
    for picture in inspection.listing.pictures:
        name = inspection.listing.name(picture)
        if name not in broken and inspection.looks[name].format in _TAKEN:
            yield _order(inspection, recipe, picture, captioner)


def _order(
    inspection: Inspection, recipe: Recipe, picture: Path, captioner: Captioner | None
) -> Order:
    name = inspection.listing.name(picture)
    seen = inspection.looks[name]
    bucket = bucket_for(
        seen.width, seen.height, resolution=recipe.resolution, multiple=recipe.multiple
    )
    caption = inspection.captions.get(name)
    if caption is not None:
        caption = dressed(caption, trigger=recipe.trigger, style_words=recipe.style_words)
    source = inspection.sources.find(name)
    told_by = (
        [captioner.seer.model, captioner.seer.template, recipe.trigger, recipe.style_words]
        if caption is None and captioner
        else [caption]
    )
    all_of_it = [RECIPE_VERSION, name, seen.sha256, bucket, told_by, source.source, source.licence]
    return Order(
        original=picture,
        original_name=name,
        name=PurePosixPath(name).with_suffix(".png").as_posix(),
        bucket=bucket,
        caption=caption,
        recipe=hashlib.sha256(json.dumps(all_of_it).encode()).hexdigest(),
    )


def _png(order: Order) -> bytes:
    """The picture in its bucket, without metadata. Raises PictureUnusable."""
    stream = BytesIO()
    fitted = fit(upright_rgb(order.original), order.bucket)
    fitted.info.clear()  # Pillow would write the original's profile beside colours in sRGB
    fitted.save(stream, "PNG")
    return stream.getvalue()


def _refuse_overlap(folder: Path, out: Path) -> None:
    here, there = folder.resolve(), out.resolve()
    if here == there or here in there.parents or there in here.parents:
        raise DatasetUnusable(f"{out} overlaps with {folder}: choose a folder beside it")


def _partial(out: Path) -> Path:
    return out.with_name(f"{out.name}.partial")


def _old(out: Path) -> Path:
    return out.with_name(f".{out.name}.replaced")


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(out.with_name(f".{out.name}.lock"), timeout=0):
            yield
    except Timeout as error:
        raise DatasetUnusable(
            f"{out} is being prepared by another process: wait until it is done"
        ) from error


@contextmanager
def _disk_errors(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise OutOfDisk(
            f"the disk of {out} is full: free some space and run the same command again; it goes on"
        ) from error


def _recover(out: Path) -> None:
    """A run that was killed between the two renames of `_publish` left no OUT."""
    old = _old(out)
    if not old.exists():
        return
    if any(old.iterdir()) and manifest.read_manifest(old) is None:
        raise DatasetUnusable(f"{old} is in the way: move it elsewhere")
    if out.exists():
        _remove(old, last=manifest.FILE)
    else:
        old.rename(out)


def _publish(partial: Path, out: Path) -> None:
    """Replaces OUT in two renames; `_recover` takes up from between them."""
    old = _old(out)
    if out.exists():
        out.rename(old)
    partial.rename(out)
    if old.exists():
        _remove(old, last=manifest.FILE)


def _remove(folder: Path, *, last: str) -> None:
    """A folder of ours, which the file `last` tells from others until nothing else is in it."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != last:
            path.unlink()
    (folder / last).unlink(missing_ok=True)
    folder.rmdir()


def _intact(out: Path) -> Manifest | None:
    """What OUT holds. Raises DatasetUnusable where a person's work would be lost."""
    if not out.exists():
        return None
    before = manifest.read_manifest(out)
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
    ours = {out / name for name in (manifest.FILE, *_BESIDE)}
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


def _known(partial: Path) -> list[Prepared]:
    """What an earlier run finished. Of the journal whole lines only: the last may be cut off.

    Raises DatasetUnusable for a folder of that name that is not ours.
    """
    whole = manifest.read_manifest(partial)
    file = partial / _JOURNAL
    if not file.is_file():
        if whole is None and any(path.name != _writing(file).name for path in partial.iterdir()):
            raise DatasetUnusable(f"{partial} is in the way: move it elsewhere")
        return list(whole.pictures) if whole else []
    entries = []
    for line in file.read_bytes().splitlines():
        try:
            entries.append(Prepared.model_validate_json(line))
        except ValidationError:
            continue
    return entries


def _copy(out: Path, partial: Path, entry: Prepared) -> None:
    for name in (entry.name, str(PurePosixPath(entry.name).with_suffix(".txt"))):
        target = partial / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(out / name, target)


def _sweep(partial: Path, done: dict[str, Prepared]) -> None:
    """Take away what an earlier run left that this one does not want."""
    wanted = {partial / name for name in done}
    wanted |= {file.with_suffix(".txt") for file in wanted} | {partial / _JOURNAL}
    for root, folders, files in os.walk(partial, topdown=False):
        for name in files:
            if (file := Path(root) / name) not in wanted:
                file.unlink()
        for name in folders:
            if not any((below := Path(root) / name).iterdir()):
                below.rmdir()


def _write(file: Path, data: bytes) -> None:
    """Whole or not at all, also when the power fails."""
    written = _writing(file)
    with written.open("wb") as opened:
        opened.write(data)
        opened.flush()
        os.fsync(opened.fileno())
    written.replace(file)


def _writing(file: Path) -> Path:
    return file.with_name(f".{file.name}.writing")
