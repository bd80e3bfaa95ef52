"""Evaluations of proposals, as JSON or as events.

First is the first event of a stream (a stage that began); tokens are those of the summary or
feedback. An evaluation is right when it came to a verdict on its own: `review` counts, but not
where a stage timed out or the model's server refused, which is how the service answers when it is
overloaded.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pydantic import Field

from loadtests.traffic import texts
from loadtests.traffic.base import Attempt, Options, Wrong, chance, drawn, known
from loadtests.traffic.wire import Connections, Message

PATH, STREAM_PATH = "/v1/proposals/evaluate", "/v1/proposals/evaluate/stream"
VERDICTS = frozenset({"pass", "fail", "review"})
OVERLOAD = frozenset({"timeout", "refused_by_model_server"})
LANGUAGES = {"ko": 0.7, "en": 0.3}


class EvaluationOptions(Options):
    """`languages` are weights of `ko` and `en`; `streamed` the share that asks for events."""

    languages: Mapping[str, float] = Field(default_factory=lambda: dict(LANGUAGES), min_length=1)
    streamed: float = Field(0.5, ge=0, le=1)
    repeats: bool = False


class Evaluations:
    options = EvaluationOptions

    def __init__(
        self, name: str, options: EvaluationOptions, facts: Mapping[str, Any], seed: int
    ) -> None:
        self._name, self._options, self._seed = name, options, seed

    @staticmethod
    def discover(http: Connections, options: EvaluationOptions, arrivals: int) -> dict[str, Any]:
        return {}

    def prepare(self, http: Connections, item: int) -> Message:
        random = chance(self._seed, self._name, item)
        language = drawn(self._options.languages, random)
        path = STREAM_PATH if random.random() < self._options.streamed else PATH
        body = texts.proposal(
            item, language, seed=self._seed, name=self._name, repeats=self._options.repeats
        )
        return http.message("POST", path, body)

    def perform(self, http: Connections, message: Message, attempt: Attempt) -> None:
        with http.send(message, within_ms=attempt.within_ms) as reply:
            attempt.accept(reply, 200)
            if STREAM_PATH.encode() not in message.head:
                judged(known(reply), attempt)
                return
            result = None
            for event, data in reply.events():
                attempt.first()
                if event == "token":
                    attempt.token()
                elif event == "result":
                    result = json.loads(data)
                elif event == "error":
                    raise Wrong(f"error event {json.loads(data).get('code', '')}".strip())
            if result is None:
                raise Wrong("no result")
            judged(result, attempt)


def judged(evaluation: dict[str, Any], attempt: Attempt) -> None:
    """Raises Wrong unless it came to a verdict."""
    if evaluation.get("verdict") not in VERDICTS or not evaluation.get("id"):
        raise Wrong("no verdict")
    attempt.service_s = evaluation["duration_ms"] / 1e3
    attempt.detail["verdict"] = evaluation["verdict"]
    reasons = (reason for stage in evaluation["stages"] for reason in stage["review_reasons"])
    if given_up := OVERLOAD.intersection(reasons):
        raise Wrong(f"stage {min(given_up)}")
