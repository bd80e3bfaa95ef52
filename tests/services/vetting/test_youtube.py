"""Channels from YouTube: Google's own client against a real server that answers as Google does."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import socket
import sys
import threading
import time
import traceback
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus

import googleapiclient
import httpx
import pytest
import structlog
from PIL import Image
from pydantic import SecretStr, TypeAdapter

from services.vetting.adapters.youtube import YouTubeSource
from services.vetting.channels import ChannelRef, parse_channel
from services.vetting.errors import (
    ChannelNotFound,
    QuotaExhausted,
    SourceError,
    SourceRefused,
    SourceTimedOut,
    SourceUnavailable,
    VettingError,
)
from services.vetting.ports import Cached, NotLookedAt, Snapshot
from services.vetting.quota import QuotaBudget
from tests.youtube.described import (
    CallFault,
    CallName,
    Channels,
    DescribedChannel,
    Size,
    VideoFile,
)
from tests.youtube.memory import MemoryLedger
from tests.youtube.pictures import PIXELS, SCENES
from tests.youtube.server import CALL_FAULTS, KEY, FakeYouTube, serve_youtube

TIMEOUT_S = 0.5
CALLS: tuple[CallName, ...] = ("channels", "playlist_items", "videos")
GARBAGE: tuple[CallFault, ...] = (
    "truncated_json", "html", "wrong_type", "redirect", "huge", "gzip_bomb", "empty_object",
    "wrong_kind", "not_modified",
)  # fmt: skip
PASSING: tuple[CallFault, ...] = (
    "server_error", "bad_gateway", "rate_limited", "too_many_requests", "cut_off", "slow", "drip",
)  # fmt: skip


@pytest.fixture(scope="module")
def _served() -> Iterator[FakeYouTube]:
    with serve_youtube(slow_s=3 * TIMEOUT_S) as youtube:
        yield youtube


@pytest.fixture
def youtube(_served: FakeYouTube) -> Iterator[FakeYouTube]:
    _served.reset()
    channels = _served.channels
    yield _served
    _served.channels = channels


@pytest.fixture
def ledger() -> MemoryLedger:
    return MemoryLedger()


@pytest.fixture
def source(youtube: FakeYouTube, ledger: MemoryLedger) -> Iterator[YouTubeSource]:
    with made(youtube.base_url, ledger) as source:
        yield source


@contextmanager
def made(endpoint: str, ledger: MemoryLedger, **options: Any) -> Iterator[YouTubeSource]:
    settings = {"timeout_s": TIMEOUT_S, "backoff_s": 0.01, "max_bytes": 2**20, **options}
    key = SecretStr(settings.pop("key", KEY))
    budget = QuotaBudget(ledger, settings.pop("units_per_day", 10_000))
    source = YouTubeSource(key, budget, api_endpoint=endpoint, **settings)
    yield source
    source.close()


def ref(channel: DescribedChannel) -> ChannelRef:
    return ChannelRef("id", channel.id)


COOKING = "harmless-home-cooking"


@pytest.fixture
def cooking(youtube: FakeYouTube) -> DescribedChannel:
    return youtube.channels[COOKING]


# What is read


async def test_three_calls_and_three_units_give_a_channel_and_its_uploads(
    source: YouTubeSource, youtube: FakeYouTube, ledger: MemoryLedger, cooking: DescribedChannel
) -> None:
    before = datetime.now(UTC)
    snapshot = await source.fetch(ref(cooking))
    file = cooking.file.channel
    assert snapshot.channel.id == cooking.id
    assert snapshot.channel.title == file.title
    assert snapshot.channel.handle == file.handle
    assert snapshot.channel.description == file.description
    assert snapshot.channel.keywords == file.keywords
    assert snapshot.channel.subscribers == 48200
    assert snapshot.channel.videos == 5
    assert snapshot.channel.published_at == cooking.created_at
    assert snapshot.channel.thumbnail_url == f"{youtube.base_url}/avatar/{cooking.id}.jpg"
    assert [(v.id, v.title, v.description, v.tags, v.published_at) for v in snapshot.videos] == [
        (v.id, v.file.title, v.file.description, v.file.tags, v.published_at)
        for v in cooking.videos
    ]
    assert [call.name for call in youtube.calls] == list(CALLS)
    assert snapshot.quota_units == youtube.units == sum(ledger.used.values()) == 3
    assert before <= snapshot.fetched_at <= datetime.now(UTC)
    assert snapshot.bytes > 5_000
    assert youtube.strays == []


async def test_every_upload_is_looked_at_or_named(
    source: YouTubeSource, youtube: FakeYouTube
) -> None:
    for channel in youtube.channels.values():
        if channel.file.faults:
            continue
        snapshot = await source.fetch(ref(channel))
        missed = [m.what.removeprefix("video:") for m in snapshot.not_looked_at]
        assert sorted([*missed, *(v.id for v in snapshot.videos)]) == sorted(snapshot.listed)
        assert list(snapshot.listed) == [v.id for v in channel.videos], channel.name


@pytest.mark.parametrize(
    "text",
    ["@칠판앞십분", "https://www.youtube.com/%40%EC%B9%A0%ED%8C%90%EC%95%9E%EC%8B%AD%EB%B6%84/videos",
     "youtube.com/c/칠판앞십분"],
)  # fmt: skip
async def test_a_korean_handle_finds_its_channel(
    source: YouTubeSource, youtube: FakeYouTube, text: str
) -> None:
    snapshot = await source.fetch(parse_channel(text))
    assert snapshot.channel.id == youtube.channels["harmless-math-lessons"].id


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("https://youtube.com/@SlowRidge", "harmless-hiking"),
        ("https://youtube.com/user/SecondShed", "harmless-woodworking"),
        ("youtube.com/user/modelrailattic", "gaps-not-a-handle-yet"),
    ],
)
async def test_handles_and_user_names_find_their_channel_in_any_case(
    source: YouTubeSource, youtube: FakeYouTube, text: str, name: str
) -> None:
    snapshot = await source.fetch(parse_channel(text))
    assert snapshot.channel.id == youtube.channels[name].id


async def test_signals_are_read_and_what_youtube_leaves_out_is_none(
    source: YouTubeSource, youtube: FakeYouTube
) -> None:
    async def videos(name: str) -> tuple[Any, ...]:
        return (await source.fetch(ref(youtube.channels[name]))).videos

    restricted = await videos("signals-age-restricted")
    assert [v.is_age_restricted for v in restricted] == [True, False, False, False]
    synthetic = await videos("signals-synthetic-media")
    assert [v.has_synthetic_media for v in synthetic] == [True, True, False, True]
    assert restricted[0].has_synthetic_media is None
    paid = await videos("signals-paid-placement")
    assert [v.has_paid_placement for v in paid] == [True, False, False, True]
    assert all(v.is_made_for_kids for v in await videos("signals-made-for-kids"))
    rated = await videos("signals-kmrb-adult")
    assert rated[1].content_ratings == {"kmrbRating": "kmrbTeenr", "mpaaRating": "mpaaR"}
    assert paid[0].duration_s == 492
    assert (paid[0].views, paid[0].likes, paid[0].comments) == (4821, 210, 17)


async def test_hidden_counts_are_none_and_not_zero(
    source: YouTubeSource, youtube: FakeYouTube
) -> None:
    snapshot = await source.fetch(ref(youtube.channels["gaps-hidden-counts"]))
    assert snapshot.channel.subscribers is None
    assert {(v.likes, v.comments) for v in snapshot.videos} == {(None, None)}


async def test_thumbnails_come_from_best_to_smallest(
    source: YouTubeSource, youtube: FakeYouTube
) -> None:
    snapshot = await source.fetch(ref(youtube.channels["gaps-missing-sizes"]))
    widths = [[t.width for t in v.thumbnails] for v in snapshot.videos]
    assert widths == [
        [480, 320, 120],
        [1280, 640, 480, 320, 120],
        [1280, 640, 480, 320, 120],
        [120],
    ]
    best = snapshot.videos[1].thumbnails[0]
    assert best.url == youtube.thumbnail_url(snapshot.videos[1].id, "maxres")


async def test_private_and_deleted_videos_are_named(
    source: YouTubeSource, youtube: FakeYouTube
) -> None:
    channel = youtube.channels["gaps-private-and-deleted"]
    snapshot = await source.fetch(ref(channel))
    why = {"private": "private_video", "deleted": "deleted_video"}
    assert set(snapshot.not_looked_at) == {
        NotLookedAt(f"video:{v.id}", why[v.file.privacy])
        for v in channel.videos
        if v.file.privacy != "public"
    }
    assert len(snapshot.videos) == 4


async def test_incomplete_videos_are_named_and_not_filled_in(
    source: YouTubeSource, youtube: FakeYouTube
) -> None:
    channel = youtube.channels["gaps-incomplete-data"]
    snapshot = await source.fetch(ref(channel))
    lacking = [v.id for v in channel.videos if v.file.lacks]
    assert snapshot.not_looked_at == tuple(
        NotLookedAt(f"video:{video_id}", "incomplete_data") for video_id in lacking
    )
    assert len(snapshot.videos) == 3


async def test_a_channel_without_uploads_is_empty_and_one_that_hides_them_is_not(
    source: YouTubeSource, youtube: FakeYouTube
) -> None:
    empty = await source.fetch(ref(youtube.channels["gaps-empty"]))
    assert (empty.videos, empty.not_looked_at, empty.quota_units) == ((), (), 2)
    closed = await source.fetch(ref(youtube.channels["gaps-uploads-closed"]))
    assert closed.not_looked_at == (NotLookedAt("uploads", "uploads_not_accessible"),)
    missing = with_channel(youtube.channels, "gaps-empty", total_videos=7)
    youtube.channels = missing
    said = await source.fetch(ref(missing["gaps-empty"]))
    assert said.not_looked_at == (NotLookedAt("uploads", "uploads_not_found"),)


async def test_as_many_of_the_newest_as_asked_for(
    youtube: FakeYouTube, ledger: MemoryLedger
) -> None:
    channel = youtube.channels["borderline-one-old-lapse"]
    with made(youtube.base_url, ledger, max_videos=2) as source:
        snapshot = await source.fetch(ref(channel))
    assert [v.id for v in snapshot.videos] == [v.id for v in channel.videos[:2]]
    assert snapshot.quota_units == 3
    for wrong in (0, 51):
        with (
            pytest.raises(ValueError, match=f"max_videos is {wrong}"),
            made("", ledger, max_videos=wrong),
        ):
            pass


async def test_fifty_long_korean_videos_cost_three_units(
    youtube: FakeYouTube, ledger: MemoryLedger
) -> None:
    longest = [VideoFile(title="가" * 100, description="나" * 5000, days_ago=n) for n in range(60)]
    youtube.channels = with_videos(youtube.channels, COOKING, longest)
    with made(youtube.base_url, ledger, max_bytes=16 * 2**20, timeout_s=10) as source:
        snapshot = await source.fetch(ref(youtube.channels[COOKING]))
    assert len(snapshot.videos) == 50
    assert snapshot.quota_units == youtube.units == 3
    assert youtube.calls_of("videos")[0].status == 200


def with_channel(channels: Channels, name: str, **changes: Any) -> Channels:
    old = channels[name]
    about = old.file.channel.model_copy(update=changes)
    new = replace(old, file=old.file.model_copy(update={"channel": about}))
    return Channels({**channels.by_name, name: new})


def with_videos(channels: Channels, name: str, videos: list[VideoFile]) -> Channels:
    old = channels[name]
    template = old.videos[0]
    made = tuple(replace(template, id=f"vid{n:08d}", file=file) for n, file in enumerate(videos))
    return Channels({**channels.by_name, name: replace(old, videos=made)})


# What goes wrong


async def test_who_is_not_there_is_not_found_for_one_unit(
    source: YouTubeSource, youtube: FakeYouTube, ledger: MemoryLedger
) -> None:
    for text in ("@nobodybythisname", f"UC{'0' * 22}", "youtube.com/user/nobody"):
        with pytest.raises(ChannelNotFound):
            await source.fetch(parse_channel(text))
    assert youtube.units == sum(ledger.used.values()) == 3


async def test_a_file_with_an_error_comes_to_it(youtube: FakeYouTube) -> None:
    for channel in youtube.channels.values():
        if channel.expected.error is None:
            continue
        with made(youtube.base_url, MemoryLedger()) as source:
            with pytest.raises(SourceError) as caught:
                await source.fetch(ref(channel))
            assert type(caught.value).__name__ == channel.expected.error, channel.name


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("fault", GARBAGE)
async def test_an_answer_that_is_not_understood_is_never_an_empty_channel(
    source: YouTubeSource,
    youtube: FakeYouTube,
    cooking: DescribedChannel,
    name: CallName,
    fault: CallFault,
) -> None:
    youtube.fail(name, fault)
    with pytest.raises(SourceUnavailable):
        await source.fetch(ref(cooking))
    assert len(youtube.calls_of(name)) == 1, "garbage is not asked for twice"
    assert youtube.strays == [], "no redirect is followed"


async def test_bad_items_are_unavailable_or_named(
    source: YouTubeSource, youtube: FakeYouTube, cooking: DescribedChannel
) -> None:
    for name in ("channels", "playlist_items"):
        youtube.reset()
        youtube.fail(name, "bad_items")
        with pytest.raises(SourceUnavailable):
            await source.fetch(ref(cooking))
    youtube.reset()
    youtube.fail("videos", "bad_items")
    snapshot = await source.fetch(ref(cooking))
    assert snapshot.videos == ()
    assert {m.why for m in snapshot.not_looked_at} == {"video_unavailable"}
    assert len(snapshot.not_looked_at) == 5


async def test_another_channel_than_asked_for_is_not_taken(
    source: YouTubeSource, youtube: FakeYouTube, cooking: DescribedChannel
) -> None:
    youtube.fail("channels", "other_channel")
    with pytest.raises(SourceUnavailable, match="another channel"):
        await source.fetch(ref(cooking))


async def test_a_video_of_another_channel_is_named_and_not_looked_at(
    source: YouTubeSource, youtube: FakeYouTube, cooking: DescribedChannel
) -> None:
    youtube.fail("videos", "foreign_videos")
    snapshot = await source.fetch(ref(cooking))
    assert snapshot.videos == ()
    assert [m.why for m in snapshot.not_looked_at] == ["foreign_video"] * 5


@pytest.mark.parametrize("fault", ["huge", "gzip_bomb"])
async def test_an_answer_that_is_too_large_is_not_held_in_memory(
    source: YouTubeSource, youtube: FakeYouTube, cooking: DescribedChannel, fault: CallFault
) -> None:
    youtube.fail("channels", fault)
    tracemalloc.start()
    try:
        with pytest.raises(SourceUnavailable):
            await source.fetch(ref(cooking))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 16 * 2**20, "24 and 32 MB came; 1 MB was allowed"


@pytest.mark.parametrize("fault", PASSING)
async def test_what_can_pass_is_tried_again_and_each_try_is_paid(
    source: YouTubeSource,
    youtube: FakeYouTube,
    ledger: MemoryLedger,
    cooking: DescribedChannel,
    fault: CallFault,
) -> None:
    youtube.fail("videos", fault, times=1)
    snapshot = await source.fetch(ref(cooking))
    assert len(snapshot.videos) == 5
    assert snapshot.quota_units == sum(ledger.used.values()) == 4
    assert youtube.units == 4


@pytest.mark.parametrize("fault", PASSING)
async def test_what_does_not_pass_ends_after_three_tries(
    source: YouTubeSource, youtube: FakeYouTube, cooking: DescribedChannel, fault: CallFault
) -> None:
    youtube.fail("channels", fault)
    lasting = SourceTimedOut if fault in ("slow", "drip") else SourceUnavailable
    with pytest.raises(lasting):
        await source.fetch(ref(cooking))
    assert youtube.units == 3


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        ("key_invalid", "keyInvalid"),
        ("api_disabled", "accessNotConfigured"),
        ("bad_request", "invalidParameter"),
    ],
)
async def test_what_the_operator_must_mend_is_refused_at_once(
    source: YouTubeSource,
    youtube: FakeYouTube,
    cooking: DescribedChannel,
    fault: CallFault,
    code: str,
) -> None:
    youtube.fail("videos", fault)
    with pytest.raises(SourceRefused) as caught:
        await source.fetch(ref(cooking))
    assert caught.value.code == code
    assert len(youtube.calls_of("videos")) == 1


async def test_a_wrong_key_is_refused(youtube: FakeYouTube, cooking: DescribedChannel) -> None:
    wrong = made(youtube.base_url, MemoryLedger(), key="wrong")
    with wrong as source, pytest.raises(SourceRefused, match="keyInvalid"):
        await source.fetch(ref(cooking))


async def test_youtube_says_how_long_to_wait(
    source: YouTubeSource, youtube: FakeYouTube, cooking: DescribedChannel
) -> None:
    youtube.fail("channels", "too_many_requests", headers={"Retry-After": "120"})
    with pytest.raises(SourceUnavailable) as caught:
        await source.fetch(ref(cooking))
    assert caught.value.retry_after_s == 120
    assert youtube.units == 1, "longer than a caller would wait"


@pytest.mark.parametrize("fault", ["quota_exceeded", "daily_limit"])
async def test_a_spent_quota_closes_the_day(
    source: YouTubeSource, youtube: FakeYouTube, cooking: DescribedChannel, fault: CallFault
) -> None:
    youtube.fail("playlist_items", fault, times=1)
    for _ in range(3):
        with pytest.raises(QuotaExhausted) as caught:
            await source.fetch(ref(cooking))
    assert caught.value.resets_at > datetime.now(UTC)
    assert youtube.units == 2, "nothing is asked after the refusal"


async def test_nothing_is_asked_beyond_the_budget(
    youtube: FakeYouTube, ledger: MemoryLedger, cooking: DescribedChannel
) -> None:
    with made(youtube.base_url, ledger, units_per_day=31, timeout_s=10) as source:
        results = await asyncio.gather(
            *(source.fetch(ref(cooking)) for _ in range(200)), return_exceptions=True
        )
    assert sum(isinstance(r, Snapshot) for r in results) == 10
    assert sum(isinstance(r, QuotaExhausted) for r in results) == 190
    assert youtube.units == sum(ledger.used.values()) == 30


async def test_a_repetition_that_the_budget_does_not_cover_is_not_made(
    youtube: FakeYouTube, ledger: MemoryLedger, cooking: DescribedChannel
) -> None:
    youtube.fail("videos", "server_error")
    four = made(youtube.base_url, ledger, units_per_day=4)
    with four as source, pytest.raises(QuotaExhausted):
        await source.fetch(ref(cooking))
    assert youtube.units == 4


async def test_many_at_once_get_each_their_own_channel(
    youtube: FakeYouTube, ledger: MemoryLedger
) -> None:
    wanted = [c for c in youtube.channels.values() if not c.file.faults]
    with made(youtube.base_url, ledger, timeout_s=20, max_concurrent=16) as source:
        snapshots = await asyncio.gather(*(source.fetch(ref(c)) for c in wanted))
    assert [s.channel.id for s in snapshots] == [c.id for c in wanted]
    assert youtube.units == sum(ledger.used.values())


async def test_a_channel_has_a_deadline_of_its_own(
    youtube: FakeYouTube, ledger: MemoryLedger, cooking: DescribedChannel
) -> None:
    youtube.fail("channels", "slow")
    hasty = made(youtube.base_url, ledger, timeout_s=30, deadline_s=0.3)
    with hasty as source, pytest.raises(SourceTimedOut, match=r"0\.3 s"):
        await source.fetch(ref(cooking))
    assert sum(ledger.used.values()) == 1


@pytest.mark.parametrize("fault", ["slow", "drip"])
async def test_who_leaves_takes_the_call_along(
    youtube: FakeYouTube, ledger: MemoryLedger, cooking: DescribedChannel, fault: CallFault
) -> None:
    youtube.slow_s, slow_s = 60.0, youtube.slow_s
    youtube.fail("channels", fault)
    with made(youtube.base_url, ledger, timeout_s=60) as source:
        fetching = asyncio.create_task(source.fetch(ref(cooking)))
        await until(lambda: youtube.units == 1)
        fetching.cancel()
        with pytest.raises(asyncio.CancelledError):
            await fetching
        await until(lambda: not busy_threads(source))
    await until(lambda: youtube.running == 0)
    youtube.slow_s = slow_s


async def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)


def busy_threads(source: YouTubeSource) -> bool:
    """True while a thread of the source waits for an answer."""
    frames = [traceback.format_stack(f) for f in _frames("youtube")]
    return any("_execute" in "".join(frame) for frame in frames)


def _frames(prefix: str) -> list[Any]:
    threads = {t.ident for t in threading.enumerate() if t.name.startswith(prefix)}
    return [frame for ident, frame in sys._current_frames().items() if ident in threads]


# Nobody learns the key


@contextmanager
def answering(data: bytes) -> Iterator[str]:
    """A server that says `data`, whatever is asked, and hangs up. It counts its connections."""
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(0.1)
    stopped = threading.Event()

    def serve() -> None:
        while not stopped.is_set():
            try:
                caller, _ = listener.accept()
            except TimeoutError:
                continue
            with caller:
                caller.recv(65_536)
                caller.sendall(data)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        stopped.set()
        thread.join()
        listener.close()


@pytest.fixture
def everything_logged(capfd: pytest.CaptureFixture[str]) -> Iterator[Callable[[], str]]:
    """All that any library writes: every logger at DEBUG, structlog, stdout and stderr."""
    records: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            formatted = logging.Formatter().format(record)
            records.append(f"{formatted} {record.__dict__}")

    root, handler = logging.getLogger(), Keep(logging.NOTSET)
    level, dumps = root.level, googleapiclient.model.dump_request_response
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    googleapiclient.model.dump_request_response = True
    try:
        with structlog.testing.capture_logs() as events:
            yield lambda: "\n".join([*records, repr(events), *capfd.readouterr()])
    finally:
        root.removeHandler(handler)
        root.setLevel(level)
        googleapiclient.model.dump_request_response = dumps


def told(error: BaseException) -> str:
    """All that anybody can print of an error: its whole chain, its attributes and the locals, but
    for the test's own.
    """
    assert error.__traceback__ is not None
    error.__traceback__ = error.__traceback__.tb_next
    seen, queue, texts = set(), [error], []
    while queue:
        one = queue.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        shown = traceback.TracebackException.from_exception(one, capture_locals=True)
        texts += [str(one), repr(one), repr(one.args), repr(vars(one)), *shown.format()]
        queue += [e for e in (one.__cause__, one.__context__, *vars(one).values())
                  if isinstance(e, BaseException)]  # fmt: skip
    return "\n".join(texts)


def assert_no_key(text: str) -> None:
    for spelling in (KEY, quote(KEY), quote_plus(KEY), KEY[:20], KEY[-12:]):
        assert spelling not in text


@pytest.mark.parametrize("fault", CALL_FAULTS)
async def test_no_failure_tells_the_key(
    youtube: FakeYouTube,
    cooking: DescribedChannel,
    everything_logged: Callable[[], str],
    fault: CallFault,
) -> None:
    with made(youtube.base_url, MemoryLedger(), tries=2) as source:
        for name in CALLS:
            youtube.reset()
            youtube.fail(name, fault)
            try:
                await source.fetch(ref(cooking))
            except VettingError as error:
                logging.getLogger("test").exception("failed")
                assert_no_key(told(error))
        assert_no_key(repr(source))
    logged = everything_logged()
    assert "youtube/v3/channels" in logged, "the client's own log is not seen"
    assert_no_key(logged)


@pytest.mark.parametrize(
    ("said", "error"),
    [
        (b"", SourceUnavailable),
        (b"\x16\x03\x01\x02", SourceUnavailable),
        (b"SSH-2.0-OpenSSH_9.2\r\n", SourceUnavailable),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 999\r\n\r\n{", SourceUnavailable),
        (b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
         b"content-encoding: gzip\r\n\r\nno gzip", SourceUnavailable),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nZZ\r\n", SourceUnavailable),
        (b"HTTP/1.1 401 Unauthorized\r\nwww-authenticate: Bearer realm=\"x\"\r\n\r\n",
         SourceRefused),
        (b"HTTP/1.1 302 Found\r\n\r\n", SourceUnavailable),
        (b"HTTP/1.1 204 No Content\r\n\r\n", SourceUnavailable),
        (b"HTTP/1.1 404 Not Found\r\n\r\n", SourceUnavailable),
        (b"HTTP/1.1 200 OK\r\n" + b"x-a: b\r\n" * 200 + b"\r\n", SourceUnavailable),
        (b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n" + b"[" * 100_000,
         SourceUnavailable),
        (b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n\xff\xfe", SourceUnavailable),
    ],
)  # fmt: skip
async def test_whatever_a_port_says_is_a_named_failure_without_the_key(
    everything_logged: Callable[[], str], said: bytes, error: type[SourceError]
) -> None:
    with answering(said) as endpoint, made(endpoint, MemoryLedger(), tries=2) as source:
        with pytest.raises(error) as caught:
            await source.fetch(ChannelRef("handle", "slowridge"))
        assert_no_key(told(caught.value))
    assert_no_key(everything_logged())


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:9", "http://no-such-host.invalid"])
async def test_nobody_there_is_unavailable_and_without_the_key(
    everything_logged: Callable[[], str], endpoint: str
) -> None:
    nobody = made(endpoint, MemoryLedger(), tries=2, timeout_s=5)
    with nobody as source, pytest.raises(SourceUnavailable) as caught:
        await source.fetch(ChannelRef("handle", "slowridge"))
    assert_no_key(told(caught.value))
    assert_no_key(everything_logged())


async def test_a_connection_that_breaks_is_not_silently_asked_twice(
    ledger: MemoryLedger,
) -> None:
    """httplib2 would, without a word and without paying for it."""
    connections: list[float] = []
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                caller, _ = listener.accept()
            except OSError:
                return
            connections.append(time.monotonic())
            caller.recv(65_536)
            caller.close()

    threading.Thread(target=serve, daemon=True).start()
    there = made(f"http://127.0.0.1:{listener.getsockname()[1]}", ledger, tries=2)
    with there as source, pytest.raises(SourceUnavailable):
        await source.fetch(ChannelRef("handle", "slowridge"))
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    assert len(connections) == sum(ledger.used.values()) == 2


# What is known already


async def test_what_did_not_change_is_not_sent_again(
    source: YouTubeSource, youtube: FakeYouTube
) -> None:
    for name in (COOKING, "gaps-private-and-deleted"):
        youtube.reset()
        channel = ref(youtube.channels[name])
        first = await source.refetch(channel, None)
        again = await source.refetch(channel, first)
        assert [call.status for call in youtube.calls] == [200, 200, 200, 304, 304, 304]
        assert again.etags == first.etags
        assert again.snapshot.bytes == 0
        assert again.snapshot.quota_units == 3, "YouTube counts these too"
        assert again.snapshot.fetched_at > first.snapshot.fetched_at
        same = {"fetched_at": first.snapshot.fetched_at, "bytes": first.snapshot.bytes}
        assert replace(again.snapshot, **same) == first.snapshot


async def test_videos_that_could_not_be_read_are_asked_for_again_in_full(
    source: YouTubeSource, youtube: FakeYouTube, cooking: DescribedChannel
) -> None:
    whole = await source.refetch(ref(cooking), None)
    youtube.fail("videos", "bad_items", times=1)
    garbled = await source.refetch(ref(cooking), None)
    assert garbled.snapshot.not_looked_at
    mended = await source.refetch(ref(cooking), garbled)
    assert mended.snapshot.videos == whole.snapshot.videos
    assert not mended.snapshot.not_looked_at
    assert [call.if_none_match for call in youtube.calls_of("videos")] == [None, None, None]


async def test_a_new_video_is_seen_and_old_tags_are_not_sent_for_other_ids(
    source: YouTubeSource, youtube: FakeYouTube, cooking: DescribedChannel
) -> None:
    first = await source.refetch(ref(cooking), None)
    newest = replace(cooking.videos[0], id="brandnewvid")
    newer = replace(cooking, videos=(newest, *cooking.videos))
    youtube.channels = Channels({**youtube.channels.by_name, COOKING: newer})
    again = await source.refetch(ref(cooking), first)
    assert [v.id for v in again.snapshot.videos] == [v.id for v in newer.videos]
    assert youtube.calls_of("videos")[-1].if_none_match is None


async def test_an_edited_title_is_seen(
    source: YouTubeSource, youtube: FakeYouTube, cooking: DescribedChannel
) -> None:
    private = youtube.channels["gaps-private-and-deleted"]
    first = await source.refetch(ref(private), None)
    edited = private.videos[0].file.model_copy(update={"description": "다시 썼습니다."})
    videos = (replace(private.videos[0], file=edited), *private.videos[1:])
    changed = replace(private, videos=videos)
    youtube.channels = Channels({**youtube.channels.by_name, private.name: changed})
    again = await source.refetch(ref(private), first)
    assert again.snapshot.videos[0].description == "다시 썼습니다."
    assert again.snapshot.not_looked_at == first.snapshot.not_looked_at


async def test_a_snapshot_survives_json(source: YouTubeSource, youtube: FakeYouTube) -> None:
    codec = TypeAdapter(Cached)
    for name in (COOKING, "gaps-private-and-deleted", "signals-kmrb-adult", "gaps-hidden-counts"):
        cached = await source.refetch(ref(youtube.channels[name]), None)
        assert codec.validate_json(codec.dump_json(cached)) == cached


# The fake itself


def test_the_files_cover_what_a_vetting_meets(youtube: FakeYouTube) -> None:
    channels = youtube.channels
    assert len(channels) >= 30
    assert {c.file.kind for c in channels.values()} == {
        "harmless", "words", "pictures", "both", "borderline", "injected", "signals", "gaps",
        "faults",
    }  # fmt: skip
    labels = [label for c in channels.values() for v in c.videos for label in v.file.labels]
    assert {label.category for label in labels} == {
        "theme", "sexuality", "violence", "horror", "language", "drugs", "imitation", "hate",
        "gambling", "fraud", "illegal_trade",
    }  # fmt: skip
    assert {label.field for label in labels} == {"title", "description", "tags", "thumbnail"}
    for channel in channels.values():
        highest = max((x.level for v in channel.videos for x in v.file.labels), default=0)
        fields = {x.field for v in channel.videos for x in v.file.labels}
        if channel.expected.verdict == "pass":
            assert highest <= 1, channel.name
        if channel.file.kind in ("words", "pictures", "both"):
            assert (channel.expected.verdict, highest >= 3) == ("fail", True), channel.name
            assert ("thumbnail" in fields) == (channel.file.kind != "words"), channel.name
        if channel.file.kind == "pictures":
            assert fields == {"thumbnail"}, channel.name


def test_a_file_with_a_mistake_is_refused_by_name(tmp_path: Path) -> None:
    head = (
        'about = "x"\nkind = "gaps"\nlanguage = "en"\nexpected = { verdict = "pass", why = "x" }\n'
    )
    quote_elsewhere = (
        '[[videos]]\ntitle = "a"\ndays_ago = 1\n'
        'labels = [{ category = "hate", level = 1, field = "title", quote = "b" }]\n'
    )
    for broken in (
        "nobody_knows = 1\n",
        "[channel]\n",
        f'[channel]\ntitle = "t"\n{quote_elsewhere}',
    ):
        (tmp_path / "broken.toml").write_text(head + broken)
        with pytest.raises(ValueError, match=r"^broken\.toml"):
            Channels.load(tmp_path)


def test_the_fake_answers_only_fields_that_the_real_api_has(youtube: FakeYouTube) -> None:
    folder = Path(googleapiclient.__file__).parent / "discovery_cache/documents"
    schemas = json.loads((folder / "youtube.v3.json").read_text())["schemas"]

    def check(value: Any, schema: dict[str, Any], where: str) -> None:
        schema = schemas[schema["$ref"]] if "$ref" in schema else schema
        if isinstance(value, list):
            for item in value:
                check(item, schema["items"], where)
        elif isinstance(value, dict):
            for key, item in value.items():
                known = schema.get("properties", {}).get(key) or schema.get("additionalProperties")
                assert known is not None, f"{where}.{key}"
                check(item, known, f"{where}.{key}")
        else:
            kinds = {str: "string", bool: "boolean", int: "integer"}
            assert schema["type"] == kinds[type(value)], where

    for name in ("signals-kmrb-adult", "signals-synthetic-media", "gaps-private-and-deleted"):
        channel = youtube.channels[name]
        ids = ",".join(v.id for v in channel.videos)
        for path, wanted, schema in (
            ("channels", {"id": channel.id, "part": "snippet,statistics,contentDetails,status,"
                          "brandingSettings"}, "ChannelListResponse"),
            ("playlistItems", {"playlistId": channel.uploads, "part": "snippet,contentDetails,"
                               "status"}, "PlaylistItemListResponse"),
            ("videos", {"id": ids, "part": "snippet,contentDetails,status,statistics,"
                        "paidProductPlacementDetails"}, "VideoListResponse"),
        ):  # fmt: skip
            answer = httpx.get(
                f"{youtube.base_url}/youtube/v3/{path}", params={**wanted, "key": KEY}
            )
            assert answer.status_code == 200, answer.text
            check(answer.json(), schemas[schema], path)


@pytest.mark.parametrize(
    ("path", "parameters", "status"),
    [
        ("channels", {"id": "x"}, 400),
        ("channels", {"part": "id"}, 400),
        ("channels", {"part": "auditDetails", "id": "x"}, 400),
        ("channels", {"part": "id", "id": "x", "forHandle": "x"}, 400),
        ("videos", {"part": "id", "id": ",".join(["x"] * 51)}, 400),
        ("playlistItems", {"part": "id", "playlistId": "UUx", "maxResults": "51"}, 400),
        ("playlistItems", {"part": "id", "playlistId": "UUx"}, 404),
        ("search", {"part": "id", "q": "x"}, 404),
    ],
)
def test_the_fake_takes_only_the_three_calls_as_google_does(
    youtube: FakeYouTube, path: str, parameters: dict[str, str], status: int
) -> None:
    url = f"{youtube.base_url}/youtube/v3/{path}"
    assert httpx.get(url, params={**parameters, "key": KEY}).status_code == status
    assert youtube.strays == (["GET /youtube/v3/search"] if path == "search" else [])


def picture_of(youtube: FakeYouTube, name: str, n: int, size: Size) -> httpx.Response:
    url = youtube.thumbnail_url(youtube.channels[name].videos[n].id, size)
    return httpx.get(url, timeout=10)


def test_every_picture_is_drawn_at_its_size(youtube: FakeYouTube) -> None:
    seen = set()
    for name, channel in youtube.channels.items():
        for n, video in enumerate(channel.videos):
            picture = video.file.picture
            if picture.fault or picture.gone or picture.scene in seen:
                continue
            seen.add(picture.scene)
            size = picture.sizes[-1]
            answer = picture_of(youtube, name, n, size)
            image = Image.open(io.BytesIO(answer.content))
            image.load()
            assert (image.format, image.size) == ("JPEG", PIXELS[size])
            assert answer.headers["content-type"] == "image/jpeg"
    assert seen == set(SCENES)


def test_a_size_that_is_missing_is_a_grey_picture_and_404(youtube: FakeYouTube) -> None:
    statuses = [
        picture_of(youtube, "gaps-missing-sizes", 1, size).status_code
        for size in ("maxres", "standard")
    ]
    assert statuses == [404, 200]
    assert picture_of(youtube, "gaps-missing-sizes", 0, "maxres").status_code == 404
    assert [call.status for call in youtube.picture_calls] == [404, 200, 404]


def test_faulty_pictures_are_what_their_files_say(youtube: FakeYouTube) -> None:
    huge = picture_of(youtube, "faults-picture-huge", 0, "maxres")
    assert len(huge.content) > 20 * 2**20
    bomb = picture_of(youtube, "faults-picture-bomb", 0, "maxres").content
    assert len(bomb) < 100_000
    with pytest.raises(Image.DecompressionBombError):
        Image.open(io.BytesIO(bomb))
    for name, n in (("faults-picture-html", 0), ("faults-picture-all", 3)):
        answer = picture_of(youtube, name, n, "maxres")
        assert answer.headers["content-type"] == "image/jpeg"
        with pytest.raises(OSError, match=r"cannot identify|Truncated"):
            Image.open(io.BytesIO(answer.content))
    truncated = Image.open(io.BytesIO(picture_of(youtube, "faults-picture-all", 2, "high").content))
    with pytest.raises(OSError, match="truncated"):
        truncated.load()
    others = [picture_of(youtube, "faults-picture-all", n, "high").status_code for n in (1, 4, 5)]
    assert others == [302, 404, 500]
