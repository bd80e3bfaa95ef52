"""`python -m models.training train CONFIG`."""

import sys
from pathlib import Path

import click

from models.commands import models_dir_option

_SIGNALLED = 128
"""What a shell adds to a signal's number: the run is not finished."""


@click.command("train")
@click.argument("config", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@models_dir_option
def command(config: Path, models_dir: Path) -> None:
    """Train a LoRA from an AI-Toolkit configuration; run again, it goes on."""
    import diffusers
    import transformers

    from models.training.flux.loop import train

    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    outcome = train(config, models_dir=models_dir)
    if outcome.signal is not None:
        sys.exit(_SIGNALLED + outcome.signal)
