"""Accuracy and speed of the volume stage: `python -m loadtests.benchmarks.volume`.

Accuracy is over tests/data/volume.jsonl; thresholds were chosen on its calibration split, so the
holdout figure is the one to quote. Times are of one thread, after warm-up.
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
    p50_ms: float
    p99_ms: float


def main() -> None:
    console, meter = Console(), VolumeMeter()
    rows = [json.loads(line) for line in LABELLED.read_text("utf-8").splitlines()]
    judged = [_judge(meter, row) for row in rows]
    timings = {kind: _time(meter, text) for kind, text in _long_texts(rows).items()}
    console.print(_accuracy_table(judged), _confusion_table(judged), _timing_table(timings))
    ratios = {
        "accuracy": _accuracy(judged),
        "accuracy_holdout": _accuracy(j for j in judged if j.row["split"] == "holdout"),
        "p99_ms_2500": max(timing.p99_ms for timing in timings.values()),
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
    spent = []
    for _ in range(WARM_UP_RUNS + TIMED_RUNS):
        started = time.perf_counter()
        meter.measure("제목", text)
        spent.append((time.perf_counter() - started) * 1000)
    percentiles = statistics.quantiles(spent[WARM_UP_RUNS:], n=100)
    return Timing(p50_ms=percentiles[49], p99_ms=percentiles[98])


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
    table = Table("text", "p50 ms", "p99 ms", title=f"Time for {CHARACTERS:,} characters")
    for kind, timing in timings.items():
        table.add_row(kind, f"{timing.p50_ms:.2f}", f"{timing.p99_ms:.2f}")
    return table


if __name__ == "__main__":
    main()
