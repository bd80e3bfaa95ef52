"""Services over HTTP, in front of a model that does what a test says."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from services.evaluation.app import create_app
from services.evaluation.settings import EvaluationSettings
from services.gateway.app import create_app as create_gateway
from services.gateway.settings import GatewaySettings
from tests.databases import database, postgres
from tests.fakes.scripted_llm import ScriptedLLM, served, served_app

__all__ = ["database", "postgres"]

CALL_TIMEOUT_S = 1.0
DEADLINE_S = 8.0


@pytest.fixture(scope="session")
def _scripted() -> Iterator[ScriptedLLM]:
    with served(ScriptedLLM()) as llm:
        yield llm


@pytest.fixture
def llm(_scripted: ScriptedLLM) -> ScriptedLLM:
    _scripted.reset()
    return _scripted


@pytest.fixture(scope="session")
def evaluation_url(
    _scripted: ScriptedLLM, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    settings = EvaluationSettings(
        llm_url=_scripted.base_url,
        home=tmp_path_factory.mktemp("evaluation"),
        call_timeout_s=CALL_TIMEOUT_S,
        deadline_s=DEADLINE_S,
        log_level="error",
    )
    with served_app(create_app(settings)) as base_url:
        yield base_url


@pytest.fixture
def client(evaluation_url: str, llm: ScriptedLLM) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=evaluation_url, timeout=30) as client:
        yield client


@pytest.fixture(scope="session")
def gateway_url(_scripted: ScriptedLLM, evaluation_url: str) -> Iterator[str]:
    settings = GatewaySettings(
        evaluation_url=evaluation_url, llm_url=_scripted.base_url, log_level="error"
    )
    with served_app(create_gateway(settings)) as base_url:
        yield base_url


@pytest.fixture
def proposal() -> dict[str, Any]:
    return {
        "title": "퇴근 후 30분, 원룸 베란다 텃밭",
        "content": (
            "베란다가 좁은 1인 가구 직장인을 위한 텃밭 입문 영상입니다. 첫 장면에서 상추 한 봉지 "
            "값과 모종 네 개 값을 비교합니다. 페트병으로 물받이 화분을 만드는 과정을 세 단계로 "
            "보여 주고, 북향 베란다에서도 자라는 상추와 쪽파를 추천합니다. 물을 너무 많이 줘서 "
            "실패한 화분을 꺼내 원인을 설명합니다. 마지막에는 4주 뒤 수확한 채소로 비빔국수를 "
            "만들고 들어간 비용과 시간을 표로 정리합니다."
        ),
        "media_type": "long_form",
    }
