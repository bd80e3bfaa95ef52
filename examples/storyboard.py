"""A storyboard of one proposal: asked for once, followed to its end, saved as a PNG and a PDF.

The job is the service's: a demo that is killed half-way finds the same storyboard when it starts
again, by the Idempotency-Key that it left behind.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from examples.events import SILENCE_S, Event, events

SCENES, SEED = 6, 4
WITHIN_S = 900.0
RETRY_S = 1.0


@dataclass
class Followed:
    """One storyboard as its events tell it."""

    progress: float = 0.0
    drawn: set[int] = field(default_factory=set)
    scenes: dict[int, str] = field(default_factory=dict)
    last_id: str = ""
    result: dict[str, Any] | None = None
    error: str = ""

    @property
    def is_over(self) -> bool:
        return self.result is not None or bool(self.error)

    def take(self, event: str, data: dict[str, Any]) -> None:
        match event:
            case "progress":
                self.progress = data["progress"]
            case "scene":
                self.scenes[data["n"]] = f"{data['shot']}: {data['action']}"
            case "frame" if data["state"] == "done":
                self.drawn.add(data["n"])
            case "result":
                self.result, self.progress = data, 1.0
            case "error":
                self.error = data["detail"]


async def draw_storyboard(
    console: Console, client: httpx.AsyncClient, proposal: dict[str, Any], home: Path, png: Path
) -> dict[str, Any]:
    """The finished storyboard; its sheets are in `png` and beside it as a PDF.

    Raises httpx.HTTPError; RuntimeError when it failed, TimeoutError.
    """
    key_file = home / "demo-storyboard.key"
    key, is_new = _key(key_file)
    body = {
        "proposal": proposal,
        "scenes": SCENES,
        "seed": SEED,
    }
    if not is_new:
        console.print("Going on with the storyboard of the demo that was stopped.")
    answer = await client.post("/v1/storyboards", json=body, headers={"Idempotency-Key": key})
    answer.raise_for_status()
    followed = Followed()
    try:
        async with asyncio.timeout(WITHIN_S):
            await _follow_to_the_end(console, client, answer.json()["id"], followed)
    finally:
        if followed.is_over:
            key_file.unlink(missing_ok=True)
    if followed.result is None or followed.result["state"] != "done":
        raise RuntimeError(f"The storyboard failed: {followed.error or followed.result}")
    for file, form in ((png, "png"), (png.with_suffix(".pdf"), "pdf")):
        sheet = await client.get(followed.result["sheet_url"], params={"format": form})
        sheet.raise_for_status()
        file.write_bytes(sheet.content)
    return followed.result


def _key(file: Path) -> tuple[str, bool]:
    """The key of the storyboard to draw, and False when an earlier demo was not done with it."""
    if file.exists():
        return file.read_text().strip(), False
    file.parent.mkdir(parents=True, exist_ok=True)
    key = f"demo-{uuid4().hex}"
    file.write_text(key)
    return key, True


async def _follow_to_the_end(
    console: Console, client: httpx.AsyncClient, storyboard_id: str, followed: Followed
) -> None:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("Writing and drawing a storyboard", total=1.0)
        while not followed.is_over:
            async for event in _events(client, storyboard_id, followed):
                followed.take(event.name, event.data)
                if event.name == "scene":
                    n = event.data["n"]
                    bar.console.print(f"  scene {n}  {followed.scenes[n]}")
                bar.update(task, completed=followed.progress)
            if not followed.is_over:
                await asyncio.sleep(RETRY_S)


async def _events(
    client: httpx.AsyncClient, storyboard_id: str, followed: Followed
) -> AsyncIterator[Event]:
    """What has not been seen yet; ends with the stream, whatever cut it."""
    headers = {"Last-Event-ID": followed.last_id} if followed.last_id else {}
    url = f"/v1/storyboards/{storyboard_id}/events"
    try:
        async with client.stream("GET", url, headers=headers, timeout=SILENCE_S) as response:
            response.raise_for_status()
            async for event in events(response):
                followed.last_id = event.id or followed.last_id
                yield event
    except httpx.TransportError:
        return


def told(storyboard: dict[str, Any], png: Path, began: float) -> str:
    """What the demo says in the end."""
    seconds = time.monotonic() - began
    drawn = sum(frame["state"] == "done" for frame in storyboard["frames"])
    lines = [
        f"Storyboard of {drawn} frames in {seconds:.0f} s: "
        f"{png.resolve()} and {png.with_suffix('.pdf').name}"
    ]
    lines += [f"  {note['message']}" for note in storyboard["notes"]]
    return "\n".join(lines)
