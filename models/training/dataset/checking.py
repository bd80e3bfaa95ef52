"""Is a folder fit to train on: every picture looked at, every caption read, each flaw a finding.

Changes nothing. Reads each picture once, a few at a time. Knows no torch and no terminal.
"""

import os
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from PIL import Image

from models.training.dataset.buckets import Bucket, bucket_for, kept_share
from models.training.dataset.captions import has_trigger, hides_trigger
from models.training.dataset.duplicates import duplicates, near_duplicates
from models.training.dataset.findings import Finding, Kind, in_order
from models.training.dataset.folder import Listing, caption_file, list_folder, read_caption
from models.training.dataset.pictures import FORMATS, Look, PictureUnusable, look
from models.training.dataset.sources import Sources, read_sources, source_findings
from models.training.errors import DatasetUnusable

Tick = Callable[[int, int], None]
"""Told after each picture: how many are done, and of how many."""

MIN_KEPT = 0.7
"""A crop that loses more of a picture than this leaves is worth a person's look."""

SAME_CAPTION_PICTURES = 3
SAME_CAPTION_SHARE = 0.1
"""One caption for this many pictures and this share of them teaches nothing of what they show."""


@dataclass(frozen=True)
class Rules:
    """What the pictures are for. Sizes in pixels; the resolutions are those to train at."""

    resolutions: tuple[int, ...] = (512,)
    multiple: int = 16
    min_side: int | None = None
    """None: the short side of the smallest resolution's longest bucket, about half of it."""
    trigger: str = ""

    @property
    def shortest_px(self) -> int:
        if self.min_side is not None:
            return self.min_side
        return min(self.resolutions) // 2 // self.multiple * self.multiple


@dataclass
class Inspection:
    """A folder as `inspect` found it. Names are paths below the folder."""

    listing: Listing
    rules: Rules
    findings: list[Finding] = field(default_factory=list)
    looks: dict[str, Look] = field(default_factory=dict)
    """Of every picture that could be decoded."""
    captions: dict[str, str] = field(default_factory=dict)
    """Of every picture that has one."""
    sources: Sources = field(default_factory=Sources)

    @property
    def errors(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.is_error]

    def buckets(self, resolution: int) -> Counter[Bucket]:
        """How many pictures fall into each bucket."""
        multiple = self.rules.multiple
        return Counter(
            bucket_for(seen.width, seen.height, resolution=resolution, multiple=multiple)
            for seen in self.looks.values()
            if min(seen.width, seen.height) >= max(multiple, self.rules.shortest_px)
        )


def inspect(folder: Path, rules: Rules, tick: Tick = lambda done, total: None) -> Inspection:
    """Raises DatasetUnusable when `folder` is no folder; everything else is a finding."""
    listing = list_folder(folder)
    found = Inspection(listing, rules, sources=read_sources(folder))
    found.findings += _listing_findings(listing)
    _look_at_all(found, tick)
    for name, seen in found.looks.items():
        found.findings += _picture_findings(name, seen, rules)
    found.findings += _likeness_findings(found.looks)
    _read_captions(found)
    found.findings += _trigger_findings(found.captions, rules.trigger)
    found.findings += _same_caption_findings(found.captions)
    found.findings += source_findings(found.sources, map(listing.name, listing.pictures))
    found.findings = in_order(found.findings)
    return found


def _listing_findings(listing: Listing) -> Iterable[Finding]:
    """What the names alone tell."""
    if not listing.pictures:
        yield Finding(Kind.NO_PICTURES, ".", "it holds no picture")
    for link in listing.outside:
        yield Finding(Kind.LINK_LEAVES, listing.name(link), "it links to what is elsewhere")
    for link in listing.linked_folders:
        yield Finding(Kind.LINK_IGNORED, listing.name(link), "it is a link to a folder")
    for file in listing.unsupported:
        yield Finding(Kind.UNSUPPORTED, listing.name(file), f"{file.suffix} is not trained on")
    yield from _stem_findings(listing)
    yield from _case_findings(listing)
    owned = {picture.with_suffix("") for picture in listing.pictures}
    for caption in listing.captions:
        if caption.stem != "default" and caption.with_suffix("") not in owned:
            yield Finding(Kind.ORPHAN_CAPTION, listing.name(caption), "it has no picture")


def _stem_findings(listing: Listing) -> Iterable[Finding]:
    """cat.jpg and cat.png have one cat.txt."""
    by_stem: dict[Path, list[str]] = defaultdict(list)
    for picture in listing.pictures:
        by_stem[picture.with_suffix("")].append(listing.name(picture))
    for names in by_stem.values():
        for name in names if len(names) > 1 else ():
            others = ", ".join(other for other in names if other != name)
            yield Finding(Kind.SHARED_STEM, name, f"it shares its stem with {others}")


def _case_findings(listing: Listing) -> Iterable[Finding]:
    """Cat.png and cat.png, or Cat.png and cat.txt: two files here, one or a pair elsewhere."""
    by_folded: dict[str, set[str]] = defaultdict(set)
    for file in (*listing.pictures, *listing.captions):
        stem = PurePosixPath(listing.name(file)).with_suffix("").as_posix()
        by_folded[stem.casefold()].add(stem)
    for file in listing.pictures:
        name = listing.name(file)
        stem = PurePosixPath(name).with_suffix("").as_posix()
        for other in sorted(by_folded[stem.casefold()] - {stem}):
            yield Finding(Kind.CASE_COLLISION, name, f"{other}.* differs from it in case only")


def _look_at_all(found: Inspection, tick: Tick) -> None:
    pictures = found.listing.pictures
    with warnings.catch_warnings(), ThreadPoolExecutor(max_workers=_workers()) as pool:
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # ours is a finding
        for done, (file, seen) in enumerate(zip(pictures, pool.map(_look, pictures), strict=True)):
            name = found.listing.name(file)
            if isinstance(seen, Look):
                found.looks[name] = seen
            else:
                kind = Kind.UNREADABLE if seen.kind == "unreadable" else Kind.TOO_MANY_PIXELS
                found.findings.append(Finding(kind, name, str(seen)))
            tick(done + 1, len(pictures))


def _look(file: Path) -> Look | PictureUnusable:
    try:
        return look(file)
    except PictureUnusable as error:
        return error


def _workers() -> int:
    """Pillow decodes outside of Python's lock; each worker may hold a picture of MAX_PIXELS."""
    return min(4, os.cpu_count() or 1)


def _picture_findings(name: str, seen: Look, rules: Rules) -> Iterable[Finding]:
    """What one picture shows of itself."""
    expected = FORMATS[PurePosixPath(name).suffix.lower()]
    if seen.format != expected:
        yield Finding(Kind.MISLABELLED, name, f"it is called {expected} and is {seen.format}")
    if seen.is_animated:
        yield Finding(Kind.ANIMATED, name, "it has more than one frame")
    if seen.is_transparent:
        yield Finding(Kind.TRANSPARENT, name, "a part of it is transparent")
    if seen.is_rotated:
        yield Finding(Kind.ROTATED, name, "its pixels lie on their side or head")
    if seen.is_blank:
        yield Finding(Kind.BLANK, name, "it has one colour only")
    yield from _size_findings(name, seen, rules)


def _size_findings(name: str, seen: Look, rules: Rules) -> Iterable[Finding]:
    size = f"{seen.width}x{seen.height}"
    shortest = max(rules.shortest_px, rules.multiple)
    if min(seen.width, seen.height) < shortest:
        why = f"{size}: its shorter side is under {shortest} pixels"
        yield Finding(Kind.TOO_SMALL, name, why)
        return
    lacking = [r for r in rules.resolutions if _falls_short(seen, r, rules.multiple)]
    if lacking:
        why = f"{size} has not the pixels of {', '.join(map(str, sorted(lacking)))}"
        yield Finding(Kind.BELOW_RESOLUTION, name, why)
    resolution = max(rules.resolutions)
    bucket = bucket_for(seen.width, seen.height, resolution=resolution, multiple=rules.multiple)
    kept = kept_share(seen.width, seen.height, bucket)
    if kept < MIN_KEPT:
        why = f"{size} keeps {kept:.0%} of itself in its bucket of {bucket}"
        yield Finding(Kind.MUCH_CROPPED, name, why)


def _falls_short(seen: Look, resolution: int, multiple: int) -> bool:
    """True when a larger picture of this shape would get a clearly larger bucket."""
    own = bucket_for(seen.width, seen.height, resolution=resolution, multiple=multiple)
    larger = resolution * seen.width, resolution * seen.height
    full = bucket_for(*larger, resolution=resolution, multiple=multiple)
    return own.width * own.height < _FILLED * full.width * full.height


_FILLED = 0.85
"""Of the larger bucket's pixels: at small resolutions the next step is that far."""


def _likeness_findings(looks: dict[str, Look]) -> Iterable[Finding]:
    for later, first in duplicates(looks):
        yield Finding(Kind.DUPLICATE, later, f"it has the bytes of {first}")
    for later, first in near_duplicates(looks):
        yield Finding(Kind.NEAR_DUPLICATE, later, f"it looks like {first}")


def _read_captions(found: Inspection) -> None:
    for picture in found.listing.pictures:
        name = found.listing.name(picture)
        file = caption_file(picture)
        if file is None or file in found.listing.outside:
            why = f"there is no {picture.with_suffix('.txt').name}"
            found.findings.append(Finding(Kind.MISSING_CAPTION, name, why))
            continue
        told = found.listing.name(file)
        try:
            caption = read_caption(file)
        except DatasetUnusable:
            finding = Finding(Kind.CAPTION_UNREADABLE, name, f"{told} is not UTF-8")
            found.findings.append(finding)
            continue
        if caption:
            found.captions[name] = caption
        else:
            found.findings.append(Finding(Kind.EMPTY_CAPTION, name, f"{told} says nothing"))


def _trigger_findings(captions: dict[str, str], trigger: str) -> Iterable[Finding]:
    for name, caption in captions.items():
        if "--" in caption:
            yield Finding(Kind.DASHES, name, "its caption holds --")
        if trigger and hides_trigger(caption, trigger):
            why = f"{trigger!r} stands in its caption only as a part of another word"
            yield Finding(Kind.TRIGGER_INSIDE_WORD, name, why)
        elif trigger and not has_trigger(caption, trigger):
            yield Finding(Kind.TRIGGER_MISSING, name, f"its caption does not say {trigger!r}")


def _same_caption_findings(captions: dict[str, str]) -> Iterable[Finding]:
    by_caption: dict[str, list[str]] = defaultdict(list)
    for name, caption in captions.items():
        by_caption[caption].append(name)
    for names in by_caption.values():
        many = len(names) >= SAME_CAPTION_PICTURES
        if many and len(names) > SAME_CAPTION_SHARE * len(captions):
            why = f"it and {len(names) - 1} others have one caption"
            yield Finding(Kind.SAME_CAPTION, names[0], why)
