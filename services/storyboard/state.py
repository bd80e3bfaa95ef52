"""What the graph carries from step to step, and what its nodes work with."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated, Any, NotRequired, TypedDict

from services.shared.language_model import LanguageModel
from services.storyboard.patience import Patience
from services.storyboard.ports import Artifacts, Change, ImageModel, Painter, Screen
from services.storyboard.schemas import Storyboard, StoryboardRequest
from services.storyboard.texts import Texts


def merged(left: dict[str, str], right: dict[str, str]) -> dict[str, str]:
    return {**left, **right}


Settlement = Annotated[dict[str, str], merged]
"""What became of each scene, by its number: `done`, `failed` or `dropped`."""


class Plan(TypedDict):
    """What the outline decided, the same for every scene."""

    image: dict[str, Any]
    """The ImageModel."""
    model: str
    """Name of the language model."""
    outline: dict[str, Any]
    """An OutlineAnswer whose scenes are those that will be made."""
    durations_s: list[float]


class State(TypedDict):
    """The state of the graph: plain JSON, so that a checkpoint holds nothing but data."""

    settled: Settlement
    image: NotRequired[dict[str, Any]]
    model: NotRequired[str]
    plan: NotRequired[Plan]


class SceneState(TypedDict):
    """The state of one scene's own graph."""

    n: int
    plan: Plan
    version: int
    """1, and 2 once it was written again."""
    objections: list[str]
    """To version 1."""
    written: NotRequired[dict[str, Any]]
    is_simplified: NotRequired[bool]
    is_allowed: NotRequired[bool]
    settled: Settlement


class Settled(TypedDict):
    """What a scene's graph gives back."""

    settled: Settlement


Record = Callable[[Callable[[Storyboard], Change]], Awaitable[Storyboard]]


@dataclass(frozen=True)
class Work:
    """Handed to the graph with every run, never stored."""

    job_id: str
    request: StoryboardRequest
    seed: int
    scenes: int
    length_s: float
    tries: int
    texts: Texts
    record: Record
    writer: LanguageModel
    model: str | None
    """Name of the language model to ask for; None: the server's first."""
    prompt_version: str
    screen: Screen
    painter: Painter
    artifacts: Artifacts
    patience: Patience
    writing: asyncio.Semaphore
    drawing: asyncio.Semaphore


def image_model(stored: dict[str, Any]) -> ImageModel:
    """As it was before it went through a checkpoint."""
    return ImageModel(**stored)
