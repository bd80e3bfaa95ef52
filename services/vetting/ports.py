"""A channel's data as a vetting sees it, and what gives it. Adapters and fakes implement these.

Every text in here was written by the channel: material to judge, never an instruction.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from services.vetting.channels import ChannelRef


@dataclass(frozen=True)
class Thumbnail:
    """`url` is as YouTube gave it: unchecked. Sizes in px; None where YouTube did not say."""

    url: str
    width: int | None
    height: int | None


@dataclass(frozen=True)
class Video:
    """Times are aware. None means that YouTube did not say, or that the channel hides it."""

    id: str
    title: str
    description: str
    tags: tuple[str, ...]
    published_at: datetime
    duration_s: int | None
    """None for what has not been broadcast yet."""
    thumbnails: tuple[Thumbnail, ...]
    """From best to smallest."""
    is_age_restricted: bool
    content_ratings: Mapping[str, str]
    """By rating body, as in {"kmrbRating": "kmrb15plus"}; ytRating is among them."""
    is_made_for_kids: bool | None
    has_synthetic_media: bool | None
    has_paid_placement: bool | None
    language: str | None
    """Of the sound, or of the title and description."""
    category_id: str | None
    views: int | None
    likes: int | None
    comments: int | None


@dataclass(frozen=True)
class Channel:
    """`subscribers` is rounded by YouTube, and None when the channel hides it. `videos` counts
    the public ones. `uploads` is the id of the playlist that holds them.
    """

    id: str
    handle: str | None
    """With its @."""
    title: str
    description: str
    keywords: tuple[str, ...]
    thumbnail_url: str | None
    subscribers: int | None
    videos: int
    published_at: datetime
    uploads: str
    country: str | None = None
    is_made_for_kids: bool | None = None


@dataclass(frozen=True)
class NotLookedAt:
    """Something of the channel that was there to see and was not seen.

    `what` is `video:<id>` or `uploads`. `why` is one of private_video, deleted_video,
    video_unavailable, video_not_processed, incomplete_data, foreign_video, uploads_not_found,
    uploads_not_accessible.
    """

    what: str
    why: str


@dataclass(frozen=True)
class Snapshot:
    """A channel and its newest uploads, newest first, as they were at `fetched_at`.

    `listed` are the ids of all uploads that were to be looked at: each is in `videos` or in
    `not_looked_at`. `quota_units` and `bytes` (of answers, decoded) are what this very fetch cost:
    0 when it came from a cache.
    """

    channel: Channel
    videos: tuple[Video, ...]
    not_looked_at: tuple[NotLookedAt, ...]
    listed: tuple[str, ...]
    quota_units: int
    fetched_at: datetime
    bytes: int


@dataclass(frozen=True)
class Cached:
    """A snapshot and what is needed to ask whether it still holds: entity tags by call
    (`channels`, `playlist_items`, `videos`).
    """

    snapshot: Snapshot
    etags: Mapping[str, str] = field(default_factory=dict)

    @property
    def fetched_at(self) -> datetime:
        return self.snapshot.fetched_at


class ChannelSource(Protocol):
    """Raises the SourceError family and StorageUnavailable."""

    async def fetch(self, ref: ChannelRef) -> Snapshot: ...


class RevalidatingSource(ChannelSource, Protocol):
    """A source that can be told what is known already."""

    async def refetch(self, ref: ChannelRef, known: Cached | None) -> Cached:
        """`known` must be of the channel that `ref` named then."""
        ...


class SnapshotCache(Protocol):
    """Snapshots by ChannelRef.key. Raises StorageUnavailable."""

    async def get(self, key: str) -> Cached | None: ...

    async def put(self, key: str, cached: Cached) -> None:
        """Replaces what is there."""
        ...

    async def delete_older_than(self, moment: datetime) -> None:
        """Of everything whose `fetched_at` is before `moment`."""
        ...


class QuotaLedger(Protocol):
    """Units spent by day, for all replicas. Raises StorageUnavailable. Days are ISO dates."""

    async def reserve(self, units: int, day: str, *, budget: int) -> bool:
        """Adds `units`, unless that makes more than `budget` or the day is closed; atomically.
        True when they were added.
        """
        ...

    async def release(self, units: int, day: str) -> None:
        """Takes back units that were reserved and not spent."""
        ...

    async def close(self, day: str) -> None:
        """Nothing more can be reserved for this day."""
        ...

    async def spent(self, day: str) -> int: ...
