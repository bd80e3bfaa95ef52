"""What is certified about a share of requests, against exact sums and against chance itself."""

from __future__ import annotations

import math
from random import Random

import pytest

from loadtests.statistics import (
    Finding,
    at_least,
    at_most,
    certified_percentile,
    finding,
    incomplete_beta,
    inflation,
    minimum_samples,
)


def exactly_at_most(misses: int, count: int, chance: float) -> float:
    return math.fsum(
        math.comb(count, n) * chance**n * (1 - chance) ** (count - n) for n in range(misses + 1)
    )


@pytest.mark.parametrize("count", [1, 7, 64, 400])
@pytest.mark.parametrize("chance", [0.01, 0.1, 0.5, 0.97])
def test_tails_are_the_binomial_sums(count: int, chance: float) -> None:
    for misses in {0, 1, count // 9, count // 2, count - 1, count}:
        whole = exactly_at_most(misses, count, chance)
        assert at_most(misses, count, chance) == pytest.approx(whole, abs=1e-9)
        above = 1 - (exactly_at_most(misses - 1, count, chance) if misses else 0)
        assert at_least(misses, count, chance) == pytest.approx(above, abs=1e-9)


def test_a_beta_function_of_a_long_run_adds_up() -> None:
    assert incomplete_beta(5e5, 5e3, 0.99) + incomplete_beta(5e3, 5e5, 0.01) == pytest.approx(1)
    assert incomplete_beta(1e6, 1e6, 0.5) == pytest.approx(0.5, abs=1e-6)


def test_sample_sizes_are_those_of_mlperf() -> None:
    shares = (0.5, 0.75, 0.8, 0.9, 0.95, 0.97, 0.99, 0.999)
    assert [minimum_samples(s) for s in shares] == [11, 24, 31, 64, 130, 219, 662, 6_636]


def test_a_level_is_certified_from_its_minimum_on_and_not_before() -> None:
    assert finding(1, 662, 0.99) is Finding.KEPT
    assert finding(0, 661, 0.99) is Finding.UNDECIDED
    assert finding(2, 662, 0.99) is Finding.UNDECIDED
    assert finding(20, 662, 0.99) is Finding.BROKEN
    assert finding(0, 0, 0.99) is Finding.UNDECIDED


def test_impossible_counts_are_refused_with_the_value() -> None:
    with pytest.raises(ValueError, match="5 misses of 4"):
        finding(5, 4, 0.9)
    with pytest.raises(ValueError, match="share is 1"):
        minimum_samples(1.0)


@pytest.mark.parametrize("share", [0.9, 0.95])
def test_a_level_that_is_just_missed_is_hardly_ever_certified(share: float) -> None:
    """At a true share of exactly the level either verdict is wrong, and rarer than 1 in 100."""
    random, tries, count = Random(3), 2_000, 700
    wrong = {Finding.KEPT: 0, Finding.BROKEN: 0, Finding.UNDECIDED: 0}
    for _ in range(tries):
        misses = sum(random.random() > share for _ in range(count))
        wrong[finding(misses, count, share)] += 1
    # 99.9 % of binomial counts at the 1 % that is promised lie under this.
    assert max(wrong[Finding.KEPT], wrong[Finding.BROKEN]) <= 0.01 * tries + 3.1 * math.sqrt(20)
    assert wrong[Finding.KEPT] > 0, "the rule is so strict that it never certifies"


def test_a_certified_percentile_covers_the_true_one_and_asks_for_enough_values() -> None:
    random = Random(5)
    true_p95 = math.log(20)
    runs = [[random.expovariate(1) for _ in range(400)] for _ in range(500)]
    bounds = [certified_percentile(values, 0.95) for values in runs]
    assert sum(bound is None or bound < true_p95 for bound in bounds) <= 14  # 5 are expected
    assert all(sorted(v)[379] <= b for v, b in zip(runs, bounds, strict=True) if b is not None)
    assert certified_percentile(runs[0][:129], 0.95) is None
    assert certified_percentile([1.0] * 600 + [math.inf] * 100, 0.9) == math.inf


def test_independent_requests_weigh_one_each() -> None:
    random = Random(7)
    found = [inflation([random.random() for _ in range(4_000)], 0.95) for _ in range(50)]
    assert sum(found) / len(found) == pytest.approx(1.1, abs=0.15)  # never under 1, so over it


def test_requests_that_share_a_fate_weigh_less() -> None:
    random = Random(9)
    together = [value for _ in range(400) for value in [random.random()] * 25]
    assert 12 < inflation(together, 0.9) < 50


def test_a_backlog_that_grows_weighs_next_to_nothing() -> None:
    growing = [float(n) for n in range(20_000)]
    assert 20_000 / inflation(growing, 0.95) < 25


def test_equal_values_say_nothing_against_independence() -> None:
    assert inflation([0.5] * 1_000, 0.95) == 1.0
    assert inflation([0.5] * 900 + [math.inf] * 100, 0.95) > 10  # all the misses at the end
    assert inflation([1.0, 2.0, 3.0], 0.95) == 1.0
