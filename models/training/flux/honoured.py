"""What of an AI-Toolkit file this trainer does, and a refusal by name of everything else.

A key that is not listed here may stand in the file with AI-Toolkit's default, which asks for
nothing. Any other value would change what is trained, so it is refused rather than passed over.
Pure: knows nothing of torch or of the disk.
"""

from collections.abc import Iterator, Mapping

from pydantic import BaseModel

from models.training.config.schema import Dataset, Process, Sample, Train, TrainingFile
from models.training.errors import ConfigRefused

_HONOURED: Mapping[str, str] = {
    "process": (
        "type training_folder device trigger_word training_seed performance_log_every log_dir"
    ),
    "network": "linear rank alpha linear_alpha dropout",
    "network.network_kwargs": "only_if_contains ignore_if_contains",
    "save": "dtype save_every max_step_saves_to_keep save_format",
    "datasets": (
        "folder_path dataset_path caption_ext default_caption trigger_word caption_dropout_rate "
        "shuffle_tokens keep_tokens token_dropout_rate resolution bucket_tolerance flip_x flip_y "
        "num_repeats loss_multiplier cache_latents cache_latents_to_disk cache_text_embeddings "
        "mask_path mask_min_value invert_mask"
    ),
    "train": (
        "batch_size steps gradient_accumulation gradient_checkpointing noise_scheduler "
        "timestep_type linear_timesteps linear_timesteps2 content_or_style optimizer "
        "optimizer_params lr unet_lr lr_scheduler lr_scheduler_params max_grad_norm loss_type "
        "dtype skip_first_sample disable_sampling cache_text_embeddings"
    ),
    "train.ema_config": "use_ema ema_decay",
    "model": "name_or_path arch is_flux assistant_lora_path dtype model_kwargs",
    "sample": (
        "sampler sample_every sample_start_step width height prompts samples neg seed walk_seed "
        "guidance_scale sample_steps network_multiplier format"
    ),
}
"""Section -> its keys that are done, whatever their value; `_special` says where not."""

TIMESTEP_TYPES = ("sigmoid", "linear", "shift", "flux_shift")
LR_SCHEDULERS = ("constant", "constant_with_warmup", "linear", "cosine")
LR_SCHEDULER_PARAMS = ("num_warmup_steps", "eta_min")
OPTIMIZERS = ("adam", "adamw", "adamw8bit", "adafactor")
LOSS_TYPES = ("mse", "mae")
MODEL_KWARGS = ("max_sequence_length",)


def require_honoured(file: TrainingFile) -> None:
    """Raises ConfigRefused naming every key whose value this trainer would not do."""
    found = [*_undone(file.process, "process"), *_special(file.process)]
    if len(file.config.process) > 1:
        found.append("config.process has several entries: one run a file")
    if found:
        raise ConfigRefused("this trainer does not do what the file asks: " + "; ".join(found))


def _undone(section: BaseModel, name: str) -> Iterator[str]:
    """Keys with another value than AI-Toolkit's default that are not in the table."""
    done = _HONOURED.get(name, "").split()
    for key, field in type(section).model_fields.items():
        value = getattr(section, key)
        path = key if name == "process" else f"{name}.{key}"
        if key == "datasets":
            for dataset in value:
                yield from _undone(dataset, path)
        elif isinstance(value, BaseModel):
            yield from _undone(value, path)
        elif key not in done and value != field.get_default(call_default_factory=True):
            yield f"{path} is {_shown(value)}, and only {_shown(field.default)} is done here"


def _special(process: Process) -> Iterator[str]:
    train, model = process.train, process.model
    if model.family != "flux" or model.arch == "flex1":
        yield "model.is_flux is not true: only Flux.1's layout is trained here"
    if model.dtype not in (None, train.dtype):
        yield f"model.dtype is {model.dtype} and train.dtype {train.dtype}: train.dtype decides"
    yield from _network(process)
    yield from _train(train)
    for number, dataset in enumerate(process.datasets):
        yield from _dataset(dataset, f"datasets[{number}]", train)
    if not train.disable_sampling:
        yield from _sample(process.sample)
    for key in model.model_kwargs:
        if key not in MODEL_KWARGS:
            yield f"model.model_kwargs.{key} is unknown; there is: {', '.join(MODEL_KWARGS)}"


def _network(process: Process) -> Iterator[str]:
    network = process.network
    for key in ("alpha", "linear_alpha"):
        alpha = getattr(network, key)
        if key in network.model_fields_set and alpha not in (None, network.lora_rank):
            yield f"network.{key} is {alpha:g}: for Flux it equals the rank, {network.lora_rank}"


def _train(train: Train) -> Iterator[str]:
    choices = (
        ("timestep_type", TIMESTEP_TYPES),
        ("lr_scheduler", LR_SCHEDULERS),
        ("optimizer", OPTIMIZERS),
        ("loss_type", LOSS_TYPES),
        ("noise_scheduler", ("flowmatch",)),
    )
    for key, allowed in choices:
        if (value := getattr(train, key)) not in allowed:
            yield f"train.{key} is {value}; there are: {', '.join(allowed)}"
    for key in train.lr_scheduler_params:
        if key not in LR_SCHEDULER_PARAMS:
            known = ", ".join(LR_SCHEDULER_PARAMS)
            yield f"train.lr_scheduler_params.{key} is unknown; there are: {known}"
    is_constant = train.lr_scheduler.startswith("constant")
    if is_constant and "eta_min" in train.lr_scheduler_params:
        yield f"train.lr_scheduler_params.eta_min means nothing where lr is {train.lr_scheduler}"
    has_warmup = "num_warmup_steps" in train.lr_scheduler_params
    if train.lr_scheduler == "constant_with_warmup" and not has_warmup:
        yield "train.lr_scheduler is constant_with_warmup: add lr_scheduler_params.num_warmup_steps"
    if train.unet_lr not in (None, train.lr):
        yield f"train.unet_lr is {train.unet_lr:g} and train.lr {train.lr:g}: train.lr decides"
    is_linear = train.linear_timesteps or train.linear_timesteps2
    if is_linear and "timestep_type" in train.model_fields_set and train.timestep_type != "linear":
        yield f"train.timestep_type is {train.timestep_type}; linear_timesteps makes it linear"
    if train.gradient_accumulation_steps != 1:
        yield "use train.gradient_accumulation, whose steps are optimiser steps"


def _dataset(dataset: Dataset, path: str, train: Train) -> Iterator[str]:
    is_cached = dataset.cache_text_embeddings or train.cache_text_embeddings
    if is_cached and (dataset.shuffle_tokens or dataset.token_dropout_rate):
        yield (
            f"{path}: cache_text_embeddings cannot foresee captions with shuffle_tokens or "
            "token_dropout_rate: turn one off"
        )
    if dataset.folder_path and dataset.dataset_path:
        yield f"{path} has folder_path and dataset_path: keep one"


def _sample(sample: Sample) -> Iterator[str]:
    if not sample.items:
        return
    if sample.sampler != "flowmatch":
        yield f"sample.sampler is {sample.sampler}; flowmatch draws what flowmatch has trained"
    for number, item in enumerate(sample.items):
        filled = sample.filled(number)
        if filled.neg:
            yield f"sample: picture {number} has a neg, and Flux has no negative prompts"
        if "--" in item.prompt:
            yield f"sample: prompt {number} has --, and flags in prompts are not read: use samples"


def _shown(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else repr(value)
