"""What the engine raises, as what a caller is told (the trees: models/flux/errors.py and
services/shared/errors.py).

    InvalidRequest       422  in the request's own words
    UnknownLora          404  as OpenAI has it
    LoraRefused          422
    LoraInUse            409
    QueueFull            503  with the engine's Retry-After, as the next two
    DeadlineUnmeetable   503
    Draining             503  EngineBroken as well
    DeadlinePassed       504
    EngineStopped        503
    OutOfMemory          503  LoraVanished as well
    NotFinite            500  Unexplained as well

What went wrong inside stays in the log.
"""

from __future__ import annotations

import math

import structlog

from models.flux import errors as flux
from services.shared.errors import (
    Conflict,
    DeadlineExceeded,
    FieldError,
    Internal,
    NotFound,
    Problem,
    Unavailable,
    Unprocessable,
)

FIELDS = {"width": "size", "height": "size", "previews": "partial_images", "lora": "model"}
"""The engine's name of a field -> the request's, where they differ."""
log = structlog.get_logger()


CODES: dict[type[flux.Refused], str] = {
    flux.QueueFull: "queue_full",
    flux.DeadlineUnmeetable: "deadline_unmeetable",
    flux.Draining: "shutting_down",
    flux.EngineBroken: "engine_stopped",
}


def as_problem(error: flux.FluxError, *, retry_after_s: int) -> Problem:
    """`retry_after_s` is told where the engine does not know a better one."""
    match error:
        case flux.UnknownLora():
            return model_not_found(error.message)
        case flux.InvalidRequest():
            return invalid(FIELDS.get(error.field, error.field), error.message)
        case flux.LoraRefused():
            return invalid("body", str(error), code="lora_refused")
        case flux.LoraInUse():
            return Conflict(sentence(error), code="lora_in_use")
        case flux.Refused():
            wait_s = math.ceil(error.retry_after_s)
            return Unavailable(sentence(error), retry_after_s=wait_s, code=CODES[type(error)])
    log.warning("image failed", kind=type(error).__name__, reason=str(error))
    return _failed(error, retry_after_s)


def _failed(error: flux.FluxError, retry_after_s: int) -> Problem:
    match error:
        case flux.DeadlinePassed():
            return DeadlineExceeded("The deadline came before the picture was finished.")
        case flux.EngineStopped():
            told, code = "This server is shutting down.", "shutting_down"
        case flux.OutOfMemory():
            told, code = "There is too little memory for this; ask for less.", "out_of_memory"
        case flux.LoraVanished():
            told, code = "The LoRA's file cannot be read any more.", "lora_unavailable"
        case flux.NotFinite():
            return Internal("The model made no picture of this; another seed may do.")
        case _:
            return Internal("The picture failed; the request id names it in our log.")
    return Unavailable(told, retry_after_s=retry_after_s, code=code)


def invalid(field: str, message: str, *, code: str | None = None) -> Unprocessable:
    return Unprocessable(
        f"These fields are against the rules: {field}.",
        code=code,
        errors=[FieldError(field=field, message=message)],
    )


def model_not_found(message: str) -> NotFound:
    return NotFound(
        "There is no such model here.",
        code="model_not_found",
        errors=[FieldError(field="model", message=message)],
    )


def sentence(error: Exception) -> str:
    """The error's own words, as a caller reads them."""
    text = str(error)
    return f"{text[:1].upper()}{text[1:]}."
