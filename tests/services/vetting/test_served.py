"""The service as it ships: `bentoml serve` in a process of its own, with traces and a debug log."""

from __future__ import annotations

import time
from pathlib import Path
from typing import get_args
from urllib.parse import quote, quote_plus

import httpx

from bentos.running import running
from tests.fakes.scripted_vetter import ScriptedVetter
from tests.fakes.traced import collecting
from tests.services.vetting.conftest import VET, Vetting
from tests.youtube.described import CallFault, CallName
from tests.youtube.server import KEY, FakeYouTube

FAULTS: tuple[CallFault, ...] = ("echoes_key", "key_invalid", "html", "server_error")


def test_the_key_is_in_no_log_trace_answer_or_database(
    fake: FakeYouTube, reader_llm: ScriptedVetter, tmp_path: Path
) -> None:
    with collecting() as traces:
        environment = {
            "JOING_API_KEYS": "",
            "JOING_HOME": str(tmp_path),
            "JOING_LLM_URL": reader_llm.base_url,
            "JOING_LOG_LEVEL": "debug",
            "JOING_TRACE_TEXT": "true",
            "JOING_VETTING_PICTURES_URL": fake.base_url,
            "JOING_VETTING_VISION": "true",
            "JOING_VETTING_YOUTUBE_URL": fake.base_url,
            "JOING_YOUTUBE_KEY": KEY,
            "OTEL_BSP_SCHEDULE_DELAY": "100",
            "OTEL_EXPORTER_OTLP_ENDPOINT": traces.base_url,
        }
        with running("services.vetting.service:Vetting", environment=environment) as service:
            said = _everything_goes_wrong(service.base_url, fake)
            time.sleep(1.0)
            log = service.log.read_bytes()
        sent = b"".join(traces.bodies)
    assert b"vetting finished" in log
    assert b"youtube" in log
    assert KEY[:4].encode() not in sent
    assert {"fetch", "text", "decide"} <= {span.name for span in traces.spans()}
    kept = b"".join(path.read_bytes() for path in tmp_path.glob("joing.sqlite3*"))
    for form in (KEY, quote(KEY), quote_plus(KEY), quote(KEY, safe="")):
        for output in (log, sent, kept, said.encode()):
            assert form.encode() not in output


def _everything_goes_wrong(base_url: str, fake: FakeYouTube) -> str:
    """And one vetting goes well. All that a caller gets to see."""
    said = []
    with httpx.Client(base_url=base_url, timeout=120) as client:
        vetting = Vetting(client, fake.channels, None)
        for fault in FAULTS:
            for call in get_args(CallName):
                fake.fail(call, fault)
                answer = vetting.ask("harmless-hiking")
                assert answer.status_code == 503, answer.text
                said += [answer.text, str(answer.headers)]
        said.append(str(vetting.events("harmless-hiking", VET, accept="text/event-stream")))
        fake.mend()
        got = vetting.vet("words-gambling")
        assert got["verdict"] == "fail"
        metrics = client.get("/metrics").text
        assert 'joing_vetting_ended_total{verdict="fail"} 1.0' in metrics
        assert client.get("/readyz").status_code == 200
        said += [str(got), metrics, client.get("/openapi.json").text]
    return "\n".join(said)
