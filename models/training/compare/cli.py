"""`python -m models.training compare`: checkpoints, or models and settings, side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from models.commands import models_dir_option

_SEEDS, _MOST = 2, 1_000.0
_UNMEASURED = "-"


def _whole(ctx: click.Context, param: click.Parameter, value: str | None) -> Any:
    """`4,28`: whole numbers above 0."""
    return None if value is None else _numbers(value, int, least=1)


def _floats(ctx: click.Context, param: click.Parameter, value: str | None) -> Any:
    """`1,3.5`: numbers from 0."""
    return None if value is None else _numbers(value, float, least=0)


def _numbers(value: str, read: Callable[[str], float], *, least: float) -> tuple[float, ...]:
    try:
        numbers = tuple(read(part) for part in value.split(","))
    except ValueError:
        raise click.BadParameter(f"{value!r} is no list of numbers such as 4,28") from None
    if not all(least <= number <= _MOST for number in numbers):
        raise click.BadParameter(f"{value!r} goes beyond {least:g} to {_MOST:g}")
    return tuple(dict.fromkeys(numbers))


def _size(ctx: click.Context, param: click.Parameter, value: str | None) -> Any:
    """`1024x768`: pixels."""
    if value is None:
        return None
    width, _, height = value.partition("x")
    if not (width.isdecimal() and height.isdecimal()):
        raise click.BadParameter(f"{value!r} is no size such as 1024x768")
    return int(width), int(height)


@click.command("compare")
@click.argument("target", required=False, type=click.Path(exists=True, path_type=Path))
@click.option("--models", help="Instead of a run: two or more models, with commas between.")
@click.option(
    "--prompts",
    "prompts_file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="One prompt a line. Else the configuration's sample prompts.",
)
@click.option("--seeds", type=click.IntRange(1, 64), default=_SEEDS, show_default=True)
@click.option(
    "--steps", callback=_whole, metavar="N[,N]", help="Denoising steps; several with --models."
)
@click.option(
    "--guidance", callback=_floats, metavar="G[,G]", help="Guidance; several with --models."
)
@click.option("--scale", type=click.FloatRange(-4, 4), default=1.0, show_default=True, help="LoRA.")
@click.option(
    "--size",
    callback=_size,
    metavar="WxH",
    help="Pixels, such as 1024x768. Else the model's usual one.",
)
@click.option("--checkpoint", "only", type=int, multiple=True, help="Only the one of these steps.")
@click.option(
    "--data",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="The style's pictures, where the configuration does not say.",
)
@click.option(
    "--clip",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="A CLIP-like model's folder: measures whether prompts are followed.",
)
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="Else RUN/compare.")
@click.option("--device", default="auto", show_default=True)
@click.option("--threads", type=click.IntRange(1), help="Of a processor; else every core.")
@models_dir_option
def command(target: Path | None, models: str | None, seeds: int, **options: Any) -> None:
    """Draw the same prompts and seeds with every checkpoint of a run (CONFIG, or its folder), or
    with several --models and settings; measure, and write compare.png, compare.html, compare.json.

    Run again, it draws what is missing.
    """
    if (target is None) == (models is None):
        raise click.UsageError("name a run (CONFIG or FOLDER), or --models NAME,NAME; one of both")
    from models.training.compare.work import Asked, compare

    asked = Asked(
        target=target,
        models=tuple(name.strip() for name in (models or "").split(",") if name.strip()),
        seeds=seeds,
        **options,
    )
    _be_quiet()
    with _bar() as bar:
        made = compare(asked, bar)
    _print_figures(made[-1])
    for file in made:
        click.echo(file)


def _print_figures(file: Path) -> None:
    """The table of the report, in short."""
    from rich.console import Console
    from rich.table import Column, Table

    from models.training.compare.figures import Comparison

    def told(value: float | None, error: float | None = None) -> str:
        text = _UNMEASURED if value is None else f"{value:.2f}"
        return text if error is None else f"{text} ± {error:.2f}"

    found = Comparison.model_validate_json(file.read_bytes())
    heads = ("distance to the style", "prompt followed", "variety", "copies?", "s an image")
    table = Table(Column("", no_wrap=True), *heads, caption=f"{_UNMEASURED} not measured")
    for column in found.columns:
        table.add_row(
            column.label,
            told(column.style["all"] if column.style else None, column.style_error),
            told(column.following.mean if column.following else None),
            told(column.diversity),
            _UNMEASURED if column.suspects is None else str(column.suspects),
            told(column.seconds),
        )
    Console().print(table)


@contextmanager
def _bar() -> Iterator[Callable[[int, int], None]]:
    """Pictures done of all, and the time that is left; on standard error, as results are not."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    text = TextColumn("{task.description}")
    progress = Progress(
        text, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=Console(stderr=True)
    )
    with progress:
        task = progress.add_task("pictures", total=None)

        def tell(done: int, total: int) -> None:
            progress.update(task, completed=done, total=total)

        yield tell


def _be_quiet() -> None:
    import diffusers
    import transformers

    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
