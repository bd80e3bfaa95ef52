"""A language model behind the OpenAI protocol, through LangChain's ChatOpenAI.

Retries are ours (none here: the caller sees an overloaded server at once, and says so), and
every wait is bounded by `timeout_s`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import httpx
import openai
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, convert_to_messages
from langchain_openai import ChatOpenAI
from pydantic import SecretStr

from services.shared.language_model import (
    Call,
    ModelRefused,
    ModelTimedOut,
    ModelUnavailable,
    Reply,
    Usage,
)


class OpenAIModel:
    """`client` is an httpx client whose base URL is the server's root, with or without /v1."""

    def __init__(
        self, client: httpx.AsyncClient, *, key: str, model: str | None, timeout_s: float
    ) -> None:
        base = str(client.base_url).rstrip("/")
        self._base_url = base if base.endswith("/v1") else f"{base}/v1"
        self._client = client
        self._key = key or "none"
        self._model = model
        self._timeout_s = timeout_s
        self._chat = ChatOpenAI(
            model=model or "unnamed",
            base_url=self._base_url,
            api_key=SecretStr(self._key),
            http_async_client=client,
            max_retries=0,
            timeout=timeout_s,
            stream_usage=True,
        )

    async def default_model(self) -> str:
        if self._model is None:
            with _as_model_errors():
                async with asyncio.timeout(self._timeout_s):
                    response = await self._client.get(
                        f"{self._base_url}/models",
                        headers={"Authorization": f"Bearer {self._key}"},
                    )
                    response.raise_for_status()
            self._model = str(response.json()["data"][0]["id"])
        return self._model

    async def ask(self, call: Call) -> Reply:
        arguments = await self._arguments(call)
        with _as_model_errors():
            async with asyncio.timeout(self._timeout_s):
                message = await self._chat.ainvoke(_messages(call), **arguments)
        return _reply(message, arguments["model"])

    async def stream(self, call: Call) -> AsyncIterator[str | Reply]:
        arguments = await self._arguments(call)
        whole: AIMessageChunk | None = None
        pieces = self._chat.astream(_messages(call), **arguments)
        with _as_model_errors():
            async with asyncio.timeout(self._timeout_s):
                async for chunk in pieces:
                    assert isinstance(chunk, AIMessageChunk)
                    whole = chunk if whole is None else whole + chunk
                    if chunk.text:
                        yield chunk.text
        if whole is None:
            raise ModelUnavailable("The model's stream ended before it began.")
        yield _reply(whole, arguments["model"])

    async def _arguments(self, call: Call) -> dict[str, Any]:
        return {
            "model": call.model or await self.default_model(),
            "max_tokens": call.max_tokens,
            "temperature": call.temperature,
            "seed": call.seed,
            "extra_headers": {"X-Request-Id": call.call_id},
            # In extra_body, so that LangChain leaves the reply alone: its own parsing of a
            # response_format raises on replies that we want to see and name. The messages stand
            # there too, whole: the OpenAI client's walk over a typed list of eleven messages took
            # a quarter of our time for a call. What it walks over is the last turn.
            "extra_body": {
                "messages": [message.model_dump() for message in call.messages],
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {
                        "name": call.schema_name,
                        "schema": call.schema,
                        "strict": True,
                    },
                },
            },
        }


def _messages(call: Call) -> list[BaseMessage]:
    """What LangChain is shown, and puts into traces when those may hold text."""
    last = call.messages[-1]
    return convert_to_messages([(last.role, last.content)])


def _reply(message: AIMessage, asked: str) -> Reply:
    counted: Any = message.usage_metadata or {}
    return Reply(
        text=str(message.text),
        finish_reason=message.response_metadata.get("finish_reason"),
        usage=Usage(
            prompt_tokens=counted.get("input_tokens", 0),
            completion_tokens=counted.get("output_tokens", 0),
            cached_tokens=(counted.get("input_token_details") or {}).get("cache_read") or 0,
        ),
        model=message.response_metadata.get("model_name") or asked,
    )


@contextmanager
def _as_model_errors() -> Iterator[None]:
    """Turns what the OpenAI and httpx clients raise into the ModelError family."""
    try:
        yield
    except (TimeoutError, openai.APITimeoutError, httpx.TimeoutException) as error:
        raise ModelTimedOut("The model took too long.") from error
    except openai.APIStatusError as error:
        raise _from_status(error.status_code, error.response.headers, error.body) from error
    except httpx.HTTPStatusError as error:
        raise _from_status(error.response.status_code, error.response.headers, None) from error
    except (openai.APIError, httpx.HTTPError) as error:
        raise ModelUnavailable("The model cannot be reached or broke off.") from error
    except (ValueError, TypeError, KeyError) as error:
        raise ModelUnavailable("The model server's reply is not of the OpenAI protocol.") from error


def _from_status(
    status: int, headers: Mapping[str, str], body: object
) -> ModelUnavailable | ModelTimedOut | ModelRefused:
    if status == 504:
        return ModelTimedOut("The model took too long.")
    if status == 429 or status >= 500:
        wait = headers.get("retry-after", "")
        return ModelUnavailable(
            f"The model server answered {status}.", int(wait) if wait.isdigit() else None
        )
    detail: Any = body if isinstance(body, dict) else {}
    return ModelRefused(
        f"The model server answered {status}: {detail.get('message', 'no reason given')}",
        code=str(detail.get("code") or status),
    )
