"""Fine-tuning, from the command line: `python -m models.training VERB --help`.

    dataset check|prepare     is this folder of pictures and captions fit to train on; make it so
    config new|check|explain  AI-Toolkit configurations for Flux LoRAs, in Korean or English
    train CONFIG              a LoRA from a configuration; running it again goes on
    compare CONFIG            base and checkpoints side by side, to choose one by looking
    publish NAME              a LoRA into the catalog and into a running image service
    judge                     a LoRA for the LLM, from labelled proposals

A verb's module is imported when the verb is used: `config check` needs no torch.
"""

import importlib
import sys

import click

from models.commands import Commands

_VERBS = {
    "dataset": "models.training.dataset.cli",
    "config": "models.training.config.cli",
    "train": "models.training.flux.cli",
    "compare": "models.training.compare.cli",
    "publish": "models.training.publish.cli",
    "judge": "models.training.judge.cli",
}
"""Verb and the module whose `command` it is."""


class _Verbs(Commands):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_VERBS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in _VERBS:
            return None
        command: click.Command = importlib.import_module(_VERBS[name]).command
        return command


@click.command(cls=_Verbs)
def cli() -> None:
    """Fine-tune LoRAs for images and for the LLM."""


if __name__ == "__main__":
    sys.exit(cli())
