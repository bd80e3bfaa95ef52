"""`python -m loadtests.report make FOLDER` and `python -m loadtests.report watch --out FOLDER`."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from loadtests.faults.processes import Service
from loadtests.faults.timeline import Mark
from loadtests.outcomes import read_records, read_run
from loadtests.report.page import Language, page
from loadtests.report.series import Recording
from loadtests.report.summary import Report, report
from loadtests.report.terminal import tables
from loadtests.report.watching import Usage, Watch

SERVER, FAULTS, CAPACITY = "server.json", "faults.json", "capacity.json"
REPORT, PAGE = "report.json", "report.html"
CANNOT = 2
OUT = click.option("--out", default=".run/load", show_default=True, type=click.Path(path_type=Path))


@click.group()
def main() -> None:
    """What a load run says."""


@main.command()
@click.argument("folder", default=".run/load", type=click.Path(path_type=Path))
@click.option("--language", default="en", show_default=True, type=click.Choice(["en", "ko"]))
@click.option("--capacity", type=click.Path(path_type=Path), help="A search's capacity.json.")
def make(folder: Path, language: Language, capacity: Path | None) -> None:
    """Write report.html and report.json of the run in FOLDER, and print its tables."""
    try:
        made = report_of(folder, capacity)
    except (OSError, ValueError, KeyError, TypeError) as error:
        click.echo(f"{folder} holds no run that can be read: {error!r}", err=True)
        sys.exit(CANNOT)
    write(folder, made, language)
    console = Console()
    for table in tables(made):
        console.print(table)
    console.print(str(folder / PAGE), highlight=False, markup=False)


@main.command()
@OUT
@click.option("--metrics", multiple=True, metavar="NAME=URL", help="A /metrics; repeat.")
@click.option("--port", "ports", multiple=True, metavar="NAME=PORT", help="Processes; repeat.")
@click.option("--words", multiple=True, metavar="NAME=WORDS", help="The same, by command line.")
@click.option("--for", "for_s", type=float, help="Seconds; without it until Ctrl-C or SIGTERM.")
def watch(
    out: Path,
    metrics: Sequence[str],
    ports: Sequence[str],
    words: Sequence[str],
    for_s: float | None,
) -> None:
    """Note once a second what servers say and use."""
    addresses = dict(map(_named, metrics))
    usages = [Usage(name, Service(int(port), which="all")) for name, port in map(_named, ports)]
    usages += [
        Usage(name, Service(words=tuple(said.split()), which="all"))
        for name, said in map(_named, words)
    ]
    recording = asyncio.run(_watched(Watch(addresses, usages), for_s))
    out.mkdir(parents=True, exist_ok=True)
    (out / SERVER).write_text(json.dumps(recording.as_json()) + "\n", "utf-8")


async def _watched(watch: Watch, for_s: float | None) -> Recording:
    until, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, until.set)
    if for_s is not None:
        loop.call_later(for_s, until.set)
    return await watch.run(until)


def report_of(folder: Path, capacity: Path | None = None) -> Report:
    """Raises OSError, ValueError, KeyError and TypeError, as the files deserve it."""
    server = _read(folder / SERVER)
    return report(
        read_run(folder),
        list(read_records(folder)),
        marks=[Mark(**row) for row in _read(folder / FAULTS) or ()],
        capacity=_read(capacity or folder / CAPACITY) or (),
        server=Recording.from_json(server) if server else None,
    )


def write(folder: Path, made: Report, language: Language) -> None:
    said = json.dumps(made, ensure_ascii=False, indent=1)
    (folder / REPORT).write_text(said + "\n", "utf-8")
    (folder / PAGE).write_text(page(made, language), "utf-8")


def _read(path: Path) -> Any:
    return json.loads(path.read_text("utf-8")) if path.exists() else None


def _named(option: str) -> tuple[str, str]:
    name, equals, value = option.partition("=")
    if not (name and equals and value):
        raise click.BadParameter(f"{option!r} is not NAME=...")
    return name, value


if __name__ == "__main__":
    main()
