"""Wire types, for the OpenAPI description only: bodies are passed on as they came, and vLLM checks
them. Fields that are not named here go through as well.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


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
