"""The model calls of an evaluation, and the same calls sent straight to vLLM.

What vLLM itself needs for an evaluation is what a bare HTTP client waits for when it repeats the
calls that the evaluation recorded: same messages, grammar and sampling, judges at the same time,
then the writer as a stream. Greedy and seeded, so both sides should write the same tokens.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import httpx

from services.evaluation.policy import SECOND_RUN_SEED, SECOND_RUN_TEMPERATURE
from services.evaluation.prompts.library import PromptLibrary
from services.shared.proposals import Language

WRITERS = ("summary", "feedback")
LANGUAGE: Language = "en"  # Of every proposal; a grammar is for one language.
SERVED = "vllm:e2e_request_latency_seconds_sum"
IDLE_S = 3.0  # Servers close idle connections after 5 s; the client's go first.
REQUEST_TIMEOUT_S = 900.0


class BenchmarkFailed(Exception):
    """Something answered what it must not; a figure from such a run would mean nothing."""


def connected(base_url: str, connections: int) -> httpx.AsyncClient:
    """A client that reuses open connections. The caller closes it."""
    limits = httpx.Limits(
        max_connections=connections,
        max_keepalive_connections=connections,
        keepalive_expiry=IDLE_S,
    )
    timeout = httpx.Timeout(REQUEST_TIMEOUT_S)
    return httpx.AsyncClient(base_url=base_url, limits=limits, timeout=timeout)


@dataclass(frozen=True)
class RecordedCall:
    """`attempt` 2 is the second run of a borderline stage; `prompt` is such as `content@2`."""

    node: str
    attempt: int
    prompt: str
    messages: list[dict[str, str]]
    completion_tokens: int
    started_s: float
    """Seconds since the epoch."""
    duration_s: float
    """As the evaluation saw it: prompt, transport and parsing included."""


@dataclass(frozen=True)
class Evaluated:
    """One evaluation as its client saw it."""

    id: str
    proposal: dict[str, Any]
    latency_s: float
    calls: tuple[RecordedCall, ...] = ()

    @property
    def completion_tokens(self) -> int:
        return sum(call.completion_tokens for call in self.calls)

    @property
    def asking_s(self) -> float:
        """Seconds during which at least one call was under way."""
        covered, until = 0.0, 0.0
        for call in sorted(self.calls, key=lambda call: call.started_s):
            end = call.started_s + call.duration_s
            covered += max(0.0, end - max(until, call.started_s))
            until = max(until, end)
        return covered

    @property
    def calls_in_a_row(self) -> int:
        """On the longest path; judges run beside each other, a second attempt after the first."""
        attempts = Counter(call.node for call in self.calls)
        writing = sum(attempts.pop(node, 0) for node in WRITERS)
        return max(attempts.values(), default=0) + writing


@dataclass(frozen=True)
class Replayed:
    """The calls of one evaluation, sent straight to vLLM."""

    latency_s: float
    calls: int
    calls_s: float
    """Sum over the calls of the time that each took."""
    completion_tokens: int
    tokens_agree: bool
    """True when every call wrote as many tokens as the recorded one."""


async def evaluate(client: httpx.AsyncClient, proposal: dict[str, Any]) -> Evaluated:
    """Wall time of one evaluation, without its calls. Raises BenchmarkFailed unless it is a 200."""
    started = time.perf_counter()
    response = await client.post("/v1/proposals/evaluate", json=proposal)
    latency_s = time.perf_counter() - started
    if response.status_code != 200:
        raise BenchmarkFailed(f"evaluate answered {response.status_code}: {response.text}")
    return Evaluated(response.json()["id"], proposal, latency_s)


async def with_calls(client: httpx.AsyncClient, evaluated: Evaluated) -> Evaluated:
    """Adds the calls from the evaluation's stored steps."""
    response = await client.get(f"/v1/evaluations/{evaluated.id}/steps")
    if response.status_code != 200:
        raise BenchmarkFailed(f"steps answered {response.status_code}: {response.text}")
    calls = [_recorded(step) for step in response.json()["steps"] if step["messages"]]
    if not {"content", "deliberation"} <= {call.node for call in calls}:
        raise BenchmarkFailed(f"Evaluation {evaluated.id} did not ask both judges.")
    return replace(evaluated, calls=tuple(calls))


def _recorded(step: dict[str, Any]) -> RecordedCall:
    return RecordedCall(
        step["node"],
        step["attempt"],
        step["prompt"],
        step["messages"],
        step["usage"]["completion_tokens"],
        datetime.fromisoformat(step["started_at"]).timestamp(),
        step["duration_ms"] / 1000,
    )


class Bodies:
    """Recorded calls as bodies of /v1/chat/completions, the way the evaluation service asks."""

    def __init__(self, model: str) -> None:
        self._model = model
        self._library = PromptLibrary()

    def of(self, call: RecordedCall, cache_salt: str | None) -> dict[str, Any]:
        """`cache_salt` keeps what the recorded call left in the prefix cache out of sight."""
        name, _, version = call.prompt.partition("@")
        prompt = self._library.get(version, name)
        is_second = call.attempt > 1
        body: dict[str, Any] = {
            "model": self._model,
            "messages": call.messages,
            "max_tokens": prompt.head.max_tokens,
            "temperature": SECOND_RUN_TEMPERATURE if is_second else 0.0,
            "seed": SECOND_RUN_SEED if is_second else 1,
            "response_format": {
                "type": "json_schema",
                "json_schema": {
                    "name": prompt.head.answer,
                    "schema": self._library.schema(prompt, LANGUAGE),
                    "strict": True,
                },
            },
        }
        if call.node in WRITERS:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        if cache_salt:
            body["cache_salt"] = cache_salt
        return body


@dataclass(frozen=True)
class _Answer:
    duration_s: float
    completion_tokens: int


class DirectModel:
    """vLLM's own port. `client` is a bare client of it."""

    def __init__(self, client: httpx.AsyncClient, bodies: Bodies) -> None:
        self._client = client
        self._bodies = bodies

    async def replay(
        self, calls: Iterable[RecordedCall], *, cache_salt: str | None = None
    ) -> Replayed:
        """The calls of one evaluation in its own pattern: judges together, then the writer."""
        chains: dict[str, list[RecordedCall]] = defaultdict(list)
        for call in sorted(calls, key=lambda call: call.attempt):
            chains[call.node].append(call)
        writing = [call for node in WRITERS for call in chains.pop(node, [])]
        started = time.perf_counter()
        judged = await asyncio.gather(*(self._chain(c, cache_salt) for c in chains.values()))
        written = await self._chain(writing, cache_salt)
        latency_s = time.perf_counter() - started
        asked = [call for chain in (*chains.values(), writing) for call in chain]
        answers = [answer for chain in (*judged, written) for answer in chain]
        tokens = [answer.completion_tokens for answer in answers]
        agree = tokens == [call.completion_tokens for call in asked]
        calls_s = sum(answer.duration_s for answer in answers)
        return Replayed(latency_s, len(asked), calls_s, sum(tokens), agree)

    async def served_s(self) -> float:
        """Seconds that vLLM has spent on requests since it started, by its own account: from a
        request's arrival behind its HTTP layer to the last token.
        """
        text = (await self._client.get("/metrics")).text
        values = [line.split()[-1] for line in text.splitlines() if line.startswith(SERVED)]
        if not values:
            raise BenchmarkFailed(f"vLLM's /metrics has no {SERVED}.")
        return sum(map(float, values))

    async def _chain(self, calls: list[RecordedCall], cache_salt: str | None) -> list[_Answer]:
        return [await self._answer(self._bodies.of(call, cache_salt)) for call in calls]

    async def _answer(self, body: dict[str, Any]) -> _Answer:
        started = time.perf_counter()
        tokens = await (self._streamed(body) if body.get("stream") else self._whole(body))
        return _Answer(time.perf_counter() - started, tokens)

    async def _whole(self, body: dict[str, Any]) -> int:
        response = await self._client.post("/v1/chat/completions", json=body)
        if response.status_code != 200:
            raise BenchmarkFailed(f"vLLM answered {response.status_code}: {response.text}")
        return int(response.json()["usage"]["completion_tokens"])

    async def _streamed(self, body: dict[str, Any]) -> int:
        usage: dict[str, int] | None = None
        async with self._client.stream("POST", "/v1/chat/completions", json=body) as response:
            await _refuse_failure(response)
            async for line in response.aiter_lines():
                if line.startswith("data: {"):
                    usage = json.loads(line[6:]).get("usage") or usage
        if usage is None:
            raise BenchmarkFailed("vLLM's stream ended without its usage.")
        return usage["completion_tokens"]

    async def first_token_s(self, call: RecordedCall) -> float:
        """Seconds until the first text of `call` arrives; the rest is hung up on."""
        body = self._bodies.of(call, None) | {"stream": True}
        started = time.perf_counter()
        async with self._client.stream("POST", "/v1/chat/completions", json=body) as response:
            await _refuse_failure(response)
            async for line in response.aiter_lines():
                if line.startswith("data: {"):
                    choices = json.loads(line[6:])["choices"]
                    if choices and choices[0]["delta"].get("content"):
                        return time.perf_counter() - started
        raise BenchmarkFailed("vLLM's stream ended without a token.")


async def _refuse_failure(response: httpx.Response) -> None:
    if response.status_code != 200:
        await response.aread()
        raise BenchmarkFailed(f"vLLM answered {response.status_code}: {response.text}")
