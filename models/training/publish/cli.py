"""`python -m models.training publish NAME`."""

from __future__ import annotations

import os
from pathlib import Path

import click

from models.commands import models_dir_option

_DEFAULT_KEY = "JOING_KEY"


@click.command("publish")
@click.argument("name")
@click.option(
    "--from",
    "source",
    type=click.Path(exists=True, path_type=Path),
    help="A configuration, a run's folder or a .safetensors file. Else output/NAME.",
)
@click.option("--step", type=click.IntRange(1), help="Of the checkpoint. Else the final one.")
@click.option("--to", metavar="URL", help="A running image service, or a gateway before it.")
@click.option(
    "--key-env",
    default=_DEFAULT_KEY,
    show_default=True,
    help="The environment variable that holds the service's key.",
)
@click.option("--wait", "wait_s", type=click.FloatRange(0, 3600), default=60.0, show_default=True,
              help="Seconds that a service is waited for that is starting.")  # fmt: skip
@click.option("--catalog", "is_catalogs", is_flag=True, help="A row in models/catalog.toml too.")
@click.option("--trigger", help="In place of what the file says.")
@click.option("--licence", help="In place of what the file says.")
@click.option(
    "--figures",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A compare.json for the card. Else RUN/compare/compare.json.",
)
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder of card, weights and pictures. Else published/NAME beside the checkpoint.",
)
@models_dir_option
def command(
    name: str,
    *,
    source: Path | None,
    step: int | None,
    to: str | None,
    key_env: str,
    wait_s: float,
    is_catalogs: bool,
    trigger: str | None,
    licence: str | None,
    figures: Path | None,
    out: Path | None,
    models_dir: Path,
) -> None:
    """Give a checkpoint its NAME: write its model card, add it to the catalog (--catalog), upload
    it to a running image service (--to). What is there already is left as it is.
    """
    from models.catalog import load_catalog
    from models.training.publish.card import write_card
    from models.training.publish.catalog_file import add_to_catalog
    from models.training.publish.chosen import choose, require_fits
    from models.training.publish.service import ImageService

    chosen = choose(
        name,
        source or _usual(name),
        step,
        trigger=trigger,
        licence=licence,
        catalog=load_catalog(),
        models_dir=models_dir,
    )
    require_fits(chosen)
    key = os.environ.get(key_env) or None
    if key is None and key_env != _DEFAULT_KEY and to is not None:
        raise click.UsageError(f"--key-env: {key_env} is not set in the environment")
    service = ImageService(to, key, wait_s=wait_s) if to is not None else None
    card = write_card(chosen, out or chosen.file.parent / "published" / name, figures)
    click.echo(f"card: {card}")
    if is_catalogs:
        is_changed = add_to_catalog(chosen)
        click.echo(f"catalog: {name} {'written' if is_changed else 'was there already'}")
    if service is not None:
        served = service.publish(chosen)
        click.echo(f"{to}: {name} {served.outcome}, {served.digest[:16]}, {served.trigger!r}")
    if not is_catalogs and service is None:
        click.echo("nothing was sent: --to URL or --catalog says where to")


def _usual(name: str) -> Path:
    from models.training.publish.chosen import require_name

    require_name(name)
    folder = Path("output") / name
    if not folder.is_dir():
        raise click.UsageError(f"there is no {folder}: --from says which run or file is meant")
    return folder
