"""What the model is asked to write, as bounded types, and the grammar that holds it to them.

Numbers stand for what the outline named (people, places), so that a scene cannot invent either.
Where the image model understands only some words, these are the only ones that can be written.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import Field

from services.shared.language_model import Answer, json_schema
from services.shared.proposals import Language
from services.storyboard.schemas import Angle, Shot, TimeOfDay

MAX_CAST, MAX_SETTINGS = 3, 3
MAX_WEIGHT = 10
LISTED_AT_MOST = 64
"""Scenes that an answer may list and still be read; those above the number asked for are cut."""
ENGLISH = r"^[A-Za-z][A-Za-z0-9 ,'-]{1,78}$"
ENGLISH_OR_NOTHING = r"^[A-Za-z0-9 ,'-]{0,60}$"

Name = Annotated[str, Field(min_length=1, max_length=20)]
Look = Annotated[str, Field(pattern=ENGLISH)]


class SomeoneAnswer(Answer):
    name: Name
    look: Look


class SomewhereAnswer(Answer):
    name: Name
    look: Look


class BeatAnswer(Answer):
    """What one scene is about. `who` and `where` count from 1; who 0 is nobody."""

    happens: str = Field(min_length=1, max_length=60)
    who: int = Field(ge=0, le=MAX_CAST)
    where: int = Field(ge=1, le=MAX_SETTINGS)
    weight: int = Field(ge=1, le=MAX_WEIGHT)


class OutlineAnswer(Answer):
    """Who appears, where, and what happens. `weight` is a scene's length against the others."""

    cast: list[SomeoneAnswer] = Field(min_length=1, max_length=MAX_CAST)
    settings: list[SomewhereAnswer] = Field(min_length=1, max_length=MAX_SETTINGS)
    scenes: list[BeatAnswer] = Field(max_length=LISTED_AT_MOST)


class SceneAnswer(Answer):
    """One scene in full. `doing` and `thing` are English, for the picture."""

    action: str = Field(min_length=1, max_length=120)
    dialogue: str = Field(max_length=80)
    shot: Shot
    angle: Angle
    time: TimeOfDay
    doing: str = Field(pattern=ENGLISH)
    thing: str = Field(pattern=ENGLISH_OR_NOTHING)


Vocabulary = Mapping[str, Sequence[str]]


def outline_schema(
    scenes: int, vocabulary: Vocabulary | None, language: Language
) -> dict[str, Any]:
    """The grammar of an outline with exactly `scenes` scenes."""
    schema = copy.deepcopy(json_schema(OutlineAnswer, language))
    parts = schema["properties"]
    parts["scenes"] |= {"minItems": scenes, "maxItems": scenes}
    if vocabulary is not None:
        parts["cast"]["items"]["properties"]["look"] = _one_of(vocabulary["who"])
        parts["settings"]["items"]["properties"]["look"] = _one_of(vocabulary["place"])
    return schema


def scene_schema(vocabulary: Vocabulary | None, language: Language) -> dict[str, Any]:
    """The grammar of one scene."""
    schema = copy.deepcopy(json_schema(SceneAnswer, language))
    if vocabulary is not None:
        schema["properties"]["doing"] = _one_of(vocabulary["doing"])
        schema["properties"]["thing"] = _one_of([*vocabulary["thing"], ""])
    return schema


def _one_of(phrases: Sequence[str]) -> dict[str, Any]:
    return {"enum": list(phrases)}
