"""Is the labelled data fit to train on and to measure with? Pure.

What makes a measurement a lie is an error: a topic or a near-copy on both sides of a split. How
labels are spread is told, for a person to judge.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from models.training.judge.proposals import Labelled, Split

NGRAM = 5
NEAR = 0.3
"""Jaccard similarity of character 5-grams from which two proposals are near-copies. Of ours, no two
come above 0.1."""
PASSES_FROM = 65
LIMIT = 2


@dataclass(frozen=True)
class Balance:
    """How one split's labels are spread; shares are of `proposals`."""

    proposals: int
    languages: Mapping[str, int]
    topics: int
    content_passes: float
    """Total of at least PASSES_FROM."""
    deliberation_passes: float
    """Grade of at most LIMIT."""
    grades: Mapping[int, int]
    raised: Mapping[str, int]
    """By criterion, how often its level is above 0."""


def faults(splits: Mapping[Split, Sequence[Labelled]]) -> list[str]:
    """What must be mended, one sentence each; empty when the data is fit."""
    return [*_repeated_ids(splits), *_shared_topics(splits), *_near_copies(splits)]


def balance(labelled: Sequence[Labelled]) -> Balance:
    number = len(labelled)
    return Balance(
        proposals=number,
        languages=Counter(one.language for one in labelled),
        topics=len({one.topic for one in labelled}),
        content_passes=sum(one.content_label.total >= PASSES_FROM for one in labelled)
        / max(number, 1),
        deliberation_passes=sum(one.deliberation_label.grade <= LIMIT for one in labelled)
        / max(number, 1),
        grades=dict(sorted(Counter(one.deliberation_label.grade for one in labelled).items())),
        raised=Counter(
            name
            for one in labelled
            for name, level in one.deliberation_label.levels.items()
            if level > 0
        ),
    )


def similarity(one: frozenset[str], other: frozenset[str]) -> float:
    """Jaccard, 0 to 1."""
    either = len(one | other)
    return len(one & other) / either if either else 1.0


def ngrams(text: str) -> frozenset[str]:
    """Character n-grams, without case and runs of white space; a short text is one of its own."""
    plain = " ".join(text.casefold().split())
    return frozenset(plain[i : i + NGRAM] for i in range(max(len(plain) - NGRAM + 1, 1)))


def _repeated_ids(splits: Mapping[Split, Sequence[Labelled]]) -> Iterator[str]:
    seen = Counter(one.id for labelled in splits.values() for one in labelled)
    for name, times in seen.items():
        if times > 1:
            yield f"{name}: {times} proposals have this id; give each its own"


def _shared_topics(splits: Mapping[Split, Sequence[Labelled]]) -> Iterator[str]:
    for (one, these), (other, those) in combinations(splits.items(), 2):
        for topic in sorted({x.topic for x in these} & {x.topic for x in those}):
            yield f"topic {topic} is in {one} and in {other}: move it to one of them"


def _near_copies(splits: Mapping[Split, Sequence[Labelled]]) -> Iterator[str]:
    grams = {
        split: [(one.id, ngrams(f"{one.title} {one.content}")) for one in labelled]
        for split, labelled in splits.items()
    }
    for (one, these), (other, those) in combinations(grams.items(), 2):
        for name, mine in these:
            for its_name, its in those:
                if (close := similarity(mine, its)) >= NEAR:
                    yield (
                        f"{name} ({one}) and {its_name} ({other}) share {close:.0%} of their "
                        f"{NGRAM}-grams: rewrite one or leave it out"
                    )
