"""Plain calls of one path: the analytic server's in the self-test, /livez, or any other GET.

As a stream, every `data` is a token; the first one is kept in the detail.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field

from loadtests.traffic.base import Attempt, Options, Wrong
from loadtests.traffic.wire import Connections, Message


class ProbeOptions(Options):
    """`ends_with` is the last event's data of a stream that is whole."""

    path: str = Field("/livez", pattern="^/")
    streamed: bool = False
    ends_with: str | None = None


class Probes:
    options = ProbeOptions

    def __init__(
        self, name: str, options: ProbeOptions, facts: Mapping[str, Any], seed: int
    ) -> None:
        self._options = options

    @staticmethod
    def discover(http: Connections, options: ProbeOptions, arrivals: int) -> dict[str, Any]:
        return {}

    def prepare(self, http: Connections, item: int) -> Message:
        joint = "&" if "?" in self._options.path else "?"
        return http.message("GET", f"{self._options.path}{joint}item={item}")

    def perform(self, http: Connections, message: Message, attempt: Attempt) -> None:
        with http.send(message, within_ms=attempt.within_ms) as reply:
            attempt.accept(reply, 200)
            if not self._options.streamed:
                reply.read()
                attempt.first()
                return
            last = None
            for _, data in reply.events():
                attempt.first()
                attempt.token()
                attempt.detail.setdefault("first_data", data)
                last = data
        if last is None or self._options.ends_with not in (None, last):
            raise Wrong("stream cut off")
