"""Waiting for what is away or full: as long as it says, and no longer than the job may take."""

from __future__ import annotations

import random
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import structlog
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, stop_after_delay

from services.shared.language_model import ModelUnavailable
from services.shared.storage import StorageUnavailable
from services.storyboard.errors import PainterBusy, ScreenUnavailable

PASSING = (PainterBusy, ScreenUnavailable, ModelUnavailable, StorageUnavailable, OSError)
FIRST_WAIT_S, LONGEST_WAIT_S = 0.25, 15.0
T = TypeVar("T")
log = structlog.get_logger()


class Patience:
    """Of one storyboard, until `deadline_s` from now."""

    def __init__(self, deadline_s: float) -> None:
        self._until = time.monotonic() + deadline_s

    @property
    def left_s(self) -> float:
        return max(0.0, self._until - time.monotonic())

    async def wait_for(self, call: Callable[[], Awaitable[T]]) -> T:
        """What `call` gives once it does. Raises TimeoutError past the deadline, and at once
        whatever waiting does not mend.
        """
        trying = AsyncRetrying(
            retry=retry_if_exception_type(PASSING),
            wait=_as_told,
            stop=stop_after_delay(self.left_s),
            before_sleep=_log_wait,
            reraise=True,
        )
        try:
            async for attempt in trying:
                with attempt:
                    return await call()
        except PASSING as error:
            raise TimeoutError(f"waited until the deadline: {error}") from error
        raise AssertionError("it gives up with the last error")


def _as_told(state: RetryCallState) -> float:
    """Seconds: what the server said, else twice as long each time; never in step with others."""
    error = state.outcome.exception() if state.outcome else None
    told = getattr(error, "retry_after_s", None)
    grown = min(FIRST_WAIT_S * 2 ** (state.attempt_number - 1), LONGEST_WAIT_S)
    return float(told or grown) * random.uniform(0.9, 1.1)  # noqa: S311 - no secret


def _log_wait(state: RetryCallState) -> None:
    error = state.outcome.exception() if state.outcome else None
    wait_s = round(state.next_action.sleep, 2) if state.next_action else None
    log.info("waiting", reason=str(error), wait_s=wait_s, attempt=state.attempt_number)
