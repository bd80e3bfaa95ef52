"""A YouTube for tests and the demo, over real HTTP: the three list calls of the Data API v3 as
Google answers them, and pictures. Faults on demand.

It stands for what lives on the internet. Whatever else is asked of it is a 404 and is remembered
in `strays`.
"""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, get_args

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Route

from tests.fakes.scripted_llm import served_app
from tests.youtube import pictures
from tests.youtube.described import (
    SIZES,
    CallFault,
    CallName,
    Channels,
    DescribedChannel,
    DescribedVideo,
    PictureFault,
    Size,
    as_json,
)

KEY = "AIzaSyFAKE-key_for+tests/only=0123456789"
JSON = "application/json; charset=UTF-8"
FILE_NAMES: dict[str, Size] = {
    "default": "default",
    "mqdefault": "medium",
    "hqdefault": "high",
    "sddefault": "standard",
    "maxresdefault": "maxres",
}
BASE_NAMES: dict[Size, str] = {size: name for name, size in FILE_NAMES.items()}
FILTERS: dict[CallName, tuple[str, ...]] = {
    "channels": ("id", "forHandle", "forUsername"),
    "playlist_items": ("playlistId",),
    "videos": ("id",),
}
PARTS: dict[CallName, frozenset[str]] = {
    "channels": frozenset(
        "id snippet statistics contentDetails status brandingSettings topicDetails".split()
    ),
    "playlist_items": frozenset("id snippet contentDetails status".split()),
    "videos": frozenset(
        "id snippet contentDetails status statistics topicDetails"
        " paidProductPlacementDetails".split()
    ),
}
ERRORS: dict[str, tuple[int, str, str, str]] = {
    # status, reason, domain, message
    "quota_exceeded": (403, "quotaExceeded", "youtube.quota", "You have exceeded your quota."),
    "rate_limited": (403, "rateLimitExceeded", "usageLimits", "Rate limit exceeded."),
    "too_many_requests": (429, "rateLimitExceeded", "global", "Too many requests."),
    "daily_limit": (429, "rateLimitExceeded", "global", "Quota exceeded for quota metric."),
    "key_invalid": (400, "badRequest", "global", "API key not valid."),
    "key_missing": (403, "forbidden", "global", "The request is missing a valid API key."),
    "api_disabled": (403, "accessNotConfigured", "usageLimits", "The API has not been used."),
    "bad_request": (400, "invalidParameter", "youtube.parameter", "Invalid value."),
    "no_filter": (400, "missingRequiredParameter", "youtube.parameter", "No filter selected."),
    "server_error": (500, "backendError", "global", "Backend Error"),
    "channel_closed": (403, "channelClosed", "youtube.channel", "The channel has been closed."),
    "uploads_closed": (403, "playlistItemsNotAccessible", "youtube.playlistItem", "Forbidden."),
    "no_playlist": (404, "playlistNotFound", "youtube.playlistItem", "Playlist not found."),
}
DETAILS: dict[str, dict[str, Any]] = {
    "key_invalid": {"reason": "API_KEY_INVALID", "domain": "googleapis.com"},
    "daily_limit": {
        "reason": "RATE_LIMIT_EXCEEDED",
        "domain": "googleapis.com",
        "metadata": {"quota_limit": "defaultPerDayPerProject", "quota_unit": "1/d/{project}"},
    },
}


GZIP_BOMB = gzip.compress(b'{"kind":"' + b"a" * 32 * 1024 * 1024 + b'"}', 1)


class _BadCall(Exception):
    def __init__(self, error: str) -> None:
        super().__init__(error)
        self.error = error


@dataclass(frozen=True)
class ApiCall:
    """One call that came, without its key."""

    name: CallName
    parameters: dict[str, str]
    if_none_match: str | None
    status: int


@dataclass(frozen=True)
class PictureCall:
    video: str
    size: Size
    status: int


@dataclass
class FakeYouTube:
    """`units` counts what Google would: one a call, refused ones too. `picture_base_url` is where
    the answers say that pictures are; the server has them at `base_url`.
    """

    channels: Channels
    key: str = KEY
    base_url: str = ""
    picture_base_url: str = ""
    units_per_day: int = 10_000
    slow_s: float = 3.0
    units: int = 0
    calls: list[ApiCall] = field(default_factory=list)
    picture_calls: list[PictureCall] = field(default_factory=list)
    strays: list[str] = field(default_factory=list)
    running: int = 0
    _faults: dict[CallName, tuple[CallFault, int | None]] = field(default_factory=dict)
    _headers: dict[str, str] = field(default_factory=dict)

    def fail(
        self,
        name: CallName,
        fault: CallFault,
        times: int | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        """The next `times` calls (None: all) of one kind go wrong, whatever they ask for."""
        self._faults[name] = (fault, times)
        self._headers = headers or {}

    def mend(self) -> None:
        self._faults.clear()
        self._headers = {}

    def reset(self) -> None:
        """Forgets what was asked, and every fault that did not come from a file."""
        self.mend()
        self.units = 0
        self.calls.clear()
        self.picture_calls.clear()
        self.strays.clear()

    def calls_of(self, name: CallName) -> list[ApiCall]:
        return [call for call in self.calls if call.name == name]

    def fault_for(self, name: CallName, channel: DescribedChannel | None) -> CallFault | None:
        fault, left = self._faults.get(name, (None, None))
        if fault is not None and left is not None:
            if left > 1:
                self._faults[name] = (fault, left - 1)
            else:
                del self._faults[name]
        if fault is None and channel is not None:
            return channel.file.faults.get(name)
        return fault

    def thumbnail_url(self, video_id: str, size: Size) -> str:
        return f"{self.picture_base_url}/vi/{video_id}/{BASE_NAMES[size]}.jpg"


@contextmanager
def serve_youtube(
    channels: Channels | None = None,
    *,
    picture_base_url: str | None = None,
    units_per_day: int = 10_000,
    slow_s: float = 3.0,
) -> Iterator[FakeYouTube]:
    """`picture_base_url` (its own by default) is what answers say, such as https://i.ytimg.com."""
    youtube = FakeYouTube(
        Channels.load() if channels is None else channels,
        units_per_day=units_per_day,
        slow_s=slow_s,
    )
    server = _Server(youtube)
    app = Starlette(
        routes=[
            Route("/youtube/v3/channels", server.channels),
            Route("/youtube/v3/playlistItems", server.playlist_items),
            Route("/youtube/v3/videos", server.videos),
            Route("/vi/{video}/{name}.jpg", server.picture),
            Route("/avatar/{channel}.jpg", server.avatar),
            Route("/{rest:path}", server.stray, methods=["GET", "POST", "PUT", "DELETE"]),
        ]
    )
    with served_app(app) as base_url:
        youtube.base_url = base_url
        youtube.picture_base_url = picture_base_url or base_url
        youtube.strays.clear()  # served_app's own first call
        yield youtube


class _Server:
    def __init__(self, youtube: FakeYouTube) -> None:
        self._youtube = youtube

    async def channels(self, request: Request) -> Response:
        return await self._answer("channels", request, self._channels)

    async def playlist_items(self, request: Request) -> Response:
        return await self._answer("playlist_items", request, self._playlist_items)

    async def videos(self, request: Request) -> Response:
        return await self._answer("videos", request, self._videos)

    async def stray(self, request: Request) -> Response:
        self._youtube.strays.append(f"{request.method} {request.url.path}")
        return Response("<!DOCTYPE html><title>Error 404</title>", 404, media_type="text/html")

    def avatar(self, request: Request) -> Response:
        channel = self._by_id(request.path_params["channel"])
        title = channel.file.channel.title if channel else "?"
        return Response(pictures.avatar(title, 240), media_type="image/jpeg")

    async def picture(self, request: Request) -> Response:
        video_id = request.path_params["video"]
        size = FILE_NAMES.get(request.path_params["name"])
        video = self._youtube.channels.video(video_id)
        if video is None or size is None:
            return Response(pictures.placeholder(), 404, media_type="image/jpeg")
        response = await self._picture(video, size)
        self._youtube.picture_calls.append(PictureCall(video_id, size, response.status_code))
        return response

    async def _picture(self, video: DescribedVideo, size: Size) -> Response:
        picture = video.file.picture
        if picture.fault is not None:
            return await self._faulty_picture(picture.fault, video, size)
        if size not in picture.sizes or size in picture.gone:
            return Response(pictures.placeholder(), 404, media_type="image/jpeg")
        data = await asyncio.to_thread(pictures.jpeg, picture, size)
        return Response(data, media_type="image/jpeg")

    async def _faulty_picture(  # noqa: PLR0911 - a table of faults
        self, fault: PictureFault, video: DescribedVideo, size: Size
    ) -> Response:
        match fault:
            case "missing":
                return Response(pictures.placeholder(), 404, media_type="image/jpeg")
            case "huge":
                return StreamingResponse(_padded(pictures.placeholder()), media_type="image/jpeg")
            case "bomb":
                return Response(pictures.bomb(), media_type="image/png")
            case "html":
                return Response("<html><body>Sorry...</body></html>", media_type="image/jpeg")
            case "garbage":
                return Response(
                    b"\xff\xd8\xff\xe0" + b"not a picture" * 50, media_type="image/jpeg"
                )
            case "redirect":
                return RedirectResponse(f"http://127.0.0.1:9/vi/{video.id}/{size}.jpg", 302)
            case "truncated":
                whole = await asyncio.to_thread(pictures.jpeg, video.file.picture, size)
                return Response(whole[: len(whole) // 3], media_type="image/jpeg")
            case "slow":
                return StreamingResponse(
                    self._drip(pictures.placeholder()), media_type="image/jpeg"
                )
            case "server_error":
                return Response("Internal Server Error", 500)

    async def _answer(
        self, name: CallName, request: Request, made: Callable[[dict[str, str]], dict[str, Any]]
    ) -> Response:
        self._youtube.units += 1
        self._youtube.running += 1
        try:
            response = await self._response(name, request, made)
        finally:
            self._youtube.running -= 1
        parameters = {k: v for k, v in request.query_params.items() if k != "key"}
        etag = request.headers.get("if-none-match")
        self._youtube.calls.append(ApiCall(name, parameters, etag, response.status_code))
        return response

    async def _response(
        self, name: CallName, request: Request, made: Callable[[dict[str, str]], dict[str, Any]]
    ) -> Response:
        parameters = dict(request.query_params)
        fault = self._youtube.fault_for(name, self._meant(name, parameters))
        try:
            self._check_key(parameters)
            if self._youtube.units > self._youtube.units_per_day:
                raise _BadCall("quota_exceeded")
            _check(name, parameters)
            if fault in ERRORS:
                raise _BadCall(str(fault))
            body = _with_etag(made(parameters))
        except _BadCall as bad:
            return _error(bad.error, self._youtube._headers)
        if fault is not None:
            return await self._faulty(fault, body, request)
        if request.headers.get("if-none-match") == body["etag"]:
            return Response(status_code=304, headers={"ETag": body["etag"]})
        return _json(body, request)

    def _check_key(self, parameters: dict[str, str]) -> None:
        if "key" not in parameters:
            raise _BadCall("key_missing")
        if parameters["key"] != self._youtube.key:
            raise _BadCall("key_invalid")

    async def _faulty(self, fault: CallFault, body: dict[str, Any], request: Request) -> Response:  # noqa: C901, PLR0911, PLR0912 - a table of faults
        whole = json.dumps(body, ensure_ascii=False).encode()
        match fault:
            case "slow":
                await self._patience(request)
                return _json(body, request)
            case "drip":
                return StreamingResponse(self._drip(whole), media_type=JSON)
            case "cut_off":
                headers = {"content-length": str(len(whole))}
                return StreamingResponse(_cut(whole), media_type=JSON, headers=headers)
            case "truncated_json":
                return Response(whole[: len(whole) // 2], media_type=JSON)
            case "html":
                return Response("<html>Sign in to continue</html>", media_type="text/html")
            case "wrong_type":
                return Response(whole, media_type="text/html")
            case "bad_gateway":
                return Response("<html>502 Bad Gateway</html>", 502, media_type="text/html")
            case "redirect":
                return RedirectResponse(f"{self._youtube.base_url}/elsewhere", 302)
            case "huge":
                return StreamingResponse(_padded(whole), media_type=JSON)
            case "gzip_bomb":
                headers = {"content-encoding": "gzip"}
                return Response(GZIP_BOMB, media_type=JSON, headers=headers)
            case "empty_object":
                return JSONResponse({})
            case "wrong_kind":
                return JSONResponse({**body, "kind": "youtube#searchListResponse"})
            case "bad_items":
                return JSONResponse({**body, "items": ["not an object", 5]})
            case "other_channel":
                items = [{**item, "id": f"UC{'x' * 22}"} for item in body.get("items", [])]
                return JSONResponse({**body, "items": items})
            case "foreign_videos":
                theirs = {"channelId": f"UC{'y' * 22}"}
                items = [{**i, "snippet": {**i["snippet"], **theirs}} for i in body["items"]]
                return JSONResponse({**body, "items": items})
            case "echoes_key":
                text = f'{{"error": {{"message": "{request.url} {self._youtube.key}"'
                headers = {"x-url": str(request.url)}
                return Response(text, 403, media_type=JSON, headers=headers)
            case "not_modified":
                return Response(status_code=304)
            case _:
                raise AssertionError(fault)

    async def _patience(self, request: Request) -> None:
        loop = asyncio.get_running_loop()
        until = loop.time() + self._youtube.slow_s
        while loop.time() < until and not await request.is_disconnected():
            await asyncio.sleep(0.02)

    async def _drip(self, whole: bytes) -> AsyncIterator[bytes]:
        """All of it, byte by byte, each sooner than a socket's time is up."""
        for n in range(len(whole)):
            yield whole[n : n + 1]
            await asyncio.sleep(self._youtube.slow_s / 40)

    def _channels(self, parameters: dict[str, str]) -> dict[str, Any]:
        found = self._meant("channels", parameters)
        items = [self._channel_item(found)] if found else []
        return _page("channel", items, parameters, keeps_empty=False)

    def _playlist_items(self, parameters: dict[str, str]) -> dict[str, Any]:
        channel = self._meant("playlist_items", parameters)
        listed = [v for v in channel.videos if v.file.privacy != "unavailable"] if channel else []
        if channel is None or not listed:
            raise _BadCall("no_playlist")
        size = int(parameters.get("maxResults", "5"))
        start = int(parameters.get("pageToken", "0"))
        shown = listed[start : start + size]
        items = [_listed_item(channel, v, start + n) for n, v in enumerate(shown)]
        page = _page("playlistItem", items, parameters, keeps_empty=True)
        page["pageInfo"] = {"totalResults": len(listed), "resultsPerPage": size}
        if start + size < len(listed):
            page["nextPageToken"] = str(start + size)
        return page

    def _videos(self, parameters: dict[str, str]) -> dict[str, Any]:
        items = []
        for video_id in parameters["id"].split(","):
            for channel in self._youtube.channels.values():
                items += [self._video_item(channel, v) for v in channel.visible if v.id == video_id]
        return _page("video", items, parameters, keeps_empty=True)

    def _meant(self, name: CallName, parameters: dict[str, str]) -> DescribedChannel | None:
        wanted = {k: parameters[k] for k in FILTERS[name] if k in parameters}
        return next((c for c in self._youtube.channels.values() if _is_meant(c, wanted)), None)

    def _by_id(self, channel_id: str) -> DescribedChannel | None:
        return self._meant("channels", {"id": channel_id})

    def _channel_item(self, channel: DescribedChannel) -> dict[str, Any]:
        about = channel.file.channel
        is_hidden = about.subscribers < 0
        avatar = f"{self._youtube.picture_base_url}/avatar/{channel.id}.jpg"
        videos = len(channel.visible) if about.total_videos is None else about.total_videos
        return {
            "kind": "youtube#channel",
            "id": channel.id,
            "snippet": {
                "title": about.title,
                "description": about.description,
                "customUrl": about.handle and about.handle.lower(),
                "publishedAt": _time(channel.created_at),
                "thumbnails": {
                    name: {"url": avatar, "width": side, "height": side}
                    for name, side in (("default", 88), ("medium", 240), ("high", 800))
                },
                "localized": {"title": about.title, "description": about.description},
                "country": about.country,
            },
            "contentDetails": {"relatedPlaylists": {"likes": "", "uploads": channel.uploads}},
            "statistics": {
                "viewCount": "120345",
                "subscriberCount": None if is_hidden else str(about.subscribers),
                "hiddenSubscriberCount": is_hidden,
                "videoCount": str(videos),
            },
            "status": {
                "privacyStatus": "public",
                "isLinked": True,
                "longUploadsStatus": "longUploadsUnspecified",
                "madeForKids": about.made_for_kids,
            },
            "brandingSettings": {
                "channel": {
                    "title": about.title,
                    "description": about.description,
                    "keywords": " ".join(f'"{k}"' if " " in k else k for k in about.keywords)
                    or None,
                }
            },
        }

    def _video_item(self, channel: DescribedChannel, video: DescribedVideo) -> dict[str, Any]:
        file = video.file
        item: dict[str, Any] = {
            "kind": "youtube#video",
            "id": video.id,
            "snippet": {
                "publishedAt": _time(video.published_at),
                "channelId": channel.id,
                "title": file.title,
                "description": file.description,
                "thumbnails": self._thumbnails(video),
                "channelTitle": channel.file.channel.title,
                "tags": list(file.tags) or None,
                "categoryId": "22",
                "liveBroadcastContent": "none",
                "localized": {"title": file.title, "description": file.description},
                "defaultAudioLanguage": channel.file.language,
            },
            "contentDetails": {
                "duration": file.duration,
                "dimension": "2d",
                "definition": "hd",
                "caption": "false",
                "licensedContent": False,
                "contentRating": {
                    **file.ratings,
                    **({"ytRating": "ytAgeRestricted"} if file.age_restricted else {}),
                },
                "projection": "rectangular",
            },
            "status": {
                "uploadStatus": "processed",
                "privacyStatus": "public",
                "license": "youtube",
                "embeddable": True,
                "publicStatsViewable": file.has_counts,
                "madeForKids": file.made_for_kids,
                "containsSyntheticMedia": file.synthetic_media,
            },
            "statistics": {
                "viewCount": "4821",
                "likeCount": "210" if file.has_counts else None,
                "favoriteCount": "0",
                "commentCount": "17" if file.has_counts else None,
            },
            "paidProductPlacementDetails": {"hasPaidProductPlacement": file.paid_placement},
        }
        return {k: v for k, v in item.items() if k not in file.lacks}

    def _thumbnails(self, video: DescribedVideo) -> dict[str, Any]:
        return {
            size: {
                "url": self._youtube.thumbnail_url(video.id, size),
                "width": pictures.PIXELS[size][0],
                "height": pictures.PIXELS[size][1],
            }
            for size in SIZES
            if size in video.file.picture.sizes
        }


def _is_meant(channel: DescribedChannel, wanted: dict[str, str]) -> bool:
    """YouTube's names ignore case, and a handle may come with its @."""
    about = channel.file.channel
    handle = (about.handle or "").removeprefix("@").casefold()
    match wanted:
        case {"id": ids}:
            mine = {channel.id, *(v.id for v in channel.videos)}
            return not mine.isdisjoint(ids.split(","))
        case {"forHandle": name}:
            return bool(handle) and name.removeprefix("@").casefold() == handle
        case {"forUsername": name}:
            return about.username is not None and name.casefold() == about.username.casefold()
        case {"playlistId": playlist}:
            return channel.uploads == playlist
    return False


def _listed_item(channel: DescribedChannel, video: DescribedVideo, n: int) -> dict[str, Any]:
    privacy = video.file.privacy
    title = {"private": "Private video", "deleted": "Deleted video"}.get(privacy, video.file.title)
    why = {"private": "This video is private.", "deleted": "This video is unavailable."}
    status = "privacyStatusUnspecified" if privacy == "deleted" else privacy
    is_public = privacy == "public"
    return {
        "kind": "youtube#playlistItem",
        "id": f"{channel.uploads}.{video.id}",
        "snippet": {
            "publishedAt": _time(video.published_at),
            "channelId": channel.id,
            "title": title,
            "description": why.get(privacy, video.file.description),
            "thumbnails": {},
            "channelTitle": channel.file.channel.title,
            "playlistId": channel.uploads,
            "position": n,
            "resourceId": {"kind": "youtube#video", "videoId": video.id},
            "videoOwnerChannelId": channel.id if is_public else None,
        },
        "contentDetails": {
            "videoId": video.id,
            "videoPublishedAt": _time(video.published_at) if is_public else None,
        },
        "status": {"privacyStatus": status},
    }


def _page(
    kind: str, items: list[dict[str, Any]], parameters: dict[str, str], *, keeps_empty: bool
) -> dict[str, Any]:
    """Only the parts that were asked for. channels.list leaves `items` out when there are none."""
    kept = {"kind", "id", *parameters["part"].split(",")}
    shown = [_with_etag(as_json({k: v for k, v in i.items() if k in kept})) for i in items]
    page: dict[str, Any] = {
        "kind": f"youtube#{kind}ListResponse",
        "pageInfo": {"totalResults": len(items), "resultsPerPage": len(items) or 5},
    }
    if shown or keeps_empty:
        page["items"] = shown
    return page


def _check(name: CallName, parameters: dict[str, str]) -> None:
    known = {"part", "key", "alt", "maxResults", "pageToken", *FILTERS[name]}
    if set(parameters) - known or parameters.get("alt", "json") != "json":
        raise _BadCall("bad_request")
    parts = set(parameters.get("part", "").split(",")) - {""}
    if not parts or parts - PARTS[name]:
        raise _BadCall("bad_request")
    if sum(f in parameters for f in FILTERS[name]) != 1:
        raise _BadCall("no_filter")
    size = parameters.get("maxResults", "5")
    if not size.isdecimal() or not 0 <= int(size) <= 50:
        raise _BadCall("bad_request")
    if len(parameters.get("id", "").split(",")) > 50:
        raise _BadCall("bad_request")


def _with_etag(body: dict[str, Any]) -> dict[str, Any]:
    digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    return {"kind": body["kind"], "etag": digest[:27], **body}


def _json(body: dict[str, Any], request: Request) -> Response:
    data = json.dumps(body, ensure_ascii=False, indent=2).encode()
    headers = {"ETag": body["etag"], "Vary": "Origin, X-Origin, Referer"}
    if "gzip" in request.headers.get("accept-encoding", ""):
        data, headers["Content-Encoding"] = gzip.compress(data, 5), "gzip"
    return Response(data, media_type=JSON, headers=headers)


def _error(name: str, headers: dict[str, str]) -> Response:
    status, reason, domain, message = ERRORS[name]
    error: dict[str, Any] = {
        "code": status,
        "message": message,
        "errors": [{"message": message, "domain": domain, "reason": reason}],
    }
    if name in DETAILS:
        error["details"] = [{"@type": "type.googleapis.com/google.rpc.ErrorInfo", **DETAILS[name]}]
    return JSONResponse({"error": error}, status, headers=headers, media_type=JSON)


async def _padded(start: bytes) -> AsyncIterator[bytes]:
    yield start
    for _ in range(pictures.HUGE_BYTES // 65_536):
        yield b" " * 65_536


async def _cut(whole: bytes) -> AsyncIterator[bytes]:
    yield whole[: len(whole) // 2]
    raise ConnectionResetError("scripted death")


def _time(moment: Any) -> str:
    return f"{moment:%Y-%m-%dT%H:%M:%SZ}"


CALL_FAULTS: tuple[CallFault, ...] = get_args(CallFault)
