"""The routes of the vetting service, and the wiring of what they use.

Turns what the use case raises into problems (services/shared/errors.py); nothing else in this
service knows of HTTP.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Annotated, Any

import structlog
from fastapi import Depends, FastAPI, Path, Request
from fastapi.sse import EventSourceResponse, ServerSentEvent
from sqlalchemy.ext.asyncio import AsyncEngine
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from services.shared.errors import (
    DeadlineExceeded,
    FieldError,
    NotFound,
    TooManyRequests,
    Unavailable,
    Unprocessable,
)
from services.shared.language_model import ModelError, ModelTimedOut, ModelUnavailable
from services.shared.openai_model import OpenAIModel
from services.shared.peers import find_peer
from services.shared.storage import StorageUnavailable, open_storage
from services.shared.streaming import sse
from services.shared.telemetry import configure_logs, configure_traces, send_last_spans
from services.shared.web import create_web_app, current_request_id, until_hang_up
from services.vetting.adapters.database import SQLSnapshotCache, SQLVettingStore, metadata
from services.vetting.adapters.ocr import ThumbnailReader
from services.vetting.adapters.quota import SQLQuotaLedger
from services.vetting.adapters.thumbnails import ThumbnailFetcher
from services.vetting.adapters.vision import picture_message
from services.vetting.adapters.youtube import YouTubeSource
from services.vetting.caching import CachedSource
from services.vetting.errors import (
    ChannelNotFound,
    InvalidChannel,
    QuotaExhausted,
    SourceRefused,
    SourceTimedOut,
    SourceUnavailable,
)
from services.vetting.graph import build_graph
from services.vetting.judging import Judge
from services.vetting.keeping import VettingStore
from services.vetting.metrics import Metrics
from services.vetting.nodes import Tools
from services.vetting.pictures import OcrUnavailable, TextReader
from services.vetting.prompts.library import PromptLibrary
from services.vetting.quota import QuotaBudget, now
from services.vetting.schemas import VetRequest, Vetting
from services.vetting.settings import VettingSettings
from services.vetting.texts import Texts
from services.vetting.vetter import Busy, Vetter

DESCRIPTION = "Vets YouTube channels: words, thumbnails and YouTube's own data, with evidence."
VET, VET_STREAM = "/v1/creators/vet", "/v1/creators/vet/stream"
NO_KEY = (
    "No key for the YouTube Data API is configured: channels cannot be vetted. Make one in the "
    "Google Cloud console and set JOING_YOUTUBE_KEY."
)
VettingId = Annotated[str, Path(pattern="^[0-9a-f]{32}$", description="32 hex digits.")]
log = structlog.get_logger()


def _reader(settings: VettingSettings) -> TextReader | None:
    """None where the programs are missing; every thumbnail is then one whose text was not read."""
    try:
        return ThumbnailReader(
            workers=settings.ocr_workers,
            timeout_s=settings.ocr_timeout_s,
            max_waiting=settings.max_concurrent * settings.thumbnails_at_once,
            wait_s=settings.deadline_s,
        )
    except OcrUnavailable as error:
        log.error("thumbnails cannot be read: no channel will pass", fix=str(error))
        return None


@dataclass(frozen=True)
class Parts:
    """How the adapters are made. Tests put themselves between."""

    reader: Callable[[VettingSettings], TextReader | None] = _reader
    store: Callable[[AsyncEngine], VettingStore] = SQLVettingStore


def create_app(settings: VettingSettings, parts: Parts | None = None) -> FastAPI:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        configure_logs("vetting", settings)
        async with wired(settings, app.state.metrics, parts or Parts()) as wiring:
            app.state.wiring = wiring
            cleaning = asyncio.create_task(wiring.clean())
            try:
                yield
            finally:
                cleaning.cancel()
                await asyncio.wait({cleaning})
        await send_last_spans()

    app = create_web_app("vetting", settings, description=DESCRIPTION, lifespan=lifespan)
    app.add_middleware(AsEvents)
    app.state.settings = settings
    app.state.metrics = Metrics()
    configure_traces("vetting", settings, app)
    add_routes(app)
    return app


class AsEvents:
    """Who asks for a vetting and accepts events gets them: the stream's path has the one
    implementation.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] == VET:
            accepted = Headers(scope=scope).get("accept", "")
            if "text/event-stream" in accepted.lower():
                scope = {**scope, "path": VET_STREAM, "raw_path": VET_STREAM.encode()}
        await self.app(scope, receive, send)


@dataclass(frozen=True)
class Wiring:
    """What the routes use. `vetter` is None without a key for YouTube."""

    settings: VettingSettings
    vetter: Vetter | None
    store: VettingStore
    source: CachedSource | None

    async def clean(self) -> None:
        """Deletes what may be kept no longer, as long as the service runs."""
        while True:
            try:
                if deleted := await self.store.delete_expired(now()):
                    log.info("expired vettings deleted", vettings=deleted)
                if self.source is not None:
                    await self.source.sweep()
            except (StorageUnavailable, TimeoutError) as error:
                log.warning("clean-up put off", reason=str(error))
            await asyncio.sleep(self.settings.clean_every_s)


@asynccontextmanager
async def wired(settings: VettingSettings, metrics: Metrics, parts: Parts) -> AsyncIterator[Wiring]:
    """Everything that the routes use, open; closed in reverse order."""
    async with AsyncExitStack() as stack:
        library = PromptLibrary(settings.prompt_version)
        storage = await stack.enter_async_context(
            open_storage(
                settings.database_url,
                settings.sqlite_path(),
                metadata,
                pool_size=min(settings.max_concurrent, 16),
            )
        )
        store = parts.store(storage.engine)
        if not settings.youtube_key.get_secret_value():
            log.error("youtube is not configured", fix=NO_KEY)
            yield Wiring(settings, None, store, None)
            return
        source = await _source(settings, storage.engine, stack)
        pictures = ThumbnailFetcher(
            base_override=settings.pictures_url,
            timeout_s=settings.thumbnail_timeout_s,
            concurrency=settings.thumbnails_at_once,
            max_waiting=settings.max_concurrent * settings.thumbnails_at_once,
            wait_s=settings.deadline_s,
        )
        stack.push_async_callback(pictures.aclose)
        reader = parts.reader(settings)
        if isinstance(reader, ThumbnailReader):
            stack.push_async_callback(reader.aclose)
        judge = Judge(await _model(settings, stack), picture_message, library, metrics)
        tools = Tools(settings, source, pictures, reader, judge, store, Texts(), metrics)
        yield Wiring(settings, Vetter(tools, build_graph()), store, source)


async def _source(
    settings: VettingSettings, engine: AsyncEngine, stack: AsyncExitStack
) -> CachedSource:
    budget = QuotaBudget(SQLQuotaLedger(engine), settings.quota_units_per_day)
    youtube = YouTubeSource(
        settings.youtube_key,
        budget,
        api_endpoint=settings.youtube_url,
        max_videos=settings.max_videos,
        timeout_s=settings.youtube_timeout_s,
        deadline_s=settings.youtube_deadline_s,
    )
    stack.callback(youtube.close)
    return CachedSource(
        youtube,
        SQLSnapshotCache(engine),
        ttl_s=min(settings.cache_ttl_s, settings.keep_s),
        max_age_s=settings.keep_s,
    )


async def _model(settings: VettingSettings, stack: AsyncExitStack) -> OpenAIModel:
    key = settings.llm_key.get_secret_value() or next(iter(settings.keys()), "")
    client = find_peer("llm", settings.llm_url, key).client(
        timeout_s=settings.call_timeout_s,
        max_connections=settings.max_concurrent * settings.calls_at_once,
    )
    await stack.enter_async_context(client)
    return OpenAIModel(client, key=key, model=settings.llm_model, timeout_s=settings.call_timeout_s)


def _wiring(request: Request) -> Wiring:
    wiring: Wiring = request.app.state.wiring
    return wiring


TheWiring = Annotated[Wiring, Depends(_wiring)]


def _vetter(wiring: TheWiring) -> Vetter:
    if wiring.vetter is None:
        log.error("youtube is not configured", fix=NO_KEY)
        raise Unavailable(
            "Vetting is not set up on this server.",
            retry_after_s=600,
            code="youtube_not_configured",
        )
    return wiring.vetter


TheVetter = Annotated[Vetter, Depends(_vetter)]


def is_ready(app: FastAPI) -> bool:
    """True once requests can be answered."""
    return getattr(app.state, "wiring", None) is not None


def metrics(app: FastAPI) -> str:
    """The service's own numbers in Prometheus' text form."""
    found: Metrics = app.state.metrics
    return found.exposition()


def add_routes(app: FastAPI) -> None:
    @app.post(VET, tags=["creators"])
    async def vet(body: VetRequest, request: Request, vetter: TheVetter) -> Vetting:
        """Vet one channel and wait for the result. With `Accept: text/event-stream`, the same as
        events.
        """
        with as_problems(request):
            return await until_hang_up(request, vetter.vet(body, current_request_id()))

    @app.post(VET_STREAM, tags=["creators"], response_class=EventSourceResponse)
    async def vet_stream(
        body: VetRequest, request: Request, vetter: TheVetter
    ) -> AsyncIterator[ServerSentEvent]:
        """The same as events: `stage`, `finding`, `progress`, then `result` or `error`."""
        async with aclosing(vetter.stream(body, current_request_id())) as events:  # type: ignore[type-var]
            async for event in sse(events, _wire_event, as_problems(request)):
                yield event

    @app.get("/v1/vettings/{vetting_id}", tags=["creators"])
    async def get_vetting(vetting_id: VettingId, request: Request, wiring: TheWiring) -> Vetting:
        """A stored vetting; it is deleted at its `expires_at`."""
        with as_problems(request):
            found = await wiring.store.get(vetting_id)
        if found is None:
            raise NotFound(f"There is no vetting {vetting_id}.", code="vetting_not_found")
        return found


def _wire_event(event: dict[str, Any]) -> ServerSentEvent:
    match event:
        case {"event": "result", "vetting": vetting}:
            return ServerSentEvent(event="result", raw_data=vetting.model_dump_json())
        case {"event": "finding", "finding": finding}:
            return ServerSentEvent(event="finding", raw_data=finding.model_dump_json())
    rest = {key: value for key, value in event.items() if key != "event"}
    return ServerSentEvent(event=event["event"], raw_data=json.dumps(rest, ensure_ascii=False))


@contextmanager
def as_problems(request: Request) -> Iterator[None]:
    """What the use case raises, as what the caller is told."""
    settings: VettingSettings = request.app.state.settings
    try:
        with _source_problems(settings), _model_problems(settings):
            yield
    except Busy:
        raise Unavailable(
            f"{settings.max_concurrent} vettings are running; come back later.",
            retry_after_s=settings.retry_after_s,
            code="busy",
        ) from None
    except StorageUnavailable as error:
        log.error("storage unavailable", exc_info=error.__cause__)
        raise Unavailable(
            "The database is not available.",
            retry_after_s=settings.retry_after_s,
            code="storage_unavailable",
        ) from None
    except TimeoutError:
        raise _too_late(f"It took longer than {settings.deadline_s:g} s and was stopped.") from None


@contextmanager
def _source_problems(settings: VettingSettings) -> Iterator[None]:
    try:
        yield
    except InvalidChannel as error:
        fields = [FieldError(field="channel", message=str(error))]
        raise Unprocessable(
            "This names no channel.", code="invalid_channel", errors=fields
        ) from None
    except ChannelNotFound as error:
        raise NotFound(f"{error}.", code="channel_not_found") from None
    except QuotaExhausted as error:
        wait_s = math.ceil((error.resets_at - now()).total_seconds())
        raise TooManyRequests(
            f"{error}.", retry_after_s=wait_s, code="youtube_quota_exhausted"
        ) from None
    except SourceRefused as error:
        log.error("youtube refuses the key", reason=error.code, fix="Check JOING_YOUTUBE_KEY.")
        raise Unavailable(
            "YouTube does not accept this server's key.", retry_after_s=600, code="youtube_refused"
        ) from None
    except SourceTimedOut as error:
        log.warning("youtube took too long", reason=str(error))
        raise _too_late("YouTube took too long.", code="youtube_timeout") from None
    except SourceUnavailable as error:
        log.warning("youtube unavailable", reason=str(error))
        raise Unavailable(
            "YouTube is not available.",
            retry_after_s=error.retry_after_s or settings.retry_after_s,
            code="youtube_unavailable",
        ) from None


@contextmanager
def _model_problems(settings: VettingSettings) -> Iterator[None]:
    try:
        yield
    except ModelTimedOut:
        raise _too_late("The language model took too long.") from None
    except ModelError as error:
        log.warning("model unavailable", reason=str(error), exc_info=error.__cause__)
        later = error.retry_after_s if isinstance(error, ModelUnavailable) else None
        raise Unavailable(
            "The language model is not available.",
            retry_after_s=later or settings.retry_after_s,
            code="model_unavailable",
        ) from None


def _too_late(detail: str, code: str | None = None) -> DeadlineExceeded:
    return DeadlineExceeded(detail, code=code)
