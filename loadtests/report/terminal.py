"""The report's end in a terminal: what else there is beside the run's own table."""

from __future__ import annotations

from collections.abc import Iterator

from rich.table import Table

from loadtests.report.charts import seconds
from loadtests.report.summary import Report


def tables(report: Report) -> Iterator[Table]:
    """Classes, and where there are any: faults, capacity, cost."""
    yield _classes(report)
    for make in (_faults, _capacity, _cost):
        table = make(report)
        if table.row_count:
            yield table


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title)
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left")
    return table


def _classes(report: Report) -> Table:
    run = report["run"]
    table = _table(
        f"{run['mix']}: {run['rate']:g}/s for {run['duration_s']:g} s",
        *("class", "due", "good", "needs", "p50", "p95", "p99", "certified", "first p95"),
    )
    for row in report["classes"]:
        times, colour = row["latency_s"], "" if row["is_kept"] else "[red]"
        table.add_row(
            row["name"],
            f"{row['scheduled']:,}",
            f"{colour}{row['good_share']:.1%}",
            f"{row['level']['share']:.1%} in {seconds(row['level']['within_s'])}",
            *(seconds(times[name]) for name in ("p50", "p95", "p99")),
            seconds(row["certified_s"]),
            seconds(row["first_s"]["p95"]),
        )
    return table


def _faults(report: Report) -> Table:
    columns = ("fault", "at", "hit", "lost", "late", "noticed after", "recovered after")
    table = _table("Faults", *columns)
    for row in report["faults"]:
        recovered = row["recovered_s"]
        table.add_row(
            row["name"],
            f"{row['began_s']:.1f} s",
            *(f"{row[name]:,}" for name in ("hit", "lost", "late")),
            seconds(row["detected_s"]),
            "not at all" if recovered is None else seconds(recovered),
        )
    return table


def _capacity(report: Report) -> Table:
    table = _table("Capacity, requests a second", "of", "holds", "does not hold", "limited by")
    for row in report["capacity"]:
        table.add_row(
            row["only"] or "the mix",
            f"{row['holds']:.3g}",
            f"{row['breaks']:.3g}" if row["breaks"] else "–",
            row["problem"] or ", ".join(row["limited_by"]),
        )
    return table


def _cost(report: Report) -> Table:
    table = _table("Cost of a good request", "of", "seconds", "for each good request")
    cost = report["cost"] or {"seconds": {}, "good": 0}
    for kind, by_source in cost["seconds"].items():
        for source, spent in by_source.items():
            each = seconds(spent / cost["good"]) if cost["good"] else "–"
            table.add_row(f"{kind} of {source}", seconds(spent), each)
    return table
