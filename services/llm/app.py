"""The routes of the llm service: an allow-list, passed on to vLLM or to an existing server.

At most `max_concurrent + max_queued` requests are in flight; the next is told to come back.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import structlog
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from models.llm.arguments import resolve, this_machine, vllm_command, vllm_environment
from services.llm.settings import LLMSettings
from services.llm.supervisor import NotAsAsked, Patience, Supervisor
from services.shared.errors import Problem, Unavailable
from services.shared.forwarding import forward
from services.shared.peers import Peer
from services.shared.telemetry import configure_logs, configure_traces
from services.shared.web import create_web_app

DESCRIPTION = "One open language model behind OpenAI's API, served by vLLM."
WORDS = ("zebra-7", "quartz-9")
PROBE_TIMEOUT_S = 120.0
SCRAPE_TIMEOUT_S = 5.0
log = structlog.get_logger()


class Upstream:
    """The server that answers, wherever it is, and how many requests it has from us."""

    def __init__(self, settings: LLMSettings) -> None:
        self._settings = settings
        self._client: httpx.AsyncClient | None = None
        self.supervisor: Supervisor | None = None if settings.url else supervised_vllm(settings)
        self.in_flight = 0

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        if self.supervisor is not None:
            self.supervisor.start()
        try:
            yield
        finally:
            if self.supervisor is not None:
                await self.supervisor.stop()
            if self._client is not None:
                await self._client.aclose()

    @property
    def is_ready(self) -> bool:
        return self.supervisor is None or self.supervisor.is_ready

    def client(self) -> httpx.AsyncClient:
        """A client of the server as it runs now. Raises Unavailable while it does not."""
        settings = self._settings
        if not self.is_ready:
            raise Unavailable(
                "The language model is starting.",
                retry_after_s=settings.retry_after_s,
                code="model_starting",
            )
        base_url = self.supervisor.base_url if self.supervisor else settings.url or ""
        base_url = base_url.rstrip("/").removesuffix("/v1")
        if self._client is None or str(self._client.base_url).rstrip("/") != base_url:
            # The calls of a former process end with it; nothing waits on the old client.
            self._client = Peer(
                "llm", base_url, key=settings.key.get_secret_value() or None
            ).client(timeout_s=settings.silence_s, max_connections=self.capacity)
        return self._client

    @property
    def capacity(self) -> int:
        return self._settings.max_concurrent + self._settings.max_queued

    def admit(self) -> None:
        """Raises Unavailable when as many requests are in flight as are allowed."""
        if self.in_flight >= self.capacity:
            raise Unavailable(
                f"{self.capacity} requests are being answered or wait; come back later.",
                retry_after_s=self._settings.retry_after_s,
                code="queue_full",
            )

    async def metrics(self) -> bytes:
        """vLLM's own metrics in Prometheus' text form; nothing while it does not run."""
        if self.supervisor is None or not self.is_ready:
            return b""
        try:
            answer = await self.client().get("/metrics", timeout=SCRAPE_TIMEOUT_S)
        except (httpx.HTTPError, Problem):
            return b""
        return only_vllm(answer.text).encode()


def only_vllm(exposition: str) -> str:
    """The `vllm:` families; the others have namesakes in BentoML's own."""
    prefixes = ("vllm:", "# HELP vllm:", "# TYPE vllm:")
    return "".join(f"{line}\n" for line in exposition.splitlines() if line.startswith(prefixes))


def supervised_vllm(settings: LLMSettings) -> Supervisor:
    """A vLLM for the configured model, not yet started.

    Raises models.errors.ModelsError when there is no such model or its weights are not here.
    """
    machine = this_machine()
    model = resolve(settings.model, settings.models_dir)
    if settings.context_tokens is not None:
        model = model.model_copy(update={"context": settings.context_tokens})

    def command(port: int) -> list[str]:
        return vllm_command(
            model,
            machine=machine,
            port=port,
            max_concurrent=settings.max_concurrent,
            max_queued=settings.max_queued,
            shutdown_timeout_s=int(settings.drain_s),
            prefix_caching=settings.prefix_caching,
            extra=["--enable-request-id-headers"],
        )

    return Supervisor(
        command,
        vllm_environment(model, machine=machine, kv_cache_gib=settings.kv_cache_gib),
        lambda base_url: check_choice(base_url, model.name),
        Patience(
            start_s=settings.start_timeout_s,
            restart_first_s=settings.restart_first_s,
            restart_last_s=settings.restart_last_s,
            drain_s=settings.drain_s,
        ),
    )


async def check_choice(base_url: str, model: str) -> None:
    """Raises NotAsAsked when a choice is not enforced: names of such options have changed between
    versions of vLLM, and an unknown one is ignored with a 200.
    """
    body = {
        "model": model,
        "messages": [{"role": "user", "content": "Say hello."}],
        "max_tokens": 16,
        "structured_outputs": {"choice": list(WORDS)},
    }
    try:
        async with httpx.AsyncClient(base_url=base_url, timeout=PROBE_TIMEOUT_S) as client:
            answer = await client.post("/v1/chat/completions", json=body)
            answer.raise_for_status()
            said = answer.json()["choices"][0]["message"]["content"]
    except (httpx.HTTPError, ValueError, KeyError, IndexError) as error:
        raise NotAsAsked(f"no answer to a choice: {error!r}") from error
    if said not in WORDS:
        raise NotAsAsked(f"asked to choose one of {WORDS}, it said {said!r}")


def create_app(settings: LLMSettings) -> FastAPI:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        configure_logs("llm", settings)
        app.state.upstream = Upstream(settings)
        async with app.state.upstream.running():
            yield

    app = create_web_app("llm", settings, description=DESCRIPTION, lifespan=lifespan)
    configure_traces("llm", settings, app)

    async def passed_on(request: Request) -> StreamingResponse:
        upstream: Upstream = request.app.state.upstream
        upstream.admit()
        upstream.in_flight += 1
        try:
            response = await forward(
                request, upstream.client(), "llm", retry_after_s=settings.retry_after_s
            )
        except BaseException:
            upstream.in_flight -= 1
            raise
        return Counted(response, upstream)

    for method, path in (
        ("GET", "/v1/models"),
        ("POST", "/v1/chat/completions"),
        ("POST", "/v1/completions"),
    ):
        app.add_api_route(path, passed_on, methods=[method], tags=["openai"], response_model=None)
    return app


def is_ready(app: FastAPI) -> bool:
    """True while the model answers."""
    upstream: Upstream | None = getattr(app.state, "upstream", None)
    return upstream is not None and upstream.is_ready


async def more_metrics(app: FastAPI) -> bytes:
    upstream: Upstream | None = getattr(app.state, "upstream", None)
    return await upstream.metrics() if upstream is not None else b""


class Counted(StreamingResponse):
    """A response that gives its place back when it ends, whichever way."""

    def __init__(self, response: StreamingResponse, upstream: Upstream) -> None:
        self.__dict__.update(response.__dict__)
        self._upstream = upstream

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._upstream.in_flight -= 1
