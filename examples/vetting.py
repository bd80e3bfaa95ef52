"""Two channels vetted at once, their findings shown as they are found.

The channels are of the fake YouTube in tests/youtube: it answers Google's own client over HTTP.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.text import Text

from examples.events import show
from tests.youtube.described import Channels
from tests.youtube.server import KEY, serve_youtube

CHANNELS = ("harmless-hiking", "words-gambling")
COLOURS = {"pass": "green", "fail": "red", "review": "yellow"}
FINDINGS_SHOWN = 4


@dataclass
class Vetted:
    """One channel on its way through the service, as far as the events have told."""

    handle: str
    progress: float = 0.0
    findings: list[dict[str, Any]] = field(default_factory=list)
    result: dict[str, Any] | None = None
    error: str = ""
    seconds: float = 0.0

    def take(self, event: str, data: dict[str, Any]) -> None:
        match event:
            case "progress":
                self.progress = data["progress"]
            case "finding":
                self.findings.append(data)
            case "result":
                self.result, self.findings, self.progress = data, data["findings"], 1.0
            case "error":
                self.error = data["detail"]

    def view(self) -> Panel:
        verdict = self.result["verdict"] if self.result else ""
        colour = "red" if self.error else COLOURS.get(verdict, "blue")
        lines: list[RenderableType] = [Text(self.error)] if self.error else []
        lines += [_finding(found) for found in self.findings[:FINDINGS_SHOWN]]
        if (more := len(self.findings) - FINDINGS_SHOWN) > 0:
            lines.append(Text(f"and {more} more", style="dim"))
        if self.result:
            lines += _closing(self.result)
        elif not self.error:
            lines.append(Text(f"{self.progress:.0%} looked at", style="dim"))
        title = self.result["channel"]["title"] if self.result else ""
        subtitle = f"{verdict} · {self.seconds:.0f} s" if verdict else None
        return Panel(Group(*lines), title=f"[bold]{self.handle}[/bold]  [dim]{title}[/dim]",
                     subtitle=subtitle, border_style=colour,
                     title_align="left", subtitle_align="right")  # fmt: skip


def _finding(found: dict[str, Any]) -> Text:
    quote = f" “{found['quote']}”" if found["quote"] else ""
    return Text(f"{found['category']} {found['level']} in the {found['source']}{quote}")


def _closing(result: dict[str, Any]) -> list[RenderableType]:
    lines: list[RenderableType] = [Text(f"→ {r['text']}", style="cyan") for r in result["reasons"]]
    coverage = result["coverage"]
    unseen = Counter(missed["why"] for missed in coverage["not_looked_at"])
    looked_at = (
        f"Looked at {coverage['videos_looked_at']} videos and "
        f"{coverage['thumbnails_looked_at']} thumbnails for {result['quota_units']} quota units; "
        f"not looked at: {', '.join(f'{n} {why}' for why, n in unseen.items()) or 'nothing'}"
    )
    return [*lines, Text(looked_at, style="dim")]


def _described() -> Channels:
    channels = Channels.load()
    return Channels({name: channels[name] for name in CHANNELS})


@contextmanager
def fake_youtube() -> Iterator[dict[str, str]]:
    """The variables that point the vetting service at it."""
    with serve_youtube(_described(), picture_base_url="https://i.ytimg.com") as youtube:
        yield {
            "JOING_YOUTUBE_KEY": KEY,
            "JOING_VETTING_YOUTUBE_URL": youtube.base_url,
            "JOING_VETTING_PICTURES_URL": youtube.base_url,
            "JOING_VETTING_CALL_TIMEOUT_S": "300",  # the embedded model, next to other work
            # No embedded model sees pictures; their text is read all the same.
            "JOING_VETTING_TEXT_ONLY": "true",
        }


async def vet_channels(console: Console, base_url: str) -> bool:
    """True when both were vetted."""
    vetted = [Vetted(channel.file.channel.handle or "") for channel in _described().values()]
    asked = [({"channel": one.handle}, one) for one in vetted]
    await show(console, base_url, "/v1/creators/vet/stream", asked)
    return all(one.result for one in vetted)
