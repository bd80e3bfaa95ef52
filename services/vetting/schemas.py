"""The wire types of vettings."""

from __future__ import annotations

from datetime import datetime
from typing import Literal, get_args

from pydantic import Field

from services.shared.language_model import Usage
from services.shared.proposals import Language, Wire
from services.vetting.channels import MAX_CHARACTERS

Verdict = Literal["pass", "fail", "review"]
Harm = Literal[
    "theme", "sexuality", "violence", "horror", "language", "drugs", "imitation",
    "hate", "gambling", "fraud", "illegal_trade",
]  # fmt: skip
Signal = Literal[
    "age_restricted", "content_rating", "made_for_kids", "synthetic_media", "paid_placement",
    "hidden_statistics", "few_uploads",
]  # fmt: skip
Source = Literal["title", "description", "tags", "thumbnail", "rating", "channel"]
HARMS: tuple[Harm, ...] = get_args(Harm)


class VetRequest(Wire):
    """Which channel to vet."""

    channel: str = Field(
        min_length=1, max_length=MAX_CHARACTERS,
        description="A channel's id (UC and 22 more characters), its @handle, or its address on "
        "youtube.com in any form.",
    )  # fmt: skip
    language: Language | None = Field(
        None, description="Of the reasons' sentences; null: the channel's own language."
    )


class VettedChannel(Wire):
    """Whom the request led to, as YouTube describes it."""

    id: str
    handle: str | None = Field(description="With its @; null when it has none.")
    title: str
    thumbnail_url: str | None
    subscribers: int | None = Field(ge=0, description="Rounded by YouTube; null when hidden.")
    videos: int = Field(ge=0, description="Public videos, as YouTube counts them.")


class FoundBox(Wire):
    """A rectangle in shares of the thumbnail's width and height, from its upper left corner."""

    x: float = Field(ge=0, le=1)
    y: float = Field(ge=0, le=1)
    width: float = Field(ge=0, le=1)
    height: float = Field(ge=0, le=1)


class Finding(Wire):
    """One piece of evidence. Level 0 is a note: it raises nothing."""

    video_id: str | None = Field(description="Null for what stands on the channel itself.")
    source: Source
    category: Harm | Signal = Field(
        description="One of KMRB's seven considerations, hate, gambling, fraud or illegal_trade; "
        "or what YouTube's own data says (source `rating`, and some of `channel`)."
    )
    level: int = Field(
        ge=0, le=4,
        description="0 all ages, 1 12+, 2 15+, 3 19+, 4 restricted. What is reported, quoted or "
        "warned against is at most 2.",
    )  # fmt: skip
    quote: str | None = Field(
        description="Cut from the source by us, never written by a model; null for what a picture "
        "shows."
    )
    box: FoundBox | None = Field(description="Where in the thumbnail; null elsewhere.")
    confidence: float = Field(
        ge=0, le=1,
        description="Share of the looks at it that agree; for text in a thumbnail, times the "
        "reader's own confidence. 1 for YouTube's data.",
    )  # fmt: skip


class Unseen(Wire):
    """Something that was there to look at and was not looked at, or not wholly."""

    what: str = Field(
        description="`video:<id>`, `uploads`, `text:<id>`, `text:channel`, `thumbnail:<id>` (not "
        "fetched), `thumbnail_text:<id>`, `thumbnail_image:<id>`, or `thumbnails`."
    )
    why: str = Field(
        description="Stable names such as private_video, timeout, truncated, invalid_answer, "
        "citation_not_found, not_found, too_large, ocr_failed, text_unreadable, no_vision_model."
    )


class Coverage(Wire):
    """What was looked at, and what was not."""

    videos_looked_at: int = Field(ge=0, description="Videos whose whole text was judged.")
    thumbnails_looked_at: int = Field(
        ge=0,
        description="Thumbnails whose text was read and judged, and which a vision model saw where "
        "there is one.",
    )
    not_looked_at: list[Unseen]


class Reason(Wire):
    """Why the verdict is what it is."""

    code: str = Field(description="A rule of services/vetting/policy.py; stable, snake_case.")
    verdict: Literal["fail", "review", "pass"] = Field(description="What this rule alone gives.")
    text: str = Field(description="One sentence for people, in the request's language.")


class Vetting(Wire):
    """One channel, vetted. Its data may be kept until `expires_at`; then it is deleted."""

    id: str
    channel: VettedChannel
    verdict: Verdict = Field(description="`review` means that a person has to look.")
    reasons: list[Reason] = Field(description="The rules that applied, gravest first.")
    findings: list[Finding]
    coverage: Coverage
    quota_units: int = Field(ge=0, description="YouTube units spent; 0 when nothing was asked.")
    fetched_at: datetime = Field(description="When YouTube said what this rests on.")
    expires_at: datetime
    model: str = Field(description="The served model's name.")
    prompt_version: str
    usage: Usage
    duration_ms: float = Field(ge=0)
