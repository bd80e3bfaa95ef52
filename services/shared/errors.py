"""Everything a caller may be told, as one tree: the class is the status code.

    Problem
    ├── Malformed           400  the request cannot be read
    ├── Unauthorized        401  no key, or an unknown one
    ├── Forbidden           403  not from here, or not with this key
    ├── NotFound            404
    ├── MethodNotAllowed    405
    ├── Conflict            409  not while things are as they are
    ├── TooLarge            413  the body is over the limit
    ├── Unprocessable       422  readable, against the rules; names each field
    ├── TooManyRequests     429  this caller should slow down
    ├── Internal            500  our fault; the detail stays in the log
    ├── Unavailable         503  come back after `retry_after_s`
    └── DeadlineExceeded    504  it took longer than the service allows

Bodies are `application/problem+json` (RFC 9457); on the OpenAI paths they are OpenAI's
error object, so that OpenAI clients raise their own exceptions.
Knows nothing of any service.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from fastapi import HTTPException
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

PROBLEM_JSON = "application/problem+json"
OPENAI_PATHS = (
    "/v1/chat/", "/v1/completions", "/v1/models", "/v1/embeddings", "/v1/responses", "/v1/images/",
)  # fmt: skip


class FieldError(BaseModel):
    """One thing wrong with one field of the request."""

    field: str = Field(description="Dotted path of the field, `body` for the whole body.")
    message: str = Field(description="What is wrong and what would be right.")


class ProblemBody(BaseModel):
    """RFC 9457 body of every error on our own paths."""

    type: str = Field(description="`about:blank`, or a URI that names the kind of problem.")
    title: str = Field(description="Short and the same for every problem of this kind.")
    status: int = Field(description="The HTTP status code.", ge=400, le=599)
    detail: str = Field(description="What happened this time and what to do.")
    code: str = Field(description="Stable machine-readable name, snake_case.")
    errors: list[FieldError] = Field(
        default_factory=list, description="One entry for each bad field; empty otherwise."
    )


class OpenAIError(BaseModel):
    """What went wrong, as OpenAI's clients expect it."""

    message: str = Field(description="What happened and what to do.")
    type: str = Field(description="`invalid_request_error`, `server_error` or vLLM's own name.")
    param: str | None = Field(None, description="The field at fault.")
    code: str | int | None = Field(None, description="Stable name of the error, or its status.")


class OpenAIErrorBody(BaseModel):
    """Body of every answer that is not a 2xx; in a stream that broke, its last event."""

    error: OpenAIError


class Problem(HTTPException):
    """An answer that is not a 2xx. Subclasses fix `status`, `title` and a default `code`."""

    status: ClassVar[int] = 500
    title: ClassVar[str] = "Internal error"
    default_code: ClassVar[str] = "internal"

    def __init__(
        self,
        detail: str,
        *,
        code: str | None = None,
        errors: Sequence[FieldError] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(self.status, detail, dict(headers or {}))
        self.code = code or self.default_code
        self.errors = list(errors)

    def body(self) -> ProblemBody:
        return ProblemBody(
            type="about:blank",
            title=self.title,
            status=self.status,
            detail=str(self.detail),
            code=self.code,
            errors=self.errors,
        )


class Malformed(Problem):
    status, title, default_code = 400, "Malformed request", "malformed"


class Unauthorized(Problem):
    status, title, default_code = 401, "Not authorised", "unauthorized"

    def __init__(self, detail: str) -> None:
        super().__init__(detail, headers={"WWW-Authenticate": "Bearer"})


class Forbidden(Problem):
    status, title, default_code = 403, "Forbidden", "forbidden"


class NotFound(Problem):
    status, title, default_code = 404, "Not found", "not_found"


class MethodNotAllowed(Problem):
    status, title, default_code = 405, "Method not allowed", "method_not_allowed"


class Conflict(Problem):
    status, title, default_code = 409, "Conflict", "conflict"


class TooLarge(Problem):
    status, title, default_code = 413, "Body too large", "too_large"


class Unprocessable(Problem):
    status, title, default_code = 422, "Against the rules", "invalid"


class Internal(Problem):
    status, title, default_code = 500, "Internal error", "internal"


class _ComeBackLater(Problem):
    def __init__(self, detail: str, *, retry_after_s: int, code: str | None = None) -> None:
        super().__init__(detail, code=code, headers={"Retry-After": str(max(1, retry_after_s))})


class TooManyRequests(_ComeBackLater):
    status, title, default_code = 429, "Too many requests", "too_many_requests"


class Unavailable(_ComeBackLater):
    status, title, default_code = 503, "Temporarily unavailable", "unavailable"


class DeadlineExceeded(Problem):
    status, title, default_code = 504, "Deadline exceeded", "deadline_exceeded"


BY_STATUS: dict[int, type[Problem]] = {
    kind.status: kind
    for kind in (Malformed, Forbidden, NotFound, MethodNotAllowed, TooLarge, Unprocessable)
}


def is_openai_path(path: str) -> bool:
    """True when callers of this path expect OpenAI's error object."""
    return path.startswith(OPENAI_PATHS)


def problem_response(problem: Problem, path: str) -> JSONResponse:
    """The wire form of `problem` for a caller of `path`."""
    if is_openai_path(path):
        content = openai_error(problem)
        return JSONResponse(content, problem.status, problem.headers)
    return JSONResponse(
        problem.body().model_dump(), problem.status, problem.headers, media_type=PROBLEM_JSON
    )


def openai_error(problem: Problem) -> dict[str, Any]:
    """OpenAI's error object: {"error": {message, type, param, code}}."""
    first = problem.errors[0] if problem.errors else None
    return {
        "error": {
            "message": f"{problem.detail} ({first.field}: {first.message})"
            if first
            else str(problem.detail),
            "type": "server_error" if problem.status >= 500 else "invalid_request_error",
            "param": first.field if first else None,
            "code": problem.code,
        }
    }
