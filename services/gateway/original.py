"""The calls of the first Joing backend, unchanged for its clients, answered by the new services.

Shapes follow the old backend: integers for flags, every key present, the unused half empty.
Requests come in snake_case, in camelCase, and with `additional_Features`.
"""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any, Literal

import httpx
from fastapi import FastAPI, Request
from fastapi.responses import Response
from pydantic import AliasChoices, BaseModel, ConfigDict, Field

from services.gateway.settings import GatewaySettings
from services.shared.errors import FieldError, Unavailable, Unprocessable
from services.shared.forwarding import unreachable_as_problem
from services.shared.web import REQUEST_ID, current_request_id, printable, until_hang_up

CHANNEL_ID_CHARACTERS = 24
CHANNEL_ID = re.compile(r"UC[A-Za-z0-9_-]{22}")
FEEDBACK_TYPE = {"volume": 0, "content": 1, "deliberation": 2}


class OriginalRequest(BaseModel):
    """A proposal as the old clients send it. `proposal_score` is accepted and not used: an
    earlier score must not sway a new one.
    """

    model_config = ConfigDict(extra="forbid")

    title: str
    content: str
    media_type: str = Field(validation_alias=AliasChoices("media_type", "mediaType"))
    proposal_score: float = Field(
        0.0, validation_alias=AliasChoices("proposal_score", "proposalScore")
    )
    additional_features: dict[str, Any] | None = Field(
        default=None,
        validation_alias=AliasChoices(
            "additional_features", "additionalFeatures", "additional_Features"
        ),
    )

    def proposal(self) -> dict[str, Any]:
        """The same as a body of POST /v1/proposals/evaluate."""
        features = {
            name: _as_text(value) for name, value in (self.additional_features or {}).items()
        }
        return {
            "title": self.title,
            "content": self.content,
            "media_type": self.media_type.lower(),
            "additional_features": features,
        }


class OriginalFeedback(BaseModel):
    feedback_type: int = Field(0, description="0 volume, 1 content, 2 regulation.")
    current_score: float = 0.0
    comment: str = ""
    violations: list[str] = Field(default_factory=list)


class OriginalSummary(BaseModel):
    title: str = ""
    content: str = ""
    keyword: list[str] = Field(default_factory=list)


class OriginalEvaluation(BaseModel):
    evaluation_result: Literal[0, 1] = Field(description="1 passed; 0 failed or to be reviewed.")
    feedback: OriginalFeedback = Field(default_factory=OriginalFeedback)
    summary: OriginalSummary = Field(default_factory=OriginalSummary)


class OriginalChannelRequest(BaseModel):
    model_config = ConfigDict(extra="forbid")

    channel_id: str = Field(
        validation_alias=AliasChoices("channel_id", "channelId"),
        description="A YouTube channel's id: 24 characters, UC first.",
    )


class OriginalChannelEvaluation(BaseModel):
    evaluation_status: bool = Field(description="True passed; false failed or to be reviewed.")
    subscribers: int = Field(description="Rounded by YouTube; 0 when the channel hides them.")
    channel_image: str = Field(description="Address of the channel's picture; may be empty.")
    reason: str


class Ready(BaseModel):
    status: Literal["ok"] = "ok"
    message: str


def add_routes(app: FastAPI) -> None:
    messages = tomllib.loads(Path(__file__).with_name("texts.toml").read_text("utf-8"))

    @app.post("/gen/proposal/evaluation", tags=["original"], response_model=OriginalEvaluation)
    async def evaluation(body: OriginalRequest, request: Request) -> Any:
        """Evaluate a proposal, as the first backend answered."""
        answer = await _ask(request, "/v1/proposals/evaluate", body.proposal())
        if answer.is_error:
            return _pass_back(answer)
        return as_original(answer.json())

    @app.post("/gen/proposal/summary", tags=["original"], response_model=OriginalEvaluation)
    async def summary(body: OriginalRequest, request: Request) -> Any:
        """Summarise a proposal, as the first backend answered."""
        answer = await _ask(request, "/v1/proposals/summarize", body.proposal())
        if answer.is_error:
            return _pass_back(answer)
        return OriginalEvaluation(evaluation_result=1, summary=_summary(answer.json()))

    @app.post(
        "/gen/channel/evaluation", tags=["original"], response_model=OriginalChannelEvaluation
    )
    async def channel(body: OriginalChannelRequest, request: Request) -> Any:
        """Vet a channel, as the first backend answered."""
        channel_id = _checked_id(body.channel_id)
        answer = await _ask(request, "/v1/creators/vet", {"channel": channel_id}, "vetting")
        if answer.is_error:
            if _code(answer) in ("channel_not_found", "invalid_channel"):
                raise _no_such_channel(channel_id)
            return _pass_back(answer)
        return as_original_channel(answer.json())

    @app.get("/ready", tags=["original"])
    async def ready() -> Ready:
        """Whether the gateway answers, as the first backend said it."""
        return Ready(message=messages["ready"])


def as_original_channel(vetting: dict[str, Any]) -> OriginalChannelEvaluation:
    """A Vetting as the old clients read it. Only `pass` is true.

    Raises Unprocessable for a channel with fewer than four uploads.
    """
    reasons = vetting["reasons"]
    few = next((reason["text"] for reason in reasons if reason["code"] == "few_uploads"), None)
    if few is not None:
        raise _bad_channel("NOT_ENOUGH_UPLOADS", few)
    channel = vetting["channel"]
    return OriginalChannelEvaluation(
        evaluation_status=vetting["verdict"] == "pass",
        subscribers=channel["subscribers"] or 0,
        channel_image=channel["thumbnail_url"] or "",
        reason="\n".join(reason["text"] for reason in reasons),
    )


def _checked_id(channel_id: str) -> str:
    """The old clients send ids only. What else the vetting service takes is not an id."""
    if len(channel_id) != CHANNEL_ID_CHARACTERS:
        raise _bad_channel(
            "INVALID_CHANNEL_ID_FORMAT",
            f"has {len(channel_id)} characters; a channel's id has {CHANNEL_ID_CHARACTERS}",
        )
    if CHANNEL_ID.fullmatch(channel_id) is None:
        raise _no_such_channel(channel_id)
    return channel_id


def _no_such_channel(channel_id: str) -> Unprocessable:
    return _bad_channel(
        "INVALID_CHANNEL_ID", f"there is no YouTube channel {printable(channel_id)}"
    )


def _bad_channel(code: str, message: str) -> Unprocessable:
    errors = [FieldError(field="channel_id", message=message)]
    return Unprocessable(f"channel_id: {message}", code=code, errors=errors)


def as_original(evaluation: dict[str, Any]) -> OriginalEvaluation:
    """An Evaluation as the old clients read it. Only `pass` is 1."""
    if evaluation["verdict"] == "pass":
        return OriginalEvaluation(evaluation_result=1, summary=_summary(evaluation["summary"]))
    feedback = evaluation["feedback"] or {}
    changes = [f"- {s['about']}: {s['change']}" for s in feedback.get("suggestions", [])]
    return OriginalEvaluation(
        evaluation_result=0,
        feedback=OriginalFeedback(
            feedback_type=FEEDBACK_TYPE.get(evaluation["decided_by"], 1),
            current_score=_score(evaluation),
            comment="\n".join([feedback.get("text", ""), *changes]),
            violations=feedback.get("violations", []),
        ),
    )


def _score(evaluation: dict[str, Any]) -> float:
    totals = [s["total"] for s in evaluation["stages"] if s["name"] == "content"]
    return float(totals[0] or 0) if totals else 0.0


def _summary(summary: dict[str, Any]) -> OriginalSummary:
    return OriginalSummary(
        title=summary["title"], content=summary["text"], keyword=summary["keywords"]
    )


async def _ask(
    request: Request, path: str, body: dict[str, Any], service: str = "evaluation"
) -> httpx.Response:
    client: httpx.AsyncClient | None = request.app.state.clients.get(service)
    settings: GatewaySettings = request.app.state.settings
    if client is None:
        raise Unavailable(
            f"The {service} service is not available.",
            retry_after_s=settings.retry_after_s,
            code=f"{service}_unavailable",
        )
    headers = {REQUEST_ID: current_request_id()}
    with unreachable_as_problem(service, settings.retry_after_s):
        return await until_hang_up(request, client.post(path, json=body, headers=headers))


def _code(answer: httpx.Response) -> str | None:
    """Of a problem; None for an answer that is none."""
    try:
        return str(answer.json()["code"])
    except (ValueError, KeyError, TypeError):
        return None


def _pass_back(answer: httpx.Response) -> Response:
    kept = {k: v for k, v in answer.headers.items() if k in ("content-type", "retry-after")}
    return Response(answer.content, answer.status_code, headers=kept)


def _as_text(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(_as_text(item) for item in value)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
