"""Numbers about storyboards in Prometheus' text form, named joing_storyboard_*.

They are handed to prometheus_client at a scrape: its own counters would write into the folder of
BentoML's multi-process mode, and appear twice.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from services.shared.metrics import counted
from services.storyboard.ports import Load
from services.storyboard.schemas import FINISHED, Storyboard


class Metrics(Collector):
    """What this process brought about, and what waits in the database."""

    def __init__(self) -> None:
        self.load = Load()
        self._states = Counter[str](dict.fromkeys(FINISHED, 0))
        self._frames = Counter[str](dict.fromkeys(("done", "failed", "dropped"), 0))
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def ended(self, storyboard: Storyboard) -> None:
        self._states[storyboard.state] += 1
        self._frames.update(frame.state for frame in storyboard.frames)

    def exposition(self) -> str:
        return generate_latest(self._registry).decode()

    def collect(self) -> Iterator[Metric]:
        for name, about, value in (
            ("queued", "Storyboards that nobody works on.", self.load.queued),
            ("running", "Storyboards under a live lease.", self.load.running),
            ("oldest_queued_seconds", "Age of the longest waiting.", self.load.oldest_queued_s),
        ):
            yield GaugeMetricFamily(f"joing_storyboard_{name}", about, value=value)
        yield counted("joing_storyboard_ended", "Storyboards, by state.", "state", self._states)
        yield counted("joing_storyboard_frames", "Frames, by state.", "state", self._frames)
