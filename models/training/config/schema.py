"""What an AI-Toolkit file for a Flux LoRA holds: its keys, their types, defaults and hard limits.

The names, nesting and defaults are those of ostris/ai-toolkit (MIT; `toolkit/config_modules.py`,
`jobs/process/Base{Train,SDTrain}Process.py`), which reads every section with `kwargs.get` and so
passes over what it does not know. These models refuse it. Limits here are those beyond which a run
fails or means nothing; what is merely unwise is for `rules`. What a key does: `keys`.

Everything is frozen and strict: "true" is no bool, 2000.0 no int. Lists are tuples. Lengths are
pixels, rates and dropouts fractions of 1. Pure: knows no file and no YAML.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

PositiveInt = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
LearningRate = Annotated[float, Field(gt=0, le=10, allow_inf_nan=False)]  # Prodigy's is 1
Number = Annotated[float, Field(allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Text = Annotated[str, Field(min_length=1)]
SidePx = Annotated[int, Field(ge=16, le=8192)]

Dtype = Literal["bf16", "bfloat16", "fp16", "float16", "fp32", "float32", "float", "half"]
"""What AI-Toolkit's `get_torch_dtype` knows and a GPU trains in."""


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, protected_namespaces=())


class NetworkKwargs(_Section):
    """Which layers get a LoRA. Names are substrings of diffusers' module paths."""

    only_if_contains: tuple[str, ...] | None = None
    ignore_if_contains: tuple[str, ...] | None = None


class Network(_Section):
    """The LoRA itself."""

    type: Literal["lora", "locon", "lokr", "lorm"] = "lora"
    linear: PositiveInt = 4
    rank: PositiveInt | None = None
    alpha: Annotated[float, Field(gt=0)] = 1.0
    linear_alpha: Annotated[float, Field(gt=0)] | None = None
    conv: PositiveInt | None = None
    conv_alpha: Annotated[float, Field(gt=0)] | None = None
    dropout: Fraction | None = None
    network_kwargs: NetworkKwargs = NetworkKwargs()
    transformer_only: bool = True
    lokr_full_rank: bool = False
    lokr_factor: int = -1
    pretrained_lora_path: Text | None = None

    @property
    def lora_rank(self) -> int:
        """`rank`, the older name, wins over `linear`. For Flux, alpha is made equal to it."""
        return self.linear if self.rank is None else self.rank


class Save(_Section):
    """Checkpoints. Steps are optimiser steps as `train.steps` counts them."""

    dtype: Dtype = "float16"
    save_every: PositiveInt = 1000
    max_step_saves_to_keep: Count = 5
    save_format: Literal["safetensors", "diffusers"] = "safetensors"
    push_to_hub: bool = False
    hf_repo_id: Text | None = None
    hf_private: bool = False


class Logging(_Section):
    """Where numbers go besides the terminal."""

    log_every: PositiveInt = 100
    verbose: bool = False
    use_wandb: bool = False
    project_name: str = "ai-toolkit"
    run_name: str | None = None


class Dataset(_Section):
    """One folder of pictures with captions beside them."""

    folder_path: Text | None = None
    dataset_path: Text | None = None
    type: Literal["image", "slider", "reference"] = "image"
    caption_ext: Text = "txt"
    default_caption: str | None = None
    trigger_word: Text | None = None
    caption_dropout_rate: Fraction = 0.0
    shuffle_tokens: bool = False
    keep_tokens: Count = 0
    token_dropout_rate: Fraction = 0.0
    resolution: SidePx | Annotated[tuple[SidePx, ...], Field(min_length=1)] = 512
    buckets: bool = True
    bucket_tolerance: Annotated[int, Field(ge=8)] = 64
    scale: Annotated[float, Field(gt=0)] = 1.0
    random_crop: bool = False
    random_scale: bool = False
    square_crop: bool = False
    flip_x: bool = False
    flip_y: bool = False
    num_repeats: PositiveInt = 1
    is_reg: bool = False
    network_weight: Number = 1.0
    loss_multiplier: NotNegative = 1.0
    cache_latents: bool = False
    cache_latents_to_disk: bool = False
    cache_text_embeddings: bool = False
    augments: tuple[str, ...] = ()
    augmentations: tuple[dict[str, Any], ...] | None = None
    shuffle_augmentations: bool = False
    mask_path: Text | None = None
    mask_min_value: Fraction = 0.0
    invert_mask: bool = False
    alpha_mask: bool = False
    control_path: str | tuple[str, ...] | None = None
    num_workers: Count = 2
    prefetch_factor: PositiveInt = 2

    @property
    def resolutions(self) -> tuple[int, ...]:
        """AI-Toolkit makes one data set of each."""
        return self.resolution if isinstance(self.resolution, tuple) else (self.resolution,)

    @property
    def folder(self) -> str | None:
        """`dataset_path`, which may be a JSON file and wins, or `folder_path`."""
        return self.dataset_path or self.folder_path

    @property
    def caption_suffix(self) -> str:
        """With its dot."""
        return self.caption_ext if self.caption_ext.startswith(".") else f".{self.caption_ext}"


class Ema(_Section):
    """The moving average of the LoRA's weights: it is what gets saved and sampled."""

    use_ema: bool = False
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.999
    use_feedback: bool = False
    param_multiplier: Number = 1.0


class Train(_Section):
    """How the LoRA is trained."""

    batch_size: PositiveInt = 1
    steps: PositiveInt = 1000
    gradient_accumulation: PositiveInt = 1
    gradient_accumulation_steps: int = 1
    gradient_checkpointing: bool = True
    train_unet: bool = True
    train_text_encoder: bool = False
    noise_scheduler: Text = "ddpm"
    timestep_type: Literal[
        "sigmoid",
        "linear",
        "shift",
        "flux_shift",
        "lumina2_shift",
        "lognorm_blend",
        "weighted",
        "next_sample",
        "one_step",
    ] = "sigmoid"
    linear_timesteps: bool = False
    linear_timesteps2: bool = False
    content_or_style: Literal["balanced", "style", "content"] = "balanced"
    min_denoising_steps: Annotated[int, Field(ge=0, le=1000)] = 0
    max_denoising_steps: Annotated[int, Field(ge=0, le=1000)] = 999
    optimizer: Text = "adamw"
    optimizer_params: dict[str, Any] = {}
    lr: LearningRate = 1e-6
    unet_lr: LearningRate | None = None
    text_encoder_lr: LearningRate | None = None
    lr_scheduler: Literal[
        "none",
        "constant",
        "constant_with_warmup",
        "linear",
        "cosine",
        "cosine_with_restarts",
        "step",
        "polynomial",
    ] = "constant"
    lr_scheduler_params: dict[str, Any] = {}
    max_grad_norm: NotNegative = 1.0
    loss_type: Literal["mse", "mae", "wavelet", "pixelspace", "mean_flow"] = "mse"
    noise_offset: Number = 0.0
    min_snr_gamma: NotNegative | None = None
    snr_gamma: NotNegative | None = None
    reg_weight: NotNegative = 1.0
    prompt_dropout_prob: Fraction = 0.0
    ema_config: Ema | None = None
    dtype: Dtype = "fp32"
    skip_first_sample: bool = False
    force_first_sample: bool = False
    disable_sampling: bool = False
    unload_text_encoder: bool = False
    cache_text_embeddings: bool = False
    bypass_guidance_embedding: bool = False
    do_guidance_loss: bool = False
    guidance_loss_target: float | tuple[float, ...] = 3.0
    diff_output_preservation: bool = False
    diff_output_preservation_multiplier: NotNegative = 1.0
    diff_output_preservation_class: str = ""
    start_step: Count | None = None

    @property
    def ema(self) -> Ema:
        """Off where nothing is said of it."""
        return self.ema_config or Ema()


class Model(_Section):
    """The base to fine-tune: a row of the catalog, a hub repository or a local folder."""

    name_or_path: Text
    arch: Text | None = None
    is_flux: bool = False
    quantize: bool = False
    quantize_te: bool | None = None
    qtype: Text = "qfloat8"
    qtype_te: Text = "qfloat8"
    low_vram: bool = False
    assistant_lora_path: Text | None = None
    inference_lora_path: Text | None = None
    lora_path: Text | None = None
    layer_offloading: bool = False
    layer_offloading_transformer_percent: Fraction = 1.0
    layer_offloading_text_encoder_percent: Fraction = 1.0
    split_model_over_gpus: bool = False
    compile: bool = False
    attn_masking: bool = False
    use_flux_cfg: bool = False
    te_name_or_path: Text | None = None
    vae_path: Text | None = None
    extras_name_or_path: Text | None = None
    dtype: Dtype | None = None
    vae_dtype: Dtype | None = None
    te_dtype: Dtype | None = None
    model_kwargs: dict[str, Any] = {}

    @property
    def family(self) -> str | None:
        """`arch` up to its colon, or what `is_flux` says; None means Stable Diffusion 1."""
        if self.arch is not None:
            name = self.arch.split(":")[0]
            return "flux" if name == "flex1" else name
        return "flux" if self.is_flux else None

    @property
    def quantizes_text_encoder(self) -> bool:
        """As the transformer, where nothing else is said."""
        return self.quantize if self.quantize_te is None else self.quantize_te


class SampleItem(_Section):
    """One picture of `sample.samples`; what it leaves out is the section's."""

    prompt: str
    width: SidePx | None = None
    height: SidePx | None = None
    neg: str | bool | None = None
    seed: int | None = None
    guidance_scale: NotNegative | None = None
    sample_steps: PositiveInt | None = None
    network_multiplier: Number | None = None


class Sample(_Section):
    """Pictures drawn while training, to look at."""

    sampler: Text = "ddpm"
    sample_every: PositiveInt = 100
    sample_start_step: Count = 0
    width: SidePx = 512
    height: SidePx = 512
    prompts: tuple[str, ...] = ()
    samples: tuple[SampleItem, ...] | None = None
    neg: str | bool = False
    seed: int = 0
    walk_seed: bool = False
    guidance_scale: NotNegative = 7.0
    guidance_rescale: Fraction = 0.0
    sample_steps: PositiveInt = 20
    network_multiplier: Number = 1.0
    format: Literal["jpg", "png", "webp"] = "jpg"

    @property
    def items(self) -> tuple[SampleItem, ...]:
        """`samples`, which win over `prompts`."""
        if self.samples is not None:
            return self.samples
        return tuple(SampleItem(prompt=prompt) for prompt in self.prompts)

    def filled(self, index: int) -> SampleItem:
        """Item `index` with nothing left out, seed included (`walk_seed` adds the index)."""
        item = self.items[index]
        section = {
            "width": self.width,
            "height": self.height,
            "neg": self.neg,
            "seed": self.seed + (index if self.walk_seed else 0),
            "guidance_scale": self.guidance_scale,
            "sample_steps": self.sample_steps,
            "network_multiplier": self.network_multiplier,
        }
        own = item.model_dump(exclude_none=True)
        return SampleItem.model_validate(section | own)


class Process(_Section):
    """One training run."""

    type: Literal["sd_trainer", "ui_trainer", "diffusion_trainer"]
    training_folder: Text = "output"
    device: Text = "cuda:0"
    trigger_word: Text | None = None
    training_seed: int | None = None
    performance_log_every: Count = 0
    log_dir: Text | None = None
    torch_profiler: bool = False
    logging: Logging = Logging()
    network: Network
    save: Save = Save()
    datasets: Annotated[tuple[Dataset, ...], Field(min_length=1)]
    train: Train = Train()
    model: Model
    sample: Sample = Sample()
    first_sample: Sample | None = None


class Config(_Section):
    """The name and what is done under it."""

    name: Text
    process: Annotated[tuple[Process, ...], Field(min_length=1)]


class TrainingFile(_Section):
    """A whole file, `[name]` and `${ENV}` replaced."""

    job: Literal["extension", "train"]
    config: Config
    meta: dict[str, Any] = {}

    @property
    def process(self) -> Process:
        """The first, which is the only one that trains here."""
        return self.config.process[0]
