"""A proposal as it arrives at any service that takes one, and the base of wire types.

Lengths are in characters (Unicode code points) and hold before and after normalisation.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from services.shared.text import detect_language, normalise

Language = Literal["ko", "en"]
MediaType = Literal["short_form", "long_form"]

TITLE_CHARACTERS = 100
CONTENT_CHARACTERS = 2_500
FEATURE_NAME_CHARACTERS = 50
FEATURE_VALUE_CHARACTERS = 200
FEATURES = 20


class Wire(BaseModel):
    """A type of the contract: what it does not know it refuses, and nothing changes it."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Category(StrEnum):
    """What the video is about, in the platform's own list."""

    GAME = "GAME"
    TECH = "TECH"
    EDUCATION = "EDUCATION"
    KNOWHOW_STYLE = "KNOWHOW_STYLE"
    NEWS_POLITICS = "NEWS_POLITICS"
    SPORTS = "SPORTS"
    NONPROFIT_SOCIAL = "NONPROFIT_SOCIAL"
    PETS_ANIMALS = "PETS_ANIMALS"
    ENTERTAINMENT = "ENTERTAINMENT"
    TRAVEL_EVENTS = "TRAVEL_EVENTS"
    MOVIE_ANIMATION = "MOVIE_ANIMATION"
    MUSIC = "MUSIC"
    PEOPLE_BLOG = "PEOPLE_BLOG"
    AUTO_TRANSPORT = "AUTO_TRANSPORT"
    COMEDY = "COMEDY"
    KIDS = "KIDS"
    FOOD_COOKING = "FOOD_COOKING"
    ETC = "ETC"


def _normalised(limit: int) -> AfterValidator:
    def check(text: str) -> str:
        clean = normalise(text)
        if not clean:
            raise ValueError("holds no readable character; write some text")
        if len(clean) > limit:
            raise ValueError(
                f"has {len(clean)} characters once compatibility characters are spelt out; "
                f"at most {limit} are allowed"
            )
        return clean

    return AfterValidator(check)


Title = Annotated[str, Field(min_length=1, max_length=TITLE_CHARACTERS), _normalised(100)]
Content = Annotated[str, Field(min_length=1, max_length=CONTENT_CHARACTERS), _normalised(2_500)]
FeatureName = Annotated[str, Field(min_length=1, max_length=50), _normalised(50)]
FeatureValue = Annotated[str, Field(max_length=200), AfterValidator(normalise)]


class Proposal(Wire):
    """A plan for a video (기획안). Text is normalised (NFKC, no control characters) on arrival."""

    title: Title = Field(description="1-100 characters.")
    content: Content = Field(description="1-2,500 characters.")
    media_type: MediaType = Field(description="Short videos need less substance than long ones.")
    category: Category | None = Field(None, description="What the video is about.")
    additional_features: dict[FeatureName, FeatureValue] = Field(
        default_factory=dict,
        max_length=FEATURES,
        description="Anything else worth knowing: name (50 characters) to value (200); 20 at most.",
    )
    language: Language | None = Field(
        None, description="Language of the answer; detected from the text when absent."
    )

    @property
    def answer_language(self) -> Language:
        return self.language or detect_language(f"{self.title}\n{self.content}")
