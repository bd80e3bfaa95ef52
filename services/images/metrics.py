"""Numbers about the engine in Prometheus' text form, named joing_images_*.

They are counted here and handed to prometheus_client at a scrape: its own counters would write into
the folder of BentoML's multi-process mode, and appear twice.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from models.flux.request import JobState
from services.shared.metrics import counted

if TYPE_CHECKING:
    from models.flux.engine import Engine

ROWS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64)
STEP_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
IMAGE_SECONDS = (0.1, 0.25, 0.5, 1, 2, 4, 8, 15, 30, 60, 120, 300, 600)
OUTCOMES = (JobState.FINISHED, JobState.FAILED, JobState.CANCELLED)


class Distribution:
    """Counts of values up to each bound, and their sum."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def family(self, name: str, about: str) -> Metric:
        bounds = [*(str(float(bound)) for bound in self._bounds), "+Inf"]
        buckets = list(zip(bounds, accumulate(self._counts), strict=True))
        return HistogramMetricFamily(name, about, buckets=buckets, sum_value=self._sum)


class Metrics(Collector):
    """What the engine tells (it is an engine's Observer), and what it holds when it is asked.

    Any thread may call.
    """

    def __init__(self) -> None:
        self.engine: Engine | None = None
        self._lock = threading.Lock()
        self._rows = Distribution(ROWS)
        self._step_s = Distribution(STEP_SECONDS)
        self._image_s = Distribution(IMAGE_SECONDS)
        self._outcomes = Counter[str](dict.fromkeys(OUTCOMES, 0))
        self._refusals: Counter[str] = Counter()
        self._replayed = 0
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def stepped(self, rows: int, seconds: float) -> None:
        with self._lock:
            self._rows.observe(rows)
            self._step_s.observe(seconds)

    def ended(self, state: JobState, seconds: float) -> None:
        with self._lock:
            self._outcomes[state] += 1
            if state is JobState.FINISHED:
                self._image_s.observe(seconds)

    def refused(self, reason: str) -> None:
        with self._lock:
            self._refusals[reason] += 1

    def replayed(self) -> None:
        with self._lock:
            self._replayed += 1

    def exposition(self) -> str:
        return generate_latest(self._registry).decode()

    def collect(self) -> Iterator[Metric]:
        yield from self._now()
        with self._lock:
            yield from self._so_far()

    def _now(self) -> Iterator[Metric]:
        if self.engine is None:
            return
        now = self.engine.snapshot()
        for name, about, value in (
            ("waiting", "Images admitted and not begun.", now.waiting),
            ("running", "Images in the batch.", now.running),
            ("parked", "Images begun and out of the batch for now.", now.parked),
            ("loras_resident", "LoRAs in slots of the batch.", len(now.resident_loras)),
            ("token_budget", "Tokens that a batch may hold.", now.token_budget),
        ):
            yield GaugeMetricFamily(f"joing_images_{name}", about, value=value)

    def _so_far(self) -> Iterator[Metric]:
        yield self._rows.family("joing_images_batch_rows", "Images of one step.")
        yield self._step_s.family("joing_images_step_seconds", "Seconds of one step.")
        yield self._image_s.family(
            "joing_images_seconds", "Seconds of a finished image, from its admission."
        )
        yield counted("joing_images_ended", "Images, by outcome.", "outcome", self._outcomes)
        yield counted("joing_images_refused", "Requests, by reason.", "reason", self._refusals)
        yield CounterMetricFamily(
            "joing_images_replayed", "Answers given again to their key.", value=self._replayed
        )
