"""What the services' own numbers are made of, in Prometheus' text form.

They are handed to prometheus_client at a scrape: its own counters would write into the folder of
BentoML's multi-process mode, and appear twice.
"""

from __future__ import annotations

from collections.abc import Mapping

from prometheus_client.core import CounterMetricFamily, Metric


def counted(name: str, about: str, label: str, counts: Mapping[str, float]) -> Metric:
    """A counter with one sample for each value of its label, in order."""
    family = CounterMetricFamily(name, about, labels=[label])
    for value, count in sorted(counts.items()):
        family.add_metric([str(value)], count)
    return family
