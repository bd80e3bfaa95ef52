"""Numbers about vettings in Prometheus' text form, named joing_vetting_*.

They are handed to prometheus_client at a scrape: its own counters would write into the folder of
BentoML's multi-process mode, and appear twice.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, get_args

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from services.shared.metrics import counted
from services.vetting.schemas import Verdict, Vetting

Dependency = Literal["youtube", "thumbnails", "ocr", "vision", "llm", "database"]


class Metrics(Collector):
    """What this process did. Seconds of calls that ran at the same time add up."""

    def __init__(self) -> None:
        self.running = 0
        self._verdicts = Counter[str](dict.fromkeys(get_args(Verdict), 0))
        self._findings = Counter[str]()
        names = get_args(Dependency)
        self._calls = Counter[str](dict.fromkeys(names, 0))
        self._failures = Counter[str](dict.fromkeys(names, 0))
        self._seconds: dict[str, float] = dict.fromkeys(names, 0.0)
        self._spent = Counter[str](
            dict.fromkeys(("quota_units", "youtube_bytes", "thumbnail_bytes", "tokens"), 0)
        )
        self._registry = CollectorRegistry()
        self._registry.register(self)

    @contextmanager
    def timed(self, dependency: Dependency, *failures: type[Exception]) -> Iterator[None]:
        """One call; it failed when it raises one of `failures`."""
        started = time.perf_counter()
        try:
            yield
        except failures:
            self._failures[dependency] += 1
            raise
        finally:
            self._calls[dependency] += 1
            self._seconds[dependency] += time.perf_counter() - started

    def came(self, what: Literal["youtube_bytes", "thumbnail_bytes"], size: int) -> None:
        self._spent[what] += size

    def ended(self, vetting: Vetting) -> None:
        self._verdicts[vetting.verdict] += 1
        self._findings.update(finding.category for finding in vetting.findings)
        self._spent["quota_units"] += vetting.quota_units
        self._spent["tokens"] += vetting.usage.prompt_tokens + vetting.usage.completion_tokens

    def exposition(self) -> str:
        return generate_latest(self._registry).decode()

    def collect(self) -> Iterator[Metric]:
        name = "joing_vetting"
        yield GaugeMetricFamily(f"{name}_running", "Vettings under way.", value=self.running)
        yield counted(f"{name}_ended", "Vettings, by verdict.", "verdict", self._verdicts)
        yield counted(f"{name}_findings", "Findings, by category.", "category", self._findings)
        yield counted(f"{name}_calls", "Calls to a dependency.", "dependency", self._calls)
        yield counted(f"{name}_failed_calls", "Calls that failed.", "dependency", self._failures)
        yield counted(f"{name}_call_seconds", "Seconds of calls.", "dependency", self._seconds)
        yield counted(f"{name}_spent", "Units, bytes and tokens.", "what", self._spent)
