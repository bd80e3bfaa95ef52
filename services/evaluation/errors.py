"""What can go wrong inside an evaluation.

ModelError
├── ModelUnavailable   the server cannot be reached, is full or broke off: 503, try later
├── ModelTimedOut      one call took longer than `call_timeout_s`: the stage is a review
├── ModelRefused       the server would not take the call (too long, unknown model)
└── AnswerInvalid      an answer came that does not count: the stage is a review
UnknownPrompt          no such prompt version: 422
StorageUnavailable     the database did not take or give an evaluation: 503
"""

from __future__ import annotations


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


class UnknownPrompt(Exception):
    pass


class StorageUnavailable(Exception):
    pass
