"""`python -m loadtests run MIX`: one run, a table, and an exit code that a script can go by.

0: every class keeps its level; 1: one does not; 2: the run may not be believed, or never began.
Starts Locust as a process of its own, which patches sockets for itself alone.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from loadtests.mixes import reading
from loadtests.mixes.reading import MixError
from loadtests.outcomes import ClassResult, Outcome, Verdict
from loadtests.plans import Asked
from loadtests.schedules import ScheduleError, arrivals_in
from loadtests.traffic.wire import BadAddress, checked_url
from services.shared.peers import free_port

LOCUSTFILE = Path(__file__).with_name("locustfile.py")
ROOT = LOCUSTFILE.parents[1]
INVALID = 2
REASONS_SHOWN = 4


@dataclass(frozen=True)
class Order:
    """What `run` is told. `processes` of the client's own, beside one that conducts them."""

    asked: Asked
    out: Path
    processes: int = 1

    def check(self) -> None:
        """What can be known without the server. Raises MixError, ScheduleError, BadAddress."""
        checked_url(self.asked.url)
        mix = self.asked.read_mix()
        rate = mix.rate if self.asked.rate is None else self.asked.rate
        duration_s = mix.duration_s if self.asked.duration_s is None else self.asked.duration_s
        arrivals_in(rate, duration_s)

    def command(self) -> list[str]:
        asked = self.asked
        options: dict[str, object] = {
            "--host": asked.url,
            "--mix": asked.mix,
            "--rate": "" if asked.rate is None else asked.rate,
            "--duration": "" if asked.duration_s is None else asked.duration_s,
            "--seed": asked.seed,
            "--only": ",".join(sorted(asked.only)),
            "--without": ",".join(sorted(asked.without)),
            "--channels": asked.channels_file or "",
            "--out": self.out.absolute(),
        }
        if self.processes > 1:
            port = free_port()
            options |= {
                "--processes": self.processes,
                "--master-bind-port": port,
                "--master-port": port,
            }
        given = [f"{name}={value}" for name, value in options.items() if value != ""]
        locust = [sys.executable, "-m", "locust", "-f", str(LOCUSTFILE)]
        # Without its log, Locust keeps its own table of rounded figures to itself.
        return [*locust, "--headless", "--skip-log-setup", *given]


def carry_out(order: Order) -> int:
    """The run's exit code. Raises MixError, ScheduleError, BadAddress."""
    order.check()
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    process = subprocess.Popen(order.command(), env={**os.environ, "PYTHONPATH": path})
    signal.signal(signal.SIGTERM, lambda *_: process.terminate())
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:
            # It has had the same signal, and ends with what there is by now.
            continue


@click.command()
@click.argument("mix", default="platform-day")
@click.option("--url", default="http://127.0.0.1:3000", show_default=True, help="The gateway.")
@click.option("--rate", type=float, help="Requests a second, mean of all classes. [the mix's]")
@click.option("--duration", type=float, help="Seconds. [the mix's]")
@click.option("--seed", default=1, show_default=True, help="Another one, other texts and times.")
@click.option("--out", default=".run/load", show_default=True, type=click.Path(path_type=Path))
@click.option("--processes", default=1, show_default=True, type=click.IntRange(1, 64))
@click.option("--only", multiple=True, metavar="CLASS", help="This class of the mix; repeat.")
@click.option("--without", multiple=True, metavar="CLASS", help="All but this class; repeat.")
@click.option("--channels", help="File with channels to vet, one a line.")
def run(  # noqa: PLR0917
    mix: str,
    url: str,
    rate: float | None,
    duration: float | None,
    seed: int,
    out: Path,
    processes: int,
    only: Sequence[str],
    without: Sequence[str],
    channels: str | None,
) -> None:
    """Send MIX to a running system, each request when it is due, and judge what came back."""
    asked = Asked(
        mix=mix,
        url=url,
        rate=rate,
        duration_s=duration,
        seed=seed,
        only=frozenset(only),
        without=frozenset(without),
        channels_file=channels,
    )
    try:
        sys.exit(carry_out(Order(asked, out, processes)))
    except (MixError, ScheduleError, BadAddress) as error:
        click.echo(str(error), err=True)
        sys.exit(INVALID)


@click.command()
def mixes() -> None:
    """List the mixes."""
    for name in reading.names():
        click.echo(f"{name:16} {reading.read(name).summary}")


def tell_verdict(verdict: Verdict, folder: Path) -> None:
    """For people, on standard output."""
    console = Console()
    for table in (outcomes_table(verdict), times_table(verdict)):
        console.print(table)
    for name, result in verdict.classes.items():
        reasons = list(result.reasons.items())[:REASONS_SHOWN]
        if reasons:
            told = ", ".join(f"{times} {why}" for why, times in reasons)
            console.print(f"{name}: {told}", highlight=False, markup=False)
    console.print(in_words(verdict), highlight=False, markup=False)
    console.print(str(folder), highlight=False, markup=False)


def outcomes_table(verdict: Verdict) -> Table:
    run = verdict.run
    table = Table(title=f"{run.mix}: {run.rate:g}/s for {run.duration_s:g} s, seed {run.seed}")
    table.add_column("class")
    for column in ("due", *Outcome):
        table.add_column(str(column), justify="right")
    for name, result in verdict.classes.items():
        counted = (str(result.outcomes[outcome]) for outcome in Outcome)
        table.add_row(name, str(result.scheduled), *counted)
    return table


def times_table(verdict: Verdict) -> Table:
    """Seconds from when a request was due, of what was answered."""
    table = Table()
    table.add_column("class")
    for column in ("p50 s", "p95 s", "p99 s", "first p95 s", "tokens/s"):
        table.add_column(column, justify="right")
    table.add_column("good")
    for name, result in verdict.classes.items():
        latency, rate = result.latency_s, result.tokens_per_s["p50"]
        table.add_row(
            name,
            *(_seconds(latency[percent]) for percent in ("p50", "p95", "p99")),
            _seconds(result.first_s["p95"]),
            "" if rate is None else f"{rate:.1f}",
            _level(result),
        )
    return table


def _level(result: ClassResult) -> str:
    level = result.level
    limits = [f"{level.within_s:g} s"]
    if level.first_s is not None:
        limits.append(f"first {level.first_s:g} s")
    if level.tokens_per_s is not None:
        limits.append(f"{level.tokens_per_s:g} tokens/s")
    kept = "kept" if result.is_kept else "[red]not kept[/red]"
    return f"{result.good_share:.1%} of {level.share:.0%} within {', '.join(limits)}: {kept}"


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}" if value < 1 else f"{value:.2f}"


def in_words(verdict: Verdict) -> str:
    """One paragraph: may it be believed, and is it kept."""
    found = verdict.validity
    lag = "" if found.lag_p99_s is None else f"sent {1e3 * found.lag_p99_s:.1f} ms late at p99, "
    said = f"{verdict.goodput:.2f} good a second; {lag}rate off by {found.rate_error:.2%}."
    if not verdict.is_valid:
        return f"INVALID: {'; '.join(found.problems)}. {said}"
    if verdict.is_kept:
        return f"KEPT: every class keeps its level. {said}"
    broken = [name for name, result in verdict.classes.items() if not result.is_kept]
    return f"NOT KEPT: {', '.join(broken)}. {said}"
