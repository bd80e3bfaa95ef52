"""What an evaluation needs from outside, as Protocols. Adapters and fakes implement these."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Protocol

from services.evaluation.schemas import Evaluation, Message, Steps, Usage


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


class EvaluationStore(Protocol):
    """Raises StorageUnavailable. What was saved is on disk when `save` returns."""

    async def save(self, evaluation: Evaluation, steps: Steps) -> None: ...

    async def get(self, evaluation_id: str) -> Evaluation | None: ...

    async def steps(self, evaluation_id: str) -> Steps | None: ...
