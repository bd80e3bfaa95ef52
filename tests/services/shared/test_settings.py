"""Configuration: read once, refused by name when it means nothing."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from pydantic import Field, SecretStr, ValidationError
from pydantic_settings import SettingsConfigDict

from services.evaluation.settings import EvaluationSettings
from services.gateway.settings import GatewaySettings
from services.shared.peers import RUNNER_MAP, find_peer
from services.shared.serving import service_options
from services.shared.settings import ADDRESSES, ConfigurationError, ServiceSettings
from tests.fakes.scripted_llm import ScriptedLLM

OF_A_SERVICE = pytest.mark.parametrize("kind", [EvaluationSettings, GatewaySettings])


class OvenSettings(ServiceSettings):
    model_config = SettingsConfigDict(env_prefix="JOING_OVEN_", frozen=True, populate_by_name=True)

    heat_c: int = Field(180, ge=50, le=300)


@pytest.fixture(autouse=True)
def _nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith(("JOING_", "OTEL_")) or name == RUNNER_MAP:
            monkeypatch.delenv(name)


def test_a_misspelt_setting_is_refused_with_a_suggestion(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOING_OVEN_HAET_C", "200")
    with pytest.raises(
        ConfigurationError, match=r"JOING_OVEN_HAET_C .* Did you mean JOING_OVEN_HEAT_C\?"
    ):
        OvenSettings.from_environment()


def test_a_setting_like_no_other_is_refused_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOING_OVEN_QQQQQQQQQQQQQQQQQQQQ", "1")
    with pytest.raises(ConfigurationError, match=r"QQQQ.* is not a setting of this service"):
        OvenSettings.from_environment()


def test_what_is_meant_for_others_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("JOING_FRIDGE_HEAT_C", "JOING_OVENS", "HEAT_C", "OVEN_HEAT_C", *ADDRESSES):
        monkeypatch.setenv(name, "x")
    assert OvenSettings.from_environment() == OvenSettings()


@OF_A_SERVICE
def test_the_names_that_services_share_reach_each(
    kind: type[ServiceSettings], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("JOING_API_KEYS", "one")
    monkeypatch.setenv("JOING_HOME", str(tmp_path))
    monkeypatch.setenv("JOING_LOG_LEVEL", "error")
    monkeypatch.setenv("JOING_LLM_URL", "http://llm:1")
    monkeypatch.setenv("JOING_EVALUATION_URL", "http://evaluation:1")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318")
    settings = kind.from_environment()
    assert settings.keys() == ("one",)
    assert (settings.home, settings.log_level) == (tmp_path, "error")
    assert settings.otlp_endpoint == "http://collector:4318"
    assert getattr(settings, "llm_url", None) == "http://llm:1"


@OF_A_SERVICE
def test_a_services_own_prefix_is_its_own(
    kind: type[ServiceSettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    prefix = kind.model_config["env_prefix"]
    monkeypatch.setenv(f"{prefix}MAX_BODY_BYTES", "2048")
    assert kind.from_environment().max_body_bytes == 2048
    monkeypatch.setenv(f"{prefix}API_KEYS", "one")
    with pytest.raises(ConfigurationError, match=f"{prefix}API_KEYS"):
        kind.from_environment()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("JOING_EVALUATION_CONTENT_THRESHOLD", "101"),
        ("JOING_EVALUATION_CONTENT_THRESHOLD", "high"),
        ("JOING_EVALUATION_DEADLINE_S", "0"),
        ("JOING_EVALUATION_JUDGING", "sometimes"),
        ("JOING_EVALUATION_VOLUME_SHORT_FORM", '{"min_content_words": 9, "more": 1}'),
        ("JOING_EVALUATION_MAX_BODY_BYTES", "1"),
        ("JOING_LOG_LEVEL", "loud"),
        ("JOING_TRACE_TEXT", "perhaps"),
    ],
)
def test_a_bad_value_names_its_variable(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError, match=name):
        EvaluationSettings.from_environment()


def test_a_value_that_is_not_json_names_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOING_EVALUATION_VOLUME_SHORT_FORM", "nine words")
    with pytest.raises(ConfigurationError, match="JOING_EVALUATION_VOLUME_SHORT_FORM"):
        EvaluationSettings.from_environment()


@OF_A_SERVICE
def test_settings_do_not_change(kind: type[ServiceSettings]) -> None:
    settings = kind()
    for field in kind.model_fields:
        with pytest.raises(ValidationError, match="frozen"):
            setattr(settings, field, None)


@pytest.mark.parametrize(
    ("written", "keys"),
    [
        ("", ()),
        (" , ,", ()),
        ("one", ("one",)),
        (" one ,two,, three ", ("one", "two", "three")),
        ("b,a", ("b", "a")),
    ],
)
def test_keys_are_comma_separated(
    written: str, keys: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JOING_API_KEYS", written)
    settings = OvenSettings.from_environment()
    assert settings.keys() == keys
    host = service_options("oven", settings, port=1)["http"]["host"]
    assert host == ("0.0.0.0" if keys else "127.0.0.1")


def test_secrets_are_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = EvaluationSettings(api_keys=SecretStr("hidden-1"), llm_key=SecretStr("hidden-2"))
    assert "hidden" not in repr(settings) + str(settings) + settings.model_dump_json()
    monkeypatch.setenv("JOING_API_KEYS", "hidden-3")
    monkeypatch.setenv("JOING_LOG_LEVEL", "loud")
    with pytest.raises(ConfigurationError) as raised:
        EvaluationSettings.from_environment()
    assert "hidden" not in str(raised.value)


def test_a_database_password_is_not_shown() -> None:
    settings = EvaluationSettings(database_url="postgresql://joing:hidden@host/joing")
    assert "hidden" not in repr(settings) + str(settings)


@pytest.fixture
def runner_map(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    known = {"evaluation": "file:///run/joing/evaluation.sock", "llm": "tcp://127.0.0.1:3003"}
    monkeypatch.setenv(RUNNER_MAP, json.dumps(known))
    return known


def test_a_peer_started_beside_is_found(runner_map: dict[str, str]) -> None:
    evaluation, llm = find_peer("evaluation", None), find_peer("llm", None, "key")
    assert (evaluation.socket, evaluation.base_url) == (
        "/run/joing/evaluation.sock",
        "http://evaluation",
    )
    assert (llm.socket, llm.base_url, llm.key) == (None, "http://127.0.0.1:3003", "key")


def test_an_address_that_is_given_wins(runner_map: dict[str, str]) -> None:
    peer = find_peer("evaluation", "https://elsewhere:9/")
    assert (peer.socket, peer.base_url) == (None, "https://elsewhere:9")


@pytest.mark.parametrize("known", [None, "{}", '{"other": "tcp://127.0.0.1:1"}'])
def test_a_peer_that_nobody_knows_names_the_variable(
    known: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if known is not None:
        monkeypatch.setenv(RUNNER_MAP, known)
    with pytest.raises(ConfigurationError, match="JOING_EVALUATION_URL"):
        find_peer("evaluation", None)


async def test_the_client_of_a_peer_carries_its_key(llm: ScriptedLLM) -> None:
    async with find_peer("llm", llm.base_url, "k").client(timeout_s=5, max_connections=1) as client:
        assert client.headers["Authorization"] == "Bearer k"
        assert (await client.get("/v1/models")).status_code == 200
    keyless = find_peer("llm", llm.base_url).client(timeout_s=5, max_connections=1)
    assert "Authorization" not in keyless.headers
    assert isinstance(keyless.timeout, httpx.Timeout)
    assert (keyless.timeout.read, keyless.timeout.connect) == (5, 5.0)
    await keyless.aclose()
