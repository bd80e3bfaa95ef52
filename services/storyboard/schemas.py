"""The wire types of storyboards (see HTTP.md for the contract as one table)."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import Field

from services.shared.proposals import Language, Proposal, Wire

State = Literal["queued", "writing", "drawing", "done", "failed", "cancelled"]
FrameState = Literal["waiting", "drawing", "done", "failed", "dropped"]
Shot = Literal["extreme close-up", "close-up", "medium shot", "wide shot", "extreme wide shot"]
Angle = Literal["eye level", "high angle", "low angle"]
TimeOfDay = Literal["day", "night"]

MIN_SCENES, MAX_SCENES = 3, 24
MAX_SEED = 2**53 - 1 - MAX_SCENES
"""Every JSON reader keeps all of its digits, and so of the seeds that count up from it."""
SIZE = r"^[1-9][0-9]{1,4}x[1-9][0-9]{1,4}$"
STYLE = r"^[a-z0-9][a-z0-9._-]{0,63}$"
FINISHED: frozenset[State] = frozenset({"done", "failed", "cancelled"})


class StoryboardRequest(Wire):
    """What to draw. What is left out is chosen: scenes and size from the media type, the seed by
    chance.
    """

    proposal: Proposal
    scenes: int | None = Field(
        None, ge=MIN_SCENES, le=MAX_SCENES,
        description="Scenes to write, 3-24; absent: 6 for short_form, 10 for long_form.",
    )  # fmt: skip
    style: str | None = Field(
        None, pattern=STYLE, description="A LoRA's name (GET /v1/loras); absent: the base model."
    )
    size: str | None = Field(
        None,
        pattern=SIZE,
        description="WIDTHxHEIGHT of a frame, pixels; absent: the image model's usual size, "
        "upright for short_form.",
    )
    seed: int | None = Field(
        None, ge=0, le=MAX_SEED,
        description="The same seed and request draw the same frames from the same scenes.",
    )  # fmt: skip


class Scene(Wire):
    """One scene as it was written."""

    n: int = Field(ge=1, description="Place in the storyboard, from 1.")
    shot: Shot
    angle: Angle
    action: str = Field(description="What happens, in the proposal's language.")
    dialogue: str = Field(description="What is said or shown as a caption; may be empty.")
    place: str = Field(description="Where, in the proposal's language.")
    time: TimeOfDay
    duration_s: float = Field(gt=0, description="Seconds; those of all scenes add up.")
    image_prompt: str = Field(description="English, as the image model was asked.")


class Frame(Wire):
    """The picture of scene `n`."""

    n: int = Field(ge=1)
    state: FrameState = Field(
        description="`failed`: it could not be drawn, its place is marked on the sheet. "
        "`dropped`: its scene was not allowed."
    )
    url: str | None = Field(description="Where the PNG is, once it is drawn.")
    seed: int = Field(ge=0)
    lora: str | None = Field(description="null for the base model.")


class Note(Wire):
    """Something that a reader of the finished storyboard has to know."""

    n: int | None = Field(description="The scene that it is about; null: the whole storyboard.")
    code: str = Field(description="Stable name: `scene_dropped`, `frame_missing`, ...")
    message: str = Field(description="In the proposal's language.")


class Cast(Wire):
    """Someone who appears, written once so that every scene shows the same person."""

    name: str = Field(description="In the proposal's language.")
    look: str = Field(description="English, as every image prompt repeats it.")


class Setting(Wire):
    """Somewhere that scenes take place, written once."""

    name: str = Field(description="In the proposal's language.")
    look: str = Field(description="English, as every image prompt repeats it.")


class Failure(Wire):
    """Why a storyboard failed."""

    code: str = Field(description="Stable name.")
    message: str = Field(description="What happened and what to do.")


class Storyboard(Wire):
    """One storyboard: what it is to be, and what there is of it by now."""

    id: str
    state: State
    progress: float = Field(ge=0, le=1, description="Share of the steps that are done.")
    created_at: datetime
    updated_at: datetime
    expires_at: datetime = Field(description="When it and its pictures are deleted.")
    title: str
    language: Language
    style: str | None
    width: int | None = Field(description="Pixels of a frame; null until it is known.")
    height: int | None
    seed: int
    duration_s: float = Field(description="Seconds of the whole video, as foreseen.")
    cast: list[Cast]
    settings: list[Setting]
    scenes: list[Scene]
    frames: list[Frame]
    notes: list[Note]
    sheet_url: str | None = Field(description="Where the finished sheet is (?format=png or pdf).")
    error: Failure | None
    model: str | None = Field(description="The language model that wrote the scenes.")
    prompt_version: str
