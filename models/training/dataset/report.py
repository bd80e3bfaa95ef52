"""One HTML file about a dataset, with nothing to fetch, and its contact sheet as a PNG.

The same dataset gives the same bytes: no date stands in it. What a caption or a file's name holds
is text to the page, never markup. Knows no terminal and no torch.
"""

import base64
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from jinja2 import Environment, StrictUndefined
from PIL import Image, ImageDraw, ImageFont

from models.training.dataset.buckets import Bucket
from models.training.dataset.checking import Inspection
from models.training.dataset.findings import Finding
from models.training.dataset.pictures import PictureUnusable, thumbnail
from models.training.dataset.preparing import Preparation
from models.training.storage import write_whole

SHOWN = 120
"""Pictures on a contact sheet, at most."""
COLUMNS = 8
CELL_PX = 168
_FRAME_PX = 4
_LABEL_PX = 18
_ERROR, _WARNING = "#c62828", "#e69500"
_WORDS_A_BAR = 5

_PAGES = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)


@dataclass(frozen=True)
class Shown:
    """A picture on the sheet. `colour` is its frame's; empty for none."""

    file: Path
    name: str
    size: str
    caption: str
    source: str
    licence: str
    colour: str


def report_on_check(inspection: Inspection, page: Path, sheet: Path) -> None:
    """Writes `page` and `sheet` about a folder as it lies there."""
    colours = _colours(inspection.findings)
    pictures = [
        Shown(
            file=inspection.listing.folder / name,
            name=name,
            size=f"{seen.width}x{seen.height}",
            caption=inspection.captions.get(name, ""),
            source=inspection.sources.find(name).source,
            licence=inspection.sources.find(name).licence,
            colour=colours.get(name, ""),
        )
        for name, seen in inspection.looks.items()
    ]
    buckets = {size: inspection.buckets(size) for size in inspection.rules.resolutions}
    facts = [("pictures", len(inspection.listing.pictures)), *_counts(inspection.findings)]
    title = f"Dataset {inspection.listing.folder.resolve().name}"
    _write(page, sheet, pictures, title=title, facts=facts, buckets=buckets,
           findings=inspection.findings, mended=[])  # fmt: skip


def report_on_prepare(done: Preparation, folder: Path, page: Path, sheet: Path, title: str) -> None:
    """Writes `page` and `sheet` about what was prepared, whose pictures are in `folder` now."""
    made = done.manifest
    colours = _colours(done.findings)
    pictures = [
        Shown(
            file=folder / picture.name,
            name=picture.name,
            size="x".join(map(str, picture.bucket)),
            caption=picture.caption,
            source=picture.source,
            licence=picture.licence,
            colour=colours.get(picture.original, ""),
        )
        for picture in made.pictures
    ]
    buckets = {made.resolution: Counter(Bucket(*picture.bucket) for picture in made.pictures)}
    facts = [("prepared", len(pictures)), ("left out", len(done.skipped)), *_counts(done.findings)]
    _write(page, sheet, pictures, title=title, facts=facts, buckets=buckets,
           findings=done.findings, mended=done.mended)  # fmt: skip


def contact_sheet(pictures: Sequence[Shown]) -> Image.Image:
    """Numbered thumbnails in rows. A file that cannot be decoded leaves its cell empty."""
    rows = max(1, -(-len(pictures) // COLUMNS))
    columns = max(1, min(COLUMNS, len(pictures)))
    sheet = Image.new("RGB", (columns * CELL_PX, rows * (CELL_PX + _LABEL_PX)), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(13)
    for number, picture in enumerate(pictures):
        row, column = divmod(number, COLUMNS)
        left, top = column * CELL_PX, row * (CELL_PX + _LABEL_PX)
        draw.text((left + CELL_PX // 2, top + 3), str(number + 1), "black", font, anchor="mt")
        _paste(sheet, draw, picture, (left, top + _LABEL_PX))
    return sheet


def _paste(
    sheet: Image.Image, draw: ImageDraw.ImageDraw, picture: Shown, corner: tuple[int, int]
) -> None:
    """The thumbnail in the middle of the cell that begins at `corner`, framed."""
    try:
        small = thumbnail(picture.file, CELL_PX - 4 * _FRAME_PX)
    except PictureUnusable:
        return
    left = corner[0] + (CELL_PX - small.width) // 2
    top = corner[1] + (CELL_PX - small.height) // 2
    width = _FRAME_PX if picture.colour else 1
    box = left - width, top - width, left + small.width + width - 1, top + small.height + width - 1
    draw.rectangle(box, outline=picture.colour or "#bbbbbb", width=width)
    sheet.paste(small, (left, top))


def _colours(findings: Sequence[Finding]) -> dict[str, str]:
    """The frame of every file that has a finding; an error outshines a warning."""
    warned = {finding.file: _WARNING for finding in findings}
    return warned | {finding.file: _ERROR for finding in findings if finding.is_error}


def _counts(findings: Sequence[Finding]) -> list[tuple[str, int]]:
    errors = sum(finding.is_error for finding in findings)
    return [("errors", errors), ("warnings", len(findings) - errors)]


def _write(
    page: Path,
    sheet: Path,
    pictures: Sequence[Shown],
    *,
    title: str,
    facts: Sequence[tuple[str, int]],
    buckets: dict[int, Counter[Bucket]],
    findings: Sequence[Finding],
    mended: Sequence[Finding],
) -> None:
    shown = _chosen(pictures)
    drawn = contact_sheet(shown)
    source = Path(__file__).with_name("report.html.jinja").read_text(encoding="utf-8")
    text = _PAGES.from_string(source).render(
        title=title,
        facts=facts,
        findings=findings,
        mended=mended,
        buckets=[(size, _rows(counter)) for size, counter in buckets.items()],
        lengths=_lengths(pictures),
        licences=_rows(Counter(picture.licence or "unknown" for picture in pictures)),
        sheet=_jpeg(drawn) if shown else "",
        shown=shown,
        total=len(pictures),
        top=lambda rows: max(count for _, count in rows),
    )
    for file in (page, sheet):
        file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(sheet, _png(drawn))
    write_whole(page, text.encode())


def _chosen(pictures: Sequence[Shown]) -> list[Shown]:
    """All of them, or those with findings and then some evenly from the rest; in their order."""
    if len(pictures) <= SHOWN:
        return list(pictures)
    marked = [picture for picture in pictures if picture.colour][:SHOWN]
    plain = [picture for picture in pictures if not picture.colour]
    room = min(SHOWN - len(marked), len(plain))
    some = [plain[number * len(plain) // room] for number in range(room)]
    chosen = {picture.name for picture in (*marked, *some)}
    return [picture for picture in pictures if picture.name in chosen]


def _rows(counter: Counter[Bucket] | Counter[str]) -> list[tuple[str, int]]:
    return [(str(value), count) for value, count in sorted(counter.items())]


def _lengths(pictures: Sequence[Shown]) -> list[tuple[str, int]]:
    """How many captions have 1 to 5 words, 6 to 10, and so on without gaps."""
    bars = Counter((len(p.caption.split()) - 1) // _WORDS_A_BAR for p in pictures if p.caption)
    if not bars:
        return []
    return [
        (f"{bar * _WORDS_A_BAR + 1} to {(bar + 1) * _WORDS_A_BAR}", bars[bar])
        for bar in range(min(bars), max(bars) + 1)
    ]


def _jpeg(image: Image.Image) -> str:
    stream = BytesIO()
    image.save(stream, "JPEG", quality=82)
    return base64.b64encode(stream.getvalue()).decode("ascii")


def _png(image: Image.Image) -> bytes:
    stream = BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()
