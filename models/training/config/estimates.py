"""How much memory and time a configuration will take: estimates, from counting, not measured.

Symbols: h width of the transformer, D double and S single blocks, L = D + S, B pictures a step,
N = image + text tokens of one picture, r the LoRA's rank.

FLOPs of one forward pass, two a multiply-add: `24 h^2 L N` for the matrix products (each token
passes 12 h^2 weights a block) and `4 h L N^2` for attention. For FLUX.1 (h 3072, D 19, S 38) at
1024 x 1024 with 512 text tokens that is 59.4 + 14.9 = 74.3 TFLOP, where PyTorch's FlopCounterMode
counts 74.4 on the same model. Backward with frozen weights costs the products once (no weight
gradients) and attention twice; gradient checkpointing adds one forward. The LoRA's own products
come to 6 B N times its parameters.

LoRA parameters, on every linear layer of the blocks: `r h (50 D + 21 S)`; 86 M for FLUX.1 at rank
16, as its 172 MB bfloat16 files have.

Activations kept for backward: 34 bytes a token, block and unit of width at 16 bits (Korthikanti et
al. 2022, arXiv 2205.05198, equation 2 without the attention matrices, which are never stored). With
checkpointing only each block's input (2 bytes) and one block in full. GPU speeds are dense bfloat16
peaks from their makers' data sheets; a step reaches 31 % of the peak in eager PyTorch and 47 %
compiled, as published runs of FLUX.1 on an H100 imply.

Knows no torch. Lengths are pixels, memory GiB, times seconds.
"""

import json
import os
from dataclasses import dataclass

from models.catalog import EmbeddedSource, ImageRow
from models.training.config.schema import Dataset, Process, SampleItem
from models.training.config.view import View

GIB = 2**30
PEAK_TFLOPS = {"H200, H100": 989.0, "A100": 312.0, "RTX 4090": 165.0}
UTILISATION = (0.31, 0.47)
CPU_GFLOPS_A_CORE = (10.0, 40.0)
"""float32 matrix products of a model this small, on cores with AVX2 and with AVX-512."""

_PIXELS_A_TOKEN = 16  # the VAE's 8, the packing's 2
_ACTIVATION_BYTES = 34
_T5_TFLOP_512 = 4.84
_VAE_TFLOP_1024 = 10.47  # of decoding; encoding costs about half
_VAE_ENCODES = 0.5
_RUNTIME_GIB = 1.0  # CUDA context, kernels, the allocator's rounding
_QUANTIZED_BYTES = 1.06  # 8 bits and the scales
_OPTIMIZER_BYTES = {"adafactor": 1, "adam": 8, "adamw": 8, "lion": 4, "adagrad": 4, "prodigy": 16}
"""State a parameter; 8-bit ones take a quarter of it."""


@dataclass(frozen=True)
class Shape:
    """A Flux.1 transformer."""

    width: int
    double: int
    single: int
    text_tokens: int

    @property
    def blocks(self) -> int:
        return self.double + self.single

    def forward(self, tokens: float) -> tuple[float, float]:
        """FLOPs of one pass over `tokens` of one picture: matrix products, attention."""
        products = 24 * self.width**2 * self.blocks * tokens
        return products, 4 * self.width * self.blocks * tokens**2

    def lora_parameters(self, rank: int) -> int:
        return rank * self.width * (50 * self.double + 21 * self.single)


FLUX_1 = Shape(width=3072, double=19, single=38, text_tokens=512)
_FLUX_1_PARAMETERS_B, _FLUX_1_ENCODERS_B = 11.9, 4.97


@dataclass(frozen=True)
class Memory:
    """Of the device that trains, GiB."""

    base: float
    encoders: float
    lora: float
    activations: float
    runtime: float

    @property
    def total(self) -> float:
        return self.base + self.encoders + self.lora + self.activations + self.runtime


@dataclass(frozen=True)
class Work:
    """What is to be computed, TFLOP."""

    step: float
    """One optimiser step, the mean over the resolutions."""
    steps: int
    samples: float
    """All pictures that are drawn while training."""

    @property
    def total(self) -> float:
        return self.step * self.steps + self.samples


@dataclass(frozen=True)
class Estimate:
    """Both, and what was assumed."""

    memory: Memory
    work: Work
    seconds: dict[str, tuple[float, float]]
    """Device -> the shortest and the longest time of the whole run."""
    is_flux_1_assumed: bool
    """The base is no row of the catalog: FLUX.1's shape was taken."""
    licence: str | None


def estimate(view: View) -> Estimate:
    """For the first process of a configuration whose meaning is known."""
    row, process = view.row, view.process
    shape = _shape(row)
    work = _work(process, shape, row)
    return Estimate(
        memory=_memory(process, shape, row),
        work=work,
        seconds=_seconds(process, work.total),
        is_flux_1_assumed=row is None,
        licence=row.licence if row else None,
    )


def _shape(row: ImageRow | None) -> Shape:
    """The embedded model's own; FLUX.1's for every other."""
    if row is None or not isinstance(row.source, EmbeddedSource):
        return FLUX_1 if row is None else _with_text(FLUX_1, row.max_sequence_length)
    file = row.source.location / "transformer" / "config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        width = config["num_attention_heads"] * config["attention_head_dim"]
        shape = Shape(width, config["num_layers"], config["num_single_layers"], 0)
    except (OSError, ValueError, KeyError, TypeError):
        return FLUX_1
    return _with_text(shape, row.max_sequence_length)


def _with_text(shape: Shape, tokens: int) -> Shape:
    return Shape(shape.width, shape.double, shape.single, tokens)


def _memory(process: Process, shape: Shape, row: ImageRow | None) -> Memory:
    model, train = process.model, process.train
    bytes_each = 4 if train.dtype in ("fp32", "float32", "float") else 2
    parameters = (row.parameters_b if row else _FLUX_1_PARAMETERS_B) * 1e9
    encoders = (row.encoders_b if row else _FLUX_1_ENCODERS_B) * 1e9
    base = parameters * (_QUANTIZED_BYTES if model.quantize else bytes_each)
    text = encoders * (_QUANTIZED_BYTES if model.quantizes_text_encoder else bytes_each)
    if _keeps_no_text_encoder(process):
        text = 0.0
    lora = shape.lora_parameters(process.network.lora_rank) * _bytes_a_lora_parameter(process)
    return Memory(
        base=base / GIB,
        encoders=text / GIB,
        lora=lora / GIB,
        activations=_activations(process, shape) * bytes_each / 2 / GIB,
        runtime=0.0 if process.device.startswith("cpu") else _RUNTIME_GIB,
    )


def _keeps_no_text_encoder(process: Process) -> bool:
    train = process.train
    is_cached = any(dataset.cache_text_embeddings for dataset in process.datasets)
    return is_cached or train.cache_text_embeddings or train.unload_text_encoder


def _bytes_a_lora_parameter(process: Process) -> float:
    """Weight and gradient in float32, the optimiser's state, the average."""
    name = process.train.optimizer.lower()
    state: float = next(
        (size for known, size in _OPTIMIZER_BYTES.items() if name.startswith(known)), 8
    )
    if name.startswith("adamw"):
        state = _OPTIMIZER_BYTES["adamw"]
    if name.endswith(("8bit", "8")):
        state /= 4
    return 8 + state + 4 * process.train.ema.use_ema


def _activations(process: Process, shape: Shape) -> float:
    """Bytes at 16 bits, for the largest resolution."""
    largest = max(max(dataset.resolutions) for dataset in process.datasets)
    tokens = process.train.batch_size * _tokens(largest, largest, shape)
    one_block = _ACTIVATION_BYTES * tokens * shape.width
    if not process.train.gradient_checkpointing:
        return one_block * shape.blocks
    return one_block + 2 * tokens * shape.width * shape.blocks


def _work(process: Process, shape: Shape, row: ImageRow | None) -> Work:
    train = process.train
    pictures = train.batch_size * train.gradient_accumulation
    each = [
        _picture(process, dataset, side, shape)
        for dataset in process.datasets
        for side in dataset.resolutions
    ]
    step = pictures * sum(each) / len(each) / 1e12
    if row is None or not isinstance(row.source, EmbeddedSource):
        step += pictures * _frozen_parts(process)
    return Work(step=step, steps=train.steps, samples=_samples(process, shape) / 1e12)


def _picture(process: Process, dataset: Dataset, side: int, shape: Shape) -> float:
    """FLOPs of one picture in one step, `side` pixels square or as many in another shape."""
    tokens = _tokens(side, side, shape)
    products, attention = shape.forward(tokens)
    forwards = 2 if process.train.gradient_checkpointing else 1
    prior = 1 if process.train.diff_output_preservation else 0
    lora = 6 * tokens * shape.lora_parameters(process.network.lora_rank)
    return (forwards + prior) * (products + attention) + products + 2 * attention + lora


def _frozen_parts(process: Process) -> float:
    """TFLOP a picture for what is encoded anew at every step."""
    text = 0.0 if _keeps_no_text_encoder(process) else _T5_TFLOP_512
    uncached = [
        max(dataset.resolutions) ** 2 / 1024**2
        for dataset in process.datasets
        if not (dataset.cache_latents or dataset.cache_latents_to_disk)
    ]
    pictures = max(uncached, default=0.0) * _VAE_TFLOP_1024 * _VAE_ENCODES
    return text + pictures


def _samples(process: Process, shape: Shape) -> float:
    train, sample = process.train, process.sample
    if train.disable_sampling or not sample.items:
        return 0.0
    drawn_from = max(sample.sample_start_step, 0)
    rounds = max(train.steps - drawn_from, 0) // sample.sample_every
    rounds += 0 if train.skip_first_sample else 1
    one_round = sum(_drawn(sample.filled(index), shape) for index in range(len(sample.items)))
    return rounds * one_round


def _drawn(item: SampleItem, shape: Shape) -> float:
    tokens = _tokens(item.width or 0, item.height or 0, shape)
    return (item.sample_steps or 0) * sum(shape.forward(tokens))


def _tokens(width: int, height: int, shape: Shape) -> float:
    return width * height / _PIXELS_A_TOKEN**2 + shape.text_tokens


def _seconds(process: Process, tflop: float) -> dict[str, tuple[float, float]]:
    if process.device.startswith("cpu"):
        cores = os.cpu_count() or 1
        slow, fast = (cores * gflops / 1000 for gflops in CPU_GFLOPS_A_CORE)
        return {f"{cores} CPU": (tflop / fast, tflop / slow)}
    low, high = UTILISATION
    return {
        name: (tflop / (peak * high), tflop / (peak * low)) for name, peak in PEAK_TFLOPS.items()
    }
