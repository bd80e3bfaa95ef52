"""Wire types: OpenAI's images API with our additions, and LoRAs.

Bounds that the model sets (sizes, steps, whether there is guidance) are the engine's to check;
what no model could draw is refused here.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from models.flux.request import (
    MAX_GUIDANCE,
    MAX_LORA_SCALE,
    MAX_PREVIEWS,
    MAX_PROMPT_CHARACTERS,
    MAX_SEED,
)

MAX_IMAGES = 8
LORA_NAME = r"^[a-z0-9][a-z0-9._-]{0,63}$"
SIZE = r"^(auto|[1-9][0-9]{0,4}x[1-9][0-9]{0,4})$"
TEXT_ABOUT_A_LORA = r"^[^\x00-\x1f\x7f]{1,200}$"

OutputFormat = Literal["png", "jpeg", "webp"]


def _no_url(value: str | None) -> str | None:
    if value == "url":
        raise ValueError(
            "url is not offered: pictures come in the answer and are kept nowhere; use b64_json"
        )
    return value


class _Wire(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ImageGeneration(BaseModel):
    """OpenAI's request, and seed, steps, guidance, lora_scale, deadline_s. null is as if absent."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    prompt: str = Field(
        min_length=1,
        max_length=MAX_PROMPT_CHARACTERS,
        description=f"What is to be seen, 1-{MAX_PROMPT_CHARACTERS:,} characters.",
    )
    model: str | None = Field(
        None, max_length=256, description="A LoRA's name, or the base model's; absent: the base."
    )
    n: int | None = Field(None, ge=1, le=MAX_IMAGES, description="Images, 1-8; absent: 1.")
    size: str | None = Field(
        None,
        pattern=SIZE,
        description="WIDTHxHEIGHT in pixels, each a multiple of what the model takes (16 as a "
        "rule); absent or `auto`: the model's usual size.",
    )
    response_format: Annotated[
        Literal["b64_json", "url"] | None,
        AfterValidator(_no_url),
        Field(description="`b64_json`. `url` is refused: no picture is kept."),
    ] = None
    stream: bool | None = Field(
        None, description="True: server-sent events, of one image. Absent: false."
    )
    partial_images: int | None = Field(
        None,
        ge=0,
        le=MAX_PREVIEWS,
        description="Unfinished pictures in a stream, 0-3; absent: 0.",
    )
    output_format: OutputFormat | None = Field(
        None, description="Absent: png, which alone says in its text chunks how it was made."
    )
    output_compression: int | None = Field(
        None, ge=0, le=100, description="Quality of jpeg and webp in percent; absent: 100."
    )

    seed: int | None = Field(
        None,
        ge=0,
        le=MAX_SEED,
        description="The same seed and request draw the same picture; n images take seed, seed+1, "
        "and so on. Absent: by chance, and the answer tells.",
    )
    steps: int | None = Field(
        None, ge=1, le=1_000, description="Denoising steps; absent: the model's usual number."
    )
    guidance: float | None = Field(
        None, ge=0, le=MAX_GUIDANCE,
        description="How closely the prompt is followed, 0-30; absent: the model's usual value. "
        "Refused where the model has none.",
    )  # fmt: skip
    lora_scale: float | None = Field(
        None, ge=-MAX_LORA_SCALE, le=MAX_LORA_SCALE,
        description="How strongly the LoRA works, -4 to 4; absent: 1. Only with a LoRA.",
    )  # fmt: skip
    deadline_s: float | None = Field(
        None, gt=0, le=86_400,
        description="Seconds within which all of the images are wanted; refused at once when that "
        "cannot be.",
    )  # fmt: skip

    quality: Literal["auto", "standard"] | None = Field(None, description="There is one quality.")
    style: Literal["natural"] | None = Field(None, description="A LoRA is how a style is chosen.")
    background: Literal["auto", "opaque"] | None = Field(None, description="Always opaque.")
    moderation: Literal["auto"] | None = Field(None, description="Nothing is moderated here.")
    user: str | None = Field(None, max_length=512, description="Taken, and not used.")
    safety_identifier: str | None = Field(None, max_length=512, description="Taken, and not used.")

    @model_validator(mode="after")
    def _compression_has_an_effect(self) -> Self:
        if self.output_compression is not None and self.output_format in (None, "png"):
            raise ValueError("output_compression is for jpeg and webp; leave it out for png")
        return self

    def sides(self) -> tuple[int, int] | None:
        """Width and height in pixels; None for the model's usual size."""
        if self.size is None or self.size == "auto":
            return None
        width, height = self.size.split("x")
        return int(width), int(height)


class DrawnImage(_Wire):
    """One picture, and how to draw it again."""

    b64_json: str = Field(description="The file, base64.")
    revised_prompt: None = Field(None, description="Always null: prompts are drawn as they are.")
    seed: int = Field(ge=0, description="Draws this picture again, with the same request.")
    lora: str | None = Field(description="null for the base model.")
    steps: int = Field(ge=1)
    guidance: float | None = Field(description="null where the model has none.")
    eta_s: float = Field(ge=0, description="Seconds that were foreseen when it was taken in.")
    duration_ms: float = Field(ge=0, description="Milliseconds from then to the finished file.")


class InputTokens(_Wire):
    image_tokens: Literal[0] = 0
    text_tokens: int = Field(ge=0, description="Every prompt is padded to as many.")


class Usage(_Wire):
    """What was computed, in the model's own tokens."""

    input_tokens: int = Field(ge=0)
    input_tokens_details: InputTokens
    output_tokens: int = Field(ge=0, description="Latent patches of all pictures of the answer.")
    total_tokens: int = Field(ge=0)


class ImagesAnswer(_Wire):
    """OpenAI's answer, and per image what it takes to draw it again."""

    created: int = Field(description="Seconds since 1970.")
    background: Literal["opaque"] = "opaque"
    data: list[DrawnImage] = Field(min_length=1, max_length=MAX_IMAGES)
    output_format: OutputFormat
    size: str = Field(description="WIDTHxHEIGHT, pixels.")
    usage: Usage


class _StreamedImage(_Wire):
    b64_json: str = Field(description="The file, base64.")
    background: Literal["opaque"] = "opaque"
    created_at: int = Field(description="Seconds since 1970.")
    output_format: OutputFormat
    quality: Literal["auto"] = "auto"
    size: str = Field(description="WIDTHxHEIGHT, pixels.")


class PartialImage(_StreamedImage):
    """An unfinished picture, as the model foresees it at this step."""

    type: Literal["image_generation.partial_image"] = "image_generation.partial_image"
    partial_image_index: int = Field(ge=0, lt=MAX_PREVIEWS, description="Counts from 0.")


class CompletedImage(_StreamedImage, DrawnImage):
    """The finished picture, the stream's last event."""

    type: Literal["image_generation.completed"] = "image_generation.completed"
    usage: Usage


class Lora(_Wire):
    """A LoRA that `model` may name."""

    name: str = Field(pattern=LORA_NAME)
    base: str = Field(description="The model that it changes: the one that is served.")
    rank: int = Field(ge=1, description="The highest of its layers.")
    digest: str = Field(description="SHA-256 of its file, hex; every picture's metadata has it.")
    resident: bool = Field(description="It lies in a slot of the batch.")
    in_use: bool = Field(description="Images with it are waiting or being drawn.")
    trigger: str = Field(description="Words that bring the style about; empty when none are known.")
    licence: str = Field(description="Of the file; empty when unknown.")
    source: Literal["catalog", "upload"]


class Base(_Wire):
    """The model that is served, and what there is to know before asking it for a picture."""

    name: str
    trigger: str = Field(description="Words that prompts without a LoRA begin with; may be empty.")
    width: int = Field(description="Pixels of a picture whose request names no size.")
    height: int
    size_multiple: int = Field(description="Width and height are multiples of it, pixels.")
    min_side_px: int
    max_pixels: int = Field(description="Width times height.")
    vocabulary: dict[str, list[str]] | None = Field(
        description="Phrases that it understands, for `who`, `doing`, `place` and `thing`; null: "
        "any English."
    )


class Loras(_Wire):
    data: list[Lora] = Field(description="By name.")
    base: Base


class AboutLora(BaseModel):
    """The query of an upload."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    trigger: str | None = Field(
        None, pattern=TEXT_ABOUT_A_LORA, description="Words that bring the style about, 1-200."
    )
    licence: str | None = Field(
        None, pattern=TEXT_ABOUT_A_LORA, description="Of the file, 1-200 characters: an SPDX id."
    )


class FromCatalog(BaseModel):
    """Takes the LoRA of that name from the catalog, where the operator has fetched it."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    from_catalog: Literal[True]
