"""One evaluation is one trace and one request id, and nobody's text is in either."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import httpx
import pytest

from tests.fakes.scripted_llm import GOOD_CONTENT, GOOD_SUMMARY, Act, ScriptedLLM, served
from tests.fakes.traced import Collector, Span, collecting, started

SERVER, CLIENT = 2, 3
REQUEST_ID = "planner-77"
TRACE_ID = "5f84c7a1e3b24d0c9a6fd3b1c2e4f508"
CALLER_SPAN_ID = "00f067aa0ba902b7"
# ASCII, so that no escaping hides it from a search.
TITLE, CONTENT, REASON, SUMMARY = "TITLETEXT", "CONTENTTEXT", "REASONTEXT", "SUMMARYTEXT"
EXPORT_MS = "200"


@dataclass(frozen=True)
class Traced:
    """What one evaluation through gateway and evaluation service left behind."""

    answer: httpx.Response
    collector: Collector
    logs: dict[str, str]

    @property
    def spans(self) -> list[Span]:
        return [span for span in self.collector.spans() if span.trace_id == TRACE_ID]


def evaluated(trace_text: bool, folder: Any) -> Iterator[Traced]:
    llm = ScriptedLLM()
    content = {**GOOD_CONTENT, "message": {**GOOD_CONTENT["message"], "reason": REASON}}
    llm.script["ContentAnswer"] = Act(content)
    llm.script["SummaryAnswer"] = Act({**GOOD_SUMMARY, "text": SUMMARY})
    with collecting() as collector, served(llm):
        environment = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": collector.base_url,
            "OTEL_BSP_SCHEDULE_DELAY": EXPORT_MS,
            "JOING_TRACE_TEXT": str(trace_text),
            "JOING_LLM_URL": llm.base_url,
        }
        with started("evaluation", folder, environment) as evaluation:
            environment["JOING_EVALUATION_URL"] = evaluation.base_url
            with started("gateway", folder, environment) as gateway:
                evaluation.wait()
                gateway.wait()
                answer = evaluate(gateway.base_url)
                assert answer.status_code == 200, answer.text
                traced = Traced(answer, collector, {})
                until(lambda: {"joing-gateway", "joing-evaluation"} <= servers(traced.spans))
                for service in (gateway, evaluation):
                    service.stop()
                    traced.logs[service.name] = service.log.read_text("utf-8")
    yield traced


def evaluate(gateway_url: str) -> httpx.Response:
    plan = (
        "A balcony garden in six square metres for people who rent. First we compare the price of "
        "a lettuce with four seedlings. Then we build a planter from a bottle in three steps, show "
        "which plants grow without sun, and explain why the first pot drowned. "
    )
    return httpx.post(
        f"{gateway_url}/v1/proposals/evaluate",
        json={"title": TITLE, "content": plan + CONTENT, "media_type": "long_form"},
        headers={
            "X-Request-Id": REQUEST_ID,
            "traceparent": f"00-{TRACE_ID}-{CALLER_SPAN_ID}-01",
        },
        timeout=120,
    )


def servers(spans: list[Span]) -> set[str]:
    return {span.service for span in spans if span.kind == SERVER}


def until(condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Traced]:
    yield from evaluated(False, tmp_path_factory.mktemp("traced"))


@pytest.fixture(scope="module")
def traced_with_text(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Traced]:
    yield from evaluated(True, tmp_path_factory.mktemp("traced"))


def test_both_services_are_in_one_trace(traced: Traced) -> None:
    spans = traced.spans
    by_id = {span.span_id: span for span in spans}
    door = next(s for s in spans if (s.service, s.kind) == ("joing-gateway", SERVER))
    work = next(s for s in spans if (s.service, s.kind) == ("joing-evaluation", SERVER))
    assert door.parent_id == CALLER_SPAN_ID
    above = by_id[work.parent_id]
    assert (above.service, above.kind) == ("joing-gateway", CLIENT)
    while above is not door:
        above = by_id[above.parent_id]


def test_every_span_hangs_in_the_tree(traced: Traced) -> None:
    known = {span.span_id for span in traced.spans} | {CALLER_SPAN_ID}
    assert [span.name for span in traced.spans if span.parent_id not in known] == []


def llm_spans(spans: list[Span]) -> list[Span]:
    return [span for span in spans if span.attributes.get("openinference.span.kind") == "LLM"]


def test_every_model_call_has_its_tokens(traced: Traced) -> None:
    calls = llm_spans(traced.spans)
    assert len(calls) == 3  # content, deliberation, summary
    counts = {
        (c.attributes["llm.token_count.prompt"], c.attributes["llm.token_count.completion"])
        for c in calls
    }
    assert counts == {(10, 5)}
    usage = traced.answer.json()["usage"]
    assert usage["prompt_tokens"] == sum(c.attributes["llm.token_count.prompt"] for c in calls)  # type: ignore[misc]


def test_the_nodes_of_the_graph_are_named(traced: Traced) -> None:
    names = {span.name for span in traced.spans}
    assert {"volume", "content", "deliberation", "decide", "write_summary"} <= names


@pytest.mark.parametrize("word", [TITLE, CONTENT, REASON, SUMMARY, "balcony", "lettuce"])
def test_no_span_holds_anyones_text(word: str, traced: Traced) -> None:
    sent = b"".join(traced.collector.bodies)
    assert b"ChatOpenAI" in sent
    assert word.encode() not in sent


@pytest.mark.parametrize("word", [TITLE, CONTENT, REASON, SUMMARY])
def test_spans_hold_text_when_the_operator_asks(word: str, traced_with_text: Traced) -> None:
    told = [repr(span.attributes) for span in llm_spans(traced_with_text.spans)]
    assert any(word in one for one in told)


def lines(log: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.splitlines() if line.startswith("{")]


def test_every_log_line_of_one_evaluation_has_its_request_id(traced: Traced) -> None:
    events: dict[str, list[str]] = {}
    for service, log in traced.logs.items():
        for line in lines(log):
            assert line["service"] == service
            if "prompt_version" not in line and "request_id" in line:
                assert line["request_id"] == REQUEST_ID
                events.setdefault(service, []).append(line["event"])
    assert events == {
        "gateway": ["request"],
        "evaluation": ["evaluation started", "evaluation finished", "request"],
    }
    assert traced.answer.headers["X-Request-Id"] == REQUEST_ID


def test_the_log_is_json_and_holds_nobodys_text(traced: Traced) -> None:
    for log in traced.logs.values():
        assert [line for line in log.splitlines() if not line.startswith("{")] == []
        for word in (TITLE, CONTENT, REASON, SUMMARY, "balcony"):
            assert word not in log


def test_the_last_spans_are_sent_when_a_service_stops(tmp_path: Any) -> None:
    """A replica that is taken away would otherwise lose what it did in its last seconds."""
    with collecting() as collector:
        environment = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": collector.base_url,
            "OTEL_BSP_SCHEDULE_DELAY": "600000",
            "JOING_LLM_URL": "http://127.0.0.1:9",
            "JOING_EVALUATION_URL": "http://127.0.0.1:9",
        }
        with started("gateway", tmp_path, environment) as gateway:
            gateway.wait()
            unknown = f"/v1/evaluations/{uuid4().hex}"
            assert httpx.get(f"{gateway.base_url}{unknown}").status_code == 503
            assert collector.spans() == []
            gateway.stop()
        assert any(span.kind == SERVER for span in collector.spans())


def test_without_an_endpoint_nothing_is_traced(tmp_path: Any) -> None:
    with collecting() as collector:
        environment = {
            "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": f"{collector.base_url}/v1/traces",
            "JOING_LLM_URL": "http://127.0.0.1:9",
            "JOING_EVALUATION_URL": "http://127.0.0.1:9",
        }
        with started("gateway", tmp_path, environment) as gateway:
            gateway.wait()
            httpx.get(f"{gateway.base_url}/v1/models")
            gateway.stop()
        assert collector.bodies == []
