"""What the evaluation service can be told, and by which variable: JOING_EVALUATION_<NAME>."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from services.evaluation.volume import VolumeThresholds
from services.shared.proposals import MediaType
from services.shared.settings import GraphSettings


class EvaluationSettings(GraphSettings):
    model_config = SettingsConfigDict(
        env_prefix="JOING_EVALUATION_", frozen=True, populate_by_name=True
    )

    prompt_version: str = Field("2", description="A folder of services/evaluation/prompts.")
    content_model: str | None = Field(
        None,
        description="Model that judges content, such as a LoRA that the llm service lists; "
        "None: as llm_model.",
    )
    content_prompt_version: str | None = Field(
        None, description="Prompt version for content; None: as prompt_version."
    )
    deliberation_model: str | None = Field(
        None, description="Model that judges deliberation; None: as llm_model."
    )
    deliberation_prompt_version: str | None = Field(
        None, description="Prompt version for deliberation; None: as prompt_version."
    )
    volume_short_form: VolumeThresholds = Field(
        default_factory=VolumeThresholds.short_form,
        description="What is enough for a short video, as a JSON object; calibrated defaults.",
    )
    volume_long_form: VolumeThresholds = Field(
        default_factory=VolumeThresholds.long_form, description="The same for a long video."
    )
    content_threshold: int = Field(
        65, ge=0, le=100, description="Content points from which a proposal passes."
    )
    borderline_margin: int = Field(
        5, ge=0, le=100,
        description="A content total this close to the threshold is judged a second time.",
    )  # fmt: skip
    deliberation_limit: int = Field(
        2, ge=0, le=4, description="Highest grade that passes; 2 is 15+."
    )
    judging: Literal["together", "in_order"] = Field(
        "together", description="Content and deliberation at the same time, or one by one."
    )
    call_timeout_s: float = Field(
        120.0, gt=0, le=3_600, description="Seconds that one model call may take."
    )
    deadline_s: float = Field(
        600.0, gt=0, le=7_200, description="Seconds that an evaluation may take; then 504."
    )
    max_concurrent: int = Field(
        64, ge=1, le=4_096, description="Evaluations at the same time; more are told to come back."
    )

    def model_for(self, prompt: str) -> str | None:
        """The model that `prompt` goes to; None: the first that the server lists."""
        own = {"content": self.content_model, "deliberation": self.deliberation_model}
        return own.get(prompt) or self.llm_model

    def version_for(self, prompt: str) -> str:
        own = {
            "content": self.content_prompt_version,
            "deliberation": self.deliberation_prompt_version,
        }
        return own.get(prompt) or self.prompt_version

    def volume_thresholds(self) -> dict[MediaType, VolumeThresholds]:
        return {"short_form": self.volume_short_form, "long_form": self.volume_long_form}
