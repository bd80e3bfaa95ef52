"""`python -m loadtests.faults PLAN --out FOLDER`: faults.json there says what was done, and when.

Started beside a load; times of the plan count from here. Ctrl-C ends what has begun.
"""

from __future__ import annotations

import asyncio
import json
import sys
from contextlib import AsyncExitStack
from dataclasses import asdict
from pathlib import Path
from urllib.parse import urlsplit

import click

from loadtests.faults.link import Link
from loadtests.faults.plan import YOUTUBE, Plan, PlanError, read_plan
from loadtests.faults.timeline import Mark, carry_out

FAULTS = "faults.json"
AFTER_S = 30.0


@click.command()
@click.argument("plan", type=click.Path(path_type=Path))
@click.option("--out", default=".run/load", show_default=True, type=click.Path(path_type=Path))
@click.option(
    "--stays", default=AFTER_S, show_default=True, help="Seconds that links stay open at the end."
)
def main(plan: Path, out: Path, stays: float) -> None:
    """Make the faults of PLAN at their times."""
    try:
        marks = asyncio.run(carried_out(read_plan(plan), stays))
    except (PlanError, OSError) as error:
        click.echo(str(error), err=True)
        sys.exit(2)
    out.mkdir(parents=True, exist_ok=True)
    (out / FAULTS).write_text(
        json.dumps([asdict(mark) for mark in marks], indent=2) + "\n", "utf-8"
    )
    sys.exit(1 if any(mark.problem for mark in marks) else 0)


async def carried_out(plan: Plan, stays_s: float) -> list[Mark]:
    """With its links, and its YouTube, up for as long. Raises OSError where a port is taken."""
    async with AsyncExitStack() as stack:
        youtube, addresses = None, {n: t.address() for n, t in plan.links.items() if t.to}
        if plan.has_youtube:
            from tests.youtube.server import serve_youtube

            youtube = stack.enter_context(serve_youtube())
            at = urlsplit(youtube.base_url)
            addresses[YOUTUBE] = (str(at.hostname), int(at.port or 0))
        links = {
            name: await stack.enter_async_context(
                Link(*addresses[name], port=table.listen).opened()
            )
            for name, table in plan.links.items()
        }
        marks = await carry_out(plan.planned(links, youtube), click.echo)
        if links:
            await asyncio.sleep(stays_s)
        return marks


if __name__ == "__main__":
    main()
