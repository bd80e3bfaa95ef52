"""A checked folder made into one that can be trained on: OUT.

A run that was killed goes on, and what earlier runs prepared is kept where nothing that it depends
on has changed: picture, bucket, caption, source and settings, together its recipe. Two runs over
the same folder end in the same bytes. The original folder is read only.

Knows no terminal and no torch; how OUT comes to be whole is staging.py's.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path, PurePosixPath

from models.training.dataset.buckets import Bucket, bucket_for, fit
from models.training.dataset.captioning import Captioner, CaptioningFailed, CaptioningRefused
from models.training.dataset.captions import dressed
from models.training.dataset.checking import Inspection, Rules, Tick, inspect
from models.training.dataset.findings import Finding, Kind, in_order
from models.training.dataset.folder import data_hash, read_examples
from models.training.dataset.manifest import Manifest, Prepared
from models.training.dataset.pictures import PictureUnusable, upright_rgb
from models.training.dataset.staging import Staging, staged
from models.training.errors import DatasetUnusable

RECIPE_VERSION = 1
"""Raised when the same picture and settings come to be prepared to other bytes."""

_MENDED = {Kind.TRIGGER_INSIDE_WORD, Kind.MISLABELLED}
"""Errors that preparing takes away; a mislabelled picture is still one of three formats."""
_CAPTIONED = {Kind.MISSING_CAPTION, Kind.EMPTY_CAPTION}
"""Errors that a model which sees takes away."""
_MENDS = {Kind.TRIGGER_MISSING, Kind.DASHES, Kind.ROTATED, Kind.TRANSPARENT, *_MENDED, *_CAPTIONED}
_TAKEN = ("JPEG", "PNG", "WEBP")


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
    with staged(out) as staging:
        run = _Run(inspect(folder, recipe.rules, tick), recipe, staging, captioner)
        run.work(tick)
        done = run.finished()
        if staging.before == done.manifest:
            staging.discard()
            finish(staging.out, done)
        else:
            finish(staging.folder, done)
            staging.publish(done.manifest)
        return done


class _Run:
    """What is done, and what is still to do."""

    def __init__(
        self,
        inspection: Inspection,
        recipe: Recipe,
        staging: Staging,
        captioner: Captioner | None,
    ) -> None:
        self._inspection = inspection
        self._recipe = recipe
        self._staging = staging
        self._captioner = captioner
        self._orders = {order.name: order for order in _orders(inspection, recipe, captioner)}
        self._done = staging.take_over({name: o.recipe for name, o in self._orders.items()})
        self._kept = len(self._done)
        self._findings: list[Finding] = []

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
        self._staging.note(result)
        self._done[order.name] = result

    def _prepared(self, order: Order) -> Prepared | Finding:
        """Runs in many threads."""
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
        self._staging.add(order.name, png, caption)
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
        """All that is to be published but the report."""
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
            data_hash=data_hash(read_examples(self._staging.folder)),
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
