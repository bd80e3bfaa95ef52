"""What the YouTube Data API answers, read into a channel and its videos.

Pure: knows nothing of the network. An answer is read whole or not at all, a video likewise: what
has the wrong shape is an error or is named as not looked at, never filled in.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, TypeVar

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
)
from pydantic.alias_generators import to_camel

from services.vetting.errors import SourceUnavailable
from services.vetting.ports import Channel, NotLookedAt, Thumbnail, Video

ETAG = re.compile(r"[\x21-\x7e]{1,200}")
DURATION = re.compile(
    r"P(?:(?P<weeks>\d+)W)?(?:(?P<days>\d+)D)?"
    r"(?:T(?:(?P<hours>\d+)H)?(?:(?P<minutes>\d+)M)?(?:(?P<seconds>\d+)(?:\.\d+)?S)?)?"
)
SECONDS = {"weeks": 604_800, "days": 86_400, "hours": 3600, "minutes": 60, "seconds": 1}
KEYWORD = re.compile(r'"([^"]*)"|(\S+)')
# px that YouTube's documentation gives, for thumbnails that come without.
SIZES = {
    "uhd": (3840, 2160),
    "qhd": (2560, 1440),
    "fhd": (1920, 1080),
    "maxres": (1280, 720),
    "standard": (640, 480),
    "high": (480, 360),
    "medium": (320, 180),
    "default": (120, 90),
}
GONE_TITLES = {"Private video": "private_video", "Deleted video": "deleted_video"}
GONE = frozenset(GONE_TITLES.values())

T = TypeVar("T", bound=BaseModel)


def _is_duration(text: str) -> str:
    if DURATION.fullmatch(text) is None:
        raise ValueError("no ISO 8601 duration")
    return text


Id = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
ChannelId = Annotated[str, StringConstraints(pattern=r"^UC[A-Za-z0-9_-]{22}$")]
Count = Annotated[int, Field(ge=0)]
Duration = Annotated[str, AfterValidator(_is_duration)]


class _Wire(BaseModel):
    model_config = ConfigDict(frozen=True, alias_generator=to_camel)


class _Page(_Wire):
    kind: str
    etag: str | None = None
    items: list[Any] | None = None


class _Thumbnail(_Wire):
    url: Annotated[str, StringConstraints(min_length=1, max_length=2000)]
    width: Count | None = None
    height: Count | None = None


class _ChannelSnippet(_Wire):
    title: str
    description: str
    custom_url: str | None = None
    published_at: AwareDatetime
    thumbnails: dict[str, _Thumbnail] = Field(default_factory=dict)
    country: str | None = None


class _ChannelStatistics(_Wire):
    subscriber_count: Count | None = None
    hidden_subscriber_count: bool = False
    video_count: Count


class _RelatedPlaylists(_Wire):
    uploads: Id


class _ChannelDetails(_Wire):
    related_playlists: _RelatedPlaylists


class _ChannelStatus(_Wire):
    made_for_kids: bool | None = None


class _Branding(_Wire):
    keywords: str = ""


class _BrandingSettings(_Wire):
    channel: _Branding = _Branding()


class _Channel(_Wire):
    id: ChannelId
    snippet: _ChannelSnippet
    statistics: _ChannelStatistics
    content_details: _ChannelDetails
    status: _ChannelStatus
    branding_settings: _BrandingSettings = _BrandingSettings()


class _ListedSnippet(_Wire):
    title: str = ""


class _ListedDetails(_Wire):
    video_id: Id


class _ListedStatus(_Wire):
    privacy_status: str | None = None


class _Listed(_Wire):
    snippet: _ListedSnippet = _ListedSnippet()
    content_details: _ListedDetails
    status: _ListedStatus = _ListedStatus()


class _VideoSnippet(_Wire):
    channel_id: ChannelId
    title: str
    description: str
    published_at: AwareDatetime
    thumbnails: dict[str, _Thumbnail] = Field(default_factory=dict)
    tags: list[str] = Field(default_factory=list)
    category_id: str | None = None
    default_language: str | None = None
    default_audio_language: str | None = None


class _VideoDetails(_Wire):
    duration: Duration | None = None
    content_rating: dict[str, str | list[str]]


class _VideoStatus(_Wire):
    upload_status: str
    made_for_kids: bool | None = None
    contains_synthetic_media: bool | None = None


class _VideoStatistics(_Wire):
    view_count: Count | None = None
    like_count: Count | None = None
    comment_count: Count | None = None


class _PaidPlacement(_Wire):
    has_paid_product_placement: bool | None = None


class _Video(_Wire):
    id: Id
    snippet: _VideoSnippet
    content_details: _VideoDetails
    status: _VideoStatus
    statistics: _VideoStatistics
    paid_product_placement_details: _PaidPlacement = _PaidPlacement()


def etag_of(body: Mapping[str, Any]) -> str | None:
    etag = body.get("etag")
    return etag if isinstance(etag, str) and ETAG.fullmatch(etag) else None


def read_channel(body: Mapping[str, Any]) -> Channel | None:
    """None when there is no such channel: YouTube then leaves `items` out."""
    items = _page(body, "youtube#channelListResponse").items
    if not items:
        return None
    found = _whole(_Channel, items[0], "a channel")
    handle = found.snippet.custom_url
    hidden = found.statistics.hidden_subscriber_count
    thumbnails = _sorted(found.snippet.thumbnails)
    return Channel(
        id=found.id,
        handle=handle if handle and handle.startswith("@") else None,
        title=found.snippet.title,
        description=found.snippet.description,
        keywords=_keywords(found.branding_settings.channel.keywords),
        thumbnail_url=thumbnails[0].url if thumbnails else None,
        subscribers=None if hidden else found.statistics.subscriber_count,
        videos=found.statistics.video_count,
        published_at=found.snippet.published_at,
        uploads=found.content_details.related_playlists.uploads,
        country=found.snippet.country,
        is_made_for_kids=found.status.made_for_kids,
    )


def read_listing(body: Mapping[str, Any]) -> tuple[tuple[str, ...], dict[str, str]]:
    """The ids in an uploads playlist in its order, each once, and which of them YouTube says are
    private or deleted.
    """
    page = _page(body, "youtube#playlistItemListResponse")
    if page.items is None:
        raise SourceUnavailable("YouTube's answer is not understood: a playlist without items")
    items = [_whole(_Listed, item, "a playlist's item") for item in page.items]
    gone = {
        item.content_details.video_id: why for item in items if (why := _why_gone(item)) is not None
    }
    return tuple(dict.fromkeys(item.content_details.video_id for item in items)), gone


def read_videos(
    body: Mapping[str, Any], channel_id: str, listed: Sequence[str], gone: Mapping[str, str]
) -> tuple[tuple[Video, ...], tuple[NotLookedAt, ...]]:
    """Every id of `listed`, in order, as a video or as something not looked at."""
    items = _page(body, "youtube#videoListResponse").items or []
    by_id = {item["id"]: item for item in items if isinstance(item, dict) and "id" in item}
    videos: list[Video] = []
    missed: list[NotLookedAt] = []
    for video_id in listed:
        read = _video(by_id.get(video_id), channel_id)
        if isinstance(read, Video):
            videos.append(read)
        else:
            why = gone.get(video_id, read) if video_id not in by_id else read
            missed.append(NotLookedAt(f"video:{video_id}", why))
    return tuple(videos), tuple(missed)


def _video(item: Any, channel_id: str) -> Video | str:
    """The video, or why it cannot be looked at."""
    if item is None:
        return "video_unavailable"
    try:
        found = _Video.model_validate(item)
    except ValidationError:
        return "incomplete_data"
    if found.snippet.channel_id != channel_id:
        return "foreign_video"
    if found.status.upload_status not in ("processed", "uploaded"):
        return "video_not_processed"
    return _as_video(found)


def _as_video(found: _Video) -> Video:
    snippet, details, statistics = found.snippet, found.content_details, found.statistics
    ratings = {k: v for k, v in details.content_rating.items() if isinstance(v, str)}
    return Video(
        id=found.id,
        title=snippet.title,
        description=snippet.description,
        tags=tuple(snippet.tags),
        published_at=snippet.published_at,
        duration_s=_seconds(details.duration),
        thumbnails=_sorted(snippet.thumbnails),
        is_age_restricted=ratings.get("ytRating") == "ytAgeRestricted",
        content_ratings=ratings,
        is_made_for_kids=found.status.made_for_kids,
        has_synthetic_media=found.status.contains_synthetic_media,
        has_paid_placement=found.paid_product_placement_details.has_paid_product_placement,
        language=snippet.default_audio_language or snippet.default_language,
        category_id=snippet.category_id,
        views=statistics.view_count,
        likes=statistics.like_count,
        comments=statistics.comment_count,
    )


def _page(body: Mapping[str, Any], kind: str) -> _Page:
    """Raises SourceUnavailable for an answer to something else: an empty one names no channel."""
    page = _whole(_Page, body, "a list")
    if page.kind != kind:
        raise SourceUnavailable(f"YouTube's answer is not understood: it is no {kind}")
    return page


def _whole(model: type[T], item: Any, what: str) -> T:
    try:
        return model.model_validate(item)
    except ValidationError as error:
        place = ".".join(map(str, error.errors()[0]["loc"])) or "its top"
    raise SourceUnavailable(f"YouTube's answer is not understood: {what} has no valid {place}")


def _why_gone(item: _Listed) -> str | None:
    """Others see a private or deleted upload by a title that YouTube puts there, and privacy."""
    if item.status.privacy_status == "private":
        return "private_video"
    if item.status.privacy_status in ("privacyStatusUnspecified", None):
        return GONE_TITLES.get(item.snippet.title)
    return None


def _sorted(thumbnails: Mapping[str, _Thumbnail]) -> tuple[Thumbnail, ...]:
    """Most pixels first."""
    sized = [
        (t.url, t.width or SIZES.get(name, (None, None))[0], t.height or SIZES.get(name, (0, 0))[1])
        for name, t in thumbnails.items()
    ]
    sized.sort(key=lambda t: (t[1] or 0) * (t[2] or 0), reverse=True)
    return tuple(Thumbnail(url, width or None, height or None) for url, width, height in sized)


def _seconds(duration: str | None) -> int | None:
    """None for P0D, which YouTube says of what has not been broadcast yet."""
    matched = DURATION.fullmatch(duration or "")
    if matched is None:
        return None
    units = {unit: int(n) for unit, n in matched.groupdict().items() if n is not None}
    return sum(n * SECONDS[unit] for unit, n in units.items()) or None


def _keywords(text: str) -> tuple[str, ...]:
    """YouTube puts phrases of several words in quotation marks."""
    return tuple(phrase or word for phrase, word in KEYWORD.findall(text) if phrase or word)
