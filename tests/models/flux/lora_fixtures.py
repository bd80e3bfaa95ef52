"""A tiny Flux.1-layout transformer, LoRA files for it in every dialect, and what diffusers does.

The values are random; `rank` is the layers' rank, and a file's layers differ from each other.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from diffusers import FluxPipeline, FluxTransformer2DModel
from peft.tuners.lora import LoraLayer
from safetensors.torch import save

Tensors = dict[str, torch.Tensor]
Shapes = Mapping[str, tuple[int, int]]

PEFT = (".lora_A.weight", ".lora_B.weight")
KOHYA = (".lora_down.weight", ".lora_up.weight")
XLABS = (".down.weight", ".up.weight")

WIDTH = 32
DOUBLE = {
    "img_attn.qkv": (WIDTH, 3 * WIDTH),
    "img_attn.proj": (WIDTH, WIDTH),
    "img_mlp.0": (WIDTH, 4 * WIDTH),
    "img_mlp.2": (4 * WIDTH, WIDTH),
    "img_mod.lin": (WIDTH, 6 * WIDTH),
    "txt_attn.qkv": (WIDTH, 3 * WIDTH),
    "txt_attn.proj": (WIDTH, WIDTH),
    "txt_mlp.0": (WIDTH, 4 * WIDTH),
    "txt_mlp.2": (4 * WIDTH, WIDTH),
    "txt_mod.lin": (WIDTH, 6 * WIDTH),
}
SINGLE = {"linear2": (5 * WIDTH, WIDTH), "modulation.lin": (WIDTH, 3 * WIDTH)}
"""Without `linear1`, which diffusers converts for a width of 3072 alone."""
LINEAR1 = (WIDTH, 7 * WIDTH)
OUTSIDE = {
    "img_in": (4, WIDTH),
    "txt_in": (WIDTH, WIDTH),
    "time_in.in_layer": (256, WIDTH),
    "time_in.out_layer": (WIDTH, WIDTH),
    "vector_in.in_layer": (WIDTH, WIDTH),
    "vector_in.out_layer": (WIDTH, WIDTH),
    "guidance_in.in_layer": (256, WIDTH),
    "guidance_in.out_layer": (WIDTH, WIDTH),
    "final_layer.linear": (WIDTH, 4),
    "final_layer.adaLN_modulation.1": (WIDTH, 2 * WIDTH),
}
XLABS_LAYERS = {
    "double_blocks.0.processor.qkv_lora1": (WIDTH, 3 * WIDTH),
    "double_blocks.0.processor.qkv_lora2": (WIDTH, 3 * WIDTH),
    "double_blocks.1.processor.proj_lora1": (WIDTH, WIDTH),
    "double_blocks.1.processor.proj_lora2": (WIDTH, WIDTH),
    "single_blocks.0.processor.qkv_lora": (WIDTH, 3 * WIDTH),
    "single_blocks.1.processor.proj_lora": (5 * WIDTH, WIDTH),
}


def tiny_transformer() -> FluxTransformer2DModel:
    """Two double and two single blocks, 32 wide, on the CPU in float32."""
    torch.manual_seed(0)
    return FluxTransformer2DModel(
        patch_size=1,
        in_channels=4,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        axes_dims_rope=[4, 4, 8],
        guidance_embeds=True,
    ).eval()


def output_of(transformer: FluxTransformer2DModel) -> torch.Tensor:
    """What the transformer makes of one fixed input, [1, 16, 4]."""
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        return transformer(
            hidden_states=torch.randn(1, 16, 4, generator=random),
            encoder_hidden_states=torch.randn(1, 8, 32, generator=random),
            pooled_projections=torch.randn(1, 32, generator=random),
            timestep=torch.tensor([0.5]),
            guidance=torch.tensor([3.5]),
            img_ids=torch.randn(16, 3, generator=random),
            txt_ids=torch.zeros(8, 3),
        ).sample


def tensors_of(
    layers: Shapes,
    *,
    prefix: str = "",
    suffixes: tuple[str, str] = PEFT,
    rank: int = 4,
    alpha: float | None = None,
) -> Tensors:
    """A down and an up matrix for each layer, and an alpha where one is given.

    The same values whatever the names are: layers of the same order and shapes are the same LoRA.
    """
    random = torch.Generator().manual_seed(2)
    tensors = {}
    for name, (inputs, outputs) in layers.items():
        for suffix, shape in zip(suffixes, ((rank, inputs), (outputs, rank)), strict=True):
            tensors[prefix + name + suffix] = torch.randn(shape, generator=random) * 0.1
        if alpha is not None:
            tensors[f"{prefix}{name}.alpha"] = torch.tensor(alpha)
    return tensors


def original_layers() -> dict[str, tuple[int, int]]:
    """Black Forest Labs' names for the tiny transformer's blocks, with their shapes."""
    double = {
        f"double_blocks.{i}.{name}": shape for i in range(2) for name, shape in DOUBLE.items()
    }
    single = {
        f"single_blocks.{i}.{name}": shape for i in range(2) for name, shape in SINGLE.items()
    }
    return double | single


def underscored(layers: Shapes) -> dict[str, tuple[int, int]]:
    return {name.replace(".", "_"): shape for name, shape in layers.items()}


def lora_bytes(tensors: Tensors, metadata: dict[str, str] | None = None) -> bytes:
    return save({key: tensor.contiguous() for key, tensor in tensors.items()}, metadata)


def file_with(header: object, data: bytes = b"") -> bytes:
    """A safetensors file whose header says what it likes."""
    written = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(written).to_bytes(8, "little") + written + data


def peft_settings(prefix: str = "transformer.", **settings: object) -> dict[str, str]:
    """The header that diffusers writes: `save_lora_weights` with the prefix, models without."""
    prefixed = {prefix + name: value for name, value in settings.items()}
    return {"format": "pt", "lora_adapter_metadata": json.dumps(prefixed)}


def pipeline(transformer: FluxTransformer2DModel) -> FluxPipeline:
    """As much of a pipeline as loads a LoRA."""
    return FluxPipeline(
        scheduler=None,
        vae=None,
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=None,
        tokenizer_2=None,
        transformer=transformer,
    )


def applied_by_diffusers(file: Path) -> dict[str, torch.Tensor]:
    """Module path -> the change of its weight, [outputs, inputs], once a pipeline has loaded it."""
    transformer = tiny_transformer()
    pipeline(transformer).load_lora_weights(file)
    return applied_in(transformer)


def applied_in(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The same of a model that PEFT has already changed."""
    return {
        path.removeprefix("base_model.model."): module.get_delta_weight(adapter).detach()
        for path, module in model.named_modules()
        if isinstance(module, LoraLayer)
        for adapter in module.active_adapters
    }


def changes(layers: Mapping[str, tuple[torch.Tensor, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Module path -> the change of its weight, from what was read."""
    return {module: up_OR @ down_RI for module, (down_RI, up_OR) in layers.items()}


def largest_difference(
    some: Mapping[str, torch.Tensor], others: Mapping[str, torch.Tensor]
) -> float:
    """Between two sets of tensors, which must have the same names and shapes."""
    assert some.keys() == others.keys()
    assert all(some[name].shape == others[name].shape for name in some)
    return max(_differences(some, others))


def _differences(
    some: Mapping[str, torch.Tensor], others: Mapping[str, torch.Tensor]
) -> Iterable[float]:
    return ((some[name] - others[name]).abs().max().item() for name in some)
