"""The routes of the gateway: what goes to which service, and one OpenAPI for all of it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import httpx
import structlog
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse

from services.gateway import original
from services.gateway.openapi import merged_openapi
from services.gateway.settings import GatewaySettings
from services.shared.errors import Unavailable
from services.shared.forwarding import forward, forward_upload
from services.shared.peers import Peer, find_peer
from services.shared.settings import ConfigurationError
from services.shared.telemetry import configure_logs, configure_traces, send_last_spans
from services.shared.web import create_web_app

DESCRIPTION = "One door to Joing: proposals, creators, storyboards, images, and their models."
ROUTES: dict[str, list[tuple[str, str]]] = {
    "evaluation": [
        ("POST", "/v1/proposals/evaluate"),
        ("POST", "/v1/proposals/evaluate/stream"),
        ("POST", "/v1/proposals/summarize"),
        ("POST", "/v1/proposals/deliberate"),
        ("GET", "/v1/evaluations/{evaluation_id}"),
        ("GET", "/v1/evaluations/{evaluation_id}/steps"),
        ("POST", "/v1/evaluations/{evaluation_id}/replay"),
    ],
    "llm": [
        ("GET", "/v1/models"),
        ("POST", "/v1/chat/completions"),
    ],
    "images": [
        ("POST", "/v1/images/generations"),
        ("GET", "/v1/loras"),
        ("PUT", "/v1/loras/{name}"),
        ("DELETE", "/v1/loras/{name}"),
    ],
    "vetting": [
        ("POST", "/v1/creators/vet"),
        ("POST", "/v1/creators/vet/stream"),
        ("GET", "/v1/vettings/{vetting_id}"),
    ],
    "storyboard": [
        ("POST", "/v1/storyboards"),
        ("GET", "/v1/storyboards/{storyboard_id}"),
        ("GET", "/v1/storyboards/{storyboard_id}/events"),
        ("GET", "/v1/storyboards/{storyboard_id}/frames/{n}"),
        ("GET", "/v1/storyboards/{storyboard_id}/sheet"),
        ("DELETE", "/v1/storyboards/{storyboard_id}"),
    ],
}
Clients = dict[str, httpx.AsyncClient]
log = structlog.get_logger()


def create_app(settings: GatewaySettings) -> FastAPI:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        configure_logs("gateway", settings)
        async with AsyncExitStack() as stack:
            clients: Clients = {}
            for peer in peers(settings):
                client = peer.client(
                    timeout_s=settings.silence_s, max_connections=settings.max_connections
                )
                clients[peer.name] = await stack.enter_async_context(client)
            app.state.clients = clients
            yield
        await send_last_spans()

    app = create_web_app(
        "gateway",
        settings,
        description=DESCRIPTION,
        lifespan=lifespan,
        larger_bodies={"/v1/loras/": settings.max_lora_bytes},
    )
    configure_traces("gateway", settings, app)
    app.state.settings = settings
    for service, routes in ROUTES.items():
        for method, path in routes:
            # Only LoRAs are put; they are too large to hold.
            pass_on = forward_upload if method == "PUT" else forward
            handler = _forwarded_to(service, settings, pass_on)
            app.add_api_route(path, handler, methods=[method], include_in_schema=False)
    original.add_routes(app)
    _serve_merged_openapi(app)
    return app


def peers(settings: GatewaySettings) -> list[Peer]:
    """Every service behind the gateway. Raises ConfigurationError when evaluation or llm has no
    address; of the others' paths those without an address answer 503.
    """
    own = next(iter(settings.keys()), None)
    llm_key = settings.llm_key.get_secret_value() or own
    # The contract's paths begin with /v1; so do the ones of a server given with its /v1.
    llm_url = settings.llm_url.rstrip("/").removesuffix("/v1") if settings.llm_url else None
    found = [
        find_peer("evaluation", settings.evaluation_url, own),
        find_peer("llm", llm_url, llm_key),
    ]
    optional = {
        "images": settings.images_url,
        "storyboard": settings.storyboard_url,
        "vetting": settings.vetting_url,
    }
    for name, url in optional.items():
        try:
            found.append(find_peer(name, url, own))
        except ConfigurationError as unknown:
            log.warning(f"no {name}", reason=str(unknown))
    return found


def _forwarded_to(
    service: str, settings: GatewaySettings, pass_on: Callable[..., Awaitable[StreamingResponse]]
) -> Callable[[Request], Awaitable[StreamingResponse]]:
    async def handler(request: Request) -> StreamingResponse:
        client: httpx.AsyncClient | None = request.app.state.clients.get(service)
        if client is None:
            raise Unavailable(
                f"The {service} service is not available.",
                retry_after_s=settings.retry_after_s,
                code=f"{service}_unavailable",
            )
        return await pass_on(request, client, service, retry_after_s=settings.retry_after_s)

    handler.__name__ = f"forward_to_{service}"
    return handler


def _serve_merged_openapi(app: FastAPI) -> None:
    own: dict[str, Any] = app.openapi()
    # FastAPI's own route is replaced by one that asks the services for theirs.
    app.router.routes = [r for r in app.router.routes if getattr(r, "path", "") != "/openapi.json"]

    @app.get("/openapi.json", include_in_schema=False)
    async def openapi(request: Request) -> dict[str, Any]:
        return await merged_openapi(own, request.app.state.clients, ROUTES)
