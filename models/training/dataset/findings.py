"""What can be wrong with a dataset, how bad it is, and what to do about it.

A kind of error makes `dataset check` exit with 1, and `dataset prepare` leaves the picture out
unless it can mend it. A warning is for a person to judge. Pure: knows no file and no picture.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal, NamedTuple

Severity = Literal["error", "warning"]


class Kind(StrEnum):
    """Named as the report names them."""

    NO_PICTURES = "no pictures"
    MISSING_CAPTION = "missing caption"
    EMPTY_CAPTION = "empty caption"
    CAPTION_UNREADABLE = "unreadable caption"
    ORPHAN_CAPTION = "orphan caption"
    UNREADABLE = "unreadable picture"
    MISLABELLED = "mislabelled picture"
    UNSUPPORTED = "unsupported format"
    TOO_SMALL = "too small"
    BELOW_RESOLUTION = "below the resolution"
    MUCH_CROPPED = "much cropped"
    DUPLICATE = "duplicate"
    NEAR_DUPLICATE = "near-duplicate"
    ANIMATED = "animated picture"
    TOO_MANY_PIXELS = "too many pixels"
    SHARED_STEM = "shared caption"
    CASE_COLLISION = "case collision"
    TRANSPARENT = "transparency"
    ROTATED = "rotated by EXIF"
    BLANK = "blank picture"
    TRIGGER_MISSING = "trigger missing"
    TRIGGER_INSIDE_WORD = "trigger inside a word"
    DASHES = "dashes in a caption"
    SAME_CAPTION = "one caption for many"
    LINK_LEAVES = "link out of the folder"
    LINK_IGNORED = "linked folder"
    SOURCES_UNREADABLE = "unreadable sources"
    SOURCE_WITHOUT_PICTURE = "source without picture"
    LICENCE_MISSING = "licence missing"
    CAPTION_REFUSED = "caption refused"
    CAPTION_FAILED = "caption failed"


class Rule(NamedTuple):
    severity: Severity
    fix: str


RULES: dict[Kind, Rule] = {
    Kind.NO_PICTURES: Rule("error", "put .jpg, .png or .webp files into the folder"),
    Kind.MISSING_CAPTION: Rule("error", "write a text file of the same name beside it"),
    Kind.EMPTY_CAPTION: Rule("error", "say in it what the picture shows"),
    Kind.CAPTION_UNREADABLE: Rule("error", "save it as UTF-8"),
    Kind.ORPHAN_CAPTION: Rule("warning", "delete it, or name it after its picture"),
    Kind.UNREADABLE: Rule("error", "fetch it again, or take it out"),
    Kind.MISLABELLED: Rule("error", "name it after what it is, or save it anew"),
    Kind.UNSUPPORTED: Rule("error", "save it as PNG: trainers pass it over without a word"),
    Kind.TOO_SMALL: Rule("error", "take it out, or train at a smaller resolution"),
    Kind.BELOW_RESOLUTION: Rule("warning", "find a larger one; it is never enlarged"),
    Kind.MUCH_CROPPED: Rule("warning", "crop it yourself to what matters"),
    Kind.DUPLICATE: Rule("error", "keep one: it would count twice"),
    Kind.NEAR_DUPLICATE: Rule("warning", "keep one, unless both teach something"),
    Kind.ANIMATED: Rule("error", "save the one frame that you mean as PNG"),
    Kind.TOO_MANY_PIXELS: Rule("error", "scale it down"),
    Kind.SHARED_STEM: Rule("error", "rename one of them: they would share a caption"),
    Kind.CASE_COLLISION: Rule("error", "rename one: elsewhere they would be one file"),
    Kind.TRANSPARENT: Rule("warning", "lay it on a background of your choice; ours is white"),
    Kind.ROTATED: Rule("warning", "save it upright: not every trainer reads EXIF"),
    Kind.BLANK: Rule("error", "take it out"),
    Kind.TRIGGER_MISSING: Rule("warning", "begin the caption with the trigger"),
    Kind.TRIGGER_INSIDE_WORD: Rule(
        "error", "write the trigger as a word of its own: trainers take this for it"
    ),
    Kind.DASHES: Rule("warning", "write one dash: samplers read two as an option"),
    Kind.SAME_CAPTION: Rule("warning", "say what differs from picture to picture"),
    Kind.LINK_LEAVES: Rule("error", "copy the file into the folder"),
    Kind.LINK_IGNORED: Rule("warning", "move the pictures in: no trainer follows it"),
    Kind.SOURCES_UNREADABLE: Rule("error", "write picture,source,licence as its first line"),
    Kind.SOURCE_WITHOUT_PICTURE: Rule("warning", "delete the line, or name its picture"),
    Kind.LICENCE_MISSING: Rule("warning", "write it into sources.csv: picture,source,licence"),
    Kind.CAPTION_REFUSED: Rule("error", "write its caption yourself"),
    Kind.CAPTION_FAILED: Rule("error", "run prepare again, or write its caption yourself"),
}


@dataclass(frozen=True)
class Finding:
    """One thing wrong with one file. `file` is its path below the folder."""

    kind: Kind
    file: str
    why: str
    fix: str = ""

    def __post_init__(self) -> None:
        if not self.fix:
            object.__setattr__(self, "fix", RULES[self.kind].fix)

    @property
    def severity(self) -> Severity:
        return RULES[self.kind].severity

    @property
    def is_error(self) -> bool:
        return self.severity == "error"

    def __str__(self) -> str:
        return f"{self.file}: {self.why}: {self.fix}"


def in_order(findings: list[Finding]) -> list[Finding]:
    """Errors first, then as `Kind` lists them, then by file."""
    kinds = list(Kind)
    return sorted(findings, key=lambda f: (not f.is_error, kinds.index(f.kind), f.file, f.why))
