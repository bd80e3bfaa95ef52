"""Wire types, for the OpenAPI description only: bodies are passed on as they came, and vLLM checks
them. Fields that are not named here go through as well.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class OpenAIError(BaseModel):
    """What went wrong, as OpenAI's clients expect it."""

    message: str = Field(description="What happened and what to do.")
    type: str = Field(description="`invalid_request_error`, `server_error` or vLLM's own name.")
    param: str | None = Field(None, description="The field at fault.")
    code: str | int | None = Field(None, description="Stable name of the error, or its status.")


class OpenAIErrorBody(BaseModel):
    """Body of every answer that is not a 2xx; in a stream that broke, its last event."""

    error: OpenAIError


class Completion(BaseModel):
    """What both kinds of request share."""

    model_config = ConfigDict(extra="allow")

    model: str = Field(description="As GET /v1/models names it.")
    stream: bool = Field(False, description="True: server-sent events, ending with [DONE].")
    max_tokens: int | None = Field(None, ge=1, description="Tokens of the reply.")


class ChatCompletion(Completion):
    """OpenAI's chat completion request, with vLLM's additions."""

    messages: list[dict[str, Any]] = Field(description="Turns, each with `role` and `content`.")
    response_format: dict[str, Any] | None = Field(None, description="A JSON schema is enforced.")


class TextCompletion(Completion):
    """OpenAI's text completion request, with vLLM's additions."""

    prompt: str | list[str] = Field(description="The text to go on from.")
