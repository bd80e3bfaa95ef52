"""What the vetting service can be told, and by which variable: JOING_VETTING_<NAME>."""

from __future__ import annotations

from pydantic import Field, SecretStr
from pydantic_settings import SettingsConfigDict

from services.shared.settings import GraphSettings, everywhere
from services.vetting.caching import MAX_AGE_S


class VettingSettings(GraphSettings):
    model_config = SettingsConfigDict(
        env_prefix="JOING_VETTING_", frozen=True, populate_by_name=True
    )

    youtube_key: SecretStr = Field(
        SecretStr(""),
        validation_alias=everywhere("YOUTUBE_KEY"),
        description="A key for the YouTube Data API v3. Empty: vetting answers 503.",
    )
    youtube_url: str | None = Field(
        None, description="Another server that answers as the API does; None: Google's."
    )
    pictures_url: str | None = Field(
        None, description="Another server that has the thumbnails' paths; None: YouTube's hosts."
    )
    vision: bool = Field(
        False,
        description="True when the served model can see pictures (`image_url` parts): its row in "
        "the catalog says so.",
    )
    text_only: bool = Field(
        False,
        description="True lets a channel pass although nothing could see what its thumbnails show. "
        "Their text is read all the same.",
    )
    prompt_version: str = Field("1", description="A folder of services/vetting/prompts.")
    max_videos: int = Field(50, ge=4, le=50, description="Newest uploads to look at.")
    quota_units_per_day: int = Field(
        10_000, ge=0, le=100_000_000, description="YouTube units a day, over all replicas."
    )
    cache_ttl_s: float = Field(
        3_600.0, ge=0, le=MAX_AGE_S,
        description="Seconds for which YouTube is not asked again about a channel.",
    )  # fmt: skip
    keep_s: float = Field(
        MAX_AGE_S, ge=60, le=MAX_AGE_S,
        description="Seconds for which a channel's data is kept; YouTube's terms allow 30 days.",
    )  # fmt: skip
    clean_every_s: float = Field(
        3_600.0, gt=0, le=86_400, description="Seconds between deletions of what is too old."
    )
    batch_videos: int = Field(5, ge=1, le=50, description="Videos in one call to the model.")
    batch_characters: int = Field(
        3_000, ge=300, le=100_000,
        description="Characters of a channel's text in one call; what is longer is spread over "
        "several.",
    )  # fmt: skip
    description_characters: int = Field(
        5_000, ge=100, le=20_000,
        description="Characters of a description that are judged (YouTube allows 5,000); the rest "
        "is named in the coverage.",
    )  # fmt: skip
    calls_at_once: int = Field(
        4, ge=1, le=64, description="Calls to the model of one vetting at the same time."
    )
    thumbnails_at_once: int = Field(
        8, ge=1, le=64, description="Thumbnails on their way to this process at the same time."
    )
    ocr_workers: int = Field(
        1, ge=1, le=64, description="Processes that read thumbnails; about 0.4 GB each."
    )
    youtube_timeout_s: float = Field(
        10.0, gt=0, le=120, description="Seconds that one call to YouTube may take."
    )
    youtube_deadline_s: float = Field(
        45.0, gt=0, le=600, description="Seconds for all calls and waits for one channel."
    )
    thumbnail_timeout_s: float = Field(
        3.0, gt=0, le=60, description="Seconds that one thumbnail may take to come."
    )
    ocr_timeout_s: float = Field(
        10.0, gt=0, le=120, description="Seconds that reading one thumbnail may take."
    )
    call_timeout_s: float = Field(
        120.0, gt=0, le=3_600, description="Seconds that one model call may take."
    )
    deadline_s: float = Field(
        600.0, gt=0, le=7_200, description="Seconds that a vetting may take; then 504."
    )
    max_concurrent: int = Field(
        16, ge=1, le=4_096, description="Vettings at the same time; more are told to come back."
    )
