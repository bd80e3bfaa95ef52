"""What every class of traffic is: a request made before it is due, and what happens once it is.

A class knows the API that it speaks and tells right answers from wrong ones; when to send, how to
count and what is late are others' (loadtests/open_loop.py, loadtests/outcomes.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Any, ClassVar, Protocol

from pydantic import BaseModel, ConfigDict

from loadtests.traffic.wire import Connections, Message, Reply

REFUSALS = frozenset({429, 503})


class Options(BaseModel):
    """What a mix may say about a class; other keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Unavailable(Exception):
    """The class cannot be sent to this server; the message says why and what to do."""


class Refused(Exception):
    """429 or 503."""

    def __init__(self, status: int, code: str) -> None:
        super().__init__(f"{status} {code}".strip())


class Wrong(Exception):
    """An answer that is not right. The message is one of a small set: it is counted."""


@dataclass(slots=True)
class Attempt:
    """One request under way. `clock` gives seconds since the run's start; `within_ms` what is left
    of its level.
    """

    clock: Callable[[], float]
    within_ms: int | None = None
    status: int | None = None
    first_s: float | None = None
    retry_after_s: float | None = None
    service_s: float | None = None
    tokens: int = 0
    first_token_s: float | None = None
    last_token_s: float | None = None
    detail: dict[str, Any] = field(default_factory=dict)

    def first(self) -> None:
        """The first thing came that a user would notice; later calls do nothing."""
        if self.first_s is None:
            self.first_s = self.clock()

    def token(self, count: int = 1) -> None:
        self.last_token_s = self.clock()
        if self.first_token_s is None:
            self.first_token_s = self.last_token_s
        self.tokens += count

    def accept(self, reply: Reply, *expected: int) -> None:
        """Raises Refused or Wrong unless the status is an expected one."""
        self.status, self.retry_after_s = reply.status, reply.retry_after_s
        if reply.status in expected:
            return
        code = error_code(reply)
        if reply.status in REFUSALS:
            raise Refused(reply.status, code)
        raise Wrong(f"{reply.status} {code}".strip())


class TrafficClass(Protocol):
    """`prepare` is pure: the same item of the same seed is the same request. `facts` is what
    `discover` found, once for all processes; JSON values only.
    """

    options: ClassVar[Any]  # a subclass of Options

    def __init__(self, name: str, options: Any, facts: Mapping[str, Any], seed: int) -> None: ...

    @staticmethod
    def discover(http: Connections, options: Any, arrivals: int) -> Mapping[str, Any]:
        """Asks the server for what requests need. Raises Unavailable, and as `http` does."""

    def prepare(self, http: Connections, item: int) -> Message: ...

    def perform(self, http: Connections, message: Message, attempt: Attempt) -> None:
        """Returns once the answer is there and right. Raises Refused, Wrong, and as `http` does."""


def chance(seed: int, name: str, item: int) -> Random:
    """What an item's choices are drawn from."""
    return Random(f"{seed}/{name}/{item}")


def drawn(weights: Mapping[str, float], random: Random) -> str:
    """One of the names, by weight."""
    return random.choices(list(weights), list(weights.values()))[0]


def error_code(reply: Reply) -> str:
    """The stable name in a problem or in OpenAI's error object; empty when there is none."""
    try:
        body = reply.json()
    except ValueError:
        return ""
    if not isinstance(body, dict):
        return ""
    error = body.get("error")
    code = error.get("code") if isinstance(error, dict) else body.get("code")
    return str(code)[:60] if isinstance(code, str | int) else ""


def known(reply: Reply) -> dict[str, Any]:
    """The JSON object of an answer. Raises Wrong."""
    try:
        body = reply.json()
    except ValueError:
        raise Wrong("no JSON") from None
    if not isinstance(body, dict):
        raise Wrong("no object")
    return body
