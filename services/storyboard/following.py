"""Events of storyboards for those who follow them: one look at the database for all of them.

A reader that is slow waits alone: events lie in a list that each reads at its own pace.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

import structlog

from services.shared.storage import StorageUnavailable
from services.storyboard.ports import JobStore, StoredEvent
from services.storyboard.telling import LAST_EVENTS

log = structlog.get_logger()


@dataclass
class _Channel:
    """One storyboard that somebody follows. `events[i].seq` is i + 1."""

    events: list[StoredEvent] = field(default_factory=list)
    news: asyncio.Condition = field(default_factory=asyncio.Condition)
    nudged: asyncio.Event = field(default_factory=asyncio.Event)
    readers: int = 0
    reading: asyncio.Task[None] | None = None

    @property
    def is_complete(self) -> bool:
        return bool(self.events) and self.events[-1].name in LAST_EVENTS


class Following:
    def __init__(
        self, store: JobStore, *, poll_s: float, silence_s: float, max_followers: int
    ) -> None:
        """`silence_s` bounds how long a reader waits without any news."""
        self._store = store
        self._poll_s = poll_s
        self._silence_s = silence_s
        self._max_followers = max_followers
        self._followers = 0
        self._channels: dict[str, _Channel] = {}
        self._is_closed = False

    @property
    def is_full(self) -> bool:
        """True when nobody more may follow."""
        return self._followers >= self._max_followers

    def nudge(self, job_id: str) -> None:
        """Something was recorded here: those who follow need not wait for the next look."""
        if (channel := self._channels.get(job_id)) is not None:
            channel.nudged.set()

    async def close(self) -> None:
        """Ends every stream. Who comes back with Last-Event-ID misses nothing."""
        self._is_closed = True
        for channel in self._channels.values():
            async with channel.news:
                channel.news.notify_all()

    async def follow(self, job_id: str, after: int) -> AsyncIterator[StoredEvent]:
        """Events above `after` as they come, up to and with the last."""
        async with self._followed(job_id) as channel:
            sent = after
            while not self._is_closed:
                for event in channel.events[sent:]:
                    yield event
                    sent = event.seq
                if channel.is_complete or not await self._news(channel, sent):
                    return

    async def _news(self, channel: _Channel, sent: int) -> bool:
        """True when there is something above `sent`, or the end; False after the silence."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self._silence_s), channel.news:
                await channel.news.wait_for(
                    lambda: self._is_closed or channel.is_complete or len(channel.events) > sent
                )
                return True
        return False

    @asynccontextmanager
    async def _followed(self, job_id: str) -> AsyncIterator[_Channel]:
        channel = self._channels.setdefault(job_id, _Channel())
        self._followers += 1
        channel.readers += 1
        if channel.reading is None:
            channel.reading = asyncio.create_task(self._read(job_id, channel))
        try:
            yield channel
        finally:
            self._followers -= 1
            channel.readers -= 1
            if channel.readers == 0:
                channel.reading.cancel()
                self._channels.pop(job_id, None)

    async def _read(self, job_id: str, channel: _Channel) -> None:
        while not channel.is_complete:
            channel.nudged.clear()
            try:
                new = await self._store.events(job_id, len(channel.events))
            except StorageUnavailable as error:
                log.warning("events cannot be read", reason=str(error))
                new = ()
            if new:
                async with channel.news:
                    channel.events += new
                    channel.news.notify_all()
                continue
            with suppress(TimeoutError):
                await asyncio.wait_for(channel.nudged.wait(), self._poll_s)
