"""How every benchmark reports: a table for people, then one line of JSON for machines. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rich.table import Table

COLUMNS = ("ratio", "target", "measured", "ours (median)", "against (median)", "repetitions")


@dataclass(frozen=True)
class Finding:
    """One ratio, what it was computed from, and how often that was measured."""

    value: float
    ours: str
    against: str
    repetitions: str


def table(title: str, targets: Mapping[str, str], found: Mapping[str, Finding]) -> Table:
    """One row a ratio, beside its target."""
    shown = Table(*COLUMNS, title=title)
    for name, finding in found.items():
        measured = f"{finding.value:.3g}"
        shown.add_row(
            name, targets[name], measured, finding.ours, finding.against, finding.repetitions
        )
    return shown


def last_line(bench: str, found: Mapping[str, Finding], machine: Mapping[str, Any]) -> str:
    ratios = {name: round(finding.value, 4) for name, finding in found.items()}
    return json.dumps({"bench": bench, "ratios": ratios, "machine": dict(machine)})
