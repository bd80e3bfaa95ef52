"""Pictures over HTTP: OpenAI's own client, seeds, metadata, formats, and many at once."""

from __future__ import annotations

import asyncio
import base64
from typing import Any

import httpx
import pytest
from openai.types.image_gen_completed_event import ImageGenCompletedEvent
from openai.types.image_gen_partial_image_event import ImageGenPartialImageEvent
from openai.types.images_response import ImagesResponse
from PIL import ImageChops

from tests.models.flux.tiny import HEIGHT, WIDTH
from tests.services.images.conftest import GENERATIONS, STEPS, Served, picture

KOREAN = "비 오는 밤 거리, 두 사람 — “와이드 샷” 🎬"
SIZE = f"{WIDTH}x{HEIGHT}"


def differ_by(one: Any, other: Any) -> int:
    """The largest difference of any pixel, in levels of 0-255."""
    extrema = ImageChops.difference(picture(one), picture(other)).getextrema()
    return max(high for _, high in extrema)


def test_openais_client_draws(service: Served) -> None:
    answer = service.openai().images.generate(
        model="tiny", prompt="a street", n=2, size=SIZE, response_format="b64_json"
    )
    ImagesResponse.model_validate(answer.model_dump(exclude_unset=True))
    assert [picture(image).size for image in answer.data] == [(WIDTH, HEIGHT)] * 2
    assert (answer.size, answer.output_format, answer.background) == (SIZE, "png", "opaque")
    assert answer.usage.output_tokens == 2 * 48
    assert answer.data[0].seed + 1 == answer.data[1].seed
    assert differ_by(*answer.data) > 1


def test_openais_client_streams(service: Served) -> None:
    stream = service.openai().images.generate(
        model="red", prompt=KOREAN, stream=True, partial_images=3,
        extra_body={"seed": 5, "steps": 8},
    )  # fmt: skip
    assert float(stream.response.headers["X-Eta-S"]) > 0
    *partial, completed = stream
    assert [event.partial_image_index for event in partial] == [0, 1, 2]
    for event in partial:
        ImageGenPartialImageEvent.model_validate(event.model_dump(exclude_unset=True))
    ImageGenCompletedEvent.model_validate(completed.model_dump(exclude_unset=True))
    assert (completed.lora, completed.seed, completed.steps) == ("red", 5, 8)
    alone = service.post(model="red", prompt=KOREAN, seed=5, steps=8).json()["data"][0]
    assert differ_by(alone, completed) <= 1
    far = [differ_by(event, completed) for event in partial]
    assert far[0] > far[2], "a later partial picture is closer to the finished one"


def test_a_stream_is_events_with_names(service: Served) -> None:
    with service.client.stream(
        "POST", GENERATIONS, json={"prompt": "rain", "stream": True, "partial_images": 1}
    ) as answer:
        text = answer.read().decode()
    assert answer.headers["content-type"].startswith("text/event-stream")
    names = [line for line in text.splitlines() if line.startswith("event: ")]
    assert names == [
        "event: image_generation.partial_image",
        "event: image_generation.completed",
    ]


def test_what_is_left_out_is_the_models_own(service: Served) -> None:
    answer = service.post(prompt=KOREAN, size="auto", model="tiny").json()
    (drawn,) = answer["data"]
    assert (drawn["steps"], drawn["guidance"], drawn["lora"]) == (STEPS, 3.5, None)
    assert answer["size"] == SIZE
    assert 0 <= drawn["seed"] < 2**53, "JavaScript keeps all of its digits"
    assert drawn["revised_prompt"] is None


def test_guidance_0_is_not_the_usual_guidance(service: Served) -> None:
    none, usual = (service.post(seed=2, guidance=value).json()["data"][0] for value in (0, None))
    assert (none["guidance"], usual["guidance"]) == (0, 3.5)
    assert differ_by(none, usual) > 1


def test_a_png_says_how_it_was_made(service: Served) -> None:
    answer = service.post(prompt=KOREAN + "\0", model="red", lora_scale=0.5, seed=7, guidance=2)
    assert picture(answer.json()["data"][0]).text == {
        "prompt": KOREAN + "\N{REPLACEMENT CHARACTER}",
        "model": "tiny",
        "lora": "red",
        "lora_digest": service.loras()["red"]["digest"],
        "lora_scale": "0.5",
        "seed": "7",
        "steps": str(STEPS),
        "guidance": "2.0",
        "size": SIZE,
        "Software": "Joing",
    }


@pytest.mark.parametrize(("form", "start"), [("jpeg", b"\xff\xd8"), ("webp", b"RIFF")])
def test_other_formats(service: Served, form: str, start: bytes) -> None:
    small, large = (
        service.post(seed=1, output_format=form, output_compression=quality).json()
        for quality in (5, 100)
    )
    assert small["output_format"] == form
    files = [base64.b64decode(answer["data"][0]["b64_json"]) for answer in (small, large)]
    assert files[0].startswith(start)
    assert len(files[0]) < len(files[1])
    assert picture(small["data"][0]).size == (WIDTH, HEIGHT)


def test_eight_images_are_those_of_their_own_seeds(service: Served) -> None:
    asked = {"model": "red", "seed": 40, "steps": 6}
    eight = service.post(**asked, n=8).json()["data"]
    assert [image["seed"] for image in eight] == list(range(40, 48))
    for image in eight[::3]:
        (alone,) = service.post(**{**asked, "seed": image["seed"]}).json()["data"]
        assert differ_by(alone, image) <= 1


async def test_a_crowd_changes_nobodys_picture(service: Served) -> None:
    """Other LoRAs, sizes, guidances and step counts in the same batches."""
    asked = [
        {"prompt": prompt, "seed": seed, "steps": 3 + seed, "guidance": 1.5 + seed, "size": size}
        | ({"model": model} if model else {})
        for seed, (prompt, size, model) in enumerate(
            [("rain", SIZE, None), (KOREAN, SIZE, "red"), ("night", "64x64", "red")] * 3
        )
    ]
    async with httpx.AsyncClient(base_url=service.base_url, timeout=60) as client:
        answers = await asyncio.gather(*(client.post(GENERATIONS, json=body) for body in asked))
    for body, answer in list(zip(asked, answers, strict=True))[:6]:
        alone = service.client.post(GENERATIONS, json=body).json()["data"][0]
        assert differ_by(alone, answer.json()["data"][0]) <= 1
