"""`python -m loadtests`: run a mix, or test the instrument itself."""

from __future__ import annotations

import click

from loadtests.run import mixes, run
from loadtests.self_test import self_test


@click.group()
def main() -> None:
    """Open-loop load tests of a running Joing."""


main.add_command(run)
main.add_command(mixes)
main.add_command(self_test)


if __name__ == "__main__":
    main()
