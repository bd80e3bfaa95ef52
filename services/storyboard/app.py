"""The routes of the storyboard service, and the wiring of what they use.

Turns what the desk raises into problems (services/shared/errors.py); nothing else in this service
knows of HTTP as a server.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import filelock
import httpx
import structlog
from fastapi import Depends, FastAPI, Header, Path, Query, Request, Response
from fastapi.sse import EventSourceResponse, ServerSentEvent
from sqlalchemy.ext.asyncio import AsyncEngine

from services.shared.draining import drained_on_sigterm
from services.shared.errors import (
    Conflict,
    FieldError,
    Malformed,
    NotFound,
    TooManyRequests,
    Unavailable,
    Unprocessable,
)
from services.shared.openai_model import OpenAIModel
from services.shared.peers import find_peer
from services.shared.storage import StorageUnavailable, open_storage
from services.shared.telemetry import configure_logs, configure_traces, send_last_spans
from services.shared.web import create_web_app, current_caller
from services.storyboard import policy
from services.storyboard.adapters.artifacts import FsspecArtifacts
from services.storyboard.adapters.jobs import SQLJobStore, metadata
from services.storyboard.adapters.peers import HttpPainter, HttpScreen
from services.storyboard.desk import Desk
from services.storyboard.errors import ArtifactMissing, KeyReused, PaintingError, TooManyJobs
from services.storyboard.following import Following
from services.storyboard.metrics import Metrics
from services.storyboard.ports import Artifacts, ImageModel, JobStore, Painter, StoredEvent
from services.storyboard.prompts.library import PromptLibrary
from services.storyboard.running import Runner
from services.storyboard.schemas import MAX_SCENES, Storyboard, StoryboardRequest
from services.storyboard.settings import StoryboardSettings
from services.storyboard.worker import Worker

DESCRIPTION = "Draws storyboards: scenes by a language model, frames by the images service."
PNG, PDF = "image/png", "application/pdf"
MEDIA_TYPES = {"png": PNG, "pdf": PDF}
# A frame or a sheet that is there never changes.
CACHED = {"Cache-Control": "private, max-age=86400, immutable"}
IDEMPOTENCY_KEY = r"^[A-Za-z0-9._:-]{1,128}$"
LOOK_AGAIN_S = 30.0
"""How long a description of the image model is good for checking requests."""
ASK_WITHIN_S = 2.0
MEASURE_EVERY_S = 5.0

JobId = Annotated[str, Path(pattern="^[0-9a-f]{32}$", description="32 hex digits.")]
SceneNumber = Annotated[int, Path(ge=1, le=MAX_SCENES, description="Scene, from 1.")]
log = structlog.get_logger()


@dataclass(frozen=True)
class Parts:
    """How the adapters are made. Tests put themselves between."""

    store: Callable[[AsyncEngine], JobStore] = SQLJobStore
    artifacts: Callable[[str], Artifacts] = FsspecArtifacts
    painter: Callable[[httpx.AsyncClient], Painter] = HttpPainter


def create_app(settings: StoryboardSettings, parts: Parts | None = None) -> FastAPI:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        configure_logs("storyboard", settings)
        async with wired(settings, app.state.metrics, parts or Parts()) as wiring:
            app.state.wiring = wiring
            tasks = [asyncio.create_task(work) for work in wiring.background()]
            try:
                with drained_on_sigterm(wiring.drain):
                    yield
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.wait(tasks)
        await send_last_spans()

    app = create_web_app("storyboard", settings, description=DESCRIPTION, lifespan=lifespan)
    app.state.settings = settings
    app.state.metrics = Metrics()
    configure_traces("storyboard", settings, app)
    _add_jobs(app)
    _add_pictures(app)
    return app


@dataclass
class Wiring:
    """What the routes use, and what runs beside them."""

    settings: StoryboardSettings
    desk: Desk
    painter: Painter
    metrics: Metrics
    alone: filelock.AsyncFileLock | None
    """With SQLite one process works on the jobs: the one that holds this lock."""
    is_draining: bool = False
    _model: ImageModel | None = None
    _model_known_until: float = 0.0

    def background(self) -> Iterator[Any]:
        yield self._work()
        yield self._clean()
        yield self._measure()

    async def drain(self) -> None:
        """Jobs are durable: whoever starts next goes on with them. Only the streams are ended."""
        self.is_draining = True
        await self.desk.following.close()

    async def image_model(self) -> ImageModel | None:
        """As images last described it; None when it cannot be asked just now."""
        now = asyncio.get_running_loop().time()
        if self._model is None or now > self._model_known_until:
            try:
                async with asyncio.timeout(ASK_WITHIN_S):
                    self._model = await self.painter.model()
                self._model_known_until = now + LOOK_AGAIN_S
            except (PaintingError, TimeoutError):
                return None
        return self._model

    async def _work(self) -> None:
        if self.alone is None:
            await self.desk.worker.run()
            return
        async with self.alone:
            # Whoever held leases here is gone: it would hold the lock.
            await self.desk.store.release_all()
            await self.desk.worker.run()

    async def _clean(self) -> None:
        while True:
            try:
                if deleted := await self.desk.delete_expired():
                    log.info("expired storyboards deleted", storyboards=deleted)
            except (StorageUnavailable, OSError) as error:
                log.warning("clean-up put off", reason=str(error))
            await asyncio.sleep(self.settings.clean_every_s)

    async def _measure(self) -> None:
        while True:
            with suppress(StorageUnavailable):
                self.metrics.load = await self.desk.store.load()
            await asyncio.sleep(MEASURE_EVERY_S)


@asynccontextmanager
async def wired(
    settings: StoryboardSettings, metrics: Metrics, parts: Parts
) -> AsyncIterator[Wiring]:
    """Everything that the routes use, open; closed in reverse order."""
    PromptLibrary(settings.prompt_version)
    async with AsyncExitStack() as stack:
        own = next(iter(settings.keys()), "")
        llm_key = settings.llm_key.get_secret_value() or own

        async def client(
            name: str, url: str | None, key: str, timeout_s: float, connections: int
        ) -> httpx.AsyncClient:
            peer = find_peer(name, url, key)
            opened = peer.client(timeout_s=timeout_s, max_connections=connections)
            return await stack.enter_async_context(opened)

        jobs = settings.max_running
        calls = jobs * settings.writing_at_once
        llm = await client("llm", settings.llm_url, llm_key, settings.call_timeout_s, calls)
        evaluation = await client(
            "evaluation", settings.evaluation_url, own, settings.call_timeout_s, jobs * MAX_SCENES
        )
        images = await client(
            "images",
            settings.images_url,
            own,
            settings.frame_timeout_s,
            jobs * settings.drawing_at_once + 1,
        )
        storage = await stack.enter_async_context(
            open_storage(settings.database_url, settings.sqlite_path(), metadata, pool_size=8)
        )
        store = parts.store(storage.engine)
        following = Following(
            store,
            poll_s=settings.poll_s,
            silence_s=settings.events_silence_s,
            max_followers=settings.max_followers,
        )
        runner = Runner(
            settings=settings,
            store=store,
            checkpointer=storage.checkpointer,
            writer=OpenAIModel(
                llm, key=llm_key, model=settings.llm_model, timeout_s=settings.call_timeout_s
            ),
            screen=HttpScreen(evaluation),
            painter=parts.painter(images),
            artifacts=parts.artifacts(settings.artifacts()),
            following=following,
        )
        worker = Worker(store, settings, runner.run)
        desk = Desk(
            settings, store, runner.artifacts, storage.checkpointer, worker, following, metrics
        )
        worker.finished = desk.finished
        lock = settings.home / "storyboard-worker.lock"
        alone = None if storage.is_shared else filelock.AsyncFileLock(lock, thread_local=False)
        yield Wiring(settings, desk, runner.painter, metrics, alone)


def _wiring(request: Request) -> Wiring:
    wiring: Wiring = request.app.state.wiring
    return wiring


def _desk(request: Request) -> Desk:
    return _wiring(request).desk


TheDesk = Annotated[Desk, Depends(_desk)]
TheWiring = Annotated[Wiring, Depends(_wiring)]


def is_ready(app: FastAPI) -> bool:
    """True while storyboards are taken in."""
    wiring: Wiring | None = getattr(app.state, "wiring", None)
    return wiring is not None and not wiring.is_draining


def metrics(app: FastAPI) -> str:
    """The service's own numbers in Prometheus' text form."""
    found: Metrics = app.state.metrics
    return found.exposition()


def _add_jobs(app: FastAPI) -> None:
    @app.post("/v1/storyboards", tags=["storyboards"], status_code=202)
    async def ask_for_storyboard(
        body: StoryboardRequest,
        request: Request,
        response: Response,
        wiring: TheWiring,
        idempotency_key: Annotated[
            str | None,
            Header(
                pattern=IDEMPOTENCY_KEY,
                description="1-128 letters, digits and `._:-`. The same key and body give the same "
                "storyboard; the same key with another body is a 409.",
            ),
        ] = None,
    ) -> Storyboard:
        """Ask for a storyboard. It is kept before this answers, and drawn whatever happens to this
        process; follow it at the URL in `Location`.
        """
        with as_problems(wiring.settings):
            await _require_drawable(body, wiring)
            caller = current_caller(request)
            storyboard, is_new = await wiring.desk.ask(caller, body, idempotency_key)
        response.headers["Location"] = f"/v1/storyboards/{storyboard.id}"
        if not is_new:
            response.headers["Idempotent-Replayed"] = "true"
        return storyboard

    @app.get("/v1/storyboards/{storyboard_id}", tags=["storyboards"])
    async def get_storyboard(storyboard_id: JobId, request: Request, desk: TheDesk) -> Storyboard:
        """A storyboard as far as it has come."""
        return await _find(request, desk, storyboard_id)

    @app.get(
        "/v1/storyboards/{storyboard_id}/events",
        tags=["storyboards"],
        response_class=EventSourceResponse,
    )
    async def follow_storyboard(
        storyboard_id: JobId,
        request: Request,
        desk: TheDesk,
        follow: Annotated[AsyncIterator[StoredEvent], Depends(_followed)],
    ) -> AsyncIterator[ServerSentEvent]:
        """Everything that happened and happens to it: `stage`, `scene`, `frame`, `progress`, then
        `result` or `error`. Each has an id; `Last-Event-ID` goes on behind it.
        """
        async for event in follow:
            data = json.dumps(event.data, ensure_ascii=False)
            yield ServerSentEvent(event=event.name, id=str(event.seq), raw_data=data)

    @app.delete(
        "/v1/storyboards/{storyboard_id}",
        tags=["storyboards"],
        responses={204: {"description": "Deleted (purge=true)"}},
    )
    async def cancel_storyboard(
        storyboard_id: JobId,
        request: Request,
        response: Response,
        desk: TheDesk,
        purge: Annotated[
            bool, Query(description="Also delete it, finished or not, with its pictures.")
        ] = False,
    ) -> Storyboard | None:
        """Cancel it. What is being written or drawn for it stops; what is drawn stays until it
        expires. A finished storyboard stays as it is.
        """
        with as_problems(desk.settings):
            if not purge:
                cancelled = await desk.cancel(current_caller(request), storyboard_id)
                return _found(cancelled, storyboard_id)
            if not await desk.purge(current_caller(request), storyboard_id):
                raise _unknown(storyboard_id)
            response.status_code = 204
            return None


def _add_pictures(app: FastAPI) -> None:
    @app.get(
        "/v1/storyboards/{storyboard_id}/frames/{n}",
        tags=["storyboards"],
        response_class=Response,
        responses={200: {"content": {PNG: {}}, "description": "The frame"}},
    )
    async def get_frame(
        storyboard_id: JobId, n: SceneNumber, request: Request, desk: TheDesk
    ) -> Response:
        """The picture of one scene, once it is drawn."""
        storyboard = await _find(request, desk, storyboard_id)
        with as_problems(desk.settings):
            return Response(await desk.frame(storyboard, n), media_type=PNG, headers=CACHED)

    @app.get(
        "/v1/storyboards/{storyboard_id}/sheet",
        tags=["storyboards"],
        response_class=Response,
        responses={200: {"content": {PNG: {}, PDF: {}}, "description": "The sheet"}},
    )
    async def get_sheet(
        storyboard_id: JobId,
        request: Request,
        desk: TheDesk,
        form: Annotated[
            Literal["png", "pdf"], Query(alias="format", description="`png` or `pdf`.")
        ] = "png",
    ) -> Response:
        """All frames with their scenes on one sheet, once the storyboard is done."""
        storyboard = await _find(request, desk, storyboard_id)
        with as_problems(desk.settings):
            sheet = await desk.sheet(storyboard, form)
        return Response(sheet, media_type=MEDIA_TYPES[form], headers=CACHED)


async def _find(request: Request, desk: Desk, storyboard_id: str) -> Storyboard:
    with as_problems(desk.settings):
        found = await desk.store.get(current_caller(request), storyboard_id)
        return _found(found, storyboard_id)


def _found(storyboard: Storyboard | None, storyboard_id: str) -> Storyboard:
    if storyboard is None:
        raise _unknown(storyboard_id)
    return storyboard


def _unknown(storyboard_id: str) -> NotFound:
    return NotFound(f"There is no storyboard {storyboard_id}.", code="storyboard_not_found")


async def _followed(
    storyboard_id: JobId,
    request: Request,
    desk: TheDesk,
    last_event_id: Annotated[
        str | None, Header(description="The id of the last event that was seen.")
    ] = None,
) -> AsyncIterator[StoredEvent]:
    """What is refused is refused here, before the first byte of the stream."""
    await _find(request, desk, storyboard_id)
    if desk.following.is_full:
        raise Unavailable(
            f"{desk.settings.max_followers} streams are open; come back later.",
            retry_after_s=desk.settings.retry_after_s,
            code="too_many_followers",
        )
    return desk.following.follow(storyboard_id, _last_seen(last_event_id))


def _last_seen(last_event_id: str | None) -> int:
    told = (last_event_id or "").strip()
    if not told:
        return 0
    if not (told.isascii() and told.isdecimal() and len(told) <= 9):
        message = "must be the id of an event of this stream, a number"
        raise Malformed(
            f"Last-Event-ID {message}.", errors=[FieldError(field="Last-Event-ID", message=message)]
        )
    return int(told)


async def _require_drawable(body: StoryboardRequest, wiring: Wiring) -> None:
    """Raises Unprocessable for a style or a size that images, as far as it can be asked, has not.

    When it cannot be asked the storyboard is taken in: it is checked again before it is written.
    """
    if body.style is None and body.size is None:
        return
    model = await wiring.image_model()
    if model is None:
        return
    if body.style is not None and body.style not in model.triggers:
        there = ", ".join(sorted(model.triggers)) or "none"
        raise _unprocessable("style", f"is not a LoRA of images; there are: {there}")
    if body.size is not None:
        width, height = policy.frame_size(body.size, body.proposal.media_type, model)
        if problem := policy.size_problem(width, height, model):
            raise _unprocessable("size", problem)


def _unprocessable(field: str, message: str) -> Unprocessable:
    return Unprocessable(f"{field} {message}.", errors=[FieldError(field=field, message=message)])


@contextmanager
def as_problems(settings: StoryboardSettings) -> Iterator[None]:
    """What the desk raises, as what the caller is told."""
    later = settings.retry_after_s
    try:
        yield
    except KeyReused:
        message = "was used before with another body; send a new key"
        raise Conflict(
            f"This Idempotency-Key {message}.",
            code="idempotency_key_reused",
            errors=[FieldError(field="Idempotency-Key", message=message)],
        ) from None
    except TooManyJobs as error:
        raise TooManyRequests(
            f"{error.limit} storyboards of this key are not finished; wait for one, or cancel one.",
            retry_after_s=later,
            code="too_many_storyboards",
        ) from None
    except ArtifactMissing as error:
        raise NotFound(f"There is no such picture: {error}.", code="not_drawn") from None
    except (StorageUnavailable, OSError, TimeoutError) as error:
        log.error("storage unavailable", exc_info=error)
        raise Unavailable(
            "The database or the pictures cannot be reached.",
            retry_after_s=later,
            code="storage_unavailable",
        ) from None
