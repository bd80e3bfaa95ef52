"""Channels from the YouTube Data API: three list calls, three quota units.

Knows which calls are made, in which order, what is tried again and what it costs. How one call
goes is youtube_calls.py, how an answer is read youtube_answers.py.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

import structlog
from pydantic import SecretStr

from services.vetting.adapters.youtube_answers import (
    GONE,
    etag_of,
    read_channel,
    read_listing,
    read_videos,
)
from services.vetting.adapters.youtube_calls import (
    UPLOADS_MISSING,
    Answer,
    CallName,
    DaySpent,
    MayPass,
    UploadsMissing,
    YouTubeCalls,
)
from services.vetting.channels import ChannelRef, Kind
from services.vetting.errors import ChannelNotFound, SourceTimedOut, SourceUnavailable
from services.vetting.ports import Cached, Channel, NotLookedAt, Snapshot, Video
from services.vetting.quota import Allowance, QuotaBudget, now

UNITS = 3
MAX_VIDEOS = 50
MAX_BYTES = 16 * 1024 * 1024
MAX_WAIT_S = 8.0
CHANNEL_PARTS = "snippet,statistics,contentDetails,status,brandingSettings"
LISTING_PARTS = "snippet,contentDetails,status"
VIDEO_PARTS = "snippet,contentDetails,status,statistics,paidProductPlacementDetails"
FILTERS: dict[Kind, str] = {
    "id": "id",
    "handle": "forHandle",
    "custom": "forHandle",
    "username": "forUsername",
}

log = structlog.get_logger()


class YouTubeSource:
    """A RevalidatingSource. `max_videos` are the newest uploads to look at, 1 to 50.

    A call may take `timeout_s`, a channel `deadline_s` with every wait and repetition; an answer
    may have `max_bytes`. What can pass is tried `tries` times, with `backoff_s` and its doubles as
    the longest waits. Every try is paid from `budget` before it is made.
    """

    def __init__(
        self,
        key: SecretStr,
        budget: QuotaBudget,
        *,
        api_endpoint: str | None = None,
        max_videos: int = MAX_VIDEOS,
        timeout_s: float = 10.0,
        deadline_s: float = 45.0,
        max_bytes: int = MAX_BYTES,
        tries: int = 3,
        backoff_s: float = 0.5,
        max_concurrent: int = 8,
        clock: Callable[[], datetime] = now,
    ) -> None:
        if not 1 <= max_videos <= MAX_VIDEOS:
            raise ValueError(f"max_videos is {max_videos}; one call gives 1 to {MAX_VIDEOS}")
        self._calls = YouTubeCalls(
            key,
            api_endpoint=api_endpoint,
            timeout_s=timeout_s,
            max_bytes=max_bytes,
            max_concurrent=max_concurrent,
        )
        self._budget = budget
        self._max_videos = max_videos
        self._deadline_s = deadline_s
        self._tries = tries
        self._backoff_s = backoff_s
        self._clock = clock

    async def fetch(self, ref: ChannelRef) -> Snapshot:
        return (await self.refetch(ref, None)).snapshot

    async def refetch(self, ref: ChannelRef, known: Cached | None) -> Cached:
        """What `known` says is used for every call that YouTube answers with "not modified"; such
        a call costs its unit all the same.
        """
        try:
            async with asyncio.timeout(self._deadline_s), self._budget.allowance(UNITS) as units:
                return await _Fetch(self, units, ref, known).run()
        except TimeoutError:
            detail = f"YouTube took longer than {self._deadline_s:g} s for {ref}"
        raise SourceTimedOut(detail)

    def close(self) -> None:
        """Running calls end by their own bounds."""
        self._calls.close()

    async def ask(
        self, name: CallName, parameters: Mapping[str, Any], etag: str | None, units: Allowance
    ) -> Answer:
        """Raises UploadsMissing and the SourceError family."""
        for attempt in range(1, self._tries + 1):
            await units.spend()
            try:
                return await self._calls.ask(name, parameters, etag)
            except DaySpent:
                break
            except UploadsMissing as missing:
                if name == "playlist_items":
                    raise
                detail = f"YouTube answered {name} with {missing.code}"
                raise SourceUnavailable(detail) from None
            except MayPass as failure:
                log.warning("youtube_call_failed", call=name, attempt=attempt, why=str(failure))
                wait_s = self._wait_s(attempt, failure)
                if attempt == self._tries or wait_s is None:
                    raise failure.lasting from None
                await asyncio.sleep(wait_s)
        raise await self._budget.close()

    def _wait_s(self, attempt: int, failure: MayPass) -> float | None:
        """Until the next try; None when YouTube asks for more patience than there is."""
        longest = min(MAX_WAIT_S, self._backoff_s * 2 ** (attempt - 1))
        jittered = random.uniform(0, longest)  # noqa: S311 - it spreads, it hides nothing
        asked = failure.retry_after_s or 0.0
        return None if asked > MAX_WAIT_S else max(asked, jittered)

    @property
    def max_videos(self) -> int:
        return self._max_videos

    def time(self) -> datetime:
        return self._clock()


class _Fetch:
    """The three calls for one channel."""

    def __init__(
        self, source: YouTubeSource, units: Allowance, ref: ChannelRef, known: Cached | None
    ) -> None:
        self._source = source
        self._units = units
        self._ref = ref
        self._known = known
        self._etags: dict[str, str] = {}
        self._bytes = 0

    async def run(self) -> Cached:
        channel = await self._channel()
        try:
            listed, gone, is_known = await self._listing(channel)
        except UploadsMissing as missing:
            return self._made(channel, (), _why_no_uploads(channel, missing), ())
        videos, missed = await self._videos(channel, listed, gone, is_known)
        if any(unseen.why not in GONE for unseen in missed):
            # What could not be read is asked for in full next time.
            self._etags.pop("videos", None)
        return self._made(channel, videos, missed, listed)

    async def _channel(self) -> Channel:
        parameters = {"part": CHANNEL_PARTS, FILTERS[self._ref.kind]: self._ref.value}
        body = await self._ask("channels", parameters, may_hold=True)
        if body is None:
            return self._held().channel
        channel = read_channel(body)
        if channel is None:
            raise ChannelNotFound(f"There is no YouTube channel {self._ref}")
        if self._ref.kind == "id" and channel.id != self._ref.value:
            raise SourceUnavailable("YouTube answered with another channel than was asked for")
        return channel

    async def _listing(self, channel: Channel) -> tuple[tuple[str, ...], dict[str, str], bool]:
        """The newest uploads, which of them are gone, and True when they are the known ones."""
        parameters = {
            "part": LISTING_PARTS,
            "playlistId": channel.uploads,
            "maxResults": self._source.max_videos,
        }
        may_hold = self._known is not None and channel.uploads == self._held().channel.uploads
        body = await self._ask("playlist_items", parameters, may_hold=may_hold)
        if body is None:
            missed = self._held().not_looked_at
            gone = {m.what.removeprefix("video:"): m.why for m in missed if m.why in GONE}
            return self._held().listed, gone, True
        listed, gone = read_listing(body)
        return listed[: self._source.max_videos], gone, False

    async def _videos(
        self,
        channel: Channel,
        listed: tuple[str, ...],
        gone: dict[str, str],
        is_known: bool,
    ) -> tuple[tuple[Video, ...], tuple[NotLookedAt, ...]]:
        if not listed:
            return (), ()
        parameters = {"part": VIDEO_PARTS, "id": ",".join(listed)}
        body = await self._ask("videos", parameters, may_hold=is_known)
        if body is None:
            return self._held().videos, self._held().not_looked_at
        return read_videos(body, channel.id, listed, gone)

    async def _ask(
        self, name: CallName, parameters: Mapping[str, Any], *, may_hold: bool
    ) -> dict[str, Any] | None:
        """The answer; None when what is known still holds."""
        etag = self._known.etags.get(name) if self._known is not None and may_hold else None
        answer = await self._source.ask(name, parameters, etag, self._units)
        self._bytes += answer.bytes
        if answer.body is None and etag is None:
            raise SourceUnavailable("YouTube answered 304 to a call without an entity tag")
        kept = etag if answer.body is None else etag_of(answer.body)
        if kept is not None:
            self._etags[name] = kept
        return answer.body

    def _held(self) -> Snapshot:
        assert self._known is not None
        return self._known.snapshot

    def _made(
        self,
        channel: Channel,
        videos: tuple[Video, ...],
        missed: tuple[NotLookedAt, ...],
        listed: tuple[str, ...],
    ) -> Cached:
        snapshot = Snapshot(
            channel=channel,
            videos=videos,
            not_looked_at=missed,
            listed=listed,
            quota_units=self._units.spent,
            fetched_at=self._source.time(),
            bytes=self._bytes,
        )
        return Cached(snapshot, self._etags)


def _why_no_uploads(channel: Channel, missing: UploadsMissing) -> tuple[NotLookedAt, ...]:
    """YouTube has no uploads playlist for a channel that never uploaded; any other channel's
    should be there.
    """
    if missing.code == UPLOADS_MISSING and channel.videos == 0:
        return ()
    is_missing = missing.code == UPLOADS_MISSING
    return (
        NotLookedAt("uploads", "uploads_not_found" if is_missing else "uploads_not_accessible"),
    )
