"""The report as one HTML file that opens without network: styles and charts are in it, scripts are
none, and its policy forbids the browser to load anything. In English or Korean (texts.toml).
"""

from __future__ import annotations

import tomllib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from loadtests.outcomes import Outcome
from loadtests.report import charts
from loadtests.report.charts import Bar, Layer, Line, Span, seconds
from loadtests.report.summary import SPECTRUM, Report

FOLDER = Path(__file__).parent
Language = Literal["en", "ko"]
COLOURS = {
    Outcome.GOOD: charts.GREEN,
    Outcome.LATE: charts.ORANGE,
    Outcome.REJECTED: charts.SKY,
    Outcome.FAILED: charts.VERMILION,
    Outcome.CANCELLED: charts.PURPLE,
    Outcome.UNSENT: charts.GREY,
}
PARTS = {
    "lag": charts.GREY,
    "queueing": charts.ORANGE,
    "service": charts.BLUE,
    "first": charts.YELLOW,
    "rest": charts.SKY,
    "answer": charts.GREEN,
}
SERVER_CHARTS = 18
LINES_PER_CHART = 6
# What is looked at first.
FIRST = ("cpu_seconds", "memory_bytes", "gpu_", "joing_", "vllm", "open_files")


def page(report: Report, language: Language = "en") -> str:
    """The whole file."""
    environment = Environment(
        loader=FileSystemLoader(FOLDER), autoescape=True, undefined=StrictUndefined
    )
    texts = tomllib.loads((FOLDER / "texts.toml").read_text("utf-8"))[language]
    return environment.get_template("page.html").render(
        _Page(report, texts).values(),
        **{
            "language": language,
        },
    )


class _Page:
    """One report's values for the template."""

    def __init__(self, report: Report, texts: Mapping[str, str]) -> None:
        self._report, self._t = report, texts
        self._spans = [self._span(effect) for effect in report["faults"]]

    def values(self) -> dict[str, Any]:
        report, t = self._report, self._t
        run = report["run"]
        started = datetime.fromtimestamp(run["started_at"], UTC)
        return {
            "t": t,
            "run": run,
            "started": f"{started:%Y-%m-%d %H:%M:%S} UTC",
            "run_line": t["run"].format(
                rate=f"{run['rate']:g}", duration=seconds(run["duration_s"]), seed=run["seed"]
            ),
            "verdict": report["verdict"],
            "verdict_line": self._verdict_line(),
            "figures": self._figures(),
            "throughput": self._throughput(),
            "outcomes": [str(outcome) for outcome in Outcome],
            "classes": [self._class(row) for row in report["classes"]],
            "faults": [self._fault(effect) for effect in report["faults"]],
            "latencies": [(row["name"], self._latency(row)) for row in report["classes"]],
            "latency_legend": Markup(
                charts.legend([("p50", charts.BLUE, ""), ("p95", charts.VERMILION, "7 3")])
            ),
            "spectrum": self._spectrum(),
            "parts": self._parts(),
            **self._capacity(),
            "cost": self._cost(),
            **self._server(),
        }

    def _verdict_line(self) -> str:
        verdict = self._report["verdict"]
        if not verdict["is_valid"]:
            return self._t["invalid"]
        if verdict["is_kept"]:
            return self._t["kept"]
        missed = [row["name"] for row in self._report["classes"] if not row["is_kept"]]
        return f"{self._t['not_kept']}: {', '.join(missed)}"

    def _figures(self) -> list[tuple[str, str]]:
        verdict, t = self._report["verdict"], self._t
        counts = [row["outcomes"] for row in self._report["classes"]]
        due = sum(row["scheduled"] for row in self._report["classes"])
        good = sum(count[Outcome.GOOD] for count in counts)
        return [
            (f"{verdict['goodput']:.3g}", t["goodput"]),
            (f"{good:,} / {due:,}", f"{t['good']} / {t['due']}"),
            (seconds(verdict["lag_p99_s"]), t["lag_p99"]),
            (f"{verdict['rate_error']:.2%}", t["rate_error"]),
        ]

    def _span(self, effect: Mapping[str, Any]) -> Span:
        recovered = effect["recovered_s"]
        length_s = self._report["length_s"]
        until = length_s if recovered is None else effect["ended_s"] + recovered
        return Span(effect["name"], effect["began_s"], effect["ended_s"], until)

    def _over_time(self, lines: Sequence[Line], title: str, **options: Any) -> Markup:
        drawn = charts.over_time(
            lines, length_s=self._report["length_s"], title=title, spans=self._spans, **options
        )
        return Markup(drawn)

    def _throughput(self) -> Markup:
        timeline, t = self._report["timeline"], self._t
        step = timeline["step_s"]
        layers = [
            Layer(t[outcome], timeline["outcomes"][outcome], COLOURS[outcome])
            for outcome in Outcome
        ]
        seen = [layer for layer in layers if any(layer.values)]
        corners = [*timeline["due"], timeline["due"][-1]]
        due = Line(
            t["due"],
            [(number * step, value) for number, value in enumerate(corners)],
            charts.BLACK,
            is_stepped=True,
        )
        chart = self._over_time([due], t["throughput"], layers=layers, step_s=step, height=260)
        entries = [(due.label, due.colour, ""), *((o.label, o.colour, "box") for o in seen)]
        return chart + Markup(charts.legend(entries))

    def _class(self, row: Mapping[str, Any]) -> dict[str, Any]:
        level, times = row["level"], row["latency_s"]
        limits = [seconds(level["within_s"])]
        if level["first_s"] is not None:
            limits.append(f"{self._t['part_first']} {seconds(level['first_s'])}")
        if level["tokens_per_s"] is not None:
            limits.append(f"{level['tokens_per_s']:g} tokens/s")
        shown = [*(times[name] for name in ("p50", "p90", "p95", "p99"))]
        return {
            "name": row["name"],
            "level": f"{level['share']:.3g} ≤ {', '.join(limits)}",
            "good": f"{row['good_share']:.1%}",
            "is_kept": row["is_kept"],
            "due": f"{row['scheduled']:,}",
            "times": [seconds(v) for v in (*shown, row["certified_s"], row["first_s"]["p95"])],
            "outcomes": [f"{row['outcomes'][outcome]:,}" for outcome in Outcome],
            "reasons": ", ".join(f"{why} ({times})" for why, times in row["reasons"].items()),
        }

    def _fault(self, effect: Mapping[str, Any]) -> dict[str, Any]:
        t, available = self._t, effect["availability"]
        recovered, detected = effect["recovered_s"], effect["detected_s"]
        return {
            "name": effect["name"],
            "problem": effect["problem"],
            "cells": [
                f"{effect['began_s']:.1f} s",
                seconds(effect["ended_s"] - effect["began_s"]),
                f"{effect['hit']:,}",
                f"{effect['lost']:,}",
                f"{effect['late']:,}",
                "–" if available is None else f"{available:.1%}",
                t["unnoticed"] if detected is None else seconds(detected),
                t["not_recovered"] if recovered is None else seconds(recovered),
            ],
        }

    def _latency(self, row: Mapping[str, Any]) -> Markup:
        found = self._report["latency"][row["name"]]
        at = [(number + 0.5) * found["step_s"] for number in range(len(found["p50"]))]
        lines = [
            Line("p50", list(zip(at, found["p50"], strict=True)), charts.BLUE),
            Line("p95", list(zip(at, found["p95"], strict=True)), charts.VERMILION, "7 3"),
        ]
        limit = row["level"]["within_s"]
        label = f"{self._t['level_line']} {seconds(limit)}"
        return self._over_time(lines, row["name"], limit=(label, limit), height=170)

    def _spectrum(self) -> Markup:
        rows = self._report["classes"]
        styles = [
            (charts.LINES[n % len(charts.LINES)], charts.DASHES[n % len(charts.DASHES)])
            for n in range(len(rows))
        ]
        lines = [
            Line(row["name"], [tuple(pair) for pair in row["spectrum"]], colour, dash)
            for row, (colour, dash) in zip(rows, styles, strict=True)
        ]
        chart = charts.spectrum(lines, SPECTRUM, title=self._t["spectrum"])
        return Markup(chart + charts.legend((o.label, o.colour, o.dash) for o in lines))

    def _parts(self) -> Markup:
        t = self._t
        rows = [
            Bar(f"{row['name']}, {t[which]}", list(row["parts"][which].items()))
            for row in self._report["classes"]
            for which in row["parts"]
        ]
        used = [
            name for name in PARTS if any(name == part for row in rows for part, _ in row.parts)
        ]
        chart = charts.bars(rows, PARTS, lambda name: t[f"part_{name}"], title=t["parts"])
        entries = [(t[f"part_{name}"], PARTS[name], "box") for name in used]
        return Markup(chart + charts.legend(entries))

    def _capacity(self) -> dict[str, Any]:
        found, t = self._report["capacity"], self._t
        if not found:
            return {"capacity": None, "capacity_about": "", "capacity_rows": []}
        names = [row["only"] or t["the_mix"] for row in found]
        spread = [(n, row["holds"], row["breaks"]) for n, row in zip(names, found, strict=True)]
        return {
            "capacity": Markup(charts.bracket(spread, [None] * len(found), title=t["capacity"])),
            "capacity_about": t["capacity_about"].format(
                confidence=f"{found[0]['confidence']:.0%}"
            ),
            "capacity_rows": [
                (
                    name,
                    f"{row['holds']:.3g}",
                    f"{row['breaks']:.3g}" if row["breaks"] else "–",
                    f"{row['bracket']:.1%}" if row["bracket"] is not None else "–",
                    len(row["steps"]),
                    row["problem"] or ", ".join(row["limited_by"]),
                )
                for name, row in zip(names, found, strict=True)
            ],
        }

    def _cost(self) -> list[tuple[str, str, str]]:
        cost = self._report["cost"]
        rows = []
        for kind, by_source in (cost or {"seconds": {}})["seconds"].items():
            each = sorted(by_source.items(), key=lambda pair: -pair[1])
            whole = [(self._t["total"], sum(by_source.values()))] if len(each) > 1 else []
            for source, spent in (*each, *whole):
                per_good = seconds(spent / cost["good"]) if cost and cost["good"] else "–"
                rows.append((f"{self._t[kind]}, {source}", seconds(spent), per_good))
        return rows

    def _server(self) -> dict[str, Any]:
        families: dict[tuple[str, str, str], list[Mapping[str, Any]]] = defaultdict(list)
        for series in self._report["server"] or ():
            families[series["source"], series["name"], series["unit"]].append(series)
        ordered = sorted(families, key=_importance)
        shown = [
            (f"{source}: {name}{unit}", self._family(families[source, name, unit]))
            for source, name, unit in ordered[:SERVER_CHARTS]
        ]
        left = len(ordered) - len(shown)
        more = self._t["more"].format(count=left) if left > 0 else ""
        return {"server": shown, "server_more": more}

    def _family(self, series: Sequence[Mapping[str, Any]]) -> Markup:
        """Its highest lines; a label for each where there is more than one."""
        highest = sorted(series, key=lambda one: -max(value for _, value in one["points"]))
        lines = [
            Line(
                one["labels"] or one["name"],
                [tuple(point) for point in one["points"]],
                charts.LINES[number],
                charts.DASHES[number],
            )
            for number, one in enumerate(highest[:LINES_PER_CHART])
        ]
        chart = self._over_time(lines, series[0]["name"], height=130)
        if len(series) == 1 and not series[0]["labels"]:
            return chart
        more = len(series) - len(lines)
        entries = [(line.label, line.colour, line.dash) for line in lines]
        if more:
            entries.append((self._t["more"].format(count=more), "#fff", ""))
        return chart + Markup(charts.legend(entries))


def _importance(family: tuple[str, str, str]) -> tuple[int, str, str]:
    source, name, _ = family
    place = next((n for n, prefix in enumerate(FIRST) if name.startswith(prefix)), len(FIRST))
    return place, name, source
