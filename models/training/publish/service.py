"""A running image service, as `publish` sees it: GET /v1/loras and PUT /v1/loras/NAME.

Every wait is bounded, no redirect is followed, and the key is in no message. What the service
refuses is told in its own words.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import httpx

from models.training.errors import PublishRefused
from models.training.publish.chosen import Chosen

_UPLOAD = "application/octet-stream"
_TIMEOUT = httpx.Timeout(connect=10.0, read=120.0, write=60.0, pool=10.0)
"""Seconds. The service reads and checks the whole file before it answers."""
_RETRY_S, _LONGEST_RETRY_S = 2.0, 30.0
_SHOWN = 400


class Outcome(StrEnum):
    CREATED = "created"
    REPLACED = "replaced"
    UNCHANGED = "unchanged"


@dataclass(frozen=True)
class Served:
    """What the service says of the name afterwards."""

    outcome: Outcome
    digest: str
    trigger: str
    rank: int


class ImageService:
    """One for a publication. `wait_s`: how long a service is waited for that is starting."""

    def __init__(self, url: str, key: str | None = None, *, wait_s: float = 60.0) -> None:
        """Raises PublishRefused for what is no http URL, or holds a password."""
        self._url = _plain_url(url)
        self._key = key or ""
        self._wait_s = wait_s
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        try:
            self._client = httpx.Client(base_url=self._url, headers=headers, timeout=_TIMEOUT)
        except (UnicodeEncodeError, ValueError):
            raise PublishRefused("the key holds characters that no HTTP header takes") from None

    def publish(self, chosen: Chosen) -> Served:
        """Uploads the file unless it is there already, asks back, and returns what is served.

        Raises PublishRefused; then what the name meant before it still means.
        """
        try:
            return self._publish(chosen)
        finally:
            self._client.close()

    def _publish(self, chosen: Chosen) -> Served:
        before, base = self._loras()
        if chosen.base and base != chosen.base:
            raise PublishRefused(
                f"{chosen.file.name} was trained on {chosen.base}, and {self._url} draws with "
                f"{base}: publish to a service of {chosen.base}"
            )
        there = before.get(chosen.name)
        if there is not None and _is_same(there, chosen):
            return _served(Outcome.UNCHANGED, there)
        is_catalogs = there is not None and there.get("source") == "catalog"
        self._take_from_catalog(chosen.name) if is_catalogs else self._upload(chosen)
        after, _ = self._loras()
        now = after.get(chosen.name)
        if now is None or not _is_same(now, chosen):
            raise PublishRefused(self._differs(chosen, now, is_catalogs))
        return _served(Outcome.CREATED if there is None else Outcome.REPLACED, now)

    def _upload(self, chosen: Chosen) -> None:
        about = {"trigger": chosen.trigger, "licence": chosen.licence}
        self._ask(
            "PUT",
            f"/v1/loras/{chosen.name}",
            file=chosen.file,
            params={key: text for key, text in about.items() if text},
        )

    def _take_from_catalog(self, name: str) -> None:
        """The name is the catalog's: the service reads the catalog's file anew."""
        self._ask("PUT", f"/v1/loras/{name}", json={"from_catalog": True})

    def _differs(self, chosen: Chosen, now: dict[str, Any] | None, is_catalogs: bool) -> str:
        if is_catalogs:
            return (
                f"{chosen.name} is a LoRA of the service's catalog, with another file or trigger: "
                "choose another name, or --catalog where the service has this checkout"
            )
        told = "nothing" if now is None else f"{now.get('digest')} ({now.get('trigger')!r})"
        return (
            f"{self._url} says that {chosen.name} is {told} after the upload, and it should be "
            f"{chosen.digest} ({chosen.trigger!r}): somebody else may have replaced it; try again"
        )

    def _loras(self) -> tuple[dict[str, dict[str, Any]], str]:
        """By name, and what the service's base model is called."""
        answer = self._ask("GET", "/v1/loras")
        try:
            told = answer.json()
            return {one["name"]: one for one in told["data"]}, str(told["base"]["name"])
        except (ValueError, KeyError, TypeError) as other:
            raise PublishRefused(f"{self._url} is no image service of Joing") from other

    def _ask(
        self, method: str, path: str, *, file: Path | None = None, **rest: Any
    ) -> httpx.Response:
        """A 2xx answer. A service that is starting (503) is asked again, until `wait_s`."""
        until = time.monotonic() + self._wait_s
        while True:
            answer = self._once(method, path, file, rest)
            if answer.is_success:
                return answer
            pause_s = _retry_after(answer)
            if answer.status_code != httpx.codes.SERVICE_UNAVAILABLE:
                raise PublishRefused(self._words(answer))
            if time.monotonic() + pause_s > until:
                raise PublishRefused(f"{self._words(answer)} (asked for {self._wait_s:g} s)")
            time.sleep(pause_s)

    def _once(
        self, method: str, path: str, file: Path | None, rest: dict[str, Any]
    ) -> httpx.Response:
        try:
            if file is None:
                return self._client.request(method, path, **rest)
            with file.open("rb") as content:
                headers = {"Content-Type": _UPLOAD, "Content-Length": str(file.stat().st_size)}
                return self._client.request(method, path, content=content, headers=headers, **rest)
        except (httpx.WriteError, httpx.RemoteProtocolError) as broken:
            raise PublishRefused(
                f"{self._url} closed the connection while it was asked: a file of more bytes than "
                "it takes (JOING_IMAGES_MAX_LORA_BYTES), or it was stopped"
            ) from broken
        except httpx.TimeoutException as late:
            raise PublishRefused(f"{self._url} did not answer in time; try again") from late
        except httpx.HTTPError as gone:
            why = self._hidden(str(gone)) or type(gone).__name__
            raise PublishRefused(f"{self._url} cannot be reached: {why}") from gone

    def _words(self, answer: httpx.Response) -> str:
        """Why the service said no: `detail`, its code and its fields."""
        told = f"{self._url} answered {answer.status_code}"
        try:
            problem = answer.json()
            fields = [f"{one['field']}: {one['message']}" for one in problem.get("errors", [])]
            said = " ".join([f"{problem['detail']} ({problem['code']})", *fields])
        except (ValueError, KeyError, TypeError, AttributeError):
            said = answer.text.strip() or answer.reason_phrase
        return self._hidden(f"{told}: {said[:_SHOWN]}")

    def _hidden(self, text: str) -> str:
        return text.replace(self._key, "(the key)") if self._key else text


def _plain_url(url: str) -> str:
    try:
        read = httpx.URL(url)
    except (httpx.InvalidURL, TypeError) as malformed:
        raise PublishRefused("--to is no URL such as http://127.0.0.1:8003") from malformed
    if read.scheme not in ("http", "https") or not read.host:
        raise PublishRefused("--to is no URL such as http://127.0.0.1:8003")
    if read.userinfo:
        raise PublishRefused("--to holds a name or password: --key-env names a key's variable")
    return str(read.copy_with(query=None, fragment=None)).rstrip("/")


def _is_same(lora: dict[str, Any], chosen: Chosen) -> bool:
    return lora.get("digest") == chosen.digest and lora.get("trigger") == chosen.trigger


def _served(outcome: Outcome, lora: dict[str, Any]) -> Served:
    return Served(outcome, str(lora["digest"]), str(lora["trigger"]), int(lora["rank"]))


def _retry_after(answer: httpx.Response) -> float:
    """Seconds, as the service says, within reason."""
    told = answer.headers.get("retry-after", "")
    return min(float(told), _LONGEST_RETRY_S) if told.isdecimal() else _RETRY_S
