"""The routes of the llm service: an allow-list, passed on to vLLM or to an existing server."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import structlog
from fastapi import FastAPI, Request, Response
from pydantic import BaseModel

from services.llm.proxy import Limits, Proxy
from services.llm.schemas import ChatCompletion, TextCompletion
from services.llm.settings import LLMSettings
from services.llm.supervisor import Supervisor
from services.llm.vllm import supervised_vllm
from services.shared.draining import drained_on_sigterm
from services.shared.errors import OpenAIErrorBody
from services.shared.telemetry import configure_logs, configure_traces, send_last_spans
from services.shared.web import create_web_app

DESCRIPTION = "One open language model behind OpenAI's API, served by vLLM."
SCRAPE_TIMEOUT_S = 5.0
MEANINGS: dict[int | str, str] = {
    "4XX": "The request is at fault",
    "5XX": "The service is at fault",
    503: "Starting, full or shutting down: come back after `Retry-After` seconds",
    504: "The reply took longer than the service allows",
}
ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": OpenAIErrorBody, "description": meaning}
    for status, meaning in MEANINGS.items()
}
log = structlog.get_logger()


def create_app(settings: LLMSettings) -> FastAPI:
    """The service without BentoML around it. Nothing starts before its lifespan does."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        configure_logs("llm", settings)
        app.state.upstream = Upstream(settings)
        async with app.state.upstream.running():
            yield
        await send_last_spans()

    app = create_web_app("llm", settings, description=DESCRIPTION, lifespan=lifespan)
    configure_traces("llm", settings, app)
    _add_route(app, "GET", "/v1/models", "The model that is served, and its LoRAs")
    _add_route(app, "POST", "/v1/chat/completions", "The next turn of a talk", ChatCompletion)
    _add_route(app, "POST", "/v1/completions", "More of a text", TextCompletion)
    return app


def is_ready(app: FastAPI) -> bool:
    """True while new requests are answered."""
    upstream = _upstream(app)
    return upstream is not None and upstream.is_ready


async def vllm_metrics(app: FastAPI) -> str:
    """vLLM's own metrics in Prometheus' text form; nothing while it does not answer."""
    upstream = _upstream(app)
    return await upstream.metrics() if upstream is not None else ""


class Upstream:
    """The server that answers: a vLLM of our own, or an existing one."""

    def __init__(self, settings: LLMSettings) -> None:
        self._settings = settings
        self.supervisor: Supervisor | None = None if settings.url else supervised_vllm(settings)
        self.proxy = Proxy(
            self.address,
            Limits(
                capacity=settings.max_concurrent + settings.max_queued,
                request_timeout_s=settings.request_timeout_s,
                retry_after_s=settings.retry_after_s,
            ),
            key=settings.key.get_secret_value() if settings.url else "",
        )

    @property
    def is_ready(self) -> bool:
        """True while new requests are answered. An existing server is taken to be up."""
        return not self.proxy.is_draining and self.address() is not None

    def address(self) -> str | None:
        """The server's origin, without /v1; None while it does not answer."""
        if self.supervisor is not None:
            return self.supervisor.base_url if self.supervisor.is_ready else None
        return (self._settings.url or "").rstrip("/").removesuffix("/v1")

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        if self.supervisor is not None:
            self.supervisor.start()
        try:
            with drained_on_sigterm(lambda: self.proxy.drain(self._settings.drain_s)):
                yield
        finally:
            if self.supervisor is not None:
                await self.supervisor.stop()
            await self.proxy.close()

    async def metrics(self) -> str:
        if self.supervisor is None or (address := self.address()) is None:
            return ""
        # Not the proxy's client: metrics matter most when its pool is full.
        async with httpx.AsyncClient(timeout=SCRAPE_TIMEOUT_S, trust_env=False) as client:
            try:
                answer = (await client.get(f"{address}/metrics")).raise_for_status()
            except httpx.HTTPError as error:
                log.warning("no metrics from the model server", reason=repr(error))
                return ""
        return only_vllm(answer.text)


def only_vllm(exposition: str) -> str:
    """The `vllm:` families; the others have namesakes in BentoML's own."""
    prefixes = ("vllm:", "# HELP vllm:", "# TYPE vllm:")
    return "".join(f"{line}\n" for line in exposition.splitlines() if line.startswith(prefixes))


def _add_route(
    app: FastAPI, method: str, path: str, summary: str, body: type[BaseModel] | None = None
) -> None:
    content = {"application/json": {"schema": body.model_json_schema()}} if body else {}
    app.add_api_route(
        path,
        _relay,
        methods=[method],
        tags=["openai"],
        summary=summary,
        name=summary,
        response_model=None,
        responses=ERRORS,
        openapi_extra={"requestBody": {"required": True, "content": content}} if body else None,
    )


async def _relay(request: Request) -> Response:
    upstream: Upstream = request.app.state.upstream
    return upstream.proxy.relay(request)


def _upstream(app: FastAPI) -> Upstream | None:
    """None before the lifespan begins."""
    return getattr(app.state, "upstream", None)
