"""What the gateway can be told, and by which variable: JOING_GATEWAY_<NAME>."""

from __future__ import annotations

from pydantic import Field, SecretStr
from pydantic_settings import SettingsConfigDict

from services.shared.settings import ServiceSettings, everywhere


class GatewaySettings(ServiceSettings):
    model_config = SettingsConfigDict(
        env_prefix="JOING_GATEWAY_", frozen=True, populate_by_name=True
    )

    evaluation_url: str | None = Field(
        None,
        validation_alias=everywhere("EVALUATION_URL"),
        description="The evaluation service; None: the one started beside this one.",
    )
    llm_url: str | None = Field(
        None,
        validation_alias=everywhere("LLM_URL"),
        description="An OpenAI-compatible server; None: the llm service started beside this one.",
    )
    llm_key: SecretStr = Field(SecretStr(""), validation_alias=everywhere("LLM_KEY"))
    images_url: str | None = Field(
        None,
        validation_alias=everywhere("IMAGES_URL"),
        description="The images service; None: the one started beside this one, if there is one.",
    )
    storyboard_url: str | None = Field(
        None,
        validation_alias=everywhere("STORYBOARD_URL"),
        description="The storyboard service; None: the one started beside this one, if any.",
    )
    vetting_url: str | None = Field(
        None,
        validation_alias=everywhere("VETTING_URL"),
        description="The vetting service; None: the one started beside this one, if any.",
    )
    max_lora_bytes: int = Field(
        2**30, ge=1_024, le=64 * 2**30, description="Bytes of an uploaded LoRA; more is a 413."
    )
    silence_s: float = Field(
        900.0, gt=0, le=7_200, description="Seconds that a service may stay silent; then 504."
    )
    max_connections: int = Field(
        512, ge=1, le=16_384, description="Open connections to each service."
    )
    retry_after_s: int = Field(5, ge=1, le=600, description="Told when a service is away.")
