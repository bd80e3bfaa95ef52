"""Raw chat completions, streamed: what any OpenAI client sends.

First is the first token that has text; tokens are what the server counted, or else the pieces that
came. Right is a stream that ends with [DONE] after a finish reason.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pydantic import Field

from loadtests.traffic import texts
from loadtests.traffic.base import Attempt, Options, Unavailable, Wrong, chance, drawn, known
from loadtests.traffic.evaluation import LANGUAGES
from loadtests.traffic.wire import Connections, Message

MODELS, PATH = "/v1/models", "/v1/chat/completions"
ASKED = {
    "ko": "이 기획안의 시청자는 누구이고 첫 장면을 어떻게 바꾸면 좋을까요?",
    "en": "Who would watch this, and how would you change the first scene?",
}
FINISHED = frozenset({"stop", "length"})


class ChatOptions(Options):
    """`max_tokens` is drawn between its two ends; `model` None: the first that is served."""

    languages: Mapping[str, float] = Field(default_factory=lambda: dict(LANGUAGES), min_length=1)
    max_tokens: tuple[int, int] = (32, 128)
    model: str | None = None
    repeats: bool = False


class Chats:
    options = ChatOptions

    def __init__(
        self, name: str, options: ChatOptions, facts: Mapping[str, Any], seed: int
    ) -> None:
        self._name, self._options, self._seed = name, options, seed
        self._model = facts["model"]

    @staticmethod
    def discover(http: Connections, options: ChatOptions, arrivals: int) -> dict[str, Any]:
        if options.model is not None:
            return {"model": options.model}
        with http.send(http.message("GET", MODELS)) as reply:
            if reply.status != 200:
                raise Unavailable(f"GET {MODELS} answered {reply.status}: is the llm service up?")
            served = known(reply).get("data") or []
        if not served:
            raise Unavailable(f"GET {MODELS} names no model: start one, or give the class a model")
        return {"model": served[0]["id"]}

    def prepare(self, http: Connections, item: int) -> Message:
        random = chance(self._seed, self._name, item)
        language = drawn(self._options.languages, random)
        text = texts.proposal(
            item, language, seed=self._seed, name=self._name, repeats=self._options.repeats
        )
        body = {
            "model": self._model,
            "messages": [
                {
                    "role": "user",
                    "content": f"{text['title']}\n\n{text['content']}\n\n{ASKED[language]}",
                }
            ],
            "max_tokens": random.randint(*self._options.max_tokens),
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        return http.message("POST", PATH, body)

    def perform(self, http: Connections, message: Message, attempt: Attempt) -> None:
        finish = usage = None
        is_done = False
        with http.send(message, within_ms=attempt.within_ms) as reply:
            attempt.accept(reply, 200)
            for _, data in reply.events():
                if data == "[DONE]":
                    is_done = True
                    continue
                piece = json.loads(data)
                if "error" in piece:
                    raise Wrong("error event")
                usage = piece.get("usage") or usage
                for choice in piece.get("choices", ()):
                    finish = choice.get("finish_reason") or finish
                    if choice.get("delta", {}).get("content"):
                        attempt.first()
                        attempt.token()
        if not is_done or finish not in FINISHED:
            raise Wrong(f"finished by {finish}" if is_done else "stream cut off")
        if usage:
            attempt.tokens = usage["completion_tokens"]
