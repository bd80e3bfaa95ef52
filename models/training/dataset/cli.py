"""`dataset check` and `dataset prepare`: what stands on the terminal about a dataset."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from models.training.dataset.captioning import TIMEOUT_S, Captioner, Seer
from models.training.dataset.captions import STORYBOARD
from models.training.dataset.checking import Rules, Tick, inspect
from models.training.dataset.findings import Finding
from models.training.dataset.preparing import Preparation, Recipe, prepare
from models.training.dataset.report import report_on_check, report_on_prepare
from models.training.errors import DatasetUnusable

SHOWN_PER_KIND = 10
PAGE = "report.html"
SHEET = ".report/contact-sheet.png"
"""In a folder that begins with a dot: no trainer takes the sheet for a picture."""

folder_argument = click.argument("folder", type=click.Path(path_type=Path))
size = click.IntRange(min=16)
trigger_option = click.option(
    "--trigger", default="", metavar="WORDS", help="What captions begin with to ask for the style."
)
multiple_option = click.option(
    "--multiple",
    type=click.IntRange(min=1),
    default=16,
    show_default=True,
    help="What both sides of a bucket are multiples of; 16 for Flux.",
)
min_side_option = click.option(
    "--min-side",
    type=click.IntRange(min=1),
    show_default="about half of the smallest resolution",
    help="Pixels that the shorter side of a picture has at least.",
)


@click.group()
def command() -> None:
    """Pictures with captions beside them: are they fit to train on, and how to make them so."""


@command.command()
@folder_argument
@trigger_option
@click.option(
    "--resolution",
    "resolutions",
    type=size,
    multiple=True,
    default=(512,),
    show_default=True,
    help="To train at, in pixels a side of a square; more than one may be named.",
)
@multiple_option
@min_side_option
@click.option(
    "--report", type=click.Path(path_type=Path), help="An HTML file to write, with a PNG."
)
@click.option("--all", "show_all", is_flag=True, help="Every finding, not ten of a kind.")
@click.pass_context
def check(
    ctx: click.Context,
    *,
    folder: Path,
    trigger: str,
    resolutions: tuple[int, ...],
    multiple: int,
    min_side: int | None,
    report: Path | None,
    show_all: bool,
) -> None:
    """Find what is wrong with the pictures and captions in FOLDER; exit 1 if anything is."""
    if report and report.resolve().is_relative_to(folder.resolve()):
        raise DatasetUnusable(f"{report} would become a part of {folder}: name a file elsewhere")
    rules = Rules(tuple(sorted(set(resolutions))), multiple, min_side, trigger.strip())
    with _bar("looking at pictures") as tick:
        found = inspect(folder, rules, tick)
    _print(found.findings, len(found.findings) if show_all else SHOWN_PER_KIND, "--all")
    if report:
        report_on_check(found, report, report.with_suffix(".png"))
        click.echo(f"report: {report}")
    errors = len(found.errors)
    warnings = len(found.findings) - errors
    pictures = len(found.listing.pictures)
    click.echo(f"{pictures} pictures, {errors} errors, {warnings} warnings")
    ctx.exit(1 if errors else 0)


@command.command("prepare")
@folder_argument
@click.argument("out", type=click.Path(path_type=Path))
@trigger_option
@click.option(
    "--resolution",
    type=size,
    default=512,
    show_default=True,
    help="The largest to train at, in pixels a side of a square.",
)
@multiple_option
@min_side_option
@click.option(
    "--style-words",
    default="",
    metavar="WORDS",
    help='What follows the trigger in every caption, as "black and white color illustration".',
)
@click.option(
    "--caption-with",
    "url",
    metavar="URL",
    help="An OpenAI-compatible API (up to /v1) that writes the captions that are missing.",
)
@click.option("--model", default="", help="The model there that can see.")
@click.option(
    "--template",
    default=STORYBOARD,
    show_default=True,
    help="The shape of the captions to ask for.",
)
@click.option("--api-key", envvar="OPENAI_API_KEY", default="", show_envvar=True)
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(min=1),
    default=TIMEOUT_S,
    show_default=True,
    help="Seconds that one caption may take.",
)
@click.option(
    "--concurrency", type=click.IntRange(1, 64), default=4, show_default=True,
    help="Captions asked for at once.",
)  # fmt: skip
def prepare_command(
    *,
    folder: Path,
    out: Path,
    trigger: str,
    resolution: int,
    multiple: int,
    min_side: int | None,
    style_words: str,
    url: str | None,
    model: str,
    template: str,
    api_key: str,
    timeout_s: float,
    concurrency: int,
) -> None:
    """Make OUT from FOLDER: upright pictures in aspect buckets, captions with the trigger.

    Running it again goes on where it was stopped, and changes nothing when nothing has changed.
    """
    trigger, style_words = trigger.strip(), style_words.strip()
    if style_words and not trigger:
        raise click.UsageError("--style-words follow the trigger: name it with --trigger")
    if url and not model:
        raise click.UsageError("--caption-with needs the model that can see: name it with --model")
    recipe = Recipe(resolution, multiple, min_side, trigger, style_words)
    seer = Seer(url, model, template, api_key, timeout_s, concurrency) if url else None
    with _bar("preparing") as tick, Captioner(seer) if seer else nullcontext() as captioner:
        done = prepare(
            folder,
            out,
            recipe,
            captioner=captioner,
            finish=lambda at, done: _report(at, done, out.name),
            tick=tick,
        )
    _print(done.findings, SHOWN_PER_KIND, "in the report")
    _print_summary(done, out)


def _report(at: Path, done: Preparation, name: str) -> None:
    report_on_prepare(done, at, at / PAGE, at / SHEET, f"Prepared dataset {name}")


def _print(findings: Sequence[Finding], most: int, shown_all: str) -> None:
    """By kind, `most` of each; `shown_all` says where the others are."""
    by_kind: dict[str, list[Finding]] = defaultdict(list)
    for finding in findings:
        by_kind[finding.kind].append(finding)
    for kind, of_kind in by_kind.items():
        head = f"{of_kind[0].severity}: {kind}"
        for finding in of_kind[:most]:
            click.echo(f"{head}: {finding}")
        if len(of_kind) > most:
            click.echo(f"{head}: {len(of_kind) - most} more ({shown_all})")


def _print_summary(done: Preparation, out: Path) -> None:
    made = done.manifest
    for kind, count in Counter(finding.kind for finding in done.mended).items():
        click.echo(f"mended: {kind}: {count}")
    click.echo(
        f"{len(made.pictures)} pictures prepared in {out} ({done.kept} of them before), "
        f"{len(done.skipped)} left out; data {made.data_hash[:12]}; report: {out / PAGE}"
    )


@contextmanager
def _bar(text: str) -> Iterator[Tick]:
    """On stderr, where a person looks on."""
    console = Console(stderr=True)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    with Progress(
        *columns, TimeElapsedColumn(), console=console, disable=not console.is_terminal
    ) as bars:
        task = bars.add_task(text, total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)
