"""What makes a run the one it is: settings that change its weights, and its data.

A state is gone on from only where all of them are the same. What may change between two calls is
left out: where things lie, what is saved, drawn or cached when, and how memory is saved.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from models.training.config.schema import Process
from models.training.dataset.folder import file_hash
from models.training.flux.base import Base

_FREE = frozenset(
    "train.skip_first_sample train.disable_sampling train.gradient_checkpointing "
    "train.cache_text_embeddings datasets.folder_path datasets.dataset_path datasets.cache_latents "
    "datasets.cache_latents_to_disk datasets.cache_text_embeddings datasets.num_workers "
    "datasets.prefetch_factor model.name_or_path model.assistant_lora_path".split()
)


def identity_of(
    process: Process, base: Base, assistant: Path | None, dataset_sha256: str, seed: int
) -> dict[str, str]:
    """Key -> value as text. The base and the data are named by what they hold."""
    return {
        **dict(_settings(process)),
        "training_seed": str(seed),
        "trigger_word": str(process.trigger_word),
        "base": f"{base.name} {base.digest}",
        "assistant": file_hash(assistant) if assistant else "none",
        "dataset": dataset_sha256,
    }


def _settings(process: Process) -> Iterator[tuple[str, str]]:
    is_constant = process.train.lr_scheduler.startswith("constant")
    free = _FREE | ({"train.steps"} if is_constant else set())
    for section in ("network", "train", "model"):
        for key, value in _leaves(getattr(process, section).model_dump(), section):
            if key not in free:
                yield key, value
    for number, dataset in enumerate(process.datasets):
        for key, value in _leaves(dataset.model_dump(), "datasets"):
            if key not in free:
                yield key.replace("datasets", f"datasets[{number}]", 1), value


def _leaves(values: Mapping[str, Any], path: str) -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{path}.{key}")
        else:
            yield f"{path}.{key}", str(value)
