"""What benchmarks report, and the proposals that they send. No model, no service."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import islice

import pytest
from rich.console import Console

from loadtests.benchmarks import measuring, report, summary, volume
from loadtests.benchmarks.machine import describe_machine
from loadtests.benchmarks.recorded_calls import Evaluated, RecordedCall
from loadtests.benchmarks.summary import Accounts, Block, Judged, Pair, Samples
from services.evaluation.volume import VolumeMeter, judge, thresholds_for
from services.shared.proposals import Proposal

MACHINE_KEYS = {"cpu", "cores", "memory_gib", "python", "platform"}
ACCOUNTS = Accounts(
    latency_s=5.010,
    asking_s=5.004,
    calls=3,
    calls_in_a_row=2,
    transport_s=0.015,
    replay_s=4.9,
    bare_transport_s=0.006,
    tokens_agree=True,
)
SAMPLES = Samples(
    accounts=[ACCOUNTS] * 3,
    judged=[Judged(together_s=4.0, in_order_s=6.0)] * 3,
    pairs_16=[Pair(system_s=10.0, direct_s=9.6, tokens_agree=True)] * 16,
    ours_16=[Block(evaluations=16, seconds=20.0, calls=48, completion_tokens=5_000)],
    original_16=[Block(evaluations=16, seconds=80.0, calls=48, completion_tokens=20_000)],
    ours_32=[Block(evaluations=32, seconds=20.0, calls=96, completion_tokens=10_000)],
    direct_32=[Block(evaluations=32, seconds=19.0, calls=96, completion_tokens=10_000)],
    first_token_cached_s=[0.2] * 10,
    first_token_uncached_s=[1.0] * 10,
)


def test_the_last_line_of_the_evaluation_benchmark_is_json_with_every_ratio() -> None:
    line = report.last_line("evaluation", summary.findings(SAMPLES), describe_machine())
    assert "\n" not in line
    told = json.loads(line)
    assert set(told) == {"bench", "ratios", "machine"}
    assert told["bench"] == "evaluation"
    assert set(told["machine"]) == MACHINE_KEYS
    assert told["ratios"] == {
        "overhead_ms_1": 12.0,  # 6 ms around the calls, 3 ms more than a bare client in each
        "overhead_pct_16": 4.0,
        "throughput_32": 0.95,
        "parallel_stages": 1.5,
        "prefix_cache": 5.0,
        "vs_original": 4.0,
    }


def test_the_last_line_of_the_volume_benchmark_is_json_with_every_ratio(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(volume, "WARM_UP_RUNS", 1)
    monkeypatch.setattr(volume, "TIMED_RUNS", 3)
    volume.main()
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told["bench"] == "volume"
    assert set(told["machine"]) == MACHINE_KEYS
    assert set(told["ratios"]) == {
        "accuracy",
        "accuracy_holdout",
        "p99_ms_2500",
        "p99_wall_ms_2500",
    }


def test_the_table_shows_what_was_measured_and_nothing_else() -> None:
    only = Samples(judged=SAMPLES.judged, accounts=SAMPLES.accounts)
    found = summary.findings(only)
    assert set(found) == {"overhead_ms_1", "parallel_stages"}
    console = Console(width=160)
    with console.capture() as shown:
        console.print(report.table("Evaluation", summary.RATIOS, found))
    assert "prefix_cache" not in shown.get()
    assert "3 of 3 with equal tokens" in shown.get()


def test_pairs_that_wrote_different_texts_are_left_out() -> None:
    odd = Pair(system_s=100.0, direct_s=1.0, tokens_agree=False)
    samples = Samples(pairs_16=[*SAMPLES.pairs_16, odd])
    assert summary.findings(samples)["overhead_pct_16"].value == pytest.approx(4.0)


def test_a_call_that_was_not_made_is_no_gain() -> None:
    """Half the calls in half the time is the same speed."""
    lazy = replace(SAMPLES.ours_16[0], seconds=10.0, calls=24)
    samples = replace(SAMPLES, ours_16=[lazy])
    assert summary.findings(samples)["vs_original"].value == pytest.approx(4.0)


def call(node: str, started_s: float, duration_s: float, attempt: int = 1) -> RecordedCall:
    return RecordedCall(
        node,
        attempt,
        f"{node}@2",
        [],
        completion_tokens=10,
        started_s=started_s,
        duration_s=duration_s,
    )


def test_time_in_calls_counts_what_overlaps_once() -> None:
    calls = (call("content", 0, 3), call("deliberation", 1, 1), call("summary", 4, 2))
    assert Evaluated("0", {}, 7.0, calls).asking_s == pytest.approx(5.0)
    assert Evaluated("0", {}, 7.0, calls).calls_in_a_row == 2
    again = (*calls, call("deliberation", 2, 1, attempt=2))
    assert Evaluated("0", {}, 7.0, again).calls_in_a_row == 3


def test_every_proposal_has_enough_volume_and_begins_like_no_other() -> None:
    meter = VolumeMeter()
    rows = list(islice(measuring.unique_proposals(), 32))
    for row in rows:
        proposal = Proposal.model_validate(row)
        judgement = judge(
            meter.measure(proposal.title, proposal.content), thresholds_for(proposal.media_type)
        )
        assert judgement.is_enough, (proposal.title, judgement.problems)
        assert proposal.answer_language == "en"
    assert len({row["title"][:12] for row in rows}) == len(rows)
