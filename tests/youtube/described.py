"""Channels that the fake YouTube shows, read from the files in channels/ (README.md says how).

Reading is strict: a key that nobody knows, or a label whose quote does not occur where it says, is
an error with the file's name.
"""

from __future__ import annotations

import base64
import hashlib
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

FOLDER = Path(__file__).parent / "channels"

Category = Literal[
    "theme", "sexuality", "violence", "horror", "language", "drugs", "imitation",
    "hate", "gambling", "fraud", "illegal_trade",
]  # fmt: skip
Scene = Literal[
    "plain", "kitchen", "landscape", "city", "desk", "chart", "news", "pitch", "ring", "chat",
    "cards", "cash", "pills", "syringe", "knife", "gun", "bottles", "fire", "figure", "skull",
    "roof",
]  # fmt: skip
PictureFault = Literal[
    "missing", "huge", "bomb", "html", "slow", "redirect", "truncated", "garbage", "server_error"
]
CallFault = Literal[
    "quota_exceeded", "daily_limit", "rate_limited", "too_many_requests", "key_invalid",
    "api_disabled", "bad_request", "server_error", "bad_gateway", "slow", "drip", "cut_off",
    "truncated_json", "html", "wrong_type", "redirect", "huge", "gzip_bomb", "empty_object",
    "wrong_kind", "bad_items", "other_channel", "foreign_videos", "echoes_key", "not_modified",
    "channel_closed", "uploads_closed",
]  # fmt: skip
CallName = Literal["channels", "playlist_items", "videos"]
Size = Literal["default", "medium", "high", "standard", "maxres"]
SIZES: tuple[Size, ...] = ("default", "medium", "high", "standard", "maxres")
Level = Annotated[int, Field(ge=0, le=4)]


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Label(_File):
    """What a careful reader finds in one field. `quote` occurs there; for a thumbnail it is what
    is written in the picture, or None for what the picture shows.
    """

    category: Category
    level: Level
    field: Literal["title", "description", "tags", "thumbnail"]
    quote: str | None = None


class Picture(_File):
    """`sizes` are those that YouTube lists; of these `gone` are not there when asked for."""

    scene: Scene = "plain"
    text: str = ""
    fault: PictureFault | None = None
    sizes: tuple[Size, ...] = Field(SIZES, strict=False)
    gone: tuple[Size, ...] = Field((), strict=False)


class VideoFile(_File):
    """None leaves out of the answer what YouTube may leave out. `lacks` are whole parts."""

    title: str = Field(max_length=100)
    description: str = Field("", max_length=5000)
    tags: tuple[str, ...] = Field((), strict=False)
    days_ago: Annotated[float, Field(ge=0, strict=False)]
    duration: str = "PT8M12S"
    privacy: Literal["public", "private", "deleted", "unavailable"] = "public"
    age_restricted: bool = False
    ratings: dict[str, str] = Field(default_factory=dict)
    made_for_kids: bool | None = False
    synthetic_media: bool | None = None
    paid_placement: bool | None = False
    has_counts: bool = True
    lacks: tuple[Literal["snippet", "contentDetails", "status", "statistics"], ...] = Field(
        (), strict=False
    )
    picture: Picture = Picture()
    labels: tuple[Label, ...] = Field((), strict=False)

    @model_validator(mode="after")
    def _quotes_occur(self) -> VideoFile:
        for label in self.labels:
            if label.quote is not None and label.quote not in self.text_of(label.field):
                raise ValueError(f"{label.quote!r} does not occur in {label.field}: {self.title}")
            if label.quote is None and label.field != "thumbnail":
                raise ValueError(f"a label in {label.field} needs a quote: {self.title}")
        return self

    def text_of(self, where: str) -> str:
        if where == "tags":
            return "\n".join(self.tags)
        return {
            "title": self.title,
            "description": self.description,
            "thumbnail": self.picture.text,
        }[where]


class ChannelFile(_File):
    """`subscribers` -1: hidden. `labels` are of its own title and description. `total_videos`
    is how many it says it has; None: as many as are public here.
    """

    title: str
    handle: str | None = None
    username: str | None = None
    description: str = ""
    keywords: tuple[str, ...] = Field((), strict=False)
    country: str | None = "KR"
    subscribers: int = Field(12_300, ge=-1)
    days_ago: int = 900
    total_videos: int | None = None
    made_for_kids: bool | None = False
    labels: tuple[Label, ...] = Field((), strict=False)


class Expected(_File):
    """What a vetting must come to: a verdict, or the name of an error (services/vetting/errors)."""

    verdict: Literal["pass", "fail", "review"] | None = None
    error: (
        Literal["ChannelNotFound", "SourceUnavailable", "SourceTimedOut", "QuotaExhausted"] | None
    ) = None
    why: str

    @model_validator(mode="after")
    def _is_one_of_two(self) -> Expected:
        if (self.verdict is None) == (self.error is None):
            raise ValueError("expected has either a verdict or an error")
        return self


class DescribedFile(_File):
    about: str
    kind: Literal[
        "harmless", "words", "pictures", "both", "borderline", "injected", "signals", "gaps",
        "faults",
    ]  # fmt: skip
    language: Literal["ko", "en"]
    expected: Expected
    channel: ChannelFile
    faults: dict[CallName, CallFault] = Field(default_factory=dict)
    videos: tuple[VideoFile, ...] = Field((), strict=False)


@dataclass(frozen=True)
class DescribedVideo:
    id: str
    published_at: datetime
    file: VideoFile


@dataclass(frozen=True)
class DescribedChannel:
    """One file. Ids come from its name, so they stay when the file is edited."""

    name: str
    id: str
    created_at: datetime
    file: DescribedFile
    videos: tuple[DescribedVideo, ...]
    """Newest first."""

    @property
    def uploads(self) -> str:
        return f"UU{self.id[2:]}"

    @property
    def expected(self) -> Expected:
        return self.file.expected

    @property
    def visible(self) -> tuple[DescribedVideo, ...]:
        return tuple(v for v in self.videos if v.file.privacy == "public")


@dataclass(frozen=True)
class Channels(Mapping[str, DescribedChannel]):
    """By file name, without its ending."""

    by_name: dict[str, DescribedChannel] = field(default_factory=dict)

    @classmethod
    def load(cls, folder: Path = FOLDER, now: datetime | None = None) -> Channels:
        """Raises ValueError with the file's name. Times count back from `now`, today by default."""
        today = (now or datetime.now(UTC)).replace(hour=0, minute=0, second=0, microsecond=0)
        paths = sorted(folder.glob("*.toml"))
        return cls({path.stem: _described(path, today) for path in paths})

    def __getitem__(self, name: str) -> DescribedChannel:
        return self.by_name[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.by_name)

    def __len__(self) -> int:
        return len(self.by_name)

    def video(self, video_id: str) -> DescribedVideo | None:
        found = (v for c in self.values() for v in c.videos if v.id == video_id)
        return next(found, None)


def _described(path: Path, today: datetime) -> DescribedChannel:
    try:
        file = DescribedFile.model_validate(tomllib.loads(path.read_text("utf-8")))
    except ValueError as error:
        raise ValueError(f"{path.name}: {error}") from error
    newest_first = sorted(enumerate(file.videos), key=lambda numbered: numbered[1].days_ago)
    videos = [
        DescribedVideo(_id(f"{path.stem}/{n}", 11), today - timedelta(days=video.days_ago), video)
        for n, video in newest_first
    ]
    created_at = today - timedelta(days=file.channel.days_ago)
    return DescribedChannel(path.stem, f"UC{_id(path.stem, 22)}", created_at, file, tuple(videos))


def _id(text: str, characters: int) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return base64.urlsafe_b64encode(digest).decode()[:characters]


def as_json(value: Any) -> Any:
    """Without the keys whose value is None."""
    if isinstance(value, dict):
        return {k: as_json(v) for k, v in value.items() if v is not None}
    return [as_json(v) for v in value] if isinstance(value, list | tuple) else value
