"""`python -m models.training judge check|train`."""

from pathlib import Path

import click
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from models.training.errors import DatasetUnusable
from models.training.judge import checking
from models.training.judge.config import read_config
from models.training.judge.proposals import FOLDER, Labelled, Split, read_splits


@click.group()
def command() -> None:
    """A LoRA for the LLM, from labelled proposals."""


@command.command()
@click.argument("folder", required=False, default=FOLDER, type=click.Path(path_type=Path))
def check(folder: Path) -> None:
    """Are the labelled proposals in FOLDER fit to train on and to measure with?"""
    splits = read_splits(folder)
    for split, labelled in splits.items():
        _tell_balance(split, labelled)
    found = checking.faults(splits)
    for fault in found:
        click.echo(fault)
    if found:
        raise DatasetUnusable(f"{folder}: {len(found)} faults")
    if not splits["train"]:
        raise DatasetUnusable(f"{folder}: no train.ko.jsonl and no train.en.jsonl")


@command.command()
@click.argument("config", type=click.Path(path_type=Path))
def train(config: Path) -> None:
    """Train a judge as CONFIG (TOML) says; run again, it goes on where it was broken off.

    Chats come from `python -m services.evaluation.examples`.
    """
    from models.training.judge import trainer

    bar = Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    )
    with bar:
        task = bar.add_task("reading", total=None)

        def tell(progress: trainer.Progress) -> None:
            if progress.development_loss is not None:
                bar.console.print(
                    f"step {progress.step}: loss {progress.loss:.4f}, "
                    f"development {progress.development_loss:.4f}"
                )
            told = f"loss {progress.loss:.3f}, {progress.tokens / progress.seconds:.0f} tokens/s"
            bar.update(task, total=progress.steps, completed=progress.step, description=told)

        folder = trainer.train(read_config(config), tell)
    click.echo(f"The LoRA is in {folder}")


def _tell_balance(split: Split, labelled: list[Labelled]) -> None:
    told = checking.balance(labelled)
    languages = ", ".join(f"{n} {language}" for language, n in sorted(told.languages.items()))
    raised = ", ".join(f"{name} {n}" for name, n in sorted(told.raised.items()))
    grades = " ".join(str(told.grades.get(grade, 0)) for grade in range(5))
    click.echo(f"{split}: {told.proposals} proposals ({languages}), {told.topics} topics")
    click.echo(f"  content passes {told.content_passes:.0%} of them")
    click.echo(f"  deliberation passes {told.deliberation_passes:.0%}; grades 0 to 4: {grades}")
    click.echo(f"  above 0: {raised}")
