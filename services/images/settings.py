"""What the images service can be told, and by which variable: JOING_IMAGES_<NAME>."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from models.catalog import DEFAULT_IMAGE_MODEL
from models.flux.config import Dtype, EngineConfig
from models.weights import default_root
from services.images.schemas import MAX_IMAGES
from services.shared.settings import ServiceSettings, everywhere


class ImagesSettings(ServiceSettings):
    model_config = SettingsConfigDict(
        env_prefix="JOING_IMAGES_", frozen=True, populate_by_name=True
    )

    model: str = Field(
        DEFAULT_IMAGE_MODEL,
        validation_alias=everywhere("IMAGE_MODEL"),
        description="A row of models/catalog.toml, a folder with a pipeline, or a hub id.",
    )
    models_dir: Path = Field(
        default_factory=default_root,
        validation_alias=everywhere("MODELS_DIR"),
        description="Where `python -m models pull` puts weights.",
    )

    steps: int | None = Field(
        None, ge=1, le=1_000, description="Steps of a request that names none; None: the catalog's."
    )
    guidance: float | None = Field(
        None, ge=0, le=30, description="Guidance of such a request; None: the catalog's."
    )
    width: int | None = Field(
        None, ge=16, le=8_192, description="Its width in pixels; None: the catalog's."
    )
    height: int | None = Field(
        None, ge=16, le=8_192, description="Its height in pixels; None: the catalog's."
    )
    max_steps: int | None = Field(
        None, ge=1, le=1_000, description="The most steps of one image; None: the catalog's."
    )
    max_pixels: int | None = Field(
        None, ge=256, le=64 * 2**20,
        description="The most pixels of one image, width times height; None: the catalog's.",
    )  # fmt: skip
    max_sequence_length: int | None = Field(
        None, ge=1, le=512,
        description="Tokens that every prompt is padded and cut to; None: the catalog's.",
    )  # fmt: skip

    device: str = Field(
        "auto", description="`auto`: CUDA where there is one. Else as torch has it, cuda:1 or cpu."
    )
    dtype: Dtype | None = Field(None, description="Of the weights; None: the catalog's.")
    threads: int | None = Field(
        None, ge=1, le=1_024, description="CPU threads of one operation; None: every core there is."
    )
    max_waiting: int = Field(
        64, ge=MAX_IMAGES, le=4_096,
        description="Images that may wait for their first step; more are told to come back.",
    )  # fmt: skip
    max_rows: int = Field(16, ge=1, le=256, description="Images drawn in one batch at most.")
    token_budget: int | None = Field(
        None, ge=1, le=4 * 2**20,
        description="Tokens, of pictures and of text, in one batch; None: measured at start.",
    )  # fmt: skip
    patience: float = Field(
        6.0, ge=1, le=1_000,
        description="An image without a deadline is due after this many times its own time; more "
        "favours short ones.",
    )  # fmt: skip
    safety: float = Field(
        1.25, ge=1, le=10,
        description="Deadlines are promised as if all took this many times as long as measured.",
    )  # fmt: skip
    lora_slots: int = Field(
        8, ge=1, le=64, description="LoRAs in one batch, besides the base. Costs device memory."
    )
    lora_max_rank: int = Field(
        32, ge=1, le=512, description="The highest rank of a LoRA. Costs device memory."
    )
    lora_cache_bytes: int = Field(
        2 * 2**30, ge=0, le=2**40, description="Bytes of LoRAs that are kept in host memory."
    )
    text_cache_entries: int = Field(
        256, ge=1, le=65_536, description="Prompts whose encoding is kept."
    )
    compile: bool = Field(False, description="Compile the model at start: minutes once.")
    attention_backend: str | None = Field(
        None, description="A diffusers attention backend, `_native_cudnn`; None: torch's choice."
    )
    float8: bool = Field(
        False, description="Weights and activations in float8: torchao, and capability 8.9."
    )

    max_lora_bytes: int = Field(
        2**30, ge=1_024, le=64 * 2**30, description="Bytes of an uploaded LoRA; more is a 413."
    )
    max_uploads: int = Field(
        256, ge=1, le=65_536, description="Uploaded LoRAs that are kept; one more is a 409."
    )
    remembered_answers: int = Field(
        256, ge=0, le=65_536,
        description="Answers that are kept for those who ask again with the same Idempotency-Key; "
        "the oldest go first.",
    )  # fmt: skip
    remembered_bytes: int = Field(
        256 * 2**20, ge=0, le=64 * 2**30, description="Bytes of all such answers together."
    )
    remembered_s: float = Field(
        900.0, gt=0, le=86_400, description="Seconds that such an answer is kept."
    )
    retry_after_s: int = Field(
        5, ge=1, le=600, description="Told while the model is loaded, and when the engine is gone."
    )
    retry_open_s: float = Field(
        5.0, gt=0, le=3_600,
        description="Wait before a model that could not be opened is tried again; it doubles up to "
        "a minute.",
    )  # fmt: skip
    drain_s: float = Field(
        30.0, gt=0, le=3_600,
        description="Seconds that images have at shutdown which are being drawn.",
    )  # fmt: skip

    def engine_config(self, dtype: Dtype) -> EngineConfig:
        return EngineConfig(
            device=self.device,
            dtype=dtype,
            threads=self.threads,
            max_waiting=self.max_waiting,
            max_rows=self.max_rows,
            token_budget=self.token_budget,
            patience=self.patience,
            safety=self.safety,
            lora_slots=self.lora_slots,
            lora_max_rank=self.lora_max_rank,
            lora_cache_bytes=self.lora_cache_bytes,
            text_cache_entries=self.text_cache_entries,
            compile=self.compile,
            attention_backend=self.attention_backend,
            float8=self.float8,
        )
