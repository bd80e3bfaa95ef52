"""The routes of the images service: OpenAI's images API, and the LoRAs that it draws with."""

from __future__ import annotations

import hashlib
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Annotated, Any

import structlog
from fastapi import Depends, FastAPI, Header, Path, Query, Request, Response
from pydantic import ValidationError
from starlette.requests import ClientDisconnect

from models.catalog import Catalog
from models.flux.errors import FluxError
from models.flux.library import LoraEntry
from services.images.drawing import Drawer, Wanted
from services.images.errors import as_problem, invalid, sentence
from services.images.memory import KeyReused
from services.images.schemas import (
    LORA_NAME,
    AboutLora,
    FromCatalog,
    ImageGeneration,
    ImagesAnswer,
    Lora,
    Loras,
)
from services.images.settings import ImagesSettings
from services.images.shelf import NotNow, NotThere
from services.images.streaming import ImageStream
from services.images.studio import Opening, Studio
from services.shared.draining import drained_on_sigterm
from services.shared.errors import (
    Conflict,
    FieldError,
    Malformed,
    NotFound,
    OpenAIErrorBody,
    Problem,
    Unavailable,
)
from services.shared.telemetry import configure_logs, configure_traces, send_last_spans
from services.shared.web import (
    ClientGone,
    body_over,
    create_web_app,
    current_caller,
    parse_json,
    printable,
    unprocessable,
    until_hang_up,
)

DESCRIPTION = "Draws images: one batch of a Flux model, with a LoRA for each request."
UPLOAD, JSON = "application/octet-stream", "application/json"
FACTS_CHARACTERS = 200
IDEMPOTENCY_KEY = re.compile(r"^[A-Za-z0-9._:-]{1,128}$")
REPLAYED = "Idempotent-Replayed"
OPENAI_ERRORS: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": OpenAIErrorBody, "description": "The request is at fault"},
    "5XX": {"model": OpenAIErrorBody, "description": "The service is at fault"},
    503: {
        "model": OpenAIErrorBody,
        "description": "Starting, full, shutting down, or too busy for the deadline: come back "
        "after `Retry-After` seconds",
    },
    504: {"model": OpenAIErrorBody, "description": "It was taken in, and the deadline came first"},
}
EVENT = {
    "type": "object",
    "required": ["event", "data"],
    "properties": {
        "event": {
            "type": "string",
            "enum": ["image_generation.partial_image", "image_generation.completed", "error"],
        },
        "data": {"type": "string", "contentMediaType": "application/json"},
    },
}
EVENTS: dict[int | str, dict[str, Any]] = {
    200: {
        "model": ImagesAnswer,
        "description": "The pictures. With `stream` events `image_generation.partial_image` and "
        "`image_generation.completed`; `X-Eta-S` says how many seconds were foreseen.",
        "headers": {
            REPLAYED: {
                "description": "`true`: drawn before, for this Idempotency-Key.",
                "schema": {"type": "string", "enum": ["true"]},
            }
        },
        "content": {"text/event-stream": {"itemSchema": EVENT}},
    }
}
PUT_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            UPLOAD: {"schema": {"type": "string", "format": "binary"}},
            JSON: {"schema": FromCatalog.model_json_schema()},
        },
    }
}
IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        json_schema_extra={"pattern": IDEMPOTENCY_KEY.pattern},
        description="1-128 letters, digits and `._:-`; not in a stream. Asked again with the same "
        "key and body while it is drawn, or for some time after, the same answer comes and nothing "
        "is drawn; the same key with another body is a 409. Errors are not remembered, nor what "
        "everybody hung up on before it was finished.",
    ),
]
LoraName = Annotated[str, Path(pattern=LORA_NAME, description="Lower case, digits, `.`, `_`, `-`.")]
log = structlog.get_logger()


def create_app(settings: ImagesSettings, catalog: Catalog | None = None) -> FastAPI:
    """The service without BentoML around it. Nothing is loaded before its lifespan begins."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        configure_logs("images", settings)
        opening: Opening = app.state.opening
        async with opening.running():
            with drained_on_sigterm(opening.drain):
                yield
        await send_last_spans()

    app = create_web_app(
        "images",
        settings,
        description=DESCRIPTION,
        lifespan=lifespan,
        larger_bodies={"/v1/loras/": settings.max_lora_bytes},
    )
    configure_traces("images", settings, app)
    app.state.settings = settings
    app.state.opening = Opening(settings, catalog)
    _add_images(app)
    _add_loras(app)
    return app


def is_ready(app: FastAPI) -> bool:
    """True while new images are taken."""
    return _opening(app).is_ready


def is_alive(app: FastAPI) -> bool:
    """False when the engine broke down, and only a new process would draw again."""
    return not _opening(app).is_broken


def metrics(app: FastAPI) -> str:
    """The engine's numbers in Prometheus' text form."""
    return _opening(app).metrics.exposition()


def _opening(app: FastAPI) -> Opening:
    opening: Opening = app.state.opening
    return opening


def _studio(request: Request) -> Studio:
    opening = _opening(request.app)
    if opening.studio is None:
        raise Unavailable(
            "The image model is being loaded.",
            retry_after_s=request.app.state.settings.retry_after_s,
            code="model_starting",
        )
    return opening.studio


TheStudio = Annotated[Studio, Depends(_studio)]


def _add_images(app: FastAPI) -> None:
    @app.post("/v1/images/generations", tags=["openai"], responses={**EVENTS, **OPENAI_ERRORS})
    async def generate(
        body: ImageGeneration,
        request: Request,
        studio: TheStudio,
        idempotency_key: IdempotencyKey = None,
    ) -> Response:
        """Draw 1 to 8 images of a prompt, or one as a stream of events."""
        with as_problems(request):
            drawer, wanted = studio.drawer, studio.drawer.wanted(body)
            if idempotency_key is not None:
                return await _drawn_once(request, body, drawer, wanted, idempotency_key)
            if body.stream:
                return ImageStream(drawer, wanted, lambda error: _problem(request, error))
            drawn = await until_hang_up(request, drawer.draw(wanted))
        return Response(drawer.answer(wanted, drawn), media_type=JSON)


async def _drawn_once(
    request: Request, body: ImageGeneration, drawer: Drawer, wanted: Wanted, key: str
) -> Response:
    if not IDEMPOTENCY_KEY.fullmatch(key):
        message = "must be 1-128 letters, digits and . _ : -"
        errors = [FieldError(field="Idempotency-Key", message=message)]
        raise Malformed("This Idempotency-Key cannot be used.", errors=errors)
    if body.stream:
        raise invalid("stream", "cannot be true with an Idempotency-Key: a stream is not kept")
    opening = _opening(request.app)
    same = hashlib.sha256(body.model_dump_json(exclude_none=True).encode()).hexdigest()
    owned = f"{current_caller(request)}/{key}"
    try:
        answer, is_replayed = await until_hang_up(
            request, opening.memory.answer(owned, same, lambda: drawer.begin(wanted))
        )
    except KeyReused:
        message = "was used before with another body; send a new key"
        raise Conflict(
            f"This Idempotency-Key {message}.",
            code="idempotency_key_reused",
            errors=[FieldError(field="Idempotency-Key", message=message)],
        ) from None
    if not is_replayed:
        return Response(answer, media_type=JSON)
    opening.metrics.replayed()
    return Response(answer, media_type=JSON, headers={REPLAYED: "true"})


def _add_loras(app: FastAPI) -> None:
    @app.get("/v1/loras", tags=["loras"])
    async def list_loras(studio: TheStudio) -> Loras:
        """Every LoRA that a request's `model` may name."""
        return Loras(
            data=[_described(studio, entry) for entry in studio.shelf.entries()],
            base=studio.drawer.base(),
        )

    @app.put(
        "/v1/loras/{name}",
        tags=["loras"],
        openapi_extra=PUT_BODY,
        responses={201: {"model": Lora, "description": "The name is new"}},
    )
    async def put_lora(
        name: LoraName,
        about: Annotated[AboutLora, Query()],
        request: Request,
        response: Response,
        studio: TheStudio,
    ) -> Lora:
        """Upload a .safetensors file under a name, or take the catalog's LoRA of that name.

        A name that is there already stands for the new file from then on; images that were taken
        in before keep theirs.
        """
        with lora_problems(request):
            if _is_json(request):
                await _require_from_catalog(request, about)
                entry, is_new = await studio.shelf.add_from_catalog(name)
            else:
                entry, is_new = await studio.shelf.add_upload(
                    name, request.stream(), trigger=about.trigger, licence=about.licence
                )
        response.status_code = 201 if is_new else 200
        return _described(studio, entry)

    @app.delete("/v1/loras/{name}", tags=["loras"], status_code=204)
    async def delete_lora(name: LoraName, request: Request, studio: TheStudio) -> None:
        """Forget a LoRA. An uploaded file is deleted; the catalog's can be added again."""
        with lora_problems(request):
            await studio.shelf.remove(name)


def _described(studio: Studio, entry: LoraEntry) -> Lora:
    def fact(key: str) -> str:
        return printable(entry.metadata.get(key, ""), FACTS_CHARACTERS)

    return Lora(
        name=entry.name,
        base=studio.name,
        rank=entry.rank,
        digest=entry.digest,
        resident=entry.digest in studio.engine.snapshot().resident_loras,
        in_use=entry.digest in studio.engine.loras_in_use(),
        trigger=fact("trigger"),
        licence=fact("licence"),
        source="catalog" if studio.shelf.is_catalogs(entry.name) else "upload",
    )


def _is_json(request: Request) -> bool:
    """Raises Malformed for what is neither JSON nor an upload."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in (UPLOAD, JSON):
        told = f'Send the file as {UPLOAD}, or {{"from_catalog": true}} as {JSON}.'
        errors = [FieldError(field="Content-Type", message=f"must be {UPLOAD} or {JSON}")]
        raise Malformed(told, code="content_type", errors=errors)
    return kind == JSON


async def _require_from_catalog(request: Request, about: AboutLora) -> None:
    """The body says `{"from_catalog": true}` and nothing else. Raises Malformed, Unprocessable."""
    limit: int = request.app.state.settings.max_body_bytes
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > limit:
            raise body_over(limit)
    try:
        FromCatalog.model_validate(parse_json(bytes(body)))
    except ValidationError as error:
        raise unprocessable(error.errors()) from None
    for field in about.model_fields_set:
        raise invalid(field, "is for uploads; the catalog has its own")


@contextmanager
def as_problems(request: Request) -> Iterator[None]:
    """What the engine raises, as what the caller is told."""
    try:
        yield
    except FluxError as error:
        raise _problem(request, error) from None


@contextmanager
def lora_problems(request: Request) -> Iterator[None]:
    """The same, and what the shelf raises."""
    try:
        with as_problems(request):
            yield
    except NotThere as error:
        raise NotFound(sentence(error), code="lora_not_found") from None
    except NotNow as error:
        raise Conflict(sentence(error), code=error.code) from None
    except ClientDisconnect:
        raise ClientGone("The caller hung up while it sent the file.") from None
    except OSError as error:
        log.error("LoRA not stored", exc_info=error)
        retry_after_s = request.app.state.settings.retry_after_s
        raise Unavailable(
            "The file could not be stored.", retry_after_s=retry_after_s, code="storage_unavailable"
        ) from None


def _problem(request: Request, error: FluxError) -> Problem:
    settings: ImagesSettings = request.app.state.settings
    return as_problem(error, retry_after_s=settings.retry_after_s)
