"""Runs of the real command against the analytic server: real Locust, real sockets, processes of
their own.

What depends on the machine being fast is held only where the run itself says that it was.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest

from loadtests import outcomes, self_test
from loadtests.analytic import ENDINGS, Behaviour
from loadtests.outcomes import Outcome, Record
from loadtests.self_test import Bench, environment, probe_mix
from services.shared.peers import free_port

BEHAVIOUR = Behaviour(stall_every_s=4.0, stall_s=1.2, late_s=0.6)
LIMIT_S = 60.0


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    with self_test.bench(BEHAVIOUR) as bench:
        yield bench


def started(bench: Bench, out: Path, *more: str, **probe: object) -> subprocess.Popen[str]:
    mix = out.parent / "mix.toml"
    mix.write_text(probe_mix(**probe), "utf-8")  # type: ignore[arg-type]
    command = [sys.executable, "-m", "loadtests", "run", str(mix), "--url", bench.url]
    return subprocess.Popen(
        [*command, "--out", str(out), *more],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_until_sending(
    bench: Bench, running: subprocess.Popen[str], processes: int
) -> list[psutil.Process]:
    """Those that send, once all of them do and have done so for a while."""
    port = urlsplit(bench.url).port
    until = time.monotonic() + 40
    while time.monotonic() < until:
        below = psutil.Process(running.pid).children(recursive=True)
        senders = below if processes == 1 else below[1:]
        if len(senders) == processes and all(
            any(c.raddr and c.raddr.port == port for c in sender.net_connections())
            for sender in senders
        ):
            time.sleep(3.5)  # the server is asked once before, and two seconds lie between
            return senders
        time.sleep(0.1)
    raise AssertionError("nothing was sent within 40 s")


def whole(records: list[Record], count: int) -> Counter[Outcome]:
    """Every arrival is there once."""
    assert [record.number for record in records] == list(range(count))
    return Counter(record.outcome for record in records)


@pytest.mark.parametrize("processes", [1, 2])
def test_every_ending_is_told_apart_and_counted_once(bench: Bench, processes: int) -> None:
    done = bench.run(
        18, 3, path="/endings", streamed=True, within_s=0.6, patience_s=1.6, processes=processes
    )
    counted = whole(list(done.records), 54)
    if done.verdict.is_valid:
        expected = Counter(ENDINGS[record.item % len(ENDINGS)] for record in done.records)
        assert counted == expected
    assert counted[Outcome.REJECTED] == 12
    assert counted[Outcome.UNSENT] == 0
    assert {record.process for record in done.records} == set(range(processes))
    refused = [r for r in done.records if r.outcome is Outcome.REJECTED]
    assert {(r.status, r.retry_after_s) for r in refused} == {(429, 1.0), (503, 1.0)}
    assert done.exit_code in (1, 2)
    assert done.exit_code == done.verdict.exit_code


def test_a_stall_is_measured_as_everyone_met_it(bench: Bench) -> None:
    done = bench.run(25, 8, path="/stalled", within_s=0.3)
    counted = whole(list(done.records), 200)
    assert counted[Outcome.GOOD] + counted[Outcome.LATE] == 200
    start = done.verdict.run.started_at
    truths = [BEHAVIOUR.stalled_s(start + record.due_s) for record in done.records]
    # Nobody was answered before the server was free, whatever else the machine did.
    for record, truth in zip(done.records, truths, strict=True):
        assert record.latency_s is not None
        assert record.latency_s > truth - 0.005
    if not done.verdict.is_valid:
        pytest.skip("the machine was too busy for this run to say anything about time")
    result = done.verdict.classes["probe"]
    true_p95 = outcomes.percentile(truths, 95)
    assert result.latency_of_all_s["p95"] == pytest.approx(true_p95, rel=0.05)
    true_share = sum(truth <= 0.3 for truth in truths) / len(truths)
    assert result.good_share == pytest.approx(true_share, abs=0.03)


@pytest.mark.parametrize(("number", "processes"), [(signal.SIGINT, 1), (signal.SIGTERM, 2)])
def test_an_interrupted_run_accounts_for_what_it_did_not_send(
    bench: Bench, tmp_path: Path, number: signal.Signals, processes: int
) -> None:
    out = tmp_path / "run"
    probe = {"path": "/endings", "within_s": 5, "patience_s": 50}
    more = ("--rate", "10", "--duration", "100", "--processes", str(processes))
    running = started(bench, out, *more, **probe)
    wait_until_sending(bench, running, processes)
    # A terminal sends its interrupt to all of them, a supervisor its signal to the first.
    if number is signal.SIGINT:
        os.killpg(running.pid, number)
    else:
        running.send_signal(number)
    told, _ = running.communicate(timeout=LIMIT_S)
    records = list(outcomes.read_records(out))
    counted = whole(records, 1_000)
    assert counted[Outcome.UNSENT] > 800
    assert counted[Outcome.UNSENT] < 1_000
    stopped = {r.reason for r in records if r.outcome in (Outcome.UNSENT, Outcome.CANCELLED)}
    assert stopped == {"stopped"}
    assert running.returncode == 2
    assert "INVALID" in told


def test_a_process_that_dies_takes_its_requests_with_it_and_the_run(
    bench: Bench, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    more = ("--rate", "20", "--duration", "9", "--processes", "2")
    running = started(bench, out, *more, path="/queued", within_s=5)
    workers = wait_until_sending(bench, running, 2)
    workers[0].kill()
    told, _ = running.communicate(timeout=LIMIT_S)
    records = list(outcomes.read_records(out))
    counted = whole(records, 180)
    lost = [record for record in records if record.reason == "process lost"]
    assert counted[Outcome.UNSENT] == len(lost) > 0
    assert len({record.number % 2 for record in lost}) == 1
    assert running.returncode == 2
    assert "lost with a process" in told


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["no-such-mix"], "platform-day"),
        (["platform-day", "--rate", "0"], "rate is 0: it has to be over 0"),
        (["platform-day", "--url", "localhost"], "http://127.0.0.1:3000"),
        (["platform-day", "--without", "brew"], "--without brew"),
    ],
)
def test_what_cannot_be_run_is_told_before_anything_starts(given: list[str], told: str) -> None:
    command = [sys.executable, "-m", "loadtests", "run", *given]
    done = subprocess.run(
        command, env=environment(), capture_output=True, text=True, timeout=LIMIT_S, check=False
    )
    assert done.returncode == 2
    assert told in done.stderr
    assert "Traceback" not in done.stderr


def test_a_server_that_is_away_is_told(bench: Bench, tmp_path: Path) -> None:
    away = Bench(f"http://127.0.0.1:{free_port()}", BEHAVIOUR, tmp_path)
    running = started(away, tmp_path / "run", path="/stalled", within_s=1)
    _, told = running.communicate(timeout=LIMIT_S)
    assert running.returncode == 2
    assert "does not answer" in told
    assert "python -m bentos serve" in told
    assert not (tmp_path / "run").exists()


def test_a_server_that_cannot_serve_a_class_is_told(bench: Bench) -> None:
    command = [sys.executable, "-m", "loadtests", "run", "chat-ramp", "--url", bench.url]
    done = subprocess.run(
        command, env=environment(), capture_output=True, text=True, timeout=LIMIT_S, check=False
    )
    assert done.returncode == 2
    assert "classes.chat: GET /v1/models answered 404" in done.stderr
