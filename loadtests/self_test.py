"""Tests the instrument against a server whose answers can be worked out (loadtests/analytic.py).

Each part runs the real command in processes of its own and sets what it measured beside the truth.
A part whose run calls itself invalid proves nothing either way and is told as such: the machine was
busy. Exit code 0: everything within its bound; 1: something is not; 2: nothing is wrong, but some
run was invalid.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import click
import httpx
from rich.console import Console
from rich.table import Table

from loadtests import outcomes
from loadtests.analytic import ENDINGS, LAST, Behaviour
from loadtests.outcomes import Outcome, Record, Verdict
from loadtests.plans import Asked
from loadtests.run import Order
from services.shared.peers import free_port

ROOT = Path(__file__).resolve().parents[1]
START_S = 60.0
RUN_LIMIT_S = 600.0
LIMIT_S = 0.5
CLOSED_USERS = 20
MIN_WIDTH = 150
P95_ERROR, GOODPUT_ERROR, FIRST_ERROR_S = 0.02, 0.01, 0.003
RATES = (50.0, 100.0, 200.0)


@dataclass(frozen=True)
class Finding:
    """`is_within` None: the run was invalid, or there is nothing to keep."""

    what: str
    measured: str
    truth: str
    bound: str = ""
    is_within: bool | None = None


@dataclass(frozen=True)
class Done:
    """A run and its records, `exit_code` as the command gave it."""

    verdict: Verdict
    records: Sequence[Record]
    exit_code: int

    def within(self, is_within: bool) -> bool | None:
        return is_within if self.verdict.is_valid else None


@dataclass
class Bench:
    """Runs mixes of probes against one analytic server."""

    url: str
    behaviour: Behaviour
    folder: Path
    runs: int = field(default=0)

    def run(self, rate: float, duration_s: float, *, processes: int = 1, **probe: Any) -> Done:
        self.runs += 1
        mix, out = self.folder / f"probe-{self.runs}.toml", self.folder / f"run-{self.runs}"
        mix.write_text(probe_mix(**probe), "utf-8")
        order = Order(Asked(str(mix), self.url, rate, duration_s, self.runs), out, processes)
        done = run_command(order.command())
        if not (out / outcomes.RECORDS).exists():
            raise RuntimeError(f"The run left no records:\n{done.stdout}\n{done.stderr}")
        records = list(outcomes.read_records(out))
        return Done(outcomes.read_verdict(out), records, done.returncode)


def probe_mix(
    *, path: str, within_s: float, patience_s: float = 30.0, streamed: bool = False
) -> str:
    """A mix of one class of probes, as TOML. Evenly spread: the truth is then known best."""
    ends = f', ends_with = "{LAST}"' if streamed else ""
    return f"""rate = 1
duration_s = 1
[classes.probe]
share = 1
within_s = {within_s}
patience_s = {patience_s}
options = {{ path = "{path}", streamed = {str(streamed).lower()}{ends} }}
"""


@contextmanager
def bench(behaviour: Behaviour) -> Iterator[Bench]:
    """An analytic server in a process of its own; stopped at the end."""
    port = free_port()
    settings = [f"--set={name}={value}" for name, value in asdict(behaviour).items()]
    command = [sys.executable, "-m", "loadtests.analytic", f"--port={port}", *settings]
    server = subprocess.Popen(command, cwd=ROOT, env=environment())
    url = f"http://127.0.0.1:{port}"
    try:
        wait_for(url, server)
        with tempfile.TemporaryDirectory(prefix="joing-loadtests-") as folder:
            yield Bench(url, behaviour, Path(folder))
    finally:
        server.terminate()
        try:
            server.wait(10)
        except subprocess.TimeoutExpired:
            server.kill()


def wait_for(url: str, server: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + START_S
    while time.monotonic() < until:
        if server.poll() is not None:
            raise RuntimeError(f"The analytic server stopped with {server.returncode}.")
        try:
            httpx.get(f"{url}/livez", timeout=5)
        except httpx.HTTPError:
            time.sleep(0.1)
        else:
            return
    raise RuntimeError(f"The analytic server was not ready after {START_S:g} s.")


def environment(**more: str) -> dict[str, str]:
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path, **more}


def run_command(command: Sequence[str], **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        env=environment(**more),
        capture_output=True,
        text=True,
        timeout=RUN_LIMIT_S,
        check=False,
    )


def stall(bench: Bench, rate: float, duration_s: float, processes: int) -> list[Finding]:
    """Coordinated omission: what everybody who was to come would have met."""
    done = bench.run(rate, duration_s, path="/stalled", within_s=LIMIT_S, processes=processes)
    start = done.verdict.run.started_at
    truths = [bench.behaviour.stalled_s(start + record.due_s) for record in done.records]
    true_p95 = outcomes.percentile(truths, 95) or 0.0
    true_share = sum(truth <= LIMIT_S for truth in truths) / len(truths)
    result = done.verdict.classes["probe"]
    p95 = result.latency_of_all_s["p95"] or 0.0
    p95_error, share_error = abs(p95 / true_p95 - 1), abs(result.good_share - true_share)
    return [
        Finding(
            f"stalls, open loop at {rate:g}/s: p95",
            f"{p95:.3f} s ({p95_error:.2%} off)",
            f"{true_p95:.3f} s",
            f"{P95_ERROR:.0%}",
            done.within(p95_error <= P95_ERROR),
        ),
        Finding(
            f"stalls, open loop at {rate:g}/s: within {LIMIT_S:g} s",
            f"{result.good_share:.1%} of {len(truths)}",
            f"{true_share:.1%}",
            "1 point",
            done.within(share_error <= GOODPUT_ERROR),
        ),
    ]


def closed_loop(bench: Bench, rate: float, duration_s: float) -> list[Finding]:
    """The same server as Locust's usual users see it. Nothing to keep: it is why we do not."""
    file = Path(__file__).with_name("closed_loop.py")
    command = [
        *(sys.executable, "-m", "locust", "-f", str(file), "--headless", "--skip-log-setup"),
        *("--host", bench.url, "--users", str(CLOSED_USERS), "--spawn-rate", str(CLOSED_USERS)),
        *("--run-time", f"{duration_s:g}s", "--only-summary"),
    ]
    told = run_command(
        command,
        LOADTESTS_LIMIT_S=str(LIMIT_S),
        LOADTESTS_RATE_OF_ONE=str(rate / CLOSED_USERS),
    ).stdout
    reported = json.loads(told.strip().splitlines()[-1])
    behaviour = bench.behaviour
    name = f"stalls, closed loop at {rate:g}/s, {CLOSED_USERS} users"
    return [
        Finding(
            f"{name}: p95",
            f"{reported['p95_s']:.3f} s",
            f"{behaviour.stalled_percentile_s(95):.3f} s",
        ),
        Finding(
            f"{name}: within {LIMIT_S:g} s",
            f"{reported['share_within']:.1%} of {reported['requests']}",
            f"{behaviour.stalled_share_within(LIMIT_S):.1%}",
        ),
    ]


def first_token(bench: Bench, rate: float, duration_s: float, processes: int) -> list[Finding]:
    """When the client saw the first token, against when the server wrote it."""
    done = bench.run(
        rate, duration_s, path="/stream", within_s=5, streamed=True, processes=processes
    )
    start = done.verdict.run.started_at
    errors = [
        start + record.first_s - float(record.detail["first_data"])
        for record in done.records
        if record.first_s is not None
    ]
    p50, p99 = (outcomes.percentile(errors, percent) or 0.0 for percent in (50, 99))
    return [
        Finding(
            f"first token at {rate:g}/s",
            f"{1e3 * p50:.2f} ms late at p50, {1e3 * p99:.2f} at p99",
            "0 ms",
            f"{1e3 * FIRST_ERROR_S:g} ms at p99",
            done.within(p99 <= FIRST_ERROR_S),
        )
    ]


def queue(bench: Bench, share_of_capacity: float, duration_s: float) -> list[Finding]:
    """A server at a known share of what it can do: who is refused, and how long the others wait."""
    rate = share_of_capacity * bench.behaviour.capacity
    done = bench.run(rate, duration_s, path="/queued", within_s=5)
    truths = bench.behaviour.queued_s([record.due_s for record in done.records])
    refused = truths.count(None)
    rejected = done.verdict.classes["probe"].outcomes[Outcome.REJECTED]
    true_p50 = outcomes.percentile([t for t in truths if t is not None], 50) or 0.0
    p50 = done.verdict.classes["probe"].latency_s["p50"] or 0.0
    error = abs(rejected - refused) / len(truths)
    return [
        Finding(
            f"queue at {share_of_capacity:g} of capacity",
            f"{rejected} refused, p50 {p50:.3f} s",
            f"{refused} refused, p50 {true_p50:.3f} s",
            "1 point refused",
            done.within(error <= GOODPUT_ERROR),
        )
    ]


def endings(bench: Bench, rate: float, duration_s: float, processes: int) -> list[Finding]:
    """Every ending is told apart, every arrival is there once; whether the run was valid or not."""
    limits = {"within_s": bench.behaviour.late_s, "patience_s": bench.behaviour.late_s + 2}
    done = bench.run(
        rate, duration_s, path="/endings", streamed=True, processes=processes, **limits
    )
    counted = Counter(record.outcome for record in done.records)
    expected = Counter(ENDINGS[record.item % len(ENDINGS)] for record in done.records)
    numbers = [record.number for record in done.records]
    is_whole = numbers == list(range(round(rate * duration_s)))
    return [
        Finding(
            f"endings, {processes} processes",
            ", ".join(f"{counted[outcome]} {outcome}" for outcome in Outcome),
            ", ".join(f"{expected[outcome]} {outcome}" for outcome in Outcome),
            "exactly",
            is_whole and counted == expected,
        )
    ]


def dispatch(bench: Bench, rate: float, duration_s: float, processes: int) -> list[Finding]:
    """How punctually requests go out."""
    done = bench.run(rate, duration_s, path="/queued", within_s=5, processes=processes)
    found = done.verdict.validity
    p50, p99 = found.lag_p50_s or 0.0, found.lag_p99_s or 0.0
    return [
        Finding(
            f"sent at {rate:g}/s, {processes} processes",
            f"{1e3 * p50:.2f} ms late at p50, {1e3 * p99:.2f} at p99; rate "
            f"{found.rate_error:.3%} off",
            f"{len(done.records)} requests",
            "5 ms, 1 %",
            done.within(True),
        )
    ]


def whole(seconds: float, rates: Sequence[float], processes: int) -> Iterator[Finding]:
    behaviour = Behaviour()
    with bench(behaviour) as stage:
        yield from endings(stage, 20, min(seconds, 9.0), 1)
        yield from endings(stage, 20, min(seconds, 9.0), 2)
        # Whole periods, so that as many arrivals meet a stall as the share of stalls says.
        periods_s = behaviour.stall_every_s * max(1, round(seconds / behaviour.stall_every_s))
        yield from stall(stage, 50, periods_s, processes)
        yield from closed_loop(stage, 50, periods_s)
        yield from first_token(stage, 20, seconds, processes)
        for share in (0.5, 2.0):
            yield from queue(stage, share, seconds)
    with bench(Behaviour(servers=64, queue=4_096)) as fast:
        for rate in rates:
            yield from dispatch(fast, rate, seconds, processes)


@click.command()
@click.option("--seconds", default=20.0, show_default=True, type=click.FloatRange(3, 600))
@click.option("--rate", "rates", multiple=True, type=float, help="To send at; repeat.")
@click.option("--processes", default=1, show_default=True, type=click.IntRange(1, 16))
def self_test(seconds: float, rates: Sequence[float], processes: int) -> None:
    """Set what the instrument measures beside what it should have: a table, then a line of JSON."""
    found = []
    for finding in whole(seconds, rates or RATES, processes):
        found.append(finding)
        print(f"{finding.what}: {finding.measured}; {finding.truth}", file=sys.stderr, flush=True)
    console = Console()
    console.width = max(console.width, MIN_WIDTH)
    console.print(as_table(found))
    print(json.dumps([asdict(finding) for finding in found], ensure_ascii=False))
    sys.exit(exit_code(found))


def as_table(found: Sequence[Finding]) -> Table:
    table = Table(title="The instrument against its analytic server")
    for column in ("", "measured", "truth", "bound", ""):
        table.add_column(column)
    words = {True: "within", False: "[red]NOT WITHIN[/red]"}
    for finding in found:
        verdict = words.get(finding.is_within, "invalid run" if finding.bound else "")
        table.add_row(finding.what, finding.measured, finding.truth, finding.bound, verdict)
    return table


def exit_code(found: Sequence[Finding]) -> int:
    bounded = [finding.is_within for finding in found if finding.bound]
    return 1 if False in bounded else 2 if None in bounded else 0
