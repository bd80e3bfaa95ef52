"""The order of the pictures."""

from __future__ import annotations

from itertools import chain

from models.training.flux.order import Order

SIZES = ["wide"] * 5 + ["tall"] * 3


def epoch(order: Order, number: int) -> list[tuple[int, ...]]:
    first = number * order.batches_per_epoch
    return [order.batch(first + i) for i in range(order.batches_per_epoch)]


def test_every_picture_comes_once_an_epoch_and_batches_have_one_size() -> None:
    order = Order(SIZES, 2, seed=1)
    for number in range(5):
        batches = epoch(order, number)
        assert sorted(chain.from_iterable(batches)) == list(range(8))
        assert all(len({SIZES[item] for item in batch}) == 1 for batch in batches)


def test_epochs_differ_and_a_seed_repeats_them() -> None:
    one, same, other = Order(SIZES, 2, seed=1), Order(SIZES, 2, seed=1), Order(SIZES, 2, seed=2)
    assert epoch(one, 0) != epoch(one, 1)
    assert [same.batch(n) for n in (7, 3, 20)] == [one.batch(n) for n in (7, 3, 20)]
    assert epoch(one, 0) != epoch(other, 0)


def test_sizes_are_mixed_within_an_epoch() -> None:
    order = Order(["wide"] * 40 + ["tall"] * 40, 1, seed=1)
    first_half = [item for (item,) in epoch(order, 0)[:40]]
    assert 10 < sum(item < 40 for item in first_half) < 30


def test_two_batches_of_one_are_one_batch_of_two() -> None:
    ones, twos = Order(["wide"] * 6, 1, seed=3), Order(["wide"] * 6, 2, seed=3)
    for number in range(6):
        assert ones.batch(2 * number) + ones.batch(2 * number + 1) == twos.batch(number)
