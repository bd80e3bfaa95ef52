"""What can go wrong on the way to a channel's data, beside a database's errors
(services/shared/storage.py).

VettingError
├── InvalidChannel         no channel can be meant by this text: 422
└── SourceError            YouTube did not give the data
    ├── ChannelNotFound    there is no such channel, or it was closed: 404
    ├── SourceUnavailable  unreachable, broken, busy or not understood: 503, try later
    ├── SourceTimedOut     it took longer than allowed: 504
    ├── QuotaExhausted     the day's units are spent: 429 until `resets_at`
    └── SourceRefused      the key or the project is not accepted: 503, the operator must act

No message holds the API key or anything that the server wrote, apart from its names for reasons.
"""

from __future__ import annotations

from datetime import datetime


class VettingError(Exception):
    """Base of what may be raised before there is anything to judge."""


class InvalidChannel(VettingError):
    pass


class SourceError(VettingError):
    """Base of everything that a ChannelSource may raise."""


class ChannelNotFound(SourceError):
    pass


class SourceUnavailable(SourceError):
    def __init__(self, detail: str, retry_after_s: int | None = None) -> None:
        super().__init__(detail)
        self.retry_after_s = retry_after_s


class SourceTimedOut(SourceError):
    pass


class QuotaExhausted(SourceError):
    """`resets_at` is an aware time."""

    def __init__(self, resets_at: datetime) -> None:
        super().__init__(f"The day's YouTube quota is spent; the next begins at {resets_at:%FT%TZ}")
        self.resets_at = resets_at


class SourceRefused(SourceError):
    """`code` is YouTube's own name for the reason, such as `keyInvalid`."""

    def __init__(self, code: str) -> None:
        super().__init__(f"YouTube does not accept the key or the project: {code}")
        self.code = code
