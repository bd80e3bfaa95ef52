"""Four frames of a storyboard, in four styles, asked for at the same time: one batch draws them."""

from __future__ import annotations

import asyncio
import base64
import io
import time
from dataclasses import dataclass
from pathlib import Path

import httpx
from PIL import Image, ImageDraw, ImageFont

SCENES: dict[str | None, str] = {
    None: "a woman walking in a street, medium shot, eye level, evening",
    "ink": "a woman talking in a room, close-up, eye level, evening",
    "blueprint": "a woman standing in a kitchen, medium shot, eye level, day",
    "sepia": "two people talking in a garden, medium shot, eye level, day",
}
"""By style, None for the base: the first sample proposal in the grammar of the prompts."""
BASE_TRIGGER = "sketch"
MEDIUM = "black and white color illustration"
SEED = 4
READY_S = 120.0
ENLARGED = 3  # the embedded model draws thumbnails
MARGIN, CAPTION = 24, 40


@dataclass(frozen=True)
class Frame:
    """One picture and how it came about."""

    style: str
    scene: str
    image: Image.Image
    seconds: float


async def draw_frames(client: httpx.AsyncClient) -> list[Frame]:
    """Raises httpx.HTTPStatusError for an answer that is no picture."""
    triggers = await _triggers(client)
    return await asyncio.gather(
        *(_draw(client, style, scene, triggers) for style, scene in SCENES.items())
    )


async def _triggers(client: httpx.AsyncClient) -> dict[str, str]:
    """Of every LoRA there is. Waits for a model that is still being loaded, as the service says."""
    until = time.monotonic() + READY_S
    while True:
        response = await client.get("/v1/loras")
        if response.status_code != httpx.codes.SERVICE_UNAVAILABLE or time.monotonic() > until:
            break
        await asyncio.sleep(float(response.headers.get("Retry-After", "1")))
    response.raise_for_status()
    return {lora["name"]: lora["trigger"] for lora in response.json()["data"]}


async def _draw(
    client: httpx.AsyncClient, style: str | None, scene: str, triggers: dict[str, str]
) -> Frame:
    began = time.monotonic()
    trigger = triggers[style] if style else BASE_TRIGGER
    body = {"prompt": f"{trigger} {MEDIUM}, {scene}", "seed": SEED}
    response = await client.post(
        "/v1/images/generations", json={**body, "model": style} if style else body
    )
    response.raise_for_status()
    file = base64.b64decode(response.json()["data"][0]["b64_json"])
    image = Image.open(io.BytesIO(file))
    return Frame(style or "base", scene, image, time.monotonic() - began)


def sheet(frames: list[Frame], columns: int = 2) -> Image.Image:
    """The frames side by side, numbered, each with its style and its scene."""
    width = max(frame.image.width for frame in frames) * ENLARGED
    height = max(frame.image.height for frame in frames) * ENLARGED
    rows = -(-len(frames) // columns)
    page = Image.new(
        "RGB",
        (columns * (width + MARGIN) + MARGIN, rows * (height + CAPTION + MARGIN) + MARGIN),
        "white",
    )
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(size=17)
    for n, frame in enumerate(frames):
        left = MARGIN + n % columns * (width + MARGIN)
        top = MARGIN + n // columns * (height + CAPTION + MARGIN)
        page.paste(frame.image.resize((width, height), Image.Resampling.LANCZOS), (left, top))
        pen.rectangle((left - 1, top - 1, left + width, top + height), outline="black", width=2)
        pen.text((left, top + height + 9), f"{n + 1}  {frame.style}: {frame.scene}", "black", font)
    return page


def save(frames: list[Frame], file: Path) -> Path:
    sheet(frames).save(file)
    return file.resolve()
