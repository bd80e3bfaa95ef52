"""Storyboards an hour, against writing all scenes first and drawing one frame at a time.

Both do the same work through the same services of one running system: outline, scenes, a screening
of each, frames. The plain way is a loop; ours is the storyboard service, several jobs at once.
`python -m loadtests.benchmarks.storyboards [--quick]`
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Awaitable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import click
import httpx
from rich.console import Console

from bentos.running import running, running_system
from loadtests.benchmarks.machine import describe_machine
from loadtests.benchmarks.report import Finding, last_line, table
from services.shared.language_model import Call, accepted
from services.shared.openai_model import OpenAIModel
from services.shared.proposals import Proposal
from services.storyboard import policy, prompting
from services.storyboard.adapters.peers import HttpPainter, HttpScreen
from services.storyboard.answers import OutlineAnswer, SceneAnswer, outline_schema, scene_schema
from services.storyboard.ports import ImageModel, Order
from services.storyboard.prompts.library import PromptLibrary
from services.storyboard.schemas import Cast, Setting

PROPOSALS = Path(__file__).parent / "proposals.jsonl"
TARGETS = {"jobs_per_hour": "over 1", "first_frame": "over 1", "rows_per_step": "over 1"}
IMAGES = "services.images.service:Images"
TIMEOUT_S = 1_800.0
ROWS = re.compile(r"^joing_images_batch_rows_(sum|count) ([0-9.]+)$", re.MULTILINE)


@dataclass
class Run:
    """Seconds from the first request; `rows_per_step` is images in the engine's batch, mean."""

    jobs: int
    total_s: float = 0.0
    first_frames_s: list[float] = field(default_factory=list)
    rows_per_step: float = 0.0

    @property
    def jobs_per_hour(self) -> float:
        return self.jobs * 3_600 / self.total_s


@dataclass(frozen=True)
class Plain:
    """One storyboard after another, one call after another."""

    writer: OpenAIModel
    screen: HttpScreen
    painter: HttpPainter
    library: PromptLibrary
    image: ImageModel

    async def make(self, proposal: Proposal, scenes: int, began: float, run: Run) -> None:
        outline = await self._outline(proposal, scenes)
        prompts = [await self._scene(proposal, outline, n) for n in range(1, scenes + 1)]
        first = True
        for n, prompt in enumerate(prompts, 1):
            if prompt is None:
                continue
            width, height = self.image.width, self.image.height
            order = Order(prompt, None, width, height, n, key=f"plain-{time.time_ns()}-{n}")
            await self.painter.draw(order)
            if first:
                run.first_frames_s.append(time.monotonic() - began)
                first = False

    async def _outline(self, proposal: Proposal, scenes: int) -> OutlineAnswer:
        schema = outline_schema(scenes, self.image.vocabulary, proposal.answer_language)
        messages = self.library.outline(proposal, scenes)
        reply = await self.writer.ask(
            Call(tuple(messages), "OutlineAnswer", schema, 300 + 90 * scenes, "plain-outline")
        )
        answer = accepted(reply, OutlineAnswer)
        return answer.model_copy(update={"scenes": policy.beats_of(answer, scenes)})

    async def _scene(self, proposal: Proposal, outline: OutlineAnswer, n: int) -> str | None:
        """The image prompt of a scene; None when it may not be drawn."""
        if n > len(outline.scenes):
            return None
        beat = outline.scenes[n - 1]
        where = outline.settings[beat.where - 1]
        who = outline.cast[beat.who - 1] if beat.who else None
        for objections in ((), ("too much",)):
            messages = self.library.scene(proposal, outline, outline.scenes, n, objections)
            schema = scene_schema(self.image.vocabulary, proposal.answer_language)
            reply = await self.writer.ask(
                Call(tuple(messages), "SceneAnswer", schema, 400, f"plain-scene-{n}")
            )
            written = accepted(reply, SceneAnswer)
            prompt = prompting.image_prompt(
                self.image,
                None,
                who=Cast(name=who.name, look=who.look) if who else None,
                where=Setting(name=where.name, look=where.look),
                written=written,
            )
            text = Proposal(
                title=where.name,
                content=f"{written.action}\n{written.dialogue}\n{prompt}",
                media_type=proposal.media_type,
                language=proposal.answer_language,
            )
            if (await self.screen.is_allowed(text)).is_allowed:
                return prompt
        return None


async def one_after_another(client: httpx.AsyncClient, asked: list[Proposal], scenes: int) -> Run:
    painter = HttpPainter(client)
    image = await painter.model()
    plain = Plain(
        OpenAIModel(client, key="", model=None, timeout_s=TIMEOUT_S),
        HttpScreen(client),
        painter,
        PromptLibrary("1", image.vocabulary),
        image,
    )
    run, began = Run(len(asked)), time.monotonic()
    for proposal in asked:
        started = time.monotonic()
        await plain.make(proposal, scenes, started, run)
    run.total_s = time.monotonic() - began
    return run


async def by_the_service(client: httpx.AsyncClient, asked: list[Proposal], scenes: int) -> Run:
    run, began = Run(len(asked)), time.monotonic()

    async def one(proposal: Proposal) -> None:
        body = {"proposal": proposal.model_dump(mode="json"), "scenes": scenes}
        answer = await client.post("/v1/storyboards", json=body)
        answer.raise_for_status()
        url = f"/v1/storyboards/{answer.json()['id']}/events"
        event, seen = "", False
        async with client.stream("GET", url) as response:
            async for line in response.aiter_lines():
                name, _, value = line.partition(": ")
                if name == "event":
                    event = value
                elif name == "data" and event == "frame" and not seen:
                    if json.loads(value)["state"] == "done":
                        seen = True
                        run.first_frames_s.append(time.monotonic() - began)
                elif name == "data" and event == "error":
                    raise RuntimeError(value)

    await asyncio.gather(*(one(proposal) for proposal in asked))
    run.total_s = time.monotonic() - began
    return run


async def batched(images_url: str, work: Awaitable[Run]) -> Run:
    """`work`, and how many images shared each step of the engine meanwhile."""
    before = await _rows(images_url)
    run = await work
    after = await _rows(images_url)
    run.rows_per_step = (after[0] - before[0]) / max(1.0, after[1] - before[1])
    return run


async def _rows(images_url: str) -> tuple[float, float]:
    """Rows of all steps so far, and the number of steps."""
    async with httpx.AsyncClient(timeout=10) as client:
        text = (await client.get(f"{images_url}/metrics")).text
    found = dict(ROWS.findall(text))
    return float(found["sum"]), float(found["count"])


async def compare(base_url: str, images_url: str, jobs: int, scenes: int) -> tuple[Run, Run]:
    lines = PROPOSALS.read_text("utf-8").splitlines()
    asked = [Proposal.model_validate(_proposal(line)) for line in lines[:jobs]]
    async with httpx.AsyncClient(base_url=base_url, timeout=TIMEOUT_S) as client:
        plain = await batched(images_url, one_after_another(client, asked, scenes))
        ours = await batched(images_url, by_the_service(client, asked, scenes))
    return plain, ours


def _proposal(line: str) -> dict[str, Any]:
    known = {"title", "content", "media_type", "category", "language"}
    return {key: value for key, value in json.loads(line).items() if key in known}


@click.command()
@click.option("--quick", is_flag=True, help="Two storyboards of three scenes.")
def main(quick: bool) -> None:
    """Print a table, then one line of JSON."""
    jobs, scenes = (2, 3) if quick else (4, 6)
    with running(IMAGES) as images:
        elsewhere = {"JOING_IMAGES_URL": images.base_url}
        with running_system(environment=elsewhere) as system:
            work = compare(system.base_url, images.base_url, jobs, scenes)
            plain, ours = asyncio.run(work)
            model = system.model
    found = {
        "jobs_per_hour": Finding(
            ours.jobs_per_hour / plain.jobs_per_hour,
            f"{ours.jobs_per_hour:.1f}/h",
            f"{plain.jobs_per_hour:.1f}/h",
            f"{jobs} x {scenes} scenes",
        ),
        "first_frame": Finding(
            median(plain.first_frames_s) / median(ours.first_frames_s),
            f"{median(ours.first_frames_s):.0f} s",
            f"{median(plain.first_frames_s):.0f} s",
            f"{jobs} jobs",
        ),
        "rows_per_step": Finding(
            ours.rows_per_step / plain.rows_per_step,
            f"{ours.rows_per_step:.2f}",
            f"{plain.rows_per_step:.2f}",
            "every step",
        ),
    }
    Console().print(table(f"Storyboards ({model})", TARGETS, found))
    print(last_line("storyboards", found, describe_machine()))


if __name__ == "__main__":
    main()
