"""The first backend's channel call, through the gateway and a real vetting service."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from services.gateway.app import create_app
from services.gateway.original import as_original_channel
from services.gateway.settings import GatewaySettings
from tests.fakes.scripted_llm import served_app
from tests.services.vetting.conftest import Serve, Vetting

PATH = "/gen/channel/evaluation"
NOWHERE = "http://127.0.0.1:9"


@pytest.fixture
def vetting(serve: Serve) -> Iterator[Vetting]:
    with serve() as vetting:
        yield vetting


@pytest.fixture
def gateway(vetting: Vetting) -> Iterator[httpx.Client]:
    app = create_app(GatewaySettings(evaluation_url=NOWHERE, llm_url=NOWHERE, log_level="error"))
    with served_app(app) as url, httpx.Client(base_url=url, timeout=60) as client:
        app.state.clients["vetting"] = httpx.AsyncClient(base_url=vetting.client.base_url)
        yield client


def test_a_pass_a_fail_and_a_review(gateway: httpx.Client, vetting: Vetting) -> None:
    for name, passes in (
        ("harmless-hiking", True),
        ("words-gambling", False),
        ("borderline-wine", False),
    ):
        channel = vetting.channels[name]
        for key in ("channel_id", "channelId"):
            headers = {"X-Request-Id": name}
            answer = gateway.post(PATH, json={key: channel.id}, headers=headers)
            assert answer.status_code == 200, answer.text
            got = answer.json()
            assert got.keys() == {"evaluation_status", "subscribers", "channel_image", "reason"}
            assert got["evaluation_status"] is passes
            assert got["subscribers"] == channel.file.channel.subscribers
            assert got["channel_image"].startswith("https://")
            assert got["reason"]


def test_hidden_subscribers_are_0(gateway: httpx.Client, vetting: Vetting) -> None:
    channel_id = vetting.channels["gaps-hidden-counts"].id
    assert gateway.post(PATH, json={"channel_id": channel_id}).json()["subscribers"] == 0


@pytest.mark.parametrize(
    ("channel_id", "code"),
    [
        ("", "INVALID_CHANNEL_ID_FORMAT"),
        ("UC123", "INVALID_CHANNEL_ID_FORMAT"),
        ("U" * 25, "INVALID_CHANNEL_ID_FORMAT"),
        ("https://youtube.com/@hike", "INVALID_CHANNEL_ID_FORMAT"),
        ("UC" + "x" * 22, "INVALID_CHANNEL_ID"),
        ("@" + "a" * 23, "INVALID_CHANNEL_ID"),
        ("UC" + "\u202e" * 22, "INVALID_CHANNEL_ID"),
    ],
)
def test_ids_that_are_none(channel_id: str, code: str, gateway: httpx.Client) -> None:
    answer = gateway.post(PATH, json={"channel_id": channel_id})
    assert (answer.status_code, answer.json()["code"]) == (422, code)
    assert answer.json()["errors"][0]["field"] == "channel_id"


@pytest.mark.parametrize("name", ["gaps-brand-new", "gaps-empty"])
def test_fewer_than_four_uploads(name: str, gateway: httpx.Client, vetting: Vetting) -> None:
    answer = gateway.post(PATH, json={"channel_id": vetting.channels[name].id})
    assert (answer.status_code, answer.json()["code"]) == (422, "NOT_ENOUGH_UPLOADS")


def test_what_youtube_did_not_give_is_no_missing_channel(
    gateway: httpx.Client, vetting: Vetting
) -> None:
    answer = gateway.post(PATH, json={"channel_id": vetting.channels["faults-server-error"].id})
    assert (answer.status_code, answer.json()["code"]) == (503, "youtube_unavailable")
    assert int(answer.headers["retry-after"]) > 0


def test_without_a_vetting_service_it_is_a_503() -> None:
    app = create_app(GatewaySettings(evaluation_url=NOWHERE, llm_url=NOWHERE, log_level="error"))
    with served_app(app) as url:
        answer = httpx.post(f"{url}{PATH}", json={"channel_id": "UC" + "x" * 22})
    assert (answer.status_code, answer.json()["code"]) == (503, "vetting_unavailable")


def test_only_a_pass_is_true() -> None:
    channel = {"subscribers": 1, "thumbnail_url": None}
    for verdict in ("fail", "review", "unknown", "", None, "PASS"):
        vetting = {"verdict": verdict, "reasons": [], "channel": channel}
        assert as_original_channel(vetting).evaluation_status is False
