"""The services that screen and draw, over HTTP."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx

from services.shared.proposals import Proposal
from services.shared.web import REQUEST_ID
from services.storyboard.errors import (
    FrameFailed,
    FrameRefused,
    PainterBusy,
    ScreenUnavailable,
)
from services.storyboard.ports import ImageModel, Order, Screening

PNG = b"\x89PNG\r\n\x1a\n"
RETRY_S = 1.0
MAX_WAIT_S = 60.0
BUSY = frozenset({408, 425, 429, 503})


class HttpPainter:
    """The images service. `client` has its base URL, its key and a timeout for one picture."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client

    async def model(self) -> ImageModel:
        with _painting():
            response = await self._client.get("/v1/loras")
        _raise_for(response)
        try:
            return _image_model(response.json())
        except (KeyError, TypeError, ValueError) as error:
            raise PainterBusy(f"images described itself oddly: {error}", RETRY_S) from None

    async def draw(self, order: Order) -> bytes:
        body: dict[str, Any] = {
            "prompt": order.prompt,
            "size": f"{order.width}x{order.height}",
            "seed": order.seed,
            "response_format": "b64_json",
        }
        if order.lora is not None:
            body["model"] = order.lora
        headers = {"Idempotency-Key": order.key, REQUEST_ID: order.key}
        with _painting():
            response = await self._client.post("/v1/images/generations", json=body, headers=headers)
        _raise_for(response)
        return _picture(response)


class HttpScreen:
    """The evaluation service's deliberation: the rules that proposals go through."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client

    async def is_allowed(self, text: Proposal) -> Screening:
        try:
            response = await self._client.post(
                "/v1/proposals/deliberate", json=text.model_dump(mode="json")
            )
        except httpx.HTTPError as error:
            raise ScreenUnavailable(f"evaluation is away: {error!r}", RETRY_S) from None
        if response.status_code in BUSY or response.status_code >= 500:
            raise ScreenUnavailable(
                f"evaluation answered {response.status_code}", _retry_after(response)
            )
        if response.status_code != 200:
            return Screening(False, (f"not_judged_{response.status_code}",))
        try:
            return _screening(response.json()["stage"])
        except (KeyError, TypeError, ValueError):
            return Screening(False, ("not_judged",))


def _screening(stage: dict[str, Any]) -> Screening:
    if stage["outcome"] == "pass":
        return Screening(True)
    raised = [f"{e['criterion']} {e['level']}" for e in stage["evidence"]]
    return Screening(False, tuple(raised or stage["review_reasons"] or ["review"]))


@contextmanager
def _painting() -> Iterator[None]:
    try:
        yield
    except httpx.ReadTimeout as error:
        raise FrameFailed("images took too long") from error
    except httpx.HTTPError as error:
        raise PainterBusy(f"images is away: {error!r}", RETRY_S) from None


def _raise_for(response: httpx.Response) -> None:
    if response.is_success:
        return
    status = response.status_code
    code = _code(response)
    if status in BUSY:
        raise PainterBusy(f"images answered {status} {code}", _retry_after(response))
    if status >= 500:
        raise FrameFailed(f"images answered {status} {code}")
    raise FrameRefused(f"images answered {status} {code}", code)


def _code(response: httpx.Response) -> str:
    try:
        body = response.json()
        return str(body.get("error", body).get("code", response.status_code))
    except (ValueError, AttributeError):
        return str(response.status_code)


def _retry_after(response: httpx.Response) -> float:
    told = response.headers.get("Retry-After", "")
    return min(float(told), MAX_WAIT_S) if told.isdecimal() else RETRY_S


def _picture(response: httpx.Response) -> bytes:
    try:
        data = base64.b64decode(response.json()["data"][0]["b64_json"], validate=True)
    except (KeyError, IndexError, TypeError, ValueError, binascii.Error):
        raise FrameFailed("images answered something that is no picture") from None
    if not data.startswith(PNG):
        raise FrameFailed("images answered a picture that is no PNG")
    return data


def _image_model(body: dict[str, Any]) -> ImageModel:
    base = body["base"]
    words = base["vocabulary"]
    return ImageModel(
        name=str(base["name"]),
        trigger=str(base["trigger"]),
        width=int(base["width"]),
        height=int(base["height"]),
        multiple_px=int(base["size_multiple"]),
        min_side_px=int(base["min_side_px"]),
        max_pixels=int(base["max_pixels"]),
        triggers={str(lora["name"]): str(lora["trigger"]) for lora in body["data"]},
        vocabulary=words and {str(k): tuple(map(str, v)) for k, v in words.items()},
    )
