"""What one or two looks claim, made into findings. Pure.

A claim is of a unit (a video's text, a thumbnail's text, a thumbnail's picture) and rests on a
place in it. Two looks agree about a category of a unit when the highest level is the same in both.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from services.vetting.answers import PictureAnswer, TextAnswer, harm
from services.vetting.cutting import Batch
from services.vetting.pictures import Box
from services.vetting.policy import MODERATE, level_of, rating_level
from services.vetting.ports import Channel, Snapshot, Video
from services.vetting.schemas import Finding, FoundBox, Harm, Signal, Source

AGREED, DISPUTED = 1.0, 0.5
ADULTS_ONLY = 3


@dataclass(frozen=True)
class Claim:
    """`video_id`, `source`, `quote` and `box` are the place."""

    unit: str
    video_id: str | None
    source: Source
    category: Harm
    level: int
    quote: str | None = None
    box: FoundBox | None = None
    read: float = 1.0

    @property
    def topic(self) -> tuple[str, Harm]:
        return self.unit, self.category

    def finding(self, agreement: float) -> Finding:
        return Finding(
            video_id=self.video_id,
            source=self.source,
            category=self.category,
            level=self.level,
            quote=self.quote,
            box=self.box,
            confidence=round(agreement * self.read, 3),
        )


def text_claims(answer: TextAnswer, batch: Batch) -> tuple[list[Claim], bool]:
    """The claims that rest on a passage of `batch`, and True when some do not."""
    claims = []
    for claim in answer.findings:
        if claim.passage > len(batch):
            continue
        passage = batch[claim.passage - 1]
        claims.append(
            Claim(
                unit=passage.unit,
                video_id=passage.video_id,
                source=passage.source,
                category=harm(claim.category),
                level=level_of(claim.level, is_reported=claim.how == "reports"),
                quote=passage.text,
                box=None if passage.box is None else as_box(passage.box),
                read=min(1.0, passage.read),
            )
        )
    return _highest(claims), len(answer.findings) > sum(
        claim.passage <= len(batch) for claim in answer.findings
    )


def picture_claims(answer: PictureAnswer, video_id: str) -> list[Claim]:
    return _highest(
        Claim(
            unit=f"thumbnail_image:{video_id}",
            video_id=video_id,
            source="thumbnail",
            category=harm(claim.category),
            level=claim.level,
            box=as_box(Box(*(v / 100 for v in (claim.x, claim.y, claim.width, claim.height)))),
        )
        for claim in answer.findings
    )


def agreed(
    first: Sequence[Claim], second: Sequence[Claim] | None
) -> tuple[list[Finding], set[str]]:
    """Findings, and the units that the looks disagree about in a way that may matter. Where they
    disagree, both are told, and neither is sure. `second` None: one look was enough.
    """
    if second is None:
        return [claim.finding(AGREED) for claim in first], set()
    one, other = _levels(first), _levels(second)
    disputed = {topic for topic in one.keys() | other.keys() if one.get(topic) != other.get(topic)}
    findings = [claim.finding(AGREED) for claim in first if claim.topic not in disputed]
    both = _highest(claim for claim in (*first, *second) if claim.topic in disputed)
    findings += [claim.finding(DISPUTED) for claim in both]
    return findings, {claim.unit for claim in both if claim.level >= MODERATE}


def signals(snapshot: Snapshot, few: int) -> list[Finding]:
    """What YouTube's own data says, before any model. `few` uploads or more are enough."""
    return [
        *_channel_signals(snapshot, few),
        *(found for video in snapshot.videos for found in _video_signals(video)),
    ]


def as_box(box: Box) -> FoundBox:
    """Within the picture, whatever was claimed."""
    x, y = min(1.0, max(0.0, box.x)), min(1.0, max(0.0, box.y))
    width, height = max(0.0, min(box.width, 1 - x)), max(0.0, min(box.height, 1 - y))
    return FoundBox(x=x, y=y, width=round(width, 4), height=round(height, 4))


def _channel_signals(snapshot: Snapshot, few: int) -> list[Finding]:
    channel = snapshot.channel
    found = []
    if _has_few(snapshot, few):
        shown = min(channel.videos, len(snapshot.listed))
        found.append(_signal(None, "few_uploads", 0, f"videos: {shown}"))
    if channel.is_made_for_kids:
        found.append(_signal(None, "made_for_kids", 0, "madeForKids: true"))
    if hidden := _hidden(channel, snapshot.videos):
        found.append(_signal(None, "hidden_statistics", 0, f"hidden: {hidden}"))
    return found


def _has_few(snapshot: Snapshot, few: int) -> bool:
    """An uploads list that could not be had says nothing about how many there are."""
    is_listed = all(missed.what != "uploads" for missed in snapshot.not_looked_at)
    return snapshot.channel.videos < few or (is_listed and len(snapshot.listed) < few)


def _hidden(channel: Channel, videos: Sequence[Video]) -> str:
    counts = {
        "subscribers": channel.subscribers is None,
        "likes": any(video.likes is None for video in videos),
        "comments": any(video.comments is None for video in videos),
    }
    return ", ".join(name for name, is_hidden in counts.items() if is_hidden)


def _video_signals(video: Video) -> list[Finding]:
    noted: list[tuple[Signal, bool | None, int, str]] = [
        ("age_restricted", video.is_age_restricted, ADULTS_ONLY, "ytRating: ytAgeRestricted"),
        ("made_for_kids", video.is_made_for_kids, 0, "madeForKids: true"),
        ("synthetic_media", video.has_synthetic_media, 0, "containsSyntheticMedia: true"),
        ("paid_placement", video.has_paid_placement, 0, "hasPaidProductPlacement: true"),
    ]
    found = [
        _signal(video.id, category, level, quote)
        for category, holds, level, quote in noted
        if holds
    ]
    for body, value in sorted(video.content_ratings.items()):
        level = rating_level(value)
        if body != "ytRating" and level:
            found.append(_signal(video.id, "content_rating", level, f"{body}: {value}"))
    return found


def _signal(video_id: str | None, category: Signal, level: int, quote: str) -> Finding:
    return Finding(
        video_id=video_id,
        source="channel" if video_id is None else "rating",
        category=category,
        level=level,
        quote=quote,
        box=None,
        confidence=1.0,
    )


def _levels(claims: Iterable[Claim]) -> dict[tuple[str, Harm], int]:
    levels: dict[tuple[str, Harm], int] = {}
    for claim in claims:
        levels[claim.topic] = max(claim.level, levels.get(claim.topic, 0))
    return levels


def _highest(claims: Iterable[Claim]) -> list[Claim]:
    """One claim for each place and category: the highest."""
    kept: dict[tuple[object, ...], Claim] = {}
    for claim in claims:
        place = (claim.unit, claim.source, claim.category, claim.quote, claim.box)
        if place not in kept or claim.level > kept[place].level:
            kept[place] = claim
    return list(kept.values())
