"""The capacity search against queues whose capacity is known by formula.

A queue with c servers, exponential gaps and exponential service (M/M/c) has a latency whose tail is
known in closed form, and with it the highest rate at which a level is kept.
"""

from __future__ import annotations

import heapq
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from loadtests import capacity
from loadtests.capacity import (
    Bounds,
    CannotBelieve,
    Capacity,
    Floor,
    FloorError,
    Seen,
    Trial,
    exit_code,
    read_floor,
    search,
)
from loadtests.mixes import reading
from loadtests.outcomes import Level, Outcome, Record, Run
from loadtests.probing import LoadProbe, as_json, seen_in, write
from loadtests.statistics import Finding

LEVEL = Level(within_s=1.9, share=0.9, patience_s=60.0)


@dataclass(frozen=True)
class Queue:
    """`servers`, each doing `each_per_s` requests a second; `shares` of classes share them all."""

    servers: int
    each_per_s: float

    def tail(self, rate: float, seconds: float) -> float:
        """Probability that a request takes longer than `seconds`: waiting with Erlang's C, then
        exponential, plus service.
        """
        load, blocked = rate / self.each_per_s, 1.0
        for server in range(1, self.servers + 1):
            blocked = load * blocked / (server + load * blocked)
        waits = blocked / (1 - load / self.servers * (1 - blocked))
        served, free = self.each_per_s, self.servers * self.each_per_s - rate
        both = free * math.exp(-served * seconds) - served * math.exp(-free * seconds)
        return (1 - waits) * math.exp(-served * seconds) + waits * both / (free - served)

    def capacity(self, level: Level) -> float:
        low, high = 0.001, self.servers * self.each_per_s  # not 0: equal rates divide by 0
        for _ in range(50):
            middle = (low + high) / 2
            is_kept = self.tail(middle, level.within_s) <= 1 - level.share
            low, high = (middle, high) if is_kept else (low, middle)
        return low

    def latencies(self, trial: Trial) -> tuple[np.ndarray, np.ndarray]:
        """When each request was due, and what it took, from empty queues on."""
        random, count = np.random.default_rng(trial.seed), round(trial.rate * trial.duration_s)
        due = np.cumsum(random.exponential(1 / trial.rate, count))
        work = random.exponential(1 / self.each_per_s, count)
        free_at, ends = [0.0] * self.servers, []
        for at, takes in zip(due.tolist(), work.tolist(), strict=True):
            ends.append(max(at, free_at[0]) + takes)
            heapq.heapreplace(free_at, ends[-1])
        return due, np.array(ends) - due

    def probe(self, levels: Mapping[str, Level], shares: Mapping[str, float]) -> capacity.Probe:
        names = list(shares)
        weights = np.array([shares[name] for name in names]) / sum(shares.values())

        def run(trial: Trial) -> dict[str, Seen]:
            due, latency = self.latencies(trial)
            counts = due >= capacity.WARM_UP * trial.duration_s
            of = np.random.default_rng(trial.seed + 1).choice(len(names), len(due), p=weights)
            if trial.only is not None:
                of[:] = names.index(trial.only)
            return {
                name: seen(latency[counts & (of == at)], levels[name])
                for at, name in enumerate(names)
            }

        return run


def seen(latency: np.ndarray, level: Level) -> Seen:
    return Seen(latency.tolist(), (latency <= level.within_s).tolist())


SIXTEEN = Queue(16, 2.0)
ALONE = {"evaluation": LEVEL}, {"evaluation": 1.0}


def test_the_formula_is_right_about_the_simulator() -> None:
    _, latency = SIXTEEN.latencies(Trial(29.0, 20_000.0, 1))
    assert (latency > 1.5).mean() == pytest.approx(SIXTEEN.tail(29.0, 1.5), rel=0.15)


def test_the_answer_is_within_5_per_cent_of_the_truth_in_95_of_100_seeds() -> None:
    queue, level = Queue(32, 2.0), Level(within_s=2.0, share=0.95, patience_s=60.0)
    asked = {"evaluation": level}, {"evaluation": 1.0}
    truth, bounds = queue.capacity(level), Bounds(first=16.0, longest_s=450.0)
    found = [
        search(queue.probe(*asked), *asked, bounds=bounds, seed=1_000 * seed) for seed in range(100)
    ]
    assert sum(0.95 <= c.holds / truth <= 1.05 for c in found) >= 95
    assert sum(c.holds > truth for c in found) <= 5, "what is certified to hold does not"
    assert all(c.bracket is not None and c.bracket <= 0.05 for c in found)
    assert all(c.problem is None and c.limited_by == ("evaluation",) for c in found)


def test_what_holds_was_certified_with_enough_requests_and_last_at_the_longest() -> None:
    found = search(SIXTEEN.probe(*ALONE), *ALONE, bounds=Bounds(first=8.0, longest_s=400.0))
    last = found.steps[-1]
    assert (last.trial.rate, last.trial.duration_s) == (found.holds, 400.0)
    assert last.finding is Finding.KEPT
    at_rate = [step for step in found.steps if step.trial.rate == found.holds]
    assert len(at_rate) >= 2
    for step in found.steps:
        judged = step.classes["evaluation"]
        assert step.finding is not Finding.KEPT or judged.independent >= 64
    assert len({step.trial.seed for step in found.steps}) == len(found.steps)


def test_the_mix_holds_what_its_strictest_class_does_and_each_alone_its_own() -> None:
    strict, loose = (Level(within_s=s, share=0.9, patience_s=60.0) for s in (1.6, 4.0))
    levels, shares = {"evaluation": loose, "chat": strict}, {"evaluation": 1.0, "chat": 1.0}
    probe, bounds = SIXTEEN.probe(levels, shares), Bounds(first=16.0, longest_s=1_000.0)
    mix = search(probe, levels, shares, bounds=bounds, seed=5)
    alone = capacity.each_alone(probe, levels, shares, bounds=bounds, seed=6)
    assert mix.limited_by == ("chat",)
    assert mix.holds == pytest.approx(SIXTEEN.capacity(strict), rel=0.08)
    assert alone["evaluation"].holds == pytest.approx(SIXTEEN.capacity(loose), rel=0.08)
    assert alone["chat"].holds == pytest.approx(SIXTEEN.capacity(strict), rel=0.08)


def knife(limit: float, level: Level = LEVEL) -> capacity.Probe:
    """A server that is perfect up to `limit` a second and answers nothing above."""

    def run(trial: Trial) -> dict[str, Seen]:
        count = round(trial.rate * trial.duration_s * (1 - capacity.WARM_UP)) + 1
        is_good = trial.rate <= limit
        latency = [level.within_s / 2 if is_good else math.inf] * count
        return {"evaluation": Seen(latency, [is_good] * count)}

    return run


@pytest.mark.parametrize("limit", [0.3, 7.0, 222.0])
def test_a_sharp_limit_is_found_from_below_and_from_above(limit: float) -> None:
    found = search(knife(limit), *ALONE, bounds=Bounds(first=20.0, longest_s=2_000.0))
    assert found.holds <= limit < found.breaks <= capacity.BRACKET * found.holds


def test_the_ends_of_the_search_are_said_to_be_ends() -> None:
    unbounded = search(knife(1e9), *ALONE, bounds=Bounds(first=2.0, highest=50.0))
    assert (unbounded.holds, unbounded.breaks, unbounded.problem) == (50.0, None, None)
    nothing = search(knife(0.0), *ALONE, bounds=Bounds(first=8.0, lowest=2.0))
    assert (nothing.holds, nothing.breaks, nothing.bracket) == (0.0, 2.0, None)


def test_a_class_that_was_never_seen_is_undecided_not_kept() -> None:
    levels, shares = {"evaluation": LEVEL, "chat": LEVEL}, {"evaluation": 1.0, "chat": 1.0}
    found = search(knife(1e9), levels, shares, bounds=Bounds(first=8.0, lowest=8.0))
    assert found.holds == 0.0
    assert found.limited_by == ("chat",)


def test_a_run_that_cannot_be_believed_is_made_once_more_and_then_ends_the_search() -> None:
    tried: list[Trial] = []

    def weak(trial: Trial) -> Mapping[str, Seen]:
        tried.append(trial)
        if trial.rate > 30 or len(tried) == 1:
            raise CannotBelieve(f"the client sent late at {trial.rate:g}")
        return knife(1e9)(trial)

    found = search(weak, *ALONE, bounds=Bounds(first=8.0))
    assert found.holds == 16.0
    assert found.problem == "the client sent late at 32"
    assert [trial.rate for trial in tried] == [8, 8, 16, 32, 32]
    assert exit_code([found], None) == 0
    assert exit_code([found], Floor(rate=16.0)) == 0
    assert exit_code([found], Floor(rate=20.0)) == 2


def test_a_run_too_short_to_certify_anything_is_a_problem_with_its_fix() -> None:
    found = search(knife(1e9), *ALONE, bounds=Bounds(first=0.1, longest_s=60.0))
    assert found.holds == 0.0
    assert "60 s is the longest allowed: raise that" in found.problem
    assert exit_code([found], None) == 2


def test_a_search_that_does_not_end_is_ended() -> None:
    found = search(knife(7.0), *ALONE, bounds=Bounds(first=1.0, runs=3))
    assert found.problem == "the search was not over after 3 runs"


def test_levels_that_no_run_can_certify_are_refused() -> None:
    with pytest.raises(ValueError, match="allow no miss"):
        search(knife(1.0), {"evaluation": Level(1.0, 1.0, 9.0)}, {"evaluation": 1.0})
    with pytest.raises(ValueError, match="no level is given for"):
        search(knife(1.0), *ALONE, only="images")


def test_the_gate_is_0_at_the_floor_and_1_below_it(tmp_path: Path) -> None:
    file = tmp_path / "floor.toml"
    file.write_text('mix = "platform-day"\nrate = 4\n[classes]\nchat = 2.5\n', "utf-8")
    floor = read_floor(file)
    assert floor == Floor("platform-day", 4, {"chat": 2.5})
    mix = Capacity(None, 4.0, 4.1, 0.99, ())
    chat = Capacity("chat", 2.5, 2.6, 0.99, ())
    assert exit_code([mix, chat], floor) == 0
    slower = Capacity("chat", 2.4, 2.5, 0.99, ())
    assert exit_code([mix, slower], floor) == 1
    assert floor.short([mix, slower]) == ["chat has to hold 2.5 a second, not 2.4"]
    assert exit_code([mix], floor) == 1, "a class that was not searched is not met"


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("rte = 4", "rte is not known"),
        ("rate = -1", "rate is -1"),
        ("rate = true", "rate is True"),
        ("[classes]\nchat = 'much'", "chat is 'much'"),
        ("classes = 3", "classes is 3"),
        ("mix = 'x'", "asks for nothing"),
        ("rate = = 3", "floor.toml"),
    ],
)
def test_a_floor_file_that_cannot_be_used_names_its_key(
    tmp_path: Path, text: str, names: str
) -> None:
    file = tmp_path / "floor.toml"
    file.write_text(text, "utf-8")
    with pytest.raises(FloorError, match=names):
        read_floor(file)


def test_a_runs_records_count_after_the_warm_up_in_the_order_they_were_due() -> None:
    def record(number: int, due_s: float, outcome: Outcome, took_s: float | None) -> Record:
        end_s = None if took_s is None else due_s + took_s
        return Record(number, "chat", number, outcome, due_s, due_s, None, end_s)

    records = [
        record(3, 90.0, Outcome.UNSENT, None),
        record(2, 50.0, Outcome.REJECTED, 0.01),
        record(1, 30.0, Outcome.LATE, 3.0),
        record(0, 10.0, Outcome.FAILED, 1.0),
    ]
    levels = {"chat": LEVEL, "images": LEVEL}
    seen = seen_in(Run("m", "u", 1.0, 100.0, 1, 1, 0.0, levels), records)
    assert seen["chat"].is_good == [False, False, False]
    assert seen["chat"].latency_s == [3.0, math.inf, math.inf]
    assert seen["images"] == Seen([], [])


def test_a_run_that_does_not_begin_is_told_with_what_it_said(tmp_path: Path) -> None:
    probe = LoadProbe("chat-ramp", reading.read("chat-ramp"), "http://127.0.0.1:9", tmp_path)
    with pytest.raises(CannotBelieve, match="does not answer"):
        probe(Trial(2.0, 2.0, 1))


def test_a_search_is_kept_whole_on_disk(tmp_path: Path) -> None:
    found = search(knife(7.0), *ALONE, bounds=Bounds(first=4.0))
    write(tmp_path, [found])
    (told,) = json.loads((tmp_path / "capacity.json").read_text("utf-8"))
    assert told == json.loads(json.dumps(as_json(found)))
    assert told["bracket"] == pytest.approx(found.bracket)
    assert {step["finding"] for step in told["steps"]} == {"kept", "broken"}
