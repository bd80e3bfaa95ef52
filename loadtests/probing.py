"""`python -m loadtests.probing MIX`: the capacity search on a running system.

Each probe is one `python -m loadtests run` at an even rate in a process of its own, in its own
folder under --out; capacity.json there holds the whole search. Exit code 0: at least what the floor
file asks for holds (without one: some rate does), 1: less, 2: the search could not tell.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from loadtests.capacity import (
    WARM_UP,
    Bounds,
    CannotBelieve,
    Capacity,
    FloorError,
    Seen,
    Step,
    Trial,
    exit_code,
    read_floor,
    search,
)
from loadtests.mixes import reading
from loadtests.mixes.reading import Mix, MixError
from loadtests.outcomes import RUN, Outcome, Record, Run, judge, read_records, read_run
from loadtests.statistics import CONFIDENCE

CAPACITY = "capacity.json"
CANNOT_TELL = 2
START_AND_STOP_S = 120.0
OUTPUT_TAIL = 2_000


@dataclass
class LoadProbe:
    """Runs the mix, `named` so, against `url`; `options` end each run's command line."""

    named: str
    mix: Mix
    url: str
    out: Path
    options: Sequence[str] = ()

    def __post_init__(self) -> None:
        self._numbers = count(1)

    def __call__(self, trial: Trial) -> dict[str, Seen]:
        """Raises CannotBelieve."""
        folder = self.out / f"{next(self._numbers):03}-at-{trial.rate:.4g}"
        self._run(trial, folder)
        records = list(read_records(folder))
        verdict = judge(read_run(folder), records)
        if not verdict.is_valid:
            raise CannotBelieve(
                f"at {trial.rate:g} a second: {'; '.join(verdict.validity.problems)}"
            )
        return seen_in(verdict.run, records)

    def command(self, trial: Trial, folder: Path) -> list[str]:
        only = ["--only", trial.only] if trial.only else []
        asked = {
            "--url": self.url,
            "--rate": f"{trial.rate:.6g}",
            "--duration": f"{trial.duration_s:.6g}",
            "--seed": str(trial.seed),
            "--out": str(folder),
        }
        told = [word for option in asked.items() for word in option]
        run = [sys.executable, "-m", "loadtests", "run", self.named]
        return [*run, *told, *only, *self.options]

    def _run(self, trial: Trial, folder: Path) -> None:
        patience_s = max(level.patience_s for level in self.mix.levels.values())
        try:
            done = subprocess.run(
                self.command(trial, folder),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=trial.duration_s + patience_s + START_AND_STOP_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise CannotBelieve(f"the run in {folder} did not end") from None
        if not (folder / RUN).exists():
            said = done.stdout.decode("utf-8", "replace")[-OUTPUT_TAIL:]
            raise CannotBelieve(f"the run in {folder} did not begin:\n{said}")


def seen_in(run: Run, records: Sequence[Record]) -> dict[str, Seen]:
    """By class, without the warm-up, in the order that requests were due."""
    begins_s = WARM_UP * run.duration_s
    counted = sorted((r for r in records if r.due_s >= begins_s), key=lambda record: record.due_s)
    return {
        name: _seen([record for record in counted if record.traffic_class == name])
        for name in run.levels
    }


def _seen(records: Sequence[Record]) -> Seen:
    return Seen(
        [r.latency_s if r.is_answered and r.latency_s is not None else math.inf for r in records],
        [record.outcome is Outcome.GOOD for record in records],
    )


@click.command()
@click.argument("mix", default="platform-day")
@click.option("--url", default="http://127.0.0.1:3000", show_default=True, help="The gateway.")
@click.option("--floor", type=click.Path(path_type=Path), help="TOML: what has to hold.")
@click.option("--each/--no-each", default=False, help="Every class alone too.")
@click.option("--first", type=float, help="The rate to begin with. [the floor's, or the mix's]")
@click.option("--longest", default=600.0, show_default=True, help="Seconds of one run, at most.")
@click.option("--confidence", default=CONFIDENCE, show_default=True)
@click.option("--seed", default=1, show_default=True)
@click.option("--out", default=".run/capacity", show_default=True, type=click.Path(path_type=Path))
@click.option("--option", "options", multiple=True, help="Passed to every run; repeat.")
def capacity(  # noqa: PLR0917
    mix: str,
    url: str,
    floor: Path | None,
    each: bool,
    first: float | None,
    longest: float,
    confidence: float,
    seed: int,
    out: Path,
    options: Sequence[str],
) -> None:
    """Find the highest rate at which every class of MIX keeps its level."""
    try:
        wanted = read_floor(floor) if floor else None
        whole = reading.read(mix)
        if wanted and wanted.mix not in (None, whole.name):
            raise FloorError(f"{floor}: is for the mix {wanted.mix}, not {whole.name}")
        bounds = Bounds(first=first or (wanted and wanted.rate) or whole.rate, longest_s=longest)
    except (FloorError, MixError, ValueError) as error:
        click.echo(str(error), err=True)
        sys.exit(CANNOT_TELL)
    alone = list(whole.classes) if each else sorted(wanted.classes if wanted else ())
    probe = LoadProbe(mix, whole, url, out, options)
    found = [
        search(
            probe,
            whole.levels,
            whole.shares,
            bounds=bounds,
            only=only,
            seed=seed,
            confidence=confidence,
            told=tell_step,
        )
        for only in (None, *alone)
    ]
    write(out, found)
    Console().print(table(found))
    problems = [f"{one.only or 'the mix'}: {one.problem}" for one in found if one.problem]
    for line in (*problems, *(wanted.short(found) if wanted else ())):
        click.echo(line)
    sys.exit(exit_code(found, wanted))


def tell_step(step: Step) -> None:
    trial, classes = step.trial, step.classes.items()
    good = ", ".join(f"{name} {j.requests - j.misses}/{j.requests}" for name, j in classes)
    click.echo(f"{trial.rate:.3g}/s for {trial.duration_s:.0f} s: {step.finding} ({good})")


def table(found: Sequence[Capacity]) -> Table:
    shown = Table(title="Capacity, requests a second")
    for column in ("of", "holds", "does not hold", "bracket", "confidence", "limited by", "runs"):
        shown.add_column(column, justify="left" if column in ("of", "limited by") else "right")
    for one in found:
        shown.add_row(
            one.only or "the mix",
            f"{one.holds:.3g}" if one.holds else "nothing found",
            f"{one.breaks:.3g}" if one.breaks else "not met",
            f"{one.bracket:.1%}" if one.bracket is not None else "",
            f"{one.confidence:.0%}",
            ", ".join(one.limited_by),
            str(len(one.steps)),
        )
    return shown


def write(folder: Path, found: Sequence[Capacity]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rows = [as_json(capacity) for capacity in found]
    (folder / CAPACITY).write_text(json.dumps(rows, ensure_ascii=False, indent=2) + "\n", "utf-8")


def as_json(found: Capacity) -> Mapping[str, object]:
    return {**asdict(found), "bracket": found.bracket, "limited_by": list(found.limited_by)}


if __name__ == "__main__":
    capacity()
