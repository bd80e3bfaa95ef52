"""What an evaluation needs from outside, as Protocols. Adapters and fakes implement these."""

from __future__ import annotations

from typing import Protocol

from services.evaluation.schemas import Evaluation, Steps


class EvaluationStore(Protocol):
    """Raises StorageUnavailable. What was saved is on disk when `save` returns."""

    async def save(self, evaluation: Evaluation, steps: Steps) -> None: ...

    async def get(self, evaluation_id: str) -> Evaluation | None: ...

    async def steps(self, evaluation_id: str) -> Steps | None: ...
