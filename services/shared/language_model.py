"""What a service needs of a language model: a call for an answer in JSON, and an answer that counts
or a named reason why it does not.

ModelError
├── ModelUnavailable   the server cannot be reached, is full or broke off: 503, try later
├── ModelTimedOut      one call took longer than allowed
├── ModelRefused       the server would not take the call (too long, unknown model)
└── AnswerInvalid      an answer came that does not count
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from services.shared.proposals import Language, Wire

A = TypeVar("A", bound=BaseModel)


class ModelError(Exception):
    """Base of everything that a language model port may raise."""


class ModelUnavailable(ModelError):
    def __init__(self, detail: str, retry_after_s: int | None = None) -> None:
        super().__init__(detail)
        self.retry_after_s = retry_after_s


class ModelTimedOut(ModelError):
    pass


class ModelRefused(ModelError):
    """`code` is the server's own name for the reason, such as `context_length_exceeded`."""

    def __init__(self, detail: str, code: str) -> None:
        super().__init__(detail)
        self.code = code


class AnswerInvalid(ModelError):
    """`reason` is one of: truncated, empty_answer, invalid_answer."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


class Message(Wire):
    """One chat message exactly as it was sent."""

    role: Literal["system", "user", "assistant"]
    content: str


class Usage(Wire):
    """Tokens as the LLM server counted them, summed over every call."""

    prompt_tokens: int = Field(0, ge=0)
    completion_tokens: int = Field(0, ge=0)
    cached_tokens: int = Field(0, ge=0, description="Prompt tokens served from the prefix cache.")

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            prompt_tokens=self.prompt_tokens + other.prompt_tokens,
            completion_tokens=self.completion_tokens + other.completion_tokens,
            cached_tokens=self.cached_tokens + other.cached_tokens,
        )


@dataclass(frozen=True)
class Call:
    """One request to a language model for an answer in JSON.

    `schema` is the JSON schema of the answer, `max_tokens` the bound on it. `call_id` goes to the
    server as X-Request-Id.
    """

    messages: tuple[Message, ...]
    schema_name: str
    schema: dict[str, Any]
    max_tokens: int
    call_id: str
    model: str | None = None
    temperature: float = 0.0
    seed: int = 1


@dataclass(frozen=True)
class Reply:
    """What came back, whole. `finish_reason` other than "stop" means it does not count."""

    text: str
    finish_reason: str | None
    usage: Usage
    model: str


class LanguageModel(Protocol):
    """Raises the ModelError family, and nothing of any vendor's.

    Cancelling a call ends it at the server.
    """

    async def ask(self, call: Call) -> Reply: ...

    def stream(self, call: Call) -> AsyncIterator[str | Reply]:
        """Pieces of text as they come; the last item is the Reply."""
        ...

    async def default_model(self) -> str:
        """Name of the model that calls without one go to."""
        ...


class Answer(BaseModel):
    """What a model is asked to return; strict: "false", 1.0 or a fenced block is no answer."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


def accepted(reply: Reply | None, answer: type[A]) -> A:
    """The reply as `answer`. Raises AnswerInvalid: truncated, empty_answer, invalid_answer."""
    if reply is None or not reply.text.strip():
        raise AnswerInvalid("empty_answer", "The model answered nothing.")
    if reply.finish_reason != "stop":
        raise AnswerInvalid("truncated", f"The answer ended with {reply.finish_reason!r}.")
    try:
        return answer.model_validate_json(reply.text)
    except ValidationError as error:
        places = ", ".join(".".join(map(str, e["loc"])) or "answer" for e in error.errors())
        raise AnswerInvalid("invalid_answer", f"Not as asked for: {places}.") from None


def json_schema(answer: type[BaseModel], language: Language) -> dict[str, Any]:
    """The answer's JSON schema with every reference resolved in place, for prose in `language`.

    Small grammars compile faster, and models that see the schema read it top to bottom.
    """
    schema = answer.model_json_schema()
    definitions = schema.pop("$defs", {})

    def resolve(node: Any) -> Any:
        if isinstance(node, list):
            return [resolve(item) for item in node]
        if not isinstance(node, dict):
            return node
        if "$ref" in node:
            return resolve(definitions[node["$ref"].rsplit("/", 1)[1]])
        kept = {k: resolve(v) for k, v in node.items() if k not in ("title", "description")}
        return _in_korean(kept) if language == "ko" and "minLength" in kept else kept

    resolved: dict[str, Any] = resolve(schema)
    return resolved


def _in_korean(text: dict[str, Any]) -> dict[str, Any]:
    """A string that begins with a Hangul syllable: small models answer Korean text in English
    unless the first syllable holds them to it. The pattern bounds the length as maxLength did.
    """
    pattern = f'^[가-힣][^"\\\\\\x00-\\x1f]{{0,{text["maxLength"] - 1}}}$'
    return {"type": "string", "pattern": pattern}
