"""The model that is served: opened beside the running server, drained, and closed.

    opening ──> open ──drain()──> closed
       └──cannot be opened: waits, then tries again

Loading takes seconds to minutes, so it happens in a thread, and probes are answered meanwhile. When
the model cannot be opened the log says why and the service stays unready: the operator pulls the
weights, or frees the device, and the next try finds them.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TypeVar

import structlog

from models.catalog import Catalog
from models.errors import ModelsError
from models.flux.engine import Engine, open_engine
from models.flux.errors import FluxError
from services.images.drawing import Drawer
from services.images.memory import AnswerMemory
from services.images.metrics import Metrics
from services.images.model import choose_model
from services.images.settings import ImagesSettings
from services.images.shelf import Shelf

LAST_WAIT_S = 60.0
T = TypeVar("T")
log = structlog.get_logger()


@dataclass(frozen=True)
class Studio:
    """What the routes use, once it is there."""

    name: str
    """Of the model, as clients call it."""
    engine: Engine
    drawer: Drawer
    shelf: Shelf


class Opening:
    """Owns the studio from the server's start to its end."""

    def __init__(self, settings: ImagesSettings, catalog: Catalog | None = None) -> None:
        """`catalog` is read from its file when none is given."""
        self.metrics = Metrics()
        self.studio: Studio | None = None
        self.memory = AnswerMemory(
            settings.remembered_answers, settings.remembered_bytes, settings.remembered_s
        )
        self._settings = settings
        self._catalog = catalog

    @property
    def is_ready(self) -> bool:
        """True while new images are taken."""
        return self.studio is not None and self.studio.engine.is_ready

    @property
    def is_broken(self) -> bool:
        """True when only a new process would draw again."""
        return self.studio is not None and self.studio.engine.snapshot().is_broken

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Opens the studio meanwhile; closes it at the end."""
        opening = asyncio.create_task(self._open())
        opening.add_done_callback(_report)
        try:
            yield
        finally:
            opening.cancel()
            await asyncio.wait({opening})
            if self.studio is not None:
                await asyncio.to_thread(self.studio.engine.stop)

    async def drain(self) -> None:
        """Takes nothing in any more; returns when what is being drawn is finished or failed."""
        if self.studio is not None:
            log.info("draining")
            await asyncio.to_thread(self.studio.engine.drain, self._settings.drain_s)
            log.info("drained")

    def _opened(self) -> Studio:
        return open_studio(self._settings, self.metrics, self._catalog)

    async def _open(self) -> None:
        wait_s = self._settings.retry_open_s
        while True:
            try:
                studio = await in_daemon_thread(self._opened)
            except (ModelsError, FluxError) as error:
                log.error("the image model cannot be opened", reason=str(error), again_in_s=wait_s)
                await asyncio.sleep(wait_s)
                wait_s = min(2 * wait_s, LAST_WAIT_S)
                continue
            studio.engine.start()
            self.metrics.engine = studio.engine
            self.studio = studio
            log.info("drawing", model=studio.name, loras=len(studio.shelf.entries()))
            return


def open_studio(settings: ImagesSettings, metrics: Metrics, catalog: Catalog | None) -> Studio:
    """Loads and measures the model, and reads every LoRA. Raises ModelsError, ModelUnusable."""
    model = choose_model(settings, catalog)
    engine = open_engine(
        model.spec,
        settings.engine_config(model.dtype),
        width=model.width,
        height=model.height,
        observer=metrics,
    )
    shelf = Shelf(
        engine,
        home=settings.home,
        rows={row.name: row for row in model.loras},
        models_dir=settings.models_dir,
        max_uploads=settings.max_uploads,
    )
    shelf.restore()
    return Studio(model.spec.name, engine, Drawer(engine, model), shelf)


def in_daemon_thread(work: Callable[[], T]) -> asyncio.Future[T]:
    """`work`'s result. A thread of its own, which does not keep a process alive that was told to
    stop while a model is loaded.
    """
    done: Future[T] = Future()
    done.set_running_or_notify_cancel()

    def run() -> None:
        try:
            done.set_result(work())
        except BaseException as error:  # noqa: BLE001  (it is the waiting one's to handle)
            done.set_exception(error)

    threading.Thread(target=run, name="open-studio", daemon=True).start()
    return asyncio.wrap_future(done)


def _report(opening: asyncio.Task[None]) -> None:
    """A fault that nobody foresaw is in the log, and the service stays unready."""
    if not opening.cancelled() and (error := opening.exception()) is not None:
        log.critical("the image model cannot be opened", exc_info=error)
