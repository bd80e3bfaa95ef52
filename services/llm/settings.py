"""What the llm service can be told, and by which variable: JOING_LLM_<NAME>."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, SecretStr
from pydantic_settings import SettingsConfigDict

from models.catalog import Name
from models.weights import default_root
from services.shared.settings import ServiceSettings, everywhere


class LLMSettings(ServiceSettings):
    model_config = SettingsConfigDict(env_prefix="JOING_LLM_", frozen=True, populate_by_name=True)

    model: str = Field(
        "qwen2.5-coder-1.5b",
        validation_alias=everywhere("LLM"),
        description="A row of models/catalog.toml, a folder with weights, or a hub id.",
    )
    models_dir: Path = Field(
        default_factory=default_root,
        validation_alias=everywhere("MODELS_DIR"),
        description="Where `python -m models pull` puts weights.",
    )
    loras: dict[Name, Path] = Field(
        default_factory=dict,
        description="LoRAs to serve beside the catalog's of this model, as a JSON object: name to "
        "a folder of PEFT's. Clients ask for one as `model`.",
    )
    url: str | None = Field(
        None,
        description="An existing OpenAI-compatible server, with or without /v1: calls are passed "
        "on to it and no vLLM is started.",
    )
    key: SecretStr = Field(SecretStr(""), description="Key for `url`.")
    context_tokens: int | None = Field(
        None, ge=256, le=1_048_576, description="Tokens of prompt and reply; None: the catalog's."
    )
    max_concurrent: int = Field(
        64, ge=1, le=4_096, description="Requests that vLLM computes at the same time."
    )
    max_queued: int = Field(
        128, ge=0, le=65_536, description="Requests that may wait; more are told to come back."
    )
    retry_after_s: int = Field(5, ge=1, le=600, description="What the ones turned away are told.")
    request_timeout_s: float = Field(
        600.0,
        gt=0,
        le=7_200,
        description="Seconds from a request's first byte to the last of its reply; then 504.",
    )
    start_timeout_s: float = Field(
        900.0, gt=0, le=7_200, description="Seconds that vLLM may take to start; then again."
    )
    unresponsive_s: float = Field(
        60.0, gt=0, le=3_600, description="Seconds without a word from vLLM before a restart."
    )
    restart_first_s: float = Field(
        1.0, gt=0, le=600, description="Wait before the first restart; it doubles each time."
    )
    restart_last_s: float = Field(60.0, gt=0, le=3_600, description="The longest such wait.")
    drain_s: float = Field(
        30.0,
        gt=0,
        le=3_600,
        description="Seconds that running requests have at shutdown, and vLLM after.",
    )
    kv_cache_gib: int = Field(2, ge=1, le=1_024, description="On a CPU; a GPU sizes its own.")
    prefix_caching: bool = Field(True, description="Off only to measure what it brings.")
    max_body_bytes: int = Field(
        4 * 2**20, ge=1_024, le=64 * 2**20, description="Bytes of a request body; more is a 413."
    )
