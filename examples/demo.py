"""`make demo`: starts the whole system, evaluates the sample proposals at once, draws four frames
in four styles in one batch, then a storyboard of the first proposal, vets two channels of a fake
YouTube, and stops cleanly.

Shows what each stage decides as it decides it, and the feedback or summary as it is written.
`--svg FILE` saves the last screen as a picture; the pictures are in `frames.png`,
`storyboard.png` and `storyboard.pdf`.
"""

from __future__ import annotations

import asyncio
import html
import json
import re
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import httpx
from rich._export_format import CONSOLE_SVG_FORMAT
from rich.cells import cell_len
from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from bentos.running import StartError, running_system
from examples.events import FAILURES, SILENCE_S, show
from examples.frames import MEDIUM, draw_frames, save
from examples.storyboard import draw_storyboard, told
from examples.vetting import fake_youtube, vet_channels
from services.shared.settings import ServiceSettings

HERE = Path(__file__).parent
STAGES = ("volume", "content", "deliberation")
COLOURS = {"pass": "green", "fail": "red", "review": "yellow", "skipped": "dim"}
# rich's own format, without the web font that it would fetch from elsewhere.
PICTURE = re.sub(r"@font-face \{\{.*?\}\}", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)
COLUMN_PX = 12.2  # of rich's SVG
PROMPT = f"{MEDIUM}, a woman walking in a park, wide shot, day"


@dataclass
class Sample:
    """One proposal on its way through the service, as far as the events have told."""

    file: Path
    proposal: dict[str, Any]
    stages: dict[str, str] = field(default_factory=dict)
    text: str = ""
    result: dict[str, Any] | None = None
    error: str = ""
    seconds: float = 0.0

    def take(self, event: str, data: dict[str, Any]) -> None:
        if event == "stage":
            self.stages[data["name"]] = data["state"]
        elif event == "token":
            self.text += data["text"]
        elif event == "result":
            self.result = data
            self.text = (data["summary"] or data["feedback"])["text"]
        elif event == "error":
            self.error = data["detail"]

    def view(self) -> Panel:
        verdict = self.result["verdict"] if self.result else ""
        colour = "red" if self.error else COLOURS.get(verdict, "blue")
        lines: list[RenderableType] = [self._stages_line()]
        if self.result:
            lines += self._findings()
        if self.text or self.error:
            lines.append(Text(self.error or self.text))
        if self.result:
            lines += self._closing()
        name = f"[bold]{self.proposal['title']}[/bold]  [dim]{self.file.name}[/dim]"
        subtitle = f"{verdict} · {self.seconds:.0f} s" if verdict else None
        return Panel(Group(*lines), title=name, subtitle=subtitle, border_style=colour,
                     title_align="left", subtitle_align="right")  # fmt: skip

    def _stages_line(self) -> Table:
        row = Table.grid(padding=(0, 3))
        cells: list[RenderableType] = []
        for stage in STAGES:
            state = self.stages.get(stage, "")
            if state == "started":
                cells.append(Spinner("dots", f"{stage} …", style="blue"))
            elif state:
                cells.append(Text(f"{stage} {state}", style=COLOURS[state]))
            else:
                cells.append(Text(stage, style="dim"))
        row.add_row(*cells)
        return row

    def _findings(self) -> list[RenderableType]:
        assert self.result is not None
        _, content, deliberation = self.result["stages"]
        lines: list[RenderableType] = []
        if content["total"] is not None:
            parts = ", ".join(f"{k} {content[k]}" for k in ("message", "target", "relevance"))
            lines.append(Text(f"content {content['total']}/100 ({parts})", style="dim"))
        lines += [
            Text(f"  {r['criterion']}: {r['reason']}", style="dim") for r in content["reasons"]
        ]
        if deliberation["grade"] is not None:
            lines.append(Text(f"age grade {deliberation['grade']} of 4", style="dim"))
        return lines

    def _closing(self) -> list[RenderableType]:
        assert self.result is not None
        summary, feedback = self.result["summary"], self.result["feedback"]
        if summary:
            return [Text("# " + "  # ".join(summary["keywords"]), style="cyan")]
        changes = feedback["suggestions"] if feedback else []
        return [Text(f"→ {c['about']}: {c['change']}", style="cyan") for c in changes]


async def evaluate_all(console: Console, base_url: str, samples: list[Sample]) -> None:
    asked = [(sample.proposal, sample) for sample in samples]
    await show(console, base_url, "/v1/proposals/evaluate/stream", asked)


async def draw(console: Console, base_url: str, file: Path) -> None:
    """Four frames in four styles, saved as one sheet. Raises httpx.HTTPError."""
    timeout = httpx.Timeout(SILENCE_S)
    async with httpx.AsyncClient(base_url=base_url, timeout=timeout) as client:
        with console.status("Drawing four frames in four styles, in one batch"):
            frames = await draw_frames(client)
    styles = ", ".join(frame.style for frame in frames)
    last = max(frame.seconds for frame in frames)
    console.print(f"Drew {len(frames)} frames ({styles}) in {last:.1f} s: {save(frames, file)}")


async def tell_a_story(
    console: Console, base_url: str, proposal: dict[str, Any], png: Path
) -> None:
    """The storyboard of one proposal, saved as `png` and as a PDF beside it. Raises FAILURES."""
    began = time.monotonic()
    async with httpx.AsyncClient(base_url=base_url, timeout=SILENCE_S) as client:
        storyboard = await draw_storyboard(console, client, proposal, ServiceSettings().home, png)
    console.print(told(storyboard, png, began), highlight=False)


def next_steps(console: Console, base_url: str) -> None:
    console.print(
        f"""
[bold]Next:[/bold] [cyan]make serve[/cyan] keeps it running on port 3000. From another terminal:

  curl -s {base_url}/v1/proposals/evaluate -H 'Content-Type: application/json' \\
       -d @examples/1-balcony-garden.json
  curl -s {base_url}/v1/images/generations -H 'Content-Type: application/json' \\
       -d '{{"model": "ink", "prompt": "ink style {PROMPT}"}}'

  curl -s {base_url}/v1/storyboards -H 'Content-Type: application/json' \\
       -d "{{\\"proposal\\": $(cat examples/1-balcony-garden.json), \\"style\\": \\"ink\\"}}"

  /v1/evaluations/<id>/steps shows every message, reply and token; /docs every call.
""",
        highlight=False,
    )


def picture(console: Console) -> str:
    """What was printed, as SVG. rich gives every character one column; Korean ones take two."""
    drawn = console.export_svg(title="make demo", code_format=PICTURE)

    def widened(found: re.Match[str]) -> str:
        columns = cell_len(html.unescape(found["text"]))
        return (
            f'{found["before"]}textLength="{columns * COLUMN_PX:g}"{found["after"]}{found["text"]}<'
        )

    return re.sub(
        r'(?P<before><text [^>]*)textLength="[^"]*"(?P<after>[^>]*>)(?P<text>[^<]*)<',
        widened,
        drawn,
    )


@click.command()
@click.option("--svg", type=click.Path(path_type=Path), help="Save the last screen as a picture.")
@click.option(
    "--frames",
    type=click.Path(dir_okay=False, writable=True, path_type=Path),
    default=Path("frames.png"),
    show_default=True,
    help="Where the drawn frames go.",
)
@click.option(
    "--storyboard",
    type=click.Path(dir_okay=False, writable=True, path_type=Path),
    default=Path("storyboard.png"),
    show_default=True,
    help="Where the storyboard goes; its PDF beside it.",
)
def main(svg: Path | None, frames: Path, storyboard: Path) -> None:
    """Evaluate, draw and vet samples, with the system started for it."""
    console = Console(record=svg is not None, width=100 if svg else None)
    samples = [
        Sample(file, json.loads(file.read_text("utf-8"))) for file in sorted(HERE.glob("*.json"))
    ]
    started = time.monotonic()
    try:
        with (
            fake_youtube() as youtube,
            console.status("Starting vLLM and the services (about a minute)") as status,
            running_system(environment=youtube) as system,
        ):
            status.stop()
            console.print(f"Ready after {time.monotonic() - started:.0f} s: {system.model}")
            asyncio.run(evaluate_all(console, system.base_url, samples))
            asyncio.run(draw(console, system.base_url, frames))
            asyncio.run(tell_a_story(console, system.base_url, samples[0].proposal, storyboard))
            is_vetted = asyncio.run(vet_channels(console, system.base_url))
            next_steps(console, "http://127.0.0.1:3000")
    except (StartError, *FAILURES) as error:
        console.print(f"[red]{type(error).__name__}: {error}[/red]", highlight=False)
        sys.exit(1)
    console.print("Stopped.")
    if svg is not None:
        svg.write_text(picture(console), "utf-8")
    is_evaluated = all(sample.result and not sample.error for sample in samples)
    sys.exit(0 if is_evaluated and is_vetted else 1)


if __name__ == "__main__":
    main()
