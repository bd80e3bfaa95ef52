"""`python -m loadtests.benchmarks [--quick]`: every benchmark, one after another."""

from __future__ import annotations

import subprocess
import sys

import click

BENCHMARKS: dict[str, bool] = {
    "volume": False,
    "evaluation": True,
    "images": True,
    "storyboards": True,
    "vetting": True,
}
"""By name, in order; True for those that know --quick."""


@click.command()
@click.option("--quick", is_flag=True, help="Fewer repetitions: a look, not figures to quote.")
def main(quick: bool) -> None:
    """Run every benchmark; each prints a table, then one line of JSON."""
    for name, knows_quick in BENCHMARKS.items():
        options = ["--quick"] if quick and knows_quick else []
        command = [sys.executable, "-m", f"loadtests.benchmarks.{name}", *options]
        done = subprocess.run(command, check=False)
        if done.returncode != 0:
            sys.exit(done.returncode)


if __name__ == "__main__":
    main()
