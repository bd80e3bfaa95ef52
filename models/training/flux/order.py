"""Which pictures each batch holds: a seeded order that any step can ask for directly.

Every epoch gives each item a random key. A bucket's items are cut into batches in the order of
their keys, and batches of all buckets follow each other in the order of their first keys. So sizes
are mixed, each item comes once an epoch, and with one bucket the items come in the same order
whatever the batch size: two batches of one are one batch of two. Pure: items are numbers.
"""

from collections.abc import Hashable, Sequence
from functools import lru_cache
from random import Random


class Order:
    """Batches of equal-sized items, endless, by their number."""

    def __init__(self, buckets: Sequence[Hashable], batch_size: int, seed: int) -> None:
        """`buckets`: each item's size. The last batch of a bucket may be smaller than the rest."""
        self._buckets = tuple(buckets)
        self._batch_size = batch_size
        self._seed = seed
        self._epoch = lru_cache(maxsize=2)(self._draw_epoch)
        counts = [self._buckets.count(bucket) for bucket in dict.fromkeys(self._buckets)]
        self.batches_per_epoch = sum(-(-count // batch_size) for count in counts)

    def batch(self, number: int) -> tuple[int, ...]:
        """The items of batch `number`, counted from 0 over all epochs."""
        epoch, place = divmod(number, self.batches_per_epoch)
        return self._epoch(epoch)[place]

    def _draw_epoch(self, epoch: int) -> list[tuple[int, ...]]:
        rng = Random(f"order/{self._seed}/{epoch}")  # noqa: S311  (data, no secret)
        keys = [rng.random() for _ in self._buckets]
        members: dict[Hashable, list[int]] = {}
        for item in sorted(range(len(keys)), key=keys.__getitem__):
            members.setdefault(self._buckets[item], []).append(item)
        size = self._batch_size
        batches = [
            tuple(items[start : start + size])
            for items in members.values()
            for start in range(0, len(items), size)
        ]
        return sorted(batches, key=lambda batch: keys[batch[0]])
