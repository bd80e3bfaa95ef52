"""What happened during one evaluation: its steps, its tokens, and the events it emits.

One journal belongs to one run of the graph and is thrown away after it is stored.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from services.evaluation.schemas import Step
from services.shared.language_model import Call, Reply, Usage

Emit = Callable[[str, dict[str, Any]], None]


class Entry:
    """One step while it runs. Nodes fill in what they know; the journal does the timing."""

    def __init__(self, node: str, attempt: int, given: dict[str, Any]) -> None:
        self.node = node
        self.attempt = attempt
        self.given = given
        self.call: Call | None = None
        self.prompt: str | None = None
        self.reply: Reply | None = None
        self.output: dict[str, Any] | None = None


class Journal:
    def __init__(self, request_id: str) -> None:
        self.request_id = request_id
        self.steps: list[Step] = []

    @contextmanager
    def step(self, node: str, given: dict[str, Any], attempt: int = 1) -> Iterator[Entry]:
        """Records the step when the block ends, whatever way it ends."""
        entry = Entry(node, attempt, given)
        started_at, started = datetime.now(UTC), time.perf_counter()
        error: str | None = None
        try:
            yield entry
        except BaseException as raised:
            error = f"{type(raised).__name__}: {raised}"
            raise
        finally:
            duration_ms = (time.perf_counter() - started) * 1000
            self.steps.append(_finished(entry, started_at, duration_ms, error))

    @property
    def usage(self) -> Usage:
        return sum((step.usage for step in self.steps), Usage())


def _finished(entry: Entry, started_at: datetime, duration_ms: float, error: str | None) -> Step:
    reply = entry.reply
    return Step(
        node=entry.node,
        attempt=entry.attempt,
        started_at=started_at,
        duration_ms=round(duration_ms, 3),
        input=entry.given,
        output=entry.output,
        messages=list(entry.call.messages) if entry.call else [],
        reply=reply.text if reply else None,
        finish_reason=reply.finish_reason if reply else None,
        usage=reply.usage if reply else Usage(),
        model=reply.model if reply else (entry.call.model if entry.call else None),
        prompt=entry.prompt,
        error=error,
    )
