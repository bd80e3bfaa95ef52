"""What the storyboard service can be told, and by which variable: JOING_STORYBOARD_<NAME>."""

from __future__ import annotations

import os
import socket

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from services.shared.proposals import MediaType
from services.shared.settings import GraphSettings, everywhere


class StoryboardSettings(GraphSettings):
    model_config = SettingsConfigDict(
        env_prefix="JOING_STORYBOARD_", frozen=True, populate_by_name=True
    )

    evaluation_url: str | None = Field(
        None,
        validation_alias=everywhere("EVALUATION_URL"),
        description="The service that screens scenes; None: the one started beside this one.",
    )
    images_url: str | None = Field(
        None,
        validation_alias=everywhere("IMAGES_URL"),
        description="The service that draws; None: the one started beside this one.",
    )
    artifacts_url: str | None = Field(
        None,
        validation_alias=everywhere("ARTIFACTS_URL"),
        repr=False,  # may hold a secret
        description="Where pictures and sheets are kept, as an fsspec URL (a folder, s3://...); "
        "None: a folder in JOING_HOME.",
    )
    prompt_version: str = Field("1", description="A folder of services/storyboard/prompts.")
    short_form_s: float = Field(
        60.0, ge=15, le=600, description="Seconds of a short_form video; its scenes add up to it."
    )
    long_form_s: float = Field(600.0, ge=60, le=14_400, description="Seconds of a long_form video.")
    max_running: int = Field(
        4, ge=1, le=256, description="Storyboards that one process works on at the same time."
    )
    max_running_per_key: int = Field(
        2, ge=1, le=256, description="Storyboards of one key that are worked on at the same time."
    )
    max_unfinished_per_key: int = Field(
        20, ge=1, le=10_000,
        description="Storyboards of one key that wait or run; more are told to come back.",
    )  # fmt: skip
    writing_at_once: int = Field(
        3, ge=1, le=64,
        description="Calls to the language model of one storyboard at the same time. Fewer than "
        "there are scenes: the first frames are drawn while the last scenes are written.",
    )  # fmt: skip
    drawing_at_once: int = Field(
        8, ge=1, le=64, description="Frames of one storyboard at images at the same time."
    )
    tries: int = Field(3, ge=1, le=10, description="Times that a frame may fail.")
    call_timeout_s: float = Field(
        300.0, gt=0, le=3_600, description="Seconds that one call to a model may take."
    )
    frame_timeout_s: float = Field(
        600.0, gt=0, le=3_600, description="Seconds that one frame may take, waiting included."
    )
    deadline_s: float = Field(
        3_600.0, gt=0, le=86_400,
        description="Seconds from asking to the end; then a storyboard fails.",
    )  # fmt: skip
    lease_s: float = Field(
        15.0, ge=1, le=600,
        description="Seconds after which a job of a worker that fell silent is taken over.",
    )  # fmt: skip
    poll_s: float = Field(
        0.5, gt=0, le=60, description="Seconds between looks for jobs and events of other replicas."
    )
    max_claims: int = Field(
        5, ge=1, le=100,
        description="Times that a job is taken up without getting any further; then it fails.",
    )  # fmt: skip
    keep_s: float = Field(
        30 * 86_400, ge=60, le=366 * 86_400,
        description="Seconds that a storyboard and its pictures are kept.",
    )  # fmt: skip
    clean_every_s: float = Field(60.0, gt=0, le=86_400, description="Seconds between clean-ups.")
    events_silence_s: float = Field(
        3_600.0, gt=0, le=86_400, description="Seconds that one may follow a job without news."
    )
    max_followers: int = Field(
        1_000, ge=1, le=100_000, description="Open event streams; more are told to come back."
    )

    def artifacts(self) -> str:
        return self.artifacts_url or str(self.home / "storyboards")

    def length_s(self, media_type: MediaType) -> float:
        """Seconds of a video of this kind."""
        return self.short_form_s if media_type == "short_form" else self.long_form_s

    def worker(self) -> str:
        """A name for this process that says where it runs."""
        return f"{socket.gethostname()[:60]}-{os.getpid()}"
