"""From a file to a trainer: device, data, cached encodings, base, LoRA.

Encoders and transformer are loaded one after the other: where everything is cached, the encoders
have left the memory before the transformer comes, and both need not fit together.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from rich.console import Console
from rich.progress import Progress

from models.flux.text import TextEmbedding, TextEncoder
from models.training.config.schema import Process, TrainingFile
from models.training.dataset.folder import data_hash
from models.training.errors import ConfigRefused
from models.training.flux.adapter import DTYPES, Adapter, find_assistant
from models.training.flux.base import Base, digest_of, find_base, load_encoders, load_transformer
from models.training.flux.captions import caption_of
from models.training.flux.identity import identity_of
from models.training.flux.pictures import Item, Latents, read_items
from models.training.flux.samples import Schedule, schedule_of
from models.training.flux.trainer import Encode, Trainer

DEFAULT_SEED = 0
"""Where the file has no training_seed: a run can always be repeated."""
_KEPT_TEXTS = 256
"""Captions whose embeddings are kept where they are not cached."""
_TEXTS_AT_ONCE = 16


@dataclass(frozen=True)
class Prepared:
    """Everything that a run needs, on its device."""

    base: Base
    trainer: Trainer
    identity: dict[str, str]
    dataset_sha256: str
    trigger: str
    schedule: Schedule
    sample_embeddings: dict[str, TextEmbedding]
    pipeline: Any
    """To draw samples with: the transformer that is trained, and the VAE."""


def prepare(file: TrainingFile, models_dir: Path, console: Console) -> Prepared:
    """Loads and encodes. Raises TrainingError for whatever is not there or not usable."""
    process = file.process
    accelerator = _accelerator(process)
    base = find_base(process.model, models_dir)
    assistant = find_assistant(process.model, models_dir)
    dtype = DTYPES[process.train.dtype]
    pipeline = load_encoders(base, dtype)
    items = read_items(process, 2 * pipeline.vae_scale_factor)
    trigger = _trigger_of(process)
    schedule = schedule_of(process.sample, process.train, trigger)
    examples = list(dict.fromkeys(item.example for item in items))
    dataset_sha256 = data_hash(examples)
    seed = DEFAULT_SEED if process.training_seed is None else process.training_seed

    latents = _encoded_pictures(pipeline, base, items, accelerator.device, console)
    texts = _text_encoder(pipeline, base, accelerator.device)
    of_samples = _encoded(texts, [item.prompt for item in schedule.items])
    encode = _encoding(process, texts, items)
    _let_go(pipeline, keep_text=not _caches_text(process), keep_vae=bool(schedule.items))

    transformer = load_transformer(base, dtype).to(accelerator.device)
    if process.train.gradient_checkpointing:
        transformer.enable_gradient_checkpointing()
    adapter = Adapter(transformer, process.network, seed)
    if assistant is not None:
        adapter.add_assistant(assistant)
    pipeline.register_modules(transformer=transformer)
    trainer = Trainer(
        process.train,
        accelerator,
        transformer,
        adapter,
        items=items,
        latents=latents,
        encode=encode,
        scheduler=pipeline.scheduler,
        seed=seed,
    )
    return Prepared(
        base=base,
        trainer=trainer,
        identity=identity_of(process, base, assistant, dataset_sha256, seed),
        dataset_sha256=dataset_sha256,
        trigger=trigger,
        schedule=schedule,
        sample_embeddings=of_samples,
        pipeline=pipeline,
    )


def _accelerator(process: Process) -> Accelerator:
    """On the device that the file names, or the best one where it names none.

    Raises ConfigRefused for a device that is not there, and for fp16 on a CPU.
    """
    name = process.device
    if "device" not in process.model_fields_set:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    is_cuda = name.startswith("cuda")
    if not is_cuda and name != "cpu":
        raise ConfigRefused(f"device is {name}; cpu and cuda:0 are devices")
    if is_cuda and not torch.cuda.is_available():
        raise ConfigRefused(f"device is {name}, and torch sees no CUDA device: use cpu")
    dtype = DTYPES[process.train.dtype]
    if dtype is torch.float16 and not is_cuda:
        raise ConfigRefused("train.dtype is fp16, in which a CPU cannot train: use fp32 or bf16")
    if is_cuda and ":" in name:
        torch.cuda.set_device(name)
    precision = {torch.float32: "no", torch.bfloat16: "bf16", torch.float16: "fp16"}[dtype]
    AcceleratorState._reset_state(reset_partial_state=True)  # the last run's, in this process
    accelerator = Accelerator(cpu=not is_cuda, mixed_precision=precision)
    if accelerator.num_processes > 1:
        raise ConfigRefused("one process trains: start it without `accelerate launch`")
    return accelerator


def _trigger_of(process: Process) -> str:
    """The file's; where it has none, the data sets' if they agree."""
    if process.trigger_word:
        return process.trigger_word
    own = {dataset.trigger_word for dataset in process.datasets}
    return (own.pop() or "") if len(own) == 1 else ""


def _encoded_pictures(
    pipeline: Any, base: Base, items: Sequence[Item], device: torch.device, console: Console
) -> Latents:
    latents = Latents(pipeline.vae.to(device), digest_of(base.folder / "vae"), items)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task("encoding pictures")
        latents.prepare(lambda done, total: progress.update(bar, completed=done, total=total))
    return latents


def _text_encoder(pipeline: Any, base: Base, device: torch.device) -> TextEncoder:
    for encoder in (pipeline.text_encoder, pipeline.text_encoder_2):
        encoder.requires_grad_(False).eval().to(device)
    return TextEncoder(
        pipeline.text_encoder,
        pipeline.tokenizer,
        pipeline.text_encoder_2,
        pipeline.tokenizer_2,
        max_sequence_length=base.max_sequence_length,
        cache_entries=_KEPT_TEXTS,
    )


@torch.no_grad()
def _encoded(texts: TextEncoder, prompts: Sequence[str]) -> dict[str, TextEmbedding]:
    """On the CPU, each once."""
    known: dict[str, TextEmbedding] = {}
    distinct = list(dict.fromkeys(prompts))
    for start in range(0, len(distinct), _TEXTS_AT_ONCE):
        part = distinct[start : start + _TEXTS_AT_ONCE]
        for prompt, found in zip(part, texts.encode(part), strict=True):
            known[prompt] = TextEmbedding(found.tokens_TE.cpu(), found.pooled_P.cpu())
    return known


def _caches_text(process: Process) -> bool:
    """True when every data set does: otherwise the encoders stay for the others anyway."""
    return process.train.cache_text_embeddings or all(
        dataset.cache_text_embeddings for dataset in process.datasets
    )


def _encoding(process: Process, texts: TextEncoder, items: Sequence[Item]) -> Encode:
    if _caches_text(process):
        known = _encoded(texts, _foreseen(items))
        return lambda captions: [known[caption] for caption in captions]

    def encode(captions: Sequence[str]) -> list[TextEmbedding]:
        with torch.no_grad():
            return texts.encode(captions)

    return encode


def _foreseen(items: Sequence[Item]) -> list[str]:
    """Every caption that can come, the empty one included."""
    whole = (
        caption_of(item.example.caption, replace(item.rules, dropout_rate=0.0), Random(0))  # noqa: S311
        for item in items
    )
    return ["", *whole]


def _let_go(pipeline: Any, *, keep_text: bool, keep_vae: bool) -> None:
    """Out of the memory; what is not referenced by the trainer is freed here."""
    if not keep_text:
        pipeline.register_modules(
            text_encoder=None, text_encoder_2=None, tokenizer=None, tokenizer_2=None
        )
    if keep_vae:
        pipeline.vae.requires_grad_(False).eval()
    else:
        pipeline.register_modules(vae=None)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
