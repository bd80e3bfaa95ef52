"""Accuracy and speed of the volume stage: `python -m loadtests.benchmarks.volume`.

Accuracy is over tests/data/volume.jsonl; thresholds were chosen on its calibration split, so the
holdout figure is the one to quote. Times are of one thread, after warm-up: CPU time is what the
stage costs, wall time also waits for whatever else the machine does.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Iterable
from itertools import cycle, islice
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from loadtests.benchmarks.machine import describe_machine
from services.evaluation.volume import VolumeMeter, judge, thresholds_for

LABELLED = Path(__file__).parents[2] / "tests" / "data" / "volume.jsonl"
CHARACTERS = 2_500
WARM_UP_RUNS = 20
TIMED_RUNS = 300

Row = dict[str, Any]


class Judged(NamedTuple):
    row: Row
    is_enough: bool

    @property
    def is_right(self) -> bool:
        return self.is_enough is (self.row["label"] == "enough")


class Timing(NamedTuple):
    """Milliseconds for one text."""

    cpu_p50: float
    cpu_p99: float
    wall_p50: float
    wall_p99: float


def main() -> None:
    console, meter = Console(), VolumeMeter()
    rows = [json.loads(line) for line in LABELLED.read_text("utf-8").splitlines()]
    judged = [_judge(meter, row) for row in rows]
    timings = {kind: _time(meter, text) for kind, text in _long_texts(rows).items()}
    console.print(_accuracy_table(judged), _confusion_table(judged), _timing_table(timings))
    ratios = {
        "accuracy": _accuracy(judged),
        "accuracy_holdout": _accuracy(j for j in judged if j.row["split"] == "holdout"),
        "p99_ms_2500": max(timing.cpu_p99 for timing in timings.values()),
        "p99_wall_ms_2500": max(timing.wall_p99 for timing in timings.values()),
    }
    rounded = {name: round(ratio, 4) for name, ratio in ratios.items()}
    print(json.dumps({"bench": "volume", "ratios": rounded, "machine": describe_machine()}))


def _judge(meter: VolumeMeter, row: Row) -> Judged:
    reading = meter.measure(row["title"], row["content"])
    return Judged(row, judge(reading, thresholds_for(row["media_type"])).is_enough)


def _accuracy(judged: Iterable[Judged]) -> float:
    return statistics.fmean(j.is_right for j in judged)


def _long_texts(rows: list[Row]) -> dict[str, str]:
    """One text of CHARACTERS a kind; prose comes from the proposals labelled enough."""

    def prose(language: str) -> str:
        chosen = (r for r in rows if r["language"] == language and r["label"] == "enough")
        return " ".join(r["content"] for r in chosen)

    def cut(text: str) -> str:
        return "".join(islice(cycle(text), CHARACTERS))

    return {
        "ko": cut(prose("ko")),
        "en": cut(prose("en")),
        "emoji": cut("😀🔥🎬🐶"),
        "unspaced": cut("".join(c for c in prose("ko") if "가" <= c <= "힣")),
    }


def _time(meter: VolumeMeter, text: str) -> Timing:
    cpu_ms, wall_ms = [], []
    for _ in range(WARM_UP_RUNS + TIMED_RUNS):
        cpu, wall = time.thread_time(), time.perf_counter()
        meter.measure("제목", text)
        cpu_ms.append((time.thread_time() - cpu) * 1000)
        wall_ms.append((time.perf_counter() - wall) * 1000)
    cpu_percentiles = statistics.quantiles(cpu_ms[WARM_UP_RUNS:], n=100)
    wall_percentiles = statistics.quantiles(wall_ms[WARM_UP_RUNS:], n=100)
    return Timing(
        cpu_percentiles[49], cpu_percentiles[98], wall_percentiles[49], wall_percentiles[98]
    )


def _accuracy_table(judged: list[Judged]) -> Table:
    table = Table("split", "language", "texts", "right", "accuracy", title="Accuracy")
    for split in ("calibration", "holdout"):
        for language in ("ko", "en"):
            part = [j for j in judged if (j.row["split"], j.row["language"]) == (split, language)]
            right = sum(j.is_right for j in part)
            table.add_row(split, language, str(len(part)), str(right), f"{_accuracy(part):.3f}")
    return table


def _confusion_table(judged: list[Judged]) -> Table:
    table = Table("label", "passed", "failed", "wrong ids", title="Label against judgement")
    for label in ("enough", "thin"):
        part = [j for j in judged if j.row["label"] == label]
        passed = sum(j.is_enough for j in part)
        wrong = " ".join(j.row["id"] for j in part if not j.is_right)
        table.add_row(label, str(passed), str(len(part) - passed), wrong)
    return table


def _timing_table(timings: dict[str, Timing]) -> Table:
    columns = ("text", "CPU p50", "CPU p99", "wall p50", "wall p99")
    table = Table(*columns, title=f"Milliseconds for {CHARACTERS:,} characters")
    for kind, timing in timings.items():
        table.add_row(kind, *(f"{milliseconds:.2f}" for milliseconds in timing))
    return table


if __name__ == "__main__":
    main()
