"""A LoRA file for a Flux.1-layout transformer, read into plain tensors or refused with the reason.

Knows formats and layer names, nothing of slots, devices or running images. A file is read whole or
not at all: each of its tensors ends in a layer of this transformer, or the file is refused, because
what is left out in silence is another picture under the same name.

Five dialects are read: diffusers and PEFT (AI-Toolkit writes it too), kohya's sd-scripts, ComfyUI,
XLabs' x-flux and OneTrainer. The names stand in tables here because diffusers 0.42.1 converts some
files in part without an error. `FluxPipeline.lora_state_dict` loses kohya's layers outside the
blocks and the alphas of `final_layer` and of `transformer.*.lora_down`, gives all feed-forward and
norm layers of a `lora_transformer_*` block one key, and asserts a model 3072 wide. Where it
converts all of a file, the tests hold this module to it.

R is a layer's rank, I its inputs, O its outputs. torch is imported when a file is read.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal, cast

from models.flux.errors import LoraRefused

if TYPE_CHECKING:
    import torch
    from torch import nn

Part = Literal["down", "up", "alpha"]

_MAX_HEADER_BYTES = 16 * 2**20  # a large file's is a quarter MiB; kohya's tag lists add a few
_MAX_KEY_CHARACTERS = 256  # a regular expression below takes quadratic time
_MAX_PATTERNS = 4096  # each is compared with each layer; one per layer makes 504
_MAX_ALPHA = 1e6
_PICKLES = (b"PK\x03\x04", b"\x80")  # torch.save's archive, and what it wrote before 1.6
_SHOWN_CHARACTERS = 120  # of a name that the file chose

_FLOATS = frozenset("F64 F32 F16 BF16 F8_E4M3 F8_E5M2".split())
_NUMBERS = _FLOATS | frozenset("I64 I32 I16 I8 U8".split())
"""kohya writes alpha as an integer where it was left at its default."""

_SUFFIXES: Mapping[str, Part] = {
    ".lora_A.weight": "down",
    ".lora_B.weight": "up",
    ".lora_down.weight": "down",
    ".lora_up.weight": "up",
    ".down.weight": "down",
    ".up.weight": "up",
    ".alpha": "alpha",
}

_NOT_PLAIN = (
    (r"\.dora_scale$|lora_magnitude_vector", "DoRA"),
    (r"\.lokr_", "LoKr"),
    (r"\.hada_", "LoHa"),
    (r"\.oft_", "OFT"),
    (r"^lora_te\d?_|^text_encoder|^(base_model\.model\.)?text_model\.", "a text encoder's layer"),
    (r"^(clip_l|t5xxl)\.", "a text encoder's layer"),
    (r"\.diff_b$|\.bias$", "a change of a bias"),
    (r"norm[a-z0-9_]*\.(scale|weight|diff|w_norm|b_norm)$", "a normalisation's weight"),
    (r"\.diff$|\.set_weight$", "a whole weight"),
)
"""What a key looks like -> what it is. diffusers drops most of these and loads the rest."""

_QKV = ("attn.to_q", "attn.to_k", "attn.to_v")
_TEXT_QKV = ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj")
_DOUBLE = {
    "img_attn.qkv": _QKV,
    "img_attn.proj": ("attn.to_out.0",),
    "img_mlp.0": ("ff.net.0.proj",),
    "img_mlp.2": ("ff.net.2",),
    "img_mod.lin": ("norm1.linear",),
    "txt_attn.qkv": _TEXT_QKV,
    "txt_attn.proj": ("attn.to_add_out",),
    "txt_mlp.0": ("ff_context.net.0.proj",),
    "txt_mlp.2": ("ff_context.net.2",),
    "txt_mod.lin": ("norm1_context.linear",),
    "processor.qkv_lora1": _QKV,
    "processor.proj_lora1": ("attn.to_out.0",),
    "processor.qkv_lora2": _TEXT_QKV,
    "processor.proj_lora2": ("attn.to_add_out",),
}
"""Black Forest Labs' names in `double_blocks.N`, and x-flux's, -> those in `transformer_blocks.N`.

Several stand for one layer that was cut along its outputs, in this order.
"""
_SINGLE = {
    "linear1": (*_QKV, "proj_mlp"),
    "linear2": ("proj_out",),
    "modulation.lin": ("norm.linear",),
    "processor.qkv_lora": _QKV,
    "processor.proj_lora": ("proj_out",),
}
"""The same from `single_blocks.N` to `single_transformer_blocks.N`."""
_OUTSIDE = {
    "img_in": "x_embedder",
    "txt_in": "context_embedder",
    "time_in.in_layer": "time_text_embed.timestep_embedder.linear_1",
    "time_in.out_layer": "time_text_embed.timestep_embedder.linear_2",
    "vector_in.in_layer": "time_text_embed.text_embedder.linear_1",
    "vector_in.out_layer": "time_text_embed.text_embedder.linear_2",
    "guidance_in.in_layer": "time_text_embed.guidance_embedder.linear_1",
    "guidance_in.out_layer": "time_text_embed.guidance_embedder.linear_2",
    "final_layer.linear": "proj_out",
    "final_layer.adaLN_modulation.1": "norm_out.linear",
}
_SHIFT_THEN_SCALE = ("final_layer.adaLN_modulation.1", "final_layer_adaLN_modulation_1")
"""The layer whose two halves of outputs diffusers holds the other way round."""
_PREFIXES = ("", "transformer.", "diffusion_model.", "base_model.model.")

_SETTINGS_KEY = "lora_adapter_metadata"
_SETTINGS_READ = frozenset("r lora_alpha rank_pattern alpha_pattern use_rslora".split())
_SETTINGS_WITHOUT_EFFECT = frozenset(
    "auto_mapping base_model_name_or_path corda_config ensure_weight_tying ephemeral_gpu_offload "
    "eva_config exclude_modules fan_in_fan_out inference_mode layers_pattern layers_to_transform "
    "loftq_config lora_dropout lora_ga_config megatron_config megatron_core peft_version "
    "qalora_group_size revision runtime_config target_modules task_type velora_config".split()
)
_SETTINGS_PLAIN: Mapping[str, tuple[object, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "init_lora_weights": (True, "gaussian"),
}
"""Any other way of initialising (PiSSA, OLoRA, LoftQ) changes the base model's weights as well."""
_LITERAL_PATTERN = re.compile(r"\^?[\w.]+")
"""Other regular expressions are not run: a file could hang the server with one."""


@dataclass(frozen=True)
class LoraWeights:
    """What one file changes in the transformer. Layers may share memory: do not write into them."""

    digest: str
    """SHA-256 of the file's bytes, hex."""
    rank: int
    """The highest of its layers."""
    layers: Mapping[str, tuple[torch.Tensor, torch.Tensor]]
    """Module path in the transformer -> (down_RI, up_OR), float32 on the CPU.

    A weight changes by up_OR @ down_RI at LoRA scale 1: alpha / rank lies in up_OR.
    """
    metadata: Mapping[str, str]
    """The safetensors header's own strings, as the file's author wrote them."""


def read_lora(
    file: Path | bytes, *, linears: Mapping[str, tuple[int, int]], max_rank: int
) -> LoraWeights:
    """Everything that the file changes.

    `linears` is what `linear_shapes` says of the transformer: module path -> (inputs, outputs). A
    file that names no alpha is taken at alpha = rank, as diffusers and ComfyUI do; PEFT's own
    format keeps alpha in another file, adapter_config.json.

    Costs, at the peak, the file's bytes twice and its layers as float32; names, shapes and ranks
    are checked before. Raises LoraRefused, whose sentence is for whoever brought the file, and
    OSError when there is no such file.
    """
    data = file.read_bytes() if isinstance(file, Path) else file
    tensors, metadata = _read_header(data)
    layers = _find_layers(tensors, linears)
    settings = _peft_settings(metadata)
    for layer in layers:
        _check_shapes(layer, linears, max_rank)
    read = _read_layers(layers, _load(data), settings, linears)
    for module, (down_RI, _) in read.items():
        _require_rank(module, down_RI.shape[0], max_rank)
    _require_effect(read)
    return LoraWeights(
        digest=hashlib.sha256(data).hexdigest(),
        rank=max(down_RI.shape[0] for down_RI, _ in read.values()),
        layers=MappingProxyType(read),
        metadata=MappingProxyType(metadata),
    )


def linear_shapes(transformer: nn.Module) -> dict[str, tuple[int, int]]:
    """Every nn.Linear of the transformer as it was loaded: path -> (in_features, out_features)."""
    from torch import nn

    return {
        path: (module.in_features, module.out_features)
        for path, module in transformer.named_modules()
        if isinstance(module, nn.Linear)
    }


@dataclass(frozen=True)
class _Tensor:
    """One entry of the header: nothing of its data has been read."""

    key: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class _Layer:
    """One layer as the file has it. `name` is its keys' common beginning."""

    name: str
    modules: tuple[str, ...]
    """What it stands for in the transformer: several where the file holds them as one layer."""
    down: _Tensor
    up: _Tensor
    alpha: _Tensor | None

    @property
    def rank(self) -> int:
        return self.down.shape[0]


@dataclass(frozen=True)
class _PeftSettings:
    """What PEFT's LoraConfig says about scaling, where diffusers wrote it into the header."""

    rank: float
    alpha: float
    rank_pattern: Mapping[str, float]
    alpha_pattern: Mapping[str, float]
    use_rslora: bool

    def scale(self, layer: _Layer) -> float:
        """alpha / rank, or alpha / sqrt(rank) (arXiv 2312.03732), as peft.tuners.lora has it."""
        module = layer.modules[0]
        if layer.alpha is not None:
            raise LoraRefused(
                f"{_shown(layer.name)} has an alpha and the header has PEFT settings: one must go"
            )
        if not layer.name.endswith(module):
            raise LoraRefused(
                f"the header's PEFT settings are about diffusers' names, and {_shown(layer.name)} "
                f"is none: {module} would be right"
            )
        expected = _by_pattern(self.rank_pattern, module, self.rank)
        if expected != layer.rank:
            raise LoraRefused(
                f"the header's PEFT settings give {module} rank {expected:g} and its tensors have "
                f"{layer.rank}: they must agree"
            )
        alpha = _by_pattern(self.alpha_pattern, module, self.alpha)
        return alpha / (math.sqrt(layer.rank) if self.use_rslora else layer.rank)


def _read_header(data: bytes) -> tuple[list[_Tensor], dict[str, str]]:
    """What the file declares, and its metadata. https://github.com/huggingface/safetensors#format"""
    header = _json(data[8 : 8 + _header_bytes(data)], "the safetensors header")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise LoraRefused("the safetensors header's __metadata__ is no object of strings")
    return [_declared(key, entry) for key, entry in header.items()], metadata


def _header_bytes(data: bytes) -> int:
    """How long the header is. Refuses what cannot be safetensors at all."""
    if len(data) < 8:
        raise LoraRefused(
            f"the file has {len(data)} bytes, too few for the 8 that begin a .safetensors file"
        )
    declared = int.from_bytes(data[:8], "little")
    if declared > len(data) - 8 and data.startswith(_PICKLES):
        raise LoraRefused(
            "the file is a PyTorch pickle, which may run code when it is read: .safetensors would "
            "be right"
        )
    if declared > len(data) - 8:
        raise LoraRefused(
            f"the file declares a header of {declared} bytes and {len(data) - 8} follow: it is cut "
            "off, or no .safetensors file"
        )
    if declared > _MAX_HEADER_BYTES:
        raise LoraRefused(
            f"the file has a header of {declared} bytes, and at most {_MAX_HEADER_BYTES} are read"
        )
    return declared


def _declared(key: str, entry: object) -> _Tensor:
    match entry:
        case {"dtype": str(dtype), "shape": list(shape)} if all(type(n) is int for n in shape):
            return _Tensor(key, dtype, tuple(shape))
    raise LoraRefused(f"the safetensors header gives {_shown(key)} no dtype and shape")


def _json(text: str | bytes, what: str) -> dict[str, object]:
    try:
        decoded = json.loads(text if isinstance(text, str) else text.decode())
    except (ValueError, RecursionError) as malformed:
        raise LoraRefused(f"{what} is no JSON object: {type(malformed).__name__}") from malformed
    if not isinstance(decoded, dict):
        raise LoraRefused(f"{what} is a JSON {type(decoded).__name__}, not an object")
    return decoded


def _find_layers(tensors: Sequence[_Tensor], linears: Mapping[str, object]) -> list[_Layer]:
    """The tensors as layers of this transformer, in the file's order, each module at most once."""
    parts: defaultdict[str, dict[Part, _Tensor]] = defaultdict(dict)
    for tensor in tensors:
        name, part = _name_and_part(tensor.key)
        if part in parts[name]:
            raise LoraRefused(f"{_shown(name)} has two tensors for {part}: there must be one")
        parts[name][part] = tensor
    if not parts:
        raise LoraRefused("the file holds no tensors, so it would change nothing")
    spellings = _spellings(linears)
    layers = [_as_layer(name, found, spellings) for name, found in parts.items()]
    module, times = Counter(m for layer in layers for m in layer.modules).most_common(1)[0]
    if times > 1:
        raise LoraRefused(f"the file changes {module} {times} times, under several names")
    return layers


def _name_and_part(key: str) -> tuple[str, Part]:
    if len(key) > _MAX_KEY_CHARACTERS:
        raise LoraRefused(
            f"{_shown(key)} is a name of {len(key)} characters; at most {_MAX_KEY_CHARACTERS} are "
            "read"
        )
    for pattern, what in _NOT_PLAIN:
        if re.search(pattern, key):
            raise LoraRefused(
                f"{_shown(key)} is {what}, which is not drawn here: plain LoRA of the "
                "transformer's linear layers would be right"
            )
    for suffix, part in _SUFFIXES.items():
        if key.endswith(suffix):
            return key.removesuffix(suffix), part
    raise LoraRefused(
        f"{_shown(key)} is in no known LoRA format, and without it another picture would be drawn"
    )


def _as_layer(
    name: str, parts: Mapping[Part, _Tensor], spellings: Mapping[str, tuple[str, ...]]
) -> _Layer:
    modules = spellings.get(name)
    if modules is None:
        raise LoraRefused(
            f"{_shown(name)} is no layer of this transformer: the file was made for another model, "
            "or in a format that is not read here"
        )
    if missing := [part for part in ("down", "up") if part not in parts]:
        raise LoraRefused(f"{_shown(name)} comes without its {' and '.join(missing)} matrix")
    return _Layer(name, modules, parts["down"], parts["up"], parts.get("alpha"))


def _spellings(linears: Mapping[str, object]) -> dict[str, tuple[str, ...]]:
    """Every name that a file may give a layer of this transformer -> the modules it stands for."""
    own = {path: (path,) for path in linears}
    original = {
        name: modules
        for name, modules in _original_names(linears)
        if all(module in linears for module in modules)
    }
    both = own | original
    dotted = {prefix + name: modules for prefix in _PREFIXES for name, modules in both.items()}
    kohya = {f"lora_unet_{name.replace('.', '_')}": m for name, m in original.items()}
    onetrainer = {f"lora_transformer_{name.replace('.', '_')}": m for name, m in own.items()}
    return dotted | kohya | onetrainer


def _original_names(linears: Mapping[str, object]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Black Forest Labs' and x-flux's names, for as many blocks as the transformer has."""
    blocks = {".".join(path.split(".")[:2]) for path in linears if "transformer_blocks." in path}
    for block in blocks:
        kind, _, number = block.partition(".")
        short, table = ("single", _SINGLE) if kind.startswith("single") else ("double", _DOUBLE)
        for name, ends in table.items():
            yield f"{short}_blocks.{number}.{name}", tuple(f"{block}.{end}" for end in ends)
    for name, module in _OUTSIDE.items():
        yield name, (module,)


def _check_shapes(layer: _Layer, linears: Mapping[str, tuple[int, int]], max_rank: int) -> None:
    """By the header alone: the layer's matrices fit its modules."""
    for tensor in (layer.down, layer.up):
        _require_dtype(tensor, _FLOATS)
    if layer.alpha is not None:
        _require_dtype(layer.alpha, _NUMBERS)
        if layer.alpha.shape not in ((), (1,)):
            raise LoraRefused(f"{_shown(layer.alpha.key)} is {layer.alpha.shape}, not one number")
    inputs, outputs = _size(layer, linears)
    down_RI, up_OR = layer.down.shape, layer.up.shape
    if (down_RI[1:], up_OR[:1]) != ((inputs,), (outputs,)) or up_OR[1:] != down_RI[:1]:
        raise LoraRefused(
            f"{_shown(layer.name)} has matrices of {list(down_RI)} and {list(up_OR)}, and this "
            f"transformer's layer takes [rank, {inputs}] and [{outputs}, rank]"
        )
    _require_rank(layer.name, layer.rank, max_rank * len(layer.modules))


def _size(layer: _Layer, linears: Mapping[str, tuple[int, int]]) -> tuple[int, int]:
    """Inputs and outputs: modules that the file holds as one share the inputs."""
    shapes = [linears[module] for module in layer.modules]
    return shapes[0][0], sum(outputs for _, outputs in shapes)


def _require_dtype(tensor: _Tensor, allowed: frozenset[str]) -> None:
    if tensor.dtype not in allowed:
        raise LoraRefused(
            f"{_shown(tensor.key)} has dtype {_shown(tensor.dtype)}; one of "
            f"{', '.join(sorted(allowed))} would be right"
        )


def _require_rank(name: str, rank: int, highest: int) -> None:
    if not 1 <= rank <= highest:
        raise LoraRefused(f"{_shown(name)} has rank {rank}; 1 to {highest} is drawn here")


def _load(data: bytes) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        return cast("dict[str, torch.Tensor]", load(data))
    except SafetensorError as malformed:
        raise LoraRefused(f"the file is no whole .safetensors file: {malformed}") from malformed


def _read_layers(
    layers: Sequence[_Layer],
    tensors: dict[str, torch.Tensor],
    settings: _PeftSettings | None,
    linears: Mapping[str, tuple[int, int]],
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Module path -> (down_RI, up_OR). Empties `tensors`, so that each is held only once."""
    read: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    for layer in layers:
        down_RI, up_OR = tensors.pop(layer.down.key).float(), tensors.pop(layer.up.key).float()
        up_OR = up_OR * _scale(layer, tensors, settings)
        _require_finite(layer.name, down_RI, up_OR)
        if layer.name.endswith(_SHIFT_THEN_SCALE):
            up_OR = up_OR.roll(up_OR.shape[0] // 2, dims=0)
        outputs = [linears[module][1] for module in layer.modules]
        read |= dict(zip(layer.modules, _cut(down_RI, up_OR, outputs), strict=True))
    return read


def _scale(
    layer: _Layer, tensors: dict[str, torch.Tensor], settings: _PeftSettings | None
) -> float:
    """What up @ down is multiplied by. Takes the layer's alpha out of `tensors`."""
    if settings is not None:
        return settings.scale(layer)
    if layer.alpha is None:
        return 1.0
    alpha = tensors.pop(layer.alpha.key).float().item()
    return _number(alpha, f"alpha of {_shown(layer.name)}") / layer.rank


def _cut(
    down_RI: torch.Tensor, up_OR: torch.Tensor, outputs: Sequence[int]
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """One pair per module of a layer that the file holds as one, `outputs` being theirs.

    Each takes its rows of `up` and all of `down`. Where `up` is block-diagonal, as sd-scripts
    writes what it trained with split_qkv=True, each takes its own block and so its own rank.
    """
    ups, share = up_OR.split(list(outputs)), down_RI.shape[0] // len(outputs)
    if down_RI.shape[0] % len(outputs) or not _are_diagonal(ups, share):
        return [(down_RI, up) for up in ups]
    own = [up[:, i * share : (i + 1) * share].contiguous() for i, up in enumerate(ups)]
    return list(zip(down_RI.split(share), own, strict=True))


def _are_diagonal(ups: Sequence[torch.Tensor], share: int) -> bool:
    """Whether the i-th has nothing outside its i-th `share` columns."""
    return not any(
        up[:, : i * share].any() or up[:, (i + 1) * share :].any() for i, up in enumerate(ups)
    )


def _require_finite(name: str, *tensors: torch.Tensor) -> None:
    if not all(tensor.isfinite().all() for tensor in tensors):
        raise LoraRefused(f"{_shown(name)} holds NaN or infinite values: its training has diverged")


def _require_effect(read: Mapping[str, tuple[torch.Tensor, torch.Tensor]]) -> None:
    if not any(down_RI.any() and up_OR.any() for down_RI, up_OR in read.values()):
        raise LoraRefused("every layer of the file is zero, so it would change nothing")


def _peft_settings(metadata: Mapping[str, str]) -> _PeftSettings | None:
    """None where the header says nothing about the transformer's adapter."""
    written = _json(metadata.get(_SETTINGS_KEY) or "{}", f"the header's {_SETTINGS_KEY}")
    own = {
        key.removeprefix("transformer."): value
        for key, value in written.items()
        if not key.startswith("text_encoder")
    }
    for name, value in own.items():
        _require_plain(name, value)
    if not own:
        return None
    return _PeftSettings(
        rank=_number(own.get("r", 8), "r"),
        alpha=_number(own.get("lora_alpha", 8), "lora_alpha"),
        rank_pattern=_patterns(own, "rank_pattern"),
        alpha_pattern=_patterns(own, "alpha_pattern"),
        use_rslora=bool(own.get("use_rslora")),
    )


def _require_plain(name: str, value: object) -> None:
    """A setting that is unset, known, or of no effect on what is drawn."""
    if not value or name in _SETTINGS_READ | _SETTINGS_WITHOUT_EFFECT:
        return
    if value not in _SETTINGS_PLAIN.get(name, ()):
        raise LoraRefused(
            f"the header's PEFT settings say {_shown(name)} is {_shown(value)}, which is not drawn "
            "here: plain LoRA would be right"
        )


def _patterns(settings: Mapping[str, object], name: str) -> dict[str, float]:
    """Module name, or its end -> value, in the file's order."""
    written = settings.get(name) or {}
    if not isinstance(written, dict):
        raise LoraRefused(f"{name} in the header's PEFT settings is no JSON object")
    if len(written) > _MAX_PATTERNS:
        raise LoraRefused(
            f"{name} in the header's PEFT settings has {len(written)} entries; at most "
            f"{_MAX_PATTERNS} are read"
        )
    for pattern in written:
        if not _LITERAL_PATTERN.fullmatch(pattern):
            raise LoraRefused(
                f"{name} in the header's PEFT settings has the regular expression "
                f"{_shown(pattern)}; a module's name would be right"
            )
    return {pattern: _number(value, name) for pattern, value in written.items()}


def _by_pattern(patterns: Mapping[str, float], module: str, otherwise: float) -> float:
    """The first that is the module's path or, without ^, its end: peft.utils.get_pattern_key."""
    for pattern, value in patterns.items():
        path = pattern.removeprefix("^")
        if module == path or (path == pattern and module.endswith(f".{path}")):
            return value
    return otherwise


def _number(value: object, what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise LoraRefused(f"{what} is {_shown(value)}, which is no number")
    if not 0 < abs(value) <= _MAX_ALPHA:
        raise LoraRefused(f"{what} is {_shown(value)}; not 0 and at most {_MAX_ALPHA:g} is right")
    return float(value)


def _shown(value: object) -> str:
    """Quoted and cut: the file chose it. Of what is nested, only the kind."""
    text = type(value).__name__ if isinstance(value, dict | list) else repr(value)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}..."
