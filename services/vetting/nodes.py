"""The nodes of the graph: each reads the state, does one thing, returns what it adds.

What could not be looked at is named and goes on to `decide`. What leaves the graph as an error is
that YouTube did not give the channel, that the model was away all the time, and that the database
did not take the result: then there is nothing to tell, and everything to try again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, NotRequired, TypedDict

from langgraph.config import get_stream_writer
from langgraph.runtime import Runtime

from services.shared.proposals import Language
from services.shared.storage import StorageUnavailable
from services.shared.text import detect_language
from services.vetting import policy
from services.vetting.channels import ChannelRef
from services.vetting.cutting import (
    Batch,
    Passage,
    batches,
    channel_passages,
    thumbnail_passages,
    video_passages,
)
from services.vetting.errors import SourceError
from services.vetting.findings import signals as signals_of
from services.vetting.judging import Judge, Looked
from services.vetting.keeping import VettingStore
from services.vetting.metrics import Metrics
from services.vetting.pictures import (
    Picture,
    PictureError,
    PictureSource,
    TextReader,
    TextReadError,
)
from services.vetting.policy import Applied, Case, Dated
from services.vetting.ports import ChannelSource, Snapshot, Video
from services.vetting.schemas import (
    Coverage,
    Finding,
    Reason,
    Source,
    Unseen,
    Verdict,
    VettedChannel,
    Vetting,
)
from services.vetting.settings import VettingSettings
from services.vetting.texts import Texts

SOURCES: tuple[Source, ...] = ("channel", "rating", "title", "description", "tags", "thumbnail")
Update = dict[str, Any]


class State(TypedDict):
    """The graph's state. It is kept nowhere: a channel's data has one home and an end."""

    ref: ChannelRef
    language: Language | None
    snapshot: NotRequired[Snapshot]
    signals: NotRequired[list[Finding]]
    text: NotRequired[Looked]
    thumbnails: NotRequired[Looked]
    verdict: NotRequired[Verdict]
    applied: NotRequired[list[Applied]]
    findings: NotRequired[list[Finding]]
    coverage: NotRequired[Coverage]
    vetting: NotRequired[Vetting]


@dataclass(frozen=True)
class Tools:
    """What every vetting uses. `reader` is None where text in pictures cannot be read."""

    settings: VettingSettings
    source: ChannelSource
    pictures: PictureSource
    reader: TextReader | None
    judge: Judge
    store: VettingStore
    texts: Texts
    metrics: Metrics


@dataclass
class Work:
    """What the nodes of one run use; given to the graph with it, never stored. `steps` are those
    that the run will take, as far as is known; `done` of them are over.
    """

    tools: Tools
    vetting_id: str
    request_id: str
    model: str
    started: float = field(default_factory=time.perf_counter)
    steps: int = 1
    done: int = 0

    def __post_init__(self) -> None:
        self.calls = asyncio.Semaphore(self.tools.settings.calls_at_once)
        self.fetches = asyncio.Semaphore(self.tools.settings.thumbnails_at_once)

    @property
    def progress(self) -> float:
        return round(min(1.0, self.done / self.steps), 3)


async def fetch(state: State, runtime: Runtime[Work]) -> Update:
    """The channel from YouTube, or from what is known of it."""
    _announce("fetch", "started")
    metrics = runtime.context.tools.metrics
    with metrics.timed("youtube", SourceError):
        snapshot = await runtime.context.tools.source.fetch(state["ref"])
    metrics.came("youtube_bytes", snapshot.bytes)
    _announce("fetch", "done")
    return {"snapshot": snapshot, "language": state["language"] or _language_of(snapshot)}


async def signals(state: State, runtime: Runtime[Work]) -> Update:
    """What YouTube's own data says: cheap, and before any model."""
    _announce("signals", "started")
    found = signals_of(state["snapshot"], policy.FEW_UPLOADS)
    _tell(found)
    work, videos = runtime.context, len(state["snapshot"].videos)
    work.steps, work.done = 1 + len(_words(state, work)[0]) + videos, 0
    _advance(work)
    _announce("signals", "done")
    return {"signals": found}


async def text(state: State, runtime: Runtime[Work]) -> Update:
    """Titles, descriptions and tags, and the channel's own words."""
    _announce("text", "started")
    work = runtime.context
    words, capped = _words(state, work)
    looked = await _read(state, work, words, "text", counts=True)
    _announce("text", "done")
    return {"text": looked + Looked(not_looked_at=capped)}


async def thumbnails(state: State, runtime: Runtime[Work]) -> Update:
    """What is written in thumbnails, and, where something can see them, what they show."""
    _announce("thumbnails", "started")
    work, videos = runtime.context, state["snapshot"].videos
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(_thumbnail(state, work, video)) for video in videos]
    results = [task.result() for task in tasks]
    looked = sum((result for result, _ in results), Looked())
    settings = work.tools.settings
    words = batches(
        [passage for _, passages in results for passage in passages],
        videos=settings.batch_videos,
        characters=settings.batch_characters,
    )
    looked += await _read(state, work, words, "thumbnails", counts=False)
    if videos and not settings.vision:
        looked += _unseen("thumbnails", "no_vision_model")
    _announce("thumbnails", "done")
    return {"thumbnails": looked}


async def decide(state: State, runtime: Runtime[Work]) -> Update:
    """The verdict, computed. Raises ModelUnavailable when the model never answered."""
    _announce("decide", "started")
    looked = state["text"] + state["thumbnails"]
    if looked.unavailable is not None and looked.answers == 0:
        raise looked.unavailable
    snapshot = state["snapshot"]
    missed = [Unseen(what=missed.what, why=missed.why) for missed in snapshot.not_looked_at]
    not_looked_at = [*missed, *looked.not_looked_at]
    findings = _sorted([*state["signals"], *looked.findings], snapshot)
    verdict, applied = policy.decide(
        Case(
            videos=[Dated(video.id, video.published_at) for video in snapshot.videos],
            findings=findings,
            not_looked_at=not_looked_at,
            disagreements=looked.disagreements,
            may_lack_vision=runtime.context.tools.settings.text_only,
        )
    )
    _announce("decide", verdict)
    coverage = _coverage(snapshot, not_looked_at)
    return {"verdict": verdict, "applied": applied, "findings": findings, "coverage": coverage}


async def keep(state: State, runtime: Runtime[Work]) -> Update:
    """The Vetting, stored until YouTube's data may be kept no longer. Raises StorageUnavailable."""
    work = runtime.context
    vetting = _vetting(state, work)
    with work.tools.metrics.timed("database", StorageUnavailable):
        await work.tools.store.save(vetting)
    work.done = work.steps
    _emit({"event": "progress", "progress": work.progress})
    return {"vetting": vetting}


async def _read(
    state: State, work: Work, words: Sequence[Batch], name: str, *, counts: bool
) -> Looked:
    """Every batch, put to the model. `counts`: each is a step of the whole."""

    async def read(n: int, batch: Batch) -> Looked:
        call_id = f"{work.request_id}-{name}-{n}"
        async with work.calls:
            looked = await work.tools.judge.read(batch, _language(state), work.model, call_id)
        _tell(looked.findings)
        if counts:
            _advance(work)
        return looked

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(read(n, batch)) for n, batch in enumerate(words, 1)]
    return sum((task.result() for task in tasks), Looked())


async def _thumbnail(state: State, work: Work, video: Video) -> tuple[Looked, list[Passage]]:
    """What one thumbnail shows, and its words, which are still to be judged."""
    async with work.fetches:
        try:
            with work.tools.metrics.timed("thumbnails", PictureError):
                urls = [thumbnail.url for thumbnail in video.thumbnails]
                picture = await work.tools.pictures.fetch(urls)
        except PictureError as error:
            _advance(work)
            return _unseen(f"thumbnail:{video.id}", error.reason), []
        work.tools.metrics.came("thumbnail_bytes", len(picture.data))
        (unread, passages), seen = await asyncio.gather(
            _letters(work, video, picture), _sight(state, work, video, picture)
        )
    _advance(work)
    return unread + seen, passages


async def _letters(work: Work, video: Video, picture: Picture) -> tuple[Looked, list[Passage]]:
    what, reader = f"thumbnail_text:{video.id}", work.tools.reader
    if reader is None:
        return _unseen(what, "ocr_unavailable"), []
    try:
        with work.tools.metrics.timed("ocr", TextReadError):
            lines = await reader.read(picture)
    except TextReadError as error:
        return _unseen(what, error.reason), []
    is_legible = all(line.confidence >= policy.READABLE for line in lines)
    unread = Looked() if is_legible else _unseen(what, "text_unreadable")
    return unread, thumbnail_passages(video.id, lines)


async def _sight(state: State, work: Work, video: Video, picture: Picture) -> Looked:
    if not work.tools.settings.vision:
        return Looked()
    call_id = f"{work.request_id}-picture-{video.id}"
    async with work.calls:
        looked = await work.tools.judge.see(
            picture, video.id, _language(state), work.model, call_id
        )
    _tell(looked.findings)
    return looked


def _words(state: State, work: Work) -> tuple[list[Batch], tuple[Unseen, ...]]:
    """The channel's words in batches, and whose description was too long to judge whole."""
    settings, snapshot = work.tools.settings, state["snapshot"]
    cut = [
        channel_passages(snapshot.channel, settings.description_characters),
        *(video_passages(video, settings.description_characters) for video in snapshot.videos),
    ]
    made = batches(
        [passage for passages, _ in cut for passage in passages],
        videos=settings.batch_videos,
        characters=settings.batch_characters,
    )
    units = ["text:channel", *(f"text:{video.id}" for video in snapshot.videos)]
    capped = [unit for unit, (_, is_capped) in zip(units, cut, strict=True) if is_capped]
    return made, tuple(Unseen(what=unit, why="description_too_long") for unit in capped)


def _vetting(state: State, work: Work) -> Vetting:
    snapshot, tools = state["snapshot"], work.tools
    channel = snapshot.channel
    looked = state["text"] + state["thumbnails"]
    return Vetting(
        id=work.vetting_id,
        channel=VettedChannel(
            id=channel.id,
            handle=channel.handle,
            title=channel.title,
            thumbnail_url=channel.thumbnail_url,
            subscribers=channel.subscribers,
            videos=channel.videos,
        ),
        verdict=state["verdict"],
        reasons=[_reason(tools.texts, applied, _language(state)) for applied in state["applied"]],
        findings=state["findings"],
        coverage=state["coverage"],
        quota_units=snapshot.quota_units,
        fetched_at=snapshot.fetched_at,
        expires_at=snapshot.fetched_at + timedelta(seconds=tools.settings.keep_s),
        model=work.model,
        prompt_version=tools.judge.library.version,
        usage=looked.usage,
        duration_ms=round((time.perf_counter() - work.started) * 1000, 3),
    )


def _reason(texts: Texts, applied: Applied, language: Language) -> Reason:
    sentence = texts.reason(language, applied.code, applied.values)
    return Reason(code=applied.code, verdict=applied.verdict, text=sentence)


def _coverage(snapshot: Snapshot, not_looked_at: list[Unseen]) -> Coverage:
    missed = {unseen.what for unseen in not_looked_at}
    parts = ("thumbnail", "thumbnail_text", "thumbnail_image")
    return Coverage(
        videos_looked_at=sum(f"text:{video.id}" not in missed for video in snapshot.videos),
        thumbnails_looked_at=sum(
            not any(f"{part}:{video.id}" in missed for part in parts) for video in snapshot.videos
        ),
        not_looked_at=not_looked_at,
    )


def _sorted(findings: Iterable[Finding], snapshot: Snapshot) -> list[Finding]:
    """The channel's first, then by video, newest first; within one, by source and level."""
    order = {video.id: n for n, video in enumerate(snapshot.videos)}

    def place(finding: Finding) -> tuple[int, int, int, str]:
        video = -1 if finding.video_id is None else order[finding.video_id]
        return video, SOURCES.index(finding.source), -finding.level, finding.category

    return sorted(findings, key=place)


def _language_of(snapshot: Snapshot) -> Language:
    titles = (video.title for video in snapshot.videos)
    return detect_language("\n".join((snapshot.channel.title, *titles)))


def _language(state: State) -> Language:
    return state["language"] or "ko"


def _unseen(what: str, why: str) -> Looked:
    return Looked(not_looked_at=(Unseen(what=what, why=why),))


def _tell(findings: Iterable[Finding]) -> None:
    for finding in findings:
        _emit({"event": "finding", "finding": finding})


def _advance(work: Work) -> None:
    work.done += 1
    _emit({"event": "progress", "progress": work.progress})


def _announce(stage: str, state: str) -> None:
    _emit({"event": "stage", "name": stage, "state": state})


def _emit(event: dict[str, Any]) -> None:
    get_stream_writer()(event)
