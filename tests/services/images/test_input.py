"""What is refused, in whose words, and what is not."""

from __future__ import annotations

from typing import Any

import openai
import pytest
import schemathesis
from hypothesis import Phase, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import response_schema_conformance

from tests.services.images.conftest import FOREVER, GENERATIONS, Served, picture


@pytest.mark.parametrize(
    ("body", "status", "field"),
    [
        ({"size": "60x48"}, 422, "size"),
        ({"size": "8x8"}, 422, "size"),
        ({"size": "1024x1024"}, 422, "size"),
        ({"size": "99999x99999"}, 422, "size"),
        ({"size": "64X48"}, 422, "size"),
        ({"size": "0x0"}, 422, "size"),
        ({"size": ""}, 422, "size"),
        ({"steps": 0}, 422, "steps"),
        ({"steps": 10_000}, 422, "steps"),
        ({"steps": 2.5}, 422, "steps"),
        ({"steps": True}, 422, "steps"),
        ({"guidance": -1}, 422, "guidance"),
        ({"guidance": 1e300}, 422, "guidance"),
        ({"guidance": "3"}, 422, "guidance"),
        ({"prompt": ""}, 422, "prompt"),
        ({"prompt": " \n\t"}, 422, "prompt"),
        ({"prompt": "a" * 100_000}, 422, "prompt"),
        ({"prompt": None}, 422, "prompt"),
        ({"prompt": ["a"]}, 422, "prompt"),
        ({"model": "nobody"}, 404, "model"),
        ({"model": ""}, 404, "model"),
        ({"model": "../red"}, 404, "model"),
        ({"n": 0}, 422, "n"),
        ({"n": 9}, 422, "n"),
        ({"n": "2"}, 422, "n"),
        ({"n": 2, "stream": True}, 422, "n"),
        ({"partial_images": 1}, 422, "partial_images"),
        ({"partial_images": 4, "stream": True}, 422, "partial_images"),
        ({"seed": -1}, 422, "seed"),
        ({"seed": 2**64}, 422, "seed"),
        ({"seed": 2**63 - 1, "n": 2}, 422, "seed"),
        ({"lora_scale": 1}, 422, "lora_scale"),
        ({"lora_scale": 5, "model": "red"}, 422, "lora_scale"),
        ({"deadline_s": -1}, 422, "deadline_s"),
        ({"deadline_s": 0}, 422, "deadline_s"),
        ({"deadline_s": 1e-6}, 422, "deadline_s"),
        ({"deadline_s": 0.5, "steps": FOREVER}, 422, "deadline_s"),
        ({"response_format": "url"}, 422, "response_format"),
        ({"output_format": "gif"}, 422, "output_format"),
        ({"output_compression": 50}, 422, "body"),
        ({"quality": "hd"}, 422, "quality"),
        ({"style": "vivid"}, 422, "style"),
        ({"background": "transparent"}, 422, "background"),
        ({"moderation": "low"}, 422, "moderation"),
        ({"negative_prompt": "cats"}, 422, "negative_prompt"),
    ],
)
def test_bad_input_is_refused_by_name(
    service: Served, body: dict[str, Any], status: int, field: str
) -> None:
    answer = service.post(**body)
    assert answer.status_code == status
    error = answer.json()["error"]
    assert (error["param"], error["type"]) == (field, "invalid_request_error")
    assert field in error["message"]


@pytest.mark.parametrize("literal", ["NaN", "Infinity", "1e999"])
def test_numbers_that_json_has_not(service: Served, literal: str) -> None:
    body = f'{{"prompt": "rain", "guidance": {literal}}}'
    answer = service.client.post(
        GENERATIONS, content=body, headers={"Content-Type": "application/json"}
    )
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_json")


@pytest.mark.parametrize(
    "body",
    [
        {"prompt": "🎬" * 2_500},
        {"prompt": "\u202e" + "ㅋ" * 100 + "\0\x1b"},
        {"prompt": "'; DROP TABLE images; --"},
        {"seed": 0},
        {"seed": 2**63 - 1},
        {"guidance": 0},
        {"guidance": 30, "steps": 1},
        {"model": "red", "lora_scale": -4},
        {"size": "16x128"},
        {"deadline_s": 60},
        {"quality": "standard", "style": "natural", "background": "opaque", "moderation": "auto"},
        {"user": "u-1", "safety_identifier": "s-1"},
        {"n": None, "model": None, "size": None, "seed": None, "stream": None, "user": None},
    ],
)
def test_what_is_unusual_and_right(service: Served, body: dict[str, Any]) -> None:
    answer = service.post(**body)
    assert answer.status_code == 200, answer.text
    assert picture(answer.json()["data"][0]).mode == "RGB"


def test_openais_client_raises_its_own_errors(service: Served) -> None:
    client = service.openai()
    with pytest.raises(openai.NotFoundError) as unknown:
        client.images.generate(model="nobody", prompt="rain")
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.UnprocessableEntityError):
        client.images.generate(prompt="rain", size="7x7", stream=True)


@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", GENERATIONS),
        ("PUT", "/v1/loras/{name}"),
        ("DELETE", "/v1/loras/{name}"),
    ],
)
def test_the_description_is_kept(
    service: Served, method: str, path: str, mode: GenerationMode
) -> None:
    """Random requests, right and wrong: no answer is a fault of ours, or other than described."""
    description = schemathesis.openapi.from_url(f"{service.base_url}/openapi.json")

    @given(case=description[path][method].as_strategy(generation_mode=mode))
    @settings(max_examples=30, deadline=None, derandomize=True, phases=[Phase.generate])
    def is_kept(case: schemathesis.Case) -> None:
        if isinstance(case.body, dict) and isinstance(case.body.get("steps"), int):
            case.body["steps"] = min(case.body["steps"], 8)
        case.call_and_validate(checks=[not_a_server_error, response_schema_conformance])

    is_kept()
