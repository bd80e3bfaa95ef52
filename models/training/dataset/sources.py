"""Where each picture comes from and what may be done with it: `sources.csv` in the folder.

    picture,source,licence
    cat.png,https://example.org/cat,CC-BY-4.0
    *,drawn by us,CC0-1.0

A picture is named by its path below the folder; the line `*` is for every other picture. A folder
that was prepared tells it in its manifest. Decides nothing.
"""

import csv
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from models.training.dataset.findings import Finding, Kind
from models.training.dataset.manifest import read_manifest

FILE = "sources.csv"
_COLUMNS = ("picture", "source", "licence")
_EVERY = "*"
_NAMED = 5


@dataclass(frozen=True)
class Source:
    """Empty text where nothing is known."""

    source: str = ""
    licence: str = ""


@dataclass(frozen=True)
class Sources:
    """What sources.csv says, and what is wrong with the file itself."""

    of: dict[str, Source] = field(default_factory=dict)
    problem: Finding | None = None

    def find(self, picture: str) -> Source:
        return self.of.get(picture) or self.of.get(_EVERY) or Source()


def read_sources(folder: Path) -> Sources:
    """An absent file is no problem: it says nothing."""
    file = folder / FILE
    if not file.is_file():
        made = read_manifest(folder)
        pictures = made.pictures if made else ()
        return Sources({p.name: Source(p.source, p.licence) for p in pictures})
    try:
        with file.open(encoding="utf-8-sig", newline="") as opened:
            lines = csv.DictReader(opened, strict=True)
            if missing := set(_COLUMNS) - set(lines.fieldnames or ()):
                why = f"it has no column {', '.join(sorted(missing))}"
                return Sources(problem=Finding(Kind.SOURCES_UNREADABLE, FILE, why))
            told = {
                row["picture"].strip(): Source(
                    (row["source"] or "").strip(), (row["licence"] or "").strip()
                )
                for row in lines
            }
    except (UnicodeDecodeError, csv.Error) as error:
        why = f"it is no CSV in UTF-8 ({error})"
        return Sources(problem=Finding(Kind.SOURCES_UNREADABLE, FILE, why))
    return Sources(told)


def source_findings(sources: Sources, pictures: Iterable[str]) -> list[Finding]:
    """One finding for all pictures without a licence; one for each line without a picture."""
    if sources.problem:
        return [sources.problem]
    names = sorted(pictures)
    strays = sorted(set(sources.of) - {_EVERY, *names})
    found = [
        Finding(Kind.SOURCE_WITHOUT_PICTURE, FILE, f"there is no picture {stray}")
        for stray in strays
    ]
    bare = [name for name in names if not sources.find(name).licence]
    if bare:
        some = ", ".join(bare[:_NAMED]) + (" and others" if len(bare) > _NAMED else "")
        why = f"{len(bare)} of {len(names)} pictures have no licence: {some}"
        found.append(Finding(Kind.LICENCE_MISSING, FILE, why))
    return found
