"""The report: what it computes from records it is given, and that its page stands alone."""

from __future__ import annotations

import asyncio
import json
import math
import os
import re
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import httpx
import prometheus_client
import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from loadtests import outcomes
from loadtests.faults.processes import Service
from loadtests.faults.timeline import Mark
from loadtests.outcomes import Level, Outcome, Record, Run, judge
from loadtests.report import charts
from loadtests.report.__main__ import report_of, write
from loadtests.report.page import page
from loadtests.report.series import Recording, Sample
from loadtests.report.summary import Report, report, step_s
from loadtests.report.watching import Gpus, Usage, Watch, rows_of, samples_of, scraped
from tests.fakes.scripted_llm import served_app

STARTED = 1_800_000_000.0
EVALUATION = "기획안 평가"
LEVELS = {EVALUATION: Level(2.0, 0.9, 10.0), "chat": Level(5.0, 0.9, 20.0, first_s=1.0)}


def record(number: int, **changed: Any) -> Record:
    name = EVALUATION if number % 2 == 0 else "chat"
    due_s = number * 0.1
    usual: dict[str, Any] = {"sent_s": due_s, "end_s": due_s + 1.0, "service_s": 0.4}
    if name == "chat":
        usual |= {"first_s": due_s + 0.25, "service_s": None}
    values = {"outcome": Outcome.GOOD, **usual, **changed}
    return Record(number, name, number // 2, due_s=due_s, **values)


def records_of(count: int = 400) -> list[Record]:
    bad = {
        100: {"outcome": Outcome.REJECTED, "end_s": 10.01, "reason": "503"},
        101: {"outcome": Outcome.FAILED, "end_s": 10.2, "reason": "connection <b>lost</b>"},
        102: {"outcome": Outcome.UNSENT, "sent_s": None, "end_s": None},
        104: {"outcome": Outcome.LATE, "end_s": 14.4},
        107: {"outcome": Outcome.CANCELLED, "end_s": 30.7},
    }
    return [record(number, **bad.get(number, {})) for number in range(count)]


def run_of(records: list[Record]) -> Run:
    return Run("platform-day", "http://127.0.0.1:3000", 10.0, 40.0, 1, 1, STARTED, LEVELS)


def recording() -> Recording:
    """From 3 s before the run to 10 s after its last answer; half a processor is always busy."""
    kept = Recording()
    for second in range(-3, 51):
        kept.add(
            STARTED + second,
            [
                Sample("evaluation", "cpu_seconds", "counter", 100 + 0.5 * second),
                Sample("gpu", "gpu_busy_seconds", "counter", 0.25 * (second + 3), "0"),
                Sample("llm", "waiting", "gauge", abs(second - 20)),
                Sample("llm", "still", "gauge", 7.0),
                Sample("images", "step_seconds_sum", "counter", 0.2 * (second + 3)),
                Sample("images", "step_seconds_count", "counter", 4.0 * (second + 3)),
            ],
        )
    return kept


@pytest.fixture(scope="module")
def made() -> Report:
    records = records_of()
    return report(
        run_of(records),
        records,
        marks=[Mark("kill port 3002", STARTED + 10.0, STARTED + 10.0)],
        capacity=[
            {
                **{"only": None, "holds": 9.3, "breaks": 9.5, "bracket": 0.02, "steps": []},
                **{"confidence": 0.99, "limited_by": ["chat"], "problem": None},
            }
        ],
        server=recording(),
    )


def test_what_is_drawn_over_time_adds_up_to_what_was_scheduled(made: Report) -> None:
    timeline = made["timeline"]
    step = timeline["step_s"]
    assert sum(timeline["due"]) * step == pytest.approx(400)
    ended = {name: sum(values) * step for name, values in timeline["outcomes"].items()}
    verdict = judge(run_of(records_of()), records_of())
    for outcome in Outcome:
        counted = sum(row.outcomes[outcome] for row in verdict.classes.values())
        assert ended[outcome] == pytest.approx(counted)
    assert made["verdict"]["exit_code"] == verdict.exit_code


def test_time_is_split_into_parts_that_add_up_to_the_latency(made: Report) -> None:
    evaluation, chat = made["classes"]
    assert evaluation["parts"]["all"]["service"] == pytest.approx(0.4)
    assert sum(evaluation["parts"]["all"].values()) == pytest.approx(1.0, abs=0.02)
    assert evaluation["parts"]["slowest"]["queueing"] > evaluation["parts"]["all"]["queueing"]
    assert chat["parts"]["all"] == pytest.approx({"lag": 0, "first": 0.25, "rest": 0.75})


def test_percentiles_of_everything_end_where_the_rest_was_never_answered(made: Report) -> None:
    spectrum = dict(made["classes"][0]["spectrum"])
    assert spectrum[50] == pytest.approx(1.0)
    assert spectrum[99.9] is None, "2 of 200 were never answered"
    assert made["classes"][0]["certified_s"] == pytest.approx(1.0)


def test_cost_is_what_was_spent_during_the_run_for_each_good_request(made: Report) -> None:
    cost, length_s = made["cost"], made["length_s"]
    assert length_s == pytest.approx(40.9)
    assert cost["good"] == 395
    assert cost["seconds"]["cpu"]["evaluation"] == pytest.approx(0.5 * length_s, abs=0.6)
    assert cost["per_good"]["gpu"] == pytest.approx(0.25 * length_s / 395, abs=0.001)


def test_server_figures_lie_on_the_axis_of_the_run(made: Report) -> None:
    by_name = {row["name"]: row for row in made["server"]}
    waiting = by_name["waiting"]["points"]
    assert min(waiting, key=lambda point: point[1]) == (20.0, 0)
    assert all(-1 <= at <= made["length_s"] + 1 for at, _ in waiting)
    assert "still" not in by_name, "what does not move is no figure"
    assert "step_seconds_sum" not in by_name


def test_a_histogram_is_told_as_what_each_took() -> None:
    kept = Recording()
    for second, (total, count) in enumerate([(0, 0), (2, 4), (2, 4), (5, 6)]):
        kept.add(
            STARTED + second,
            [
                Sample("images", "step_sum", "counter", total),
                Sample("images", "step_count", "counter", count),
            ],
        )
    records = records_of()
    server = report(run_of(records), records, server=kept)["server"]
    (mean,) = [row for row in server if row["name"] == "step_mean"]
    assert mean["points"] == [(1.0, 0.5), (3.0, 1.5)]


def test_a_counter_that_began_anew_is_not_negative() -> None:
    kept = Recording()
    for second, value in enumerate((10.0, 12.0, 1.0, 3.0)):
        kept.add(second, [Sample("a", "calls", "counter", value)])
    assert kept.series["a", "calls", ""].grown(kept.times, 0, 3) == 2 + 1 + 2


def test_memory_is_bounded_and_what_is_kept_is_even_and_true() -> None:
    kept = Recording(max_moments=64, max_series=3)
    for second in range(10_000):
        peak = 9.0 if second == 5_000 else 1.0
        samples = [Sample("a", f"n{number}", "counter", float(second)) for number in range(2)]
        kept.add(second, [*samples, Sample("a", "peak", "gauge", peak), *foreign(second)])
    assert len(kept.times) <= 64
    assert len(kept.series) == 3
    assert len(kept.left_out) <= 3
    gaps = {b - a for a, b in zip(kept.times, kept.times[1:], strict=False)}
    assert gaps == {kept.stride}
    assert kept.times[-1] >= 10_000 - 2 * kept.stride
    counter = kept.series["a", "n0", ""]
    assert [value for _, value in counter.points(kept.times)] == kept.times
    assert all(len(series.values) == len(kept.times) for series in kept.series.values())


def foreign(second: int) -> list[Sample]:
    return [Sample("b", f"one of many {second}", "gauge", 1.0)]


def test_a_peak_survives_when_moments_become_one() -> None:
    kept = Recording(max_moments=8)
    for second in range(8):
        kept.add(second, [Sample("a", "queue", "gauge", 50.0 if second == 2 else 0.0)])
    assert kept.series["a", "queue", ""].values == [0.0, 50.0, 0.0, 0.0]
    assert kept.times == [1, 3, 5, 7]


def test_a_recording_is_the_same_from_its_file() -> None:
    kept = recording()
    again = Recording.from_json(json.loads(json.dumps(kept.as_json())))
    assert again.as_json() == kept.as_json()


def test_metrics_are_read_without_buckets() -> None:
    registry = prometheus_client.CollectorRegistry()
    counter = prometheus_client.Counter("calls", "x", ["to"], registry=registry)
    counter.labels(to="llm").inc(3)
    prometheus_client.Gauge("waiting", "x", registry=registry).set(4)
    prometheus_client.Histogram("took", "x", registry=registry).observe(0.5)
    text = prometheus_client.generate_latest(registry).decode()
    found = {sample.key[1:]: (sample.kind, sample.value) for sample in samples_of("s", text)}
    assert found == {
        ("calls_total", "to=llm"): ("counter", 3.0),
        ("waiting", ""): ("gauge", 4.0),
        ("took_count", ""): ("counter", 1.0),
        ("took_sum", ""): ("counter", 0.5),
    }


@contextmanager
def metrics_server() -> Iterator[str]:
    def metrics(_: Any) -> Response:
        return PlainTextResponse("# TYPE waiting gauge\nwaiting 4\n")

    def page(_: Any) -> Response:
        return PlainTextResponse("<html> no metrics { here\n")

    def endless(_: Any) -> Response:
        return PlainTextResponse("# " + "x" * 5 * 2**20)

    routes = [Route("/metrics", metrics), Route("/page", page), Route("/endless", endless)]
    with served_app(Starlette(routes=routes)) as base_url:
        yield base_url


async def test_a_watch_notes_metrics_and_processes_and_a_server_that_is_away_is_a_gap() -> None:
    with metrics_server() as base_url:
        child = subprocess.Popen(
            [sys.executable, "-c", "import sys\nwhile True: pass  # burns", "joing-burns"]
        )
        try:
            addresses = {"here": f"{base_url}/metrics", "away": "http://127.0.0.1:9/metrics"}
            usage = Usage("burner", Service(words=("joing-burns",), which="all"))
            until = asyncio.Event()
            asyncio.get_running_loop().call_later(1.3, until.set)
            kept = await Watch(addresses, [usage], Gpus(program=None)).run(until)
        finally:
            child.kill()
            child.wait(10)
    assert len(kept.times) >= 2
    assert {key[0] for key in kept.series} == {"here", "burner"}
    spent = kept.series["burner", "cpu_seconds", ""]
    lasted_s = kept.times[-1] - kept.times[0]
    assert 0 < spent.grown(kept.times, kept.times[0], kept.times[-1]) <= lasted_s + 0.1
    assert kept.series["burner", "memory_bytes", ""].values[0] > 2**20


async def test_what_is_no_metrics_page_is_nothing() -> None:
    with metrics_server() as base_url:
        async with httpx.AsyncClient() as client:
            assert await scraped(client, "s", f"{base_url}/metrics")
            for path in ("/page", "/endless", "/nowhere"):
                assert await scraped(client, "s", base_url + path) == []


async def test_a_service_that_is_away_has_used_nothing() -> None:
    (only,) = Usage("gone", Service(words=("no such process at all",))).samples()
    assert (only.name, only.value) == ("cpu_seconds", 0.0)


async def test_gpu_time_is_utilisation_times_the_time_between_looks(tmp_path: Path) -> None:
    """Where this runs there may be no GPU: a program with nvidia-smi's output stands for it."""
    program = tmp_path / "smi"
    program.write_text("#!/bin/sh\necho '0, 50, 1024'\necho '1, [N/A], [N/A]'\n", "utf-8")
    program.chmod(0o755)
    gpus = Gpus(program=str(program))
    began = time.monotonic()
    first = await gpus.samples()
    await asyncio.sleep(0.2)
    busy, memory = await gpus.samples()
    assert [sample.value for sample in first] == [0.0, 2**30]
    assert 0.09 <= busy.value <= 0.5 * (time.monotonic() - began)
    assert memory.value == 2**30
    assert list(rows_of("")) == []


class Page(HTMLParser):
    """What a page would load or run, and the text that it shows."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.tags: set[str] = set()
        self.said: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.loads += [name for name, _ in attrs if name in {"src", "href", "srcset", "onload"}]

    def handle_data(self, data: str) -> None:
        self.said.append(data.strip())


@pytest.mark.parametrize("language", ["en", "ko"])
def test_the_page_stands_alone_and_says_everything(made: Report, language: Any) -> None:
    text = page(made, language)
    shown = Page(text)
    assert shown.loads == []
    assert not shown.tags & {"script", "link", "iframe", "img", "object"}
    assert not re.findall(r"url\((?!#)|@import", text)
    said = " ".join(shown.said)
    for expected in (EVALUATION, "kill port 3002", "9.3", "llm: waiting", "connection <b>lost</b>"):
        assert expected in said
    assert ("부하 시험 보고서" in said) == (language == "ko")


def test_every_chart_is_well_formed_and_keeps_to_its_paper(made: Report) -> None:
    drawn = re.findall(r'<svg class="chart".*?</svg>', page(made), re.DOTALL)
    assert len(drawn) >= 7
    for chart in drawn:
        root = ElementTree.fromstring(chart)
        _, _, width, height = map(float, root.attrib["viewBox"].split())
        for shape in root.iter():
            for name, most in (("x", width), ("x1", width), ("cx", width), ("y", height)):
                value = float(shape.attrib.get(name, 0))
                assert -1 <= value <= most + 1, ElementTree.tostring(shape)
            for pair in shape.attrib.get("points", "").split():
                x, y = map(float, pair.split(","))
                assert 0 <= x <= width
                assert 0 <= y <= height
                assert math.isfinite(x + y)


def test_languages_say_the_same_things() -> None:
    texts = tomllib.loads((Path(charts.__file__).parent / "texts.toml").read_text("utf-8"))
    assert set(texts["en"]) == set(texts["ko"])
    for key, text in texts["en"].items():
        assert re.findall(r"{\w+}", text) == re.findall(r"{\w+}", texts["ko"][key])


def test_a_run_in_which_nothing_came_back_still_has_a_report() -> None:
    records = [
        record(n, outcome=Outcome.UNSENT, sent_s=None, first_s=None, end_s=None, service_s=None)
        for n in range(10)
    ]
    nothing = report(run_of(records), records)
    assert nothing["verdict"]["exit_code"] == 2
    assert "INVALID" in page(nothing)


@pytest.mark.parametrize("value", [0.0003, 0.9, 1.0, 1.2, 7.7, 99.0, 1e6, 3e9])
def test_an_axis_holds_its_values_with_few_round_ticks(value: float) -> None:
    top = charts.nice_ceiling(value)
    assert value <= top <= 2.5 * value
    ticks = [tick for tick, _ in charts.nice_ticks(top)]
    assert 3 <= len(ticks) <= 6
    assert ticks[0] == 0
    assert ticks[-1] <= top * (1 + 1e-9)


def test_bins_are_round_and_few() -> None:
    assert step_s(180, 180) == 1
    assert step_s(181, 180) == 2
    assert step_s(86_400, 180) == 600
    assert step_s(1e6, 60) * 60 >= 1e6


def test_a_folder_becomes_a_page_and_a_file_that_says_the_same(tmp_path: Path) -> None:
    records = records_of()
    outcomes.write(tmp_path, judge(run_of(records), records), records)
    (tmp_path / "server.json").write_text(json.dumps(recording().as_json()), "utf-8")
    (tmp_path / "faults.json").write_text(
        json.dumps([{"name": "kill", "began_at": STARTED + 10, "ended_at": STARTED + 10}]), "utf-8"
    )
    write(tmp_path, report_of(tmp_path), "ko")
    told = json.loads((tmp_path / "report.json").read_text("utf-8"))
    assert told["faults"][0]["lost"] == 4
    assert EVALUATION in (tmp_path / "report.html").read_text("utf-8")


def test_the_command_says_its_tables_and_refuses_what_is_no_run(tmp_path: Path) -> None:
    records = records_of()
    outcomes.write(tmp_path / "run", judge(run_of(records), records), records)
    command = [sys.executable, "-m", "loadtests.report", "make"]
    options: dict[str, Any] = {"capture_output": True, "text": True, "check": False, "timeout": 60}
    environment = {**os.environ, "COLUMNS": "160"}
    done = subprocess.run([*command, str(tmp_path / "run")], env=environment, **options)
    assert done.returncode == 0, done.stderr
    assert EVALUATION in done.stdout
    refused = subprocess.run([*command, str(tmp_path)], **options)
    assert refused.returncode == 2
    assert "holds no run" in refused.stderr
