"""What the command lines of `models` have in common."""

from pathlib import Path

import click

from models.errors import ModelsError
from models.weights import default_root


class Commands(click.Group):
    """What a person can mend (a name, the disk, the network) becomes one line and exit code 1."""

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except (ModelsError, OSError) as error:
            raise click.ClickException(str(error)) from error


models_dir_option = click.option(
    "--models-dir",
    envvar="JOING_MODELS_DIR",
    type=click.Path(path_type=Path),
    default=default_root,
    help="Where pulled models lie.",
)
"""As `models_dir`, a path."""
