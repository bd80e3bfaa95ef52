"""Reading LoRA files: what is read is what diffusers and PEFT apply; all else is refused by name.

The table of formats, one row one test, on a tiny transformer; a reference is always what a real
loader did with the same file, or the same LoRA under names that are already held to one.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import FluxPipeline, FluxTransformer2DModel
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict

from models.flux.errors import LoraRefused
from models.flux.lora_files import LoraWeights, linear_shapes, read_lora
from tests.models.flux.lora_fixtures import (
    KOHYA,
    LINEAR1,
    OUTSIDE,
    PEFT,
    WIDTH,
    XLABS,
    XLABS_LAYERS,
    Shapes,
    Tensors,
    applied_by_diffusers,
    applied_in,
    changes,
    file_with,
    largest_difference,
    lora_bytes,
    original_layers,
    output_of,
    peft_settings,
    pipeline,
    tensors_of,
    tiny_transformer,
    underscored,
)

MAX_RANK = 16
CLOSE = 1e-6
TO_Q = "transformer_blocks.0.attn.to_q"
QKV = "double_blocks.0.img_attn.qkv"


@pytest.fixture(scope="module")
def linears() -> dict[str, tuple[int, int]]:
    return linear_shapes(tiny_transformer())


def read(data: bytes | Path, linears: Shapes) -> LoraWeights:
    return read_lora(data, linears=linears, max_rank=MAX_RANK)


def assert_same(data: bytes, other: bytes, linears: Shapes) -> None:
    """Both files change the transformer alike."""
    some, others = read(data, linears).layers, read(other, linears).layers
    assert largest_difference(changes(some), changes(others)) < CLOSE


# What diffusers applies


def diffusers_file(linears: Shapes) -> bytes:
    return lora_bytes(tensors_of(linears, prefix="transformer."))


def diffusers_file_with_alphas(linears: Shapes) -> bytes:
    return lora_bytes(tensors_of(linears, prefix="transformer.", alpha=2.0))


def diffusers_file_of_two_ranks(linears: Shapes) -> bytes:
    low, high = list(linears.items())[:25], list(linears.items())[25:]
    tensors = tensors_of(dict(low), prefix="transformer.", rank=2)
    return lora_bytes(tensors | tensors_of(dict(high), prefix="transformer.", rank=8))


def ai_toolkit_file(linears: Shapes) -> bytes:
    blocks = {path: shape for path, shape in linears.items() if "blocks" in path}
    tensors = tensors_of(blocks, prefix="transformer.", rank=8)
    half = {key: tensor.to(torch.bfloat16) for key, tensor in tensors.items()}
    return lora_bytes(half, {"software": '{"name": "ai-toolkit"}', "format": "pt"})


def kohya_file(_linears: Shapes) -> bytes:
    layers = underscored(original_layers())
    return lora_bytes(tensors_of(layers, prefix="lora_unet_", suffixes=KOHYA, alpha=1.0))


def kohya_file_without_alphas(_linears: Shapes) -> bytes:
    return lora_bytes(
        tensors_of(underscored(original_layers()), prefix="lora_unet_", suffixes=KOHYA)
    )


def kohya_file_of_split_qkv(_linears: Shapes) -> bytes:
    tensors = tensors_of(
        underscored({QKV: (WIDTH, 3 * WIDTH)}), prefix="lora_unet_", suffixes=KOHYA
    )
    ups = [torch.randn(WIDTH, 4) for _ in range(3)]
    (name,) = {key.partition(".")[0] for key in tensors}
    return lora_bytes(
        {
            f"{name}.lora_down.weight": torch.randn(12, WIDTH) * 0.1,
            f"{name}.lora_up.weight": torch.block_diag(*ups) * 0.1,
            f"{name}.alpha": torch.tensor(6.0),
        }
    )


def comfy_file(_linears: Shapes) -> bytes:
    layers = original_layers()
    return lora_bytes(tensors_of(layers, prefix="diffusion_model.", suffixes=KOHYA, alpha=2.0))


def xlabs_file(_linears: Shapes) -> bytes:
    return lora_bytes(tensors_of(XLABS_LAYERS, suffixes=XLABS))


def file_with_scaling(_linears: Shapes) -> bytes:
    """lora_alpha alone: the layers of one rank."""
    layers = {TO_Q: (WIDTH, WIDTH), "transformer_blocks.1.ff.net.2": (4 * WIDTH, WIDTH)}
    settings = peft_settings(r=4, lora_alpha=12, target_modules=list(layers))
    return lora_bytes(tensors_of(layers, prefix="transformer."), settings)


@pytest.mark.parametrize(
    "write",
    [
        diffusers_file,
        diffusers_file_with_alphas,
        diffusers_file_of_two_ranks,
        ai_toolkit_file,
        kohya_file,
        kohya_file_without_alphas,
        kohya_file_of_split_qkv,
        comfy_file,
        xlabs_file,
        file_with_scaling,
    ],
)
def test_what_is_read_is_what_diffusers_applies(
    write: Callable[[Shapes], bytes], linears: dict[str, tuple[int, int]], tmp_path: Path
) -> None:
    file = tmp_path / "lora.safetensors"
    file.write_bytes(write(linears))
    weights = read(file, linears)
    assert largest_difference(applied_by_diffusers(file), changes(weights.layers)) < CLOSE


def test_the_transformer_answers_as_it_does_under_diffusers(
    linears: dict[str, tuple[int, int]], tmp_path: Path
) -> None:
    file = tmp_path / "lora.safetensors"
    file.write_bytes(kohya_file(linears))
    plain, merged = tiny_transformer(), tiny_transformer()
    with torch.no_grad():
        for path, change in changes(read(file, linears).layers).items():
            merged.get_submodule(path).weight += change
    pipeline(plain).load_lora_weights(file)
    assert (output_of(merged) - output_of(plain)).abs().max() < CLOSE
    assert (output_of(merged) - output_of(tiny_transformer())).abs().max() > 1000 * CLOSE


@pytest.mark.filterwarnings("ignore:The following alpha_pattern keys")  # o_q is none, on purpose
@pytest.mark.parametrize("use_rslora", [False, True])
def test_what_diffusers_saves_is_read_with_its_ranks_and_alphas(
    use_rslora: bool, linears: dict[str, tuple[int, int]], tmp_path: Path
) -> None:
    transformer = trained(
        rank_pattern={"^proj_out": 2, "attn.to_k": 8},
        alpha_pattern={"o_q": 5, "to_q": 3},
        rslora=use_rslora,
    )
    FluxPipeline.save_lora_weights(
        tmp_path,
        transformer_lora_layers=get_peft_model_state_dict(transformer),
        transformer_lora_adapter_metadata=transformer.peft_config["default"].to_dict(),
    )
    weights = read(tmp_path / "pytorch_lora_weights.safetensors", linears)
    assert weights.rank == 8
    assert weights.layers["proj_out"][0].shape[0] == 2
    assert largest_difference(applied_in(transformer), changes(weights.layers)) < CLOSE


def test_what_a_diffusers_model_saves_has_no_prefix_and_is_read(
    linears: dict[str, tuple[int, int]], tmp_path: Path
) -> None:
    transformer = trained(rank_pattern={}, alpha_pattern={"ff.net.2": 1}, rslora=False)
    transformer.save_lora_adapter(tmp_path, adapter_name="default")
    (file,) = tmp_path.glob("*.safetensors")
    weights = read(file, linears)
    assert largest_difference(applied_in(transformer), changes(weights.layers)) < CLOSE


def test_what_peft_saves_is_read(linears: dict[str, tuple[int, int]], tmp_path: Path) -> None:
    config = LoraConfig(
        r=4, lora_alpha=4, target_modules=["to_q", "linear"], init_lora_weights=False
    )
    model = get_peft_model(tiny_transformer(), config)
    model.save_pretrained(tmp_path)
    weights = read(tmp_path / "adapter_model.safetensors", linears)
    assert largest_difference(applied_in(model), changes(weights.layers)) < CLOSE


def trained(
    *, rank_pattern: dict[str, int], alpha_pattern: dict[str, int], rslora: bool
) -> FluxTransformer2DModel:
    """A tiny transformer with a PEFT adapter whose matrices are random."""
    transformer = tiny_transformer()
    transformer.add_adapter(
        LoraConfig(
            r=4,
            lora_alpha=6,
            target_modules=["to_q", "to_k", "proj_out", "ff.net.2", "x_embedder"],
            rank_pattern=rank_pattern,
            alpha_pattern=alpha_pattern,
            use_rslora=rslora,
            init_lora_weights=False,
        )
    )
    return transformer


# What diffusers leaves out, or converts for one width


@pytest.mark.parametrize("prefix", ["", "transformer.", "diffusion_model.", "base_model.model."])
@pytest.mark.parametrize("suffixes", [PEFT, KOHYA])
def test_original_names_are_read_under_every_prefix_and_suffix(
    prefix: str, suffixes: tuple[str, str], linears: dict[str, tuple[int, int]]
) -> None:
    layers = original_layers()
    data = lora_bytes(tensors_of(layers, prefix=prefix, suffixes=suffixes, alpha=2.0))
    assert_same(data, comfy_file(linears), linears)


@pytest.mark.parametrize("prefix", ["", "transformer.", "diffusion_model.", "base_model.model."])
@pytest.mark.parametrize("suffixes", [PEFT, KOHYA])
def test_diffusers_names_are_read_under_every_prefix_and_suffix(
    prefix: str, suffixes: tuple[str, str], linears: dict[str, tuple[int, int]]
) -> None:
    data = lora_bytes(tensors_of(linears, prefix=prefix, suffixes=suffixes, alpha=2.0))
    assert_same(data, diffusers_file_with_alphas(linears), linears)


def test_onetrainer_files_are_read_with_every_layer(linears: dict[str, tuple[int, int]]) -> None:
    layers = underscored(linears)
    data = lora_bytes(tensors_of(layers, prefix="lora_transformer_", suffixes=KOHYA, alpha=2.0))
    assert_same(data, diffusers_file_with_alphas(linears), linears)


def test_kohya_layers_at_full_width_are_cut_and_swapped_as_diffusers_does() -> None:
    """Of a real model's size, on no memory: one block of each kind and the layers outside."""
    with torch.device("meta"):
        transformer = FluxTransformer2DModel(
            num_layers=1, num_single_layers=1, guidance_embeds=True
        )
    linears = linear_shapes(transformer)
    tensors = tensors_of(full_width_layers(), prefix="lora_unet_", suffixes=KOHYA, rank=2)
    converted = FluxPipeline.lora_state_dict(dict(tensors))
    weights = read(lora_bytes(tensors), linears)
    assert weights.layers.keys() == linears.keys()
    for path, (down_RI, up_OR) in weights.layers.items():
        key = f"transformer.{path}" if "blocks" in path else path
        theirs = converted[f"{key}.lora_B.weight"], converted[f"{key}.lora_A.weight"]
        probe_I = torch.linspace(-1, 1, linears[path][0])
        assert torch.allclose(up_OR @ (down_RI @ probe_I), theirs[0] @ (theirs[1] @ probe_I))


def full_width_layers() -> dict[str, tuple[int, int]]:
    """kohya's names for every layer of FLUX.1's first block of each kind and outside the blocks."""
    wide, mlp = 3072, 12288
    outside = {
        "img_in": (64, wide),
        "txt_in": (4096, wide),
        "time_in_in_layer": (256, wide),
        "time_in_out_layer": (wide, wide),
        "vector_in_in_layer": (768, wide),
        "vector_in_out_layer": (wide, wide),
        "guidance_in_in_layer": (256, wide),
        "guidance_in_out_layer": (wide, wide),
        "final_layer_linear": (wide, 64),
        "final_layer_adaLN_modulation_1": (wide, 2 * wide),
    }
    double = {
        f"double_blocks_0_{stream}_{name}": shape
        for stream in ("img", "txt")
        for name, shape in {
            "attn_qkv": (wide, 3 * wide),
            "attn_proj": (wide, wide),
            "mlp_0": (wide, mlp),
            "mlp_2": (mlp, wide),
            "mod_lin": (wide, 6 * wide),
        }.items()
    }
    single = {
        "single_blocks_0_linear1": (wide, 3 * wide + mlp),
        "single_blocks_0_linear2": (wide + mlp, wide),
        "single_blocks_0_modulation_lin": (wide, 3 * wide),
    }
    return outside | double | single


def test_linear1_is_cut_at_the_width_of_the_transformer(
    linears: dict[str, tuple[int, int]],
) -> None:
    tensors = tensors_of({"single_blocks.1.linear1": LINEAR1})
    down, up = (tensors[f"single_blocks.1.linear1{suffix}"] for suffix in PEFT)
    read_changes = changes(read(lora_bytes(tensors), linears).layers)
    ends = ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")
    stacked = torch.cat([read_changes[f"single_transformer_blocks.1.{end}"] for end in ends])
    assert (stacked - up @ down).abs().max() < CLOSE


def test_the_alpha_of_a_layer_outside_the_blocks_counts(
    linears: dict[str, tuple[int, int]],
) -> None:
    layers = {"final_layer_linear": linears["proj_out"]}
    kohya = lora_bytes(tensors_of(layers, prefix="lora_unet_", suffixes=KOHYA, alpha=1.0))
    same = lora_bytes(tensors_of({"proj_out": linears["proj_out"]}, alpha=1.0))
    assert_same(kohya, same, linears)


def test_comfy_names_outside_the_blocks_are_read_as_kohyas(
    linears: dict[str, tuple[int, int]],
) -> None:
    kohya = tensors_of(underscored(OUTSIDE), prefix="lora_unet_", suffixes=KOHYA)
    comfy = tensors_of(OUTSIDE, prefix="diffusion_model.", suffixes=KOHYA)
    assert_same(lora_bytes(comfy), lora_bytes(kohya), linears)


@pytest.mark.parametrize(
    ("first_block", "rank"),
    [((slice(32, 64), slice(0, 2)), 6), ((slice(0, 32), slice(2, 4)), 6), ((0, slice(0, 1)), 4)],
    ids=["below", "above", "a column to spare"],
)
def test_what_only_looks_block_diagonal_is_cut_without_loss(
    first_block: tuple[object, object], rank: int, linears: dict[str, tuple[int, int]]
) -> None:
    share = rank // 3
    up = torch.zeros(3 * WIDTH, rank)
    up[:, : 3 * share] = torch.block_diag(*torch.ones(3, WIDTH, share))
    up[first_block] = 2
    down = tensors_of({QKV: (WIDTH, 3 * WIDTH)}, rank=rank)[f"{QKV}{PEFT[0]}"]
    data = lora_bytes({f"{QKV}{PEFT[0]}": down, f"{QKV}{PEFT[1]}": up})
    stacked = torch.cat(list(changes(read(data, linears).layers).values()))
    assert (stacked - up @ down).abs().max() < CLOSE


def test_split_qkv_keeps_the_rank_that_it_was_trained_with(
    linears: dict[str, tuple[int, int]],
) -> None:
    assert read(kohya_file_of_split_qkv(linears), linears).rank == 4


def test_split_qkv_may_have_the_highest_rank_in_each_part(
    linears: dict[str, tuple[int, int]],
) -> None:
    weights = read_lora(kohya_file_of_split_qkv(linears), linears=linears, max_rank=4)
    assert weights.rank == 4
    with pytest.raises(LoraRefused, match=r"rank 12; 1 to 9 "):
        read_lora(kohya_file_of_split_qkv(linears), linears=linears, max_rank=3)


# What is read, as a value


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2]
)
def test_every_floating_dtype_is_read_as_float32(
    dtype: torch.dtype, linears: dict[str, tuple[int, int]]
) -> None:
    tensors = {key: tensor.to(dtype) for key, tensor in good().items()}
    (down_RI, up_OR) = read(lora_bytes(tensors), linears).layers[TO_Q]
    assert (down_RI.dtype, up_OR.dtype) == (torch.float32, torch.float32)
    assert torch.equal(down_RI, tensors[f"{TO_Q}.lora_A.weight"].float())


def test_alpha_may_be_an_integer_of_one_dimension(linears: dict[str, tuple[int, int]]) -> None:
    data = lora_bytes(good() | {f"{TO_Q}.alpha": torch.tensor([2])})
    assert_same(data, lora_bytes(good() | {f"{TO_Q}.alpha": torch.tensor(2.0)}), linears)


def test_settings_of_a_text_encoder_scale_nothing_here(
    linears: dict[str, tuple[int, int]],
) -> None:
    ours = peft_settings(**{"transformer.r": 4, "transformer.lora_alpha": 8}, prefix="")
    both = {"transformer.r": 4, "transformer.lora_alpha": 8, "text_encoder.lora_alpha": 2}
    theirs = peft_settings(**both, prefix="")
    assert_same(lora_bytes(good(), theirs), lora_bytes(good(), ours), linears)


def test_a_file_and_its_bytes_are_the_same_lora(
    linears: dict[str, tuple[int, int]], tmp_path: Path
) -> None:
    data = lora_bytes(good(), {"modelspec.trigger_phrase": "한강 수묵화", "licence": "CC0"})
    (tmp_path / "lora.safetensors").write_bytes(data)
    from_file, from_bytes = read(tmp_path / "lora.safetensors", linears), read(data, linears)
    assert from_file.digest == from_bytes.digest == hashlib.sha256(data).hexdigest()
    assert from_file.metadata == {"modelspec.trigger_phrase": "한강 수묵화", "licence": "CC0"}
    assert from_file.rank == from_bytes.rank == 4


def test_a_header_that_begins_like_a_pickle_is_read(linears: dict[str, tuple[int, int]]) -> None:
    """Its length may have 0x80 as its lowest byte."""
    for spaces in range(0x100):
        data = lora_bytes(good(), {"padding": " " * spaces})
        if data[0] == 0x80:
            break
    assert data[0] == 0x80
    assert read(data, linears).rank == 4


def test_a_missing_file_is_the_callers_affair(
    linears: dict[str, tuple[int, int]], tmp_path: Path
) -> None:
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "none.safetensors", linears)


# What is refused


def good(name: str = TO_Q, suffixes: tuple[str, str] = PEFT) -> Tensors:
    return tensors_of({name: (WIDTH, WIDTH)}, suffixes=suffixes)


def only(tensors: Tensors, ending: str) -> Tensors:
    return {key: tensor for key, tensor in tensors.items() if key.endswith(ending)}


def pair(down: tuple[int, ...], up: tuple[int, ...], name: str = TO_Q) -> Tensors:
    return {f"{name}{PEFT[0]}": torch.ones(down), f"{name}{PEFT[1]}": torch.ones(up)}


ONE = torch.ones(1)
KOHYA_PROJ = "lora_unet_double_blocks_0_img_attn_proj"
REFUSED: dict[str, tuple[Tensors, str]] = {
    "dora of kohya": (good() | {f"{KOHYA_PROJ}.dora_scale": ONE}, "dora_scale' is DoRA"),
    "dora of PEFT": (good() | {f"{TO_Q}.lora_magnitude_vector": ONE}, "magnitude_vector' is DoRA"),
    "lokr": ({"lora_unet_double_blocks_0_img_attn_qkv.lokr_w1": ONE}, "lokr_w1' is LoKr"),
    "loha": ({f"{KOHYA_PROJ}.hada_w1_a": ONE}, "hada_w1_a' is LoHa"),
    "oft": ({f"{KOHYA_PROJ}.oft_blocks": ONE}, "oft_blocks' is OFT"),
    "bias of Comfy": (good() | {f"diffusion_model.{QKV}.diff_b": ONE}, "diff_b' is a change of a"),
    "bias of PEFT": (good() | {f"{TO_Q}.lora_B.bias": ONE}, "lora_B.bias' is a change of a bias"),
    "control": (
        good() | {"double_blocks.0.img_attn.norm.query_norm.scale": ONE},
        "query_norm.scale' is a normalisation's weight",
    ),
    "norm": (
        good() | {"transformer.transformer_blocks.0.attn.norm_q.weight": ONE},
        "norm_q.weight' is a normalisation's weight",
    ),
    "norm of Comfy": (
        good() | {"diffusion_model.double_blocks.0.img_attn.norm.key_norm.diff": ONE},
        "key_norm.diff' is a normalisation's weight",
    ),
    "whole weight": (good() | {"diffusion_model.img_in.diff": ONE}, "diff' is a whole weight"),
    "CLIP of kohya": (
        good() | good("lora_te1_text_model_encoder_layers_0_mlp_fc1", KOHYA),
        "mlp_fc1.lora_down.weight' is a text encoder's layer",
    ),
    "CLIP of diffusers": (
        good() | good("text_encoder.text_model.encoder.layers.0.mlp.fc1"),
        "fc1.lora_A.weight' is a text encoder's layer",
    ),
    "T5 of Comfy": (
        good() | good("text_encoders.t5xxl.transformer.encoder.block.0", KOHYA),
        "'text_encoders.t5xxl.* is a text encoder's layer",
    ),
    "a third matrix": (
        good() | {f"{TO_Q}.lora_mid.weight": ONE},
        "lora_mid.weight' is in no known",
    ),
    "an adapter's name": (
        good() | {f"{TO_Q}.lora_A.default.weight": ONE},
        "lora_A.default.weight' is in no known LoRA format",
    ),
    "a long name": (good() | {"norm" * 10**6: ONE}, "a name of 4000000 characters; at most 256"),
    "an embedding": (good() | {"emb_params": ONE}, "'emb_params' is in no known LoRA format"),
    "another model": (
        good() | good("lora_unet_down_blocks_0_attentions_0_proj_in", KOHYA),
        "proj_in' is no layer of this transformer: .* another model",
    ),
    "a third block": (
        good("transformer_blocks.2.attn.to_q"),
        r"transformer_blocks\.2\.attn\.to_q' is no layer of this transformer",
    ),
    "no nn.Linear": (good("transformer_blocks.0.attn.norm_q"), "norm_q' is no layer of this"),
    "wider x_embedder": (
        pair((4, 8), (WIDTH, 4), "transformer.x_embedder"),
        r"x_embedder' has matrices of \[4, 8\] and .* takes \[rank, 4\] and \[32, rank\]",
    ),
    "narrower inputs": (pair((4, 16), (WIDTH, 4)), r"\[4, 16\] .* takes \[rank, 32\]"),
    "other outputs": (pair((4, WIDTH), (64, 4)), r"\[64, 4\], .* and \[32, rank\]"),
    "ranks that differ": (pair((4, WIDTH), (WIDTH, 8)), r"\[4, 32\] and \[32, 8\]"),
    "a convolution": (pair((4, WIDTH, 1, 1), (WIDTH, 4, 1, 1)), r"\[4, 32, 1, 1\]"),
    "no dimensions": (pair((), ()), r"matrices of \[\] and \[\]"),
    "rank over the highest": (pair((17, WIDTH), (WIDTH, 17)), "rank 17; 1 to 16 is drawn here"),
    "rank over the highest, fused": (
        pair((17, WIDTH), (3 * WIDTH, 17), QKV),
        "rank 17; 1 to 16 is drawn here",
    ),
    "rank 0": (pair((0, WIDTH), (WIDTH, 0)), "rank 0; 1 to 16"),
    "A without B": (only(good(), "A.weight"), f"'{TO_Q}' comes without its up matrix"),
    "B without A": (only(good(), "B.weight"), "comes without its down matrix"),
    "alpha alone": ({f"{TO_Q}.alpha": ONE}, "comes without its down and up matrix"),
    "alpha of no number": (
        good() | {f"{TO_Q}.alpha": torch.tensor(torch.nan)},
        "alpha of .* is nan",
    ),
    "alpha without an end": (
        good() | {f"{TO_Q}.alpha": torch.tensor(torch.inf)},
        "is inf; not 0 and at most",
    ),
    "alpha 0": (good() | {f"{TO_Q}.alpha": torch.tensor(0)}, "alpha of .* is 0.0; not 0 and"),
    "two alphas": (good() | {f"{TO_Q}.alpha": torch.ones(2)}, r"alpha' is \(2,\), not one number"),
    "alpha of truth": (good() | {f"{TO_Q}.alpha": torch.tensor(True)}, "alpha' has dtype 'BOOL'"),
    "integers": (
        {key: tensor.to(torch.int8) for key, tensor in good().items()},
        "lora_A.weight' has dtype 'I8'; one of .*BF16.* would be right",
    ),
    "complex numbers": (
        {key: tensor.to(torch.complex64) for key, tensor in good().items()},
        "dtype 'C64'",
    ),
    "NaN": (good() | {f"{TO_Q}{PEFT[0]}": torch.full((4, WIDTH), torch.nan)}, "holds NaN"),
    "infinity": (good() | {f"{TO_Q}{PEFT[1]}": torch.full((WIDTH, 4), torch.inf)}, "infinite"),
    "more than float32 holds": (
        {key: tensor.double() * 1e300 for key, tensor in good().items()},
        f"'{TO_Q}' holds NaN or infinite values",
    ),
    "no tensors": ({}, "holds no tensors, so it would change nothing"),
    "all zero": (
        good() | {f"{TO_Q}{PEFT[1]}": torch.zeros(WIDTH, 4)},
        "every layer of the file is zero, so it would change nothing",
    ),
    "one layer in two dialects": (
        good() | good(f"transformer.{TO_Q}"),
        f"changes {TO_Q} 2 times, under several names",
    ),
    "one layer alone and fused": (
        good() | tensors_of({QKV: (WIDTH, 3 * WIDTH)}),
        f"changes {TO_Q} 2 times",
    ),
    "one matrix in two suffixes": (
        good() | good(suffixes=KOHYA),
        f"'{TO_Q}' has two tensors for down",
    ),
}


@pytest.mark.parametrize(("tensors", "says"), REFUSED.values(), ids=REFUSED.keys())
def test_what_would_load_as_something_else_is_refused(
    tensors: Tensors, says: str, linears: dict[str, tuple[int, int]]
) -> None:
    assert_refused(lora_bytes(tensors), says, linears)


REFUSED_SETTINGS: dict[str, tuple[dict[str, object], str]] = {
    "DoRA": ({"r": 4, "use_dora": True}, "'use_dora' is True, which is not drawn here"),
    "a bias": ({"r": 4, "bias": "lora_only"}, "'bias' is 'lora_only'"),
    "LoHa": ({"r": 4, "peft_type": "LOHA"}, "'peft_type' is 'LOHA'"),
    "another base": ({"r": 4, "init_lora_weights": "pissa"}, "'init_lora_weights' is 'pissa'"),
    "unknown": ({"r": 4, "use_flora": True}, "'use_flora' is True"),
    "whole modules": ({"r": 4, "modules_to_save": ["proj_out"]}, "'modules_to_save' is list"),
    "another rank": ({"r": 8}, f"give {TO_Q} rank 8 and its tensors have 4"),
    "no rank": ({"lora_alpha": 4}, "rank 8 and its tensors have 4"),
    "a pattern of another rank": ({"r": 4, "rank_pattern": {"attn.to_q": 2}}, "rank 2 and its"),
    "a regular expression": (
        {"r": 4, "alpha_pattern": {"(.+)+$": 2}},
        r"the regular expression '\(\.\+\)\+\$'; a module's name would be right",
    ),
    "patterns without end": (
        {"r": 4, "alpha_pattern": {f"block{i}": 4 for i in range(4097)}},
        "alpha_pattern .* has 4097 entries; at most 4096 are read",
    ),
    "patterns in a list": ({"r": 4, "alpha_pattern": ["to_q"]}, "alpha_pattern .* no JSON object"),
    "alpha in words": ({"r": 4, "lora_alpha": "16"}, "lora_alpha is '16', which is no number"),
    "alpha of truth": ({"r": 4, "lora_alpha": True}, "lora_alpha is True, which is no number"),
    "alpha of nothing": ({"r": 4, "lora_alpha": None}, "lora_alpha is None, which is no number"),
    "alpha 0": ({"r": 4, "lora_alpha": 0}, "lora_alpha is 0; "),
    "alpha beyond float": ({"r": 4, "lora_alpha": 10**400}, "lora_alpha is 1000000"),
    "alpha of no number": ({"r": 4, "lora_alpha": float("nan")}, "lora_alpha is nan"),
}


@pytest.mark.parametrize(("said", "says"), REFUSED_SETTINGS.values(), ids=REFUSED_SETTINGS.keys())
def test_settings_that_would_draw_another_picture_are_refused(
    said: dict[str, object], says: str, linears: dict[str, tuple[int, int]]
) -> None:
    assert_refused(lora_bytes(good(), peft_settings(**said)), says, linears)


@pytest.mark.parametrize(
    ("tensors", "written", "says"),
    [
        (good(), "{", "lora_adapter_metadata is no JSON object: JSONDecodeError"),
        (good(), "[" * 100_000, "lora_adapter_metadata is no JSON object: RecursionError"),
        (good(), "[4]", "lora_adapter_metadata is a JSON list, not an object"),
        (
            good() | {f"{TO_Q}.alpha": ONE},
            '{"r": 4, "lora_alpha": 8}',
            "has an alpha and the header has PEFT settings: one must go",
        ),
        (
            good("double_blocks.0.img_attn.proj"),
            '{"r": 4, "lora_alpha": 8}',
            r"img_attn.proj' is none: transformer_blocks\.0\.attn\.to_out\.0 would be right",
        ),
    ],
    ids=["half", "nested", "list", "alpha twice", "original names"],
)
def test_settings_that_say_nothing_certain_are_refused(
    tensors: Tensors, written: str, says: str, linears: dict[str, tuple[int, int]]
) -> None:
    assert_refused(lora_bytes(tensors, {"lora_adapter_metadata": written}), says, linears)


def torch_archive(new: bool) -> bytes:
    archive = io.BytesIO()
    torch.save(good(), archive, _use_new_zipfile_serialization=new)
    return archive.getvalue()


def entry(**changed: object) -> dict[str, object]:
    """A header with one tensor of four bytes, changed."""
    one = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    return {f"{TO_Q}.lora_A.weight": one | changed}


def whole(**changed: object) -> dict[str, object]:
    """A header with a layer of rank 1, whose data are 256 bytes; its down matrix is changed."""
    down = {"dtype": "F32", "shape": [1, WIDTH], "data_offsets": [0, 128]}
    up = {"dtype": "F32", "shape": [WIDTH, 1], "data_offsets": [128, 256]}
    return {f"{TO_Q}.lora_A.weight": down | changed, f"{TO_Q}.lora_B.weight": up}


DATA = torch.ones(64).numpy().tobytes()
NOT_SAFETENSORS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "has 0 bytes, too few"),
    "seven bytes": (b"\0" * 7, "has 7 bytes, too few"),
    "no header": (b"\0" * 8, "header is no JSON object"),
    "torch archive": (torch_archive(new=True), "is a PyTorch pickle, .*safetensors would be"),
    "torch before 1.6": (torch_archive(new=False), "is a PyTorch pickle"),
    "gguf": (b"GGUF\x03\0\0\0" + b"\0" * 64, "declares a header of .* and 64 follow"),
    "huge header": (b"\xff" * 8 + b"{}", "declares a header of 18446744073709551615 bytes and 2"),
    "cut header": ((100).to_bytes(8, "little") + b"{}", "header of 100 bytes and 2 follow"),
    "long header": (file_with(b" " * (2**24 + 1)), "at most 16777216 are read"),
    "no JSON": (file_with(b"{x"), "header is no JSON object: JSONDecodeError"),
    "no text": (file_with(b"\xff\xfe"), "header is no JSON object: UnicodeDecodeError"),
    "nested": (file_with(b"[" * 100_000), "header is no JSON object: RecursionError"),
    "a list": (file_with([]), "header is a JSON list"),
    "metadata of numbers": (file_with({"__metadata__": {"a": 1}}), "__metadata__ is no object"),
    "metadata of text": (file_with({"__metadata__": "a"}), "__metadata__ is no object of strings"),
    "no entry": (file_with({"a.alpha": 1}), "gives 'a.alpha' no dtype and shape"),
    "no dtype": (file_with(entry(dtype=None)), "no dtype and shape"),
    "a shape of text": (file_with(entry(shape=["a", WIDTH])), "no dtype and shape"),
    "a shape of fractions": (file_with(entry(shape=[4.0, WIDTH])), "no dtype and shape"),
    "an unknown dtype": (file_with(whole(dtype="F3"), DATA), "dtype 'F3'"),
    "more than there is": (
        file_with(whole(shape=[2**40, WIDTH]), DATA),
        r"\[1099511627776, 32\] and \[32, 1\]",
    ),
    "offsets apart": (file_with(whole(data_offsets=[0, 64]), DATA), "no whole .safetensors file"),
    "offsets backwards": (file_with(whole(data_offsets=[128, 0]), DATA), "no whole .safetensors"),
    "too little data": (file_with(whole(), DATA[:-1]), "no whole .safetensors file"),
    "too much data": (file_with(whole(), DATA + b"\0"), "no whole .safetensors file"),
}


def test_a_layer_that_a_distilled_model_lacks_is_refused(
    linears: dict[str, tuple[int, int]],
) -> None:
    """FLUX.1-schnell takes no guidance."""
    without = {path: shape for path, shape in linears.items() if "guidance" not in path}
    file = lora_bytes(good("lora_unet_guidance_in_out_layer", KOHYA))
    assert read(file, linears).rank == 4
    assert_refused(file, "guidance_in_out_layer' is no layer of this transformer", without)


@pytest.mark.parametrize(("data", "says"), NOT_SAFETENSORS.values(), ids=NOT_SAFETENSORS.keys())
def test_what_is_no_safetensors_file_is_refused(
    data: bytes, says: str, linears: dict[str, tuple[int, int]]
) -> None:
    assert_refused(data, says, linears)


def assert_refused(data: bytes, says: str, linears: Shapes) -> None:
    with pytest.raises(LoraRefused, match=says) as refused:
        read(data, linears)
    sentence = str(refused.value)
    assert "\n" not in sentence
    assert len(sentence) < 500


# Anything at all


SMALL: Shapes = {TO_Q: (3, 2), "proj_out": (2, 3)}
SMALL_FILE = lora_bytes(
    tensors_of(SMALL, prefix="transformer.", rank=2),
    peft_settings(r=2, lora_alpha=4, alpha_pattern={"proj_out": 2}),
)


def read_or_refused(data: bytes) -> LoraWeights | None:
    try:
        return read_lora(data, linears=SMALL, max_rank=MAX_RANK)
    except LoraRefused:
        return None


def test_a_file_cut_anywhere_is_refused() -> None:
    assert read_or_refused(SMALL_FILE) is not None
    assert not any(read_or_refused(SMALL_FILE[:length]) for length in range(len(SMALL_FILE)))


def test_a_header_cut_anywhere_is_refused() -> None:
    end = 8 + int.from_bytes(SMALL_FILE[:8], "little")
    header, data = SMALL_FILE[8:end].rstrip(), SMALL_FILE[end:]
    assert read_or_refused(file_with(header, data)) is not None
    assert not any(read_or_refused(file_with(header[:n], data)) for n in range(len(header)))


@settings(max_examples=250, deadline=None)
@given(st.dictionaries(st.integers(0, len(SMALL_FILE) - 1), st.integers(0, 255), min_size=1))
def test_flipped_bytes_are_read_or_refused(flips: dict[int, int]) -> None:
    data = bytearray(SMALL_FILE)
    for offset, value in flips.items():
        data[offset] = value
    weights = read_or_refused(bytes(data))
    assert weights is None or all(
        tensor.isfinite().all() for pair in weights.layers.values() for tensor in pair
    )


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=8,
)
NAMES = st.sampled_from([*"r lora_alpha rank_pattern alpha_pattern use_rslora bias x".split()])
NUMBERS = st.lists(st.integers(-1, 2**70) | st.integers(0, 128), max_size=3)
DTYPES = st.sampled_from(["F32", "BF16", "F4", "F8_E8M0", "I64"])
FIELDS = st.sampled_from(["dtype", "shape", "data_offsets", "x"])
SMALL_KEYS = st.sampled_from([f"{path}{end}" for path in SMALL for end in (*PEFT, ".alpha")])
NEAR_FIELDS = st.dictionaries(FIELDS, DTYPES | NUMBERS | JSON, max_size=2)


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(SMALL_KEYS | st.text(max_size=8), NEAR_FIELDS | JSON, max_size=2))
def test_any_header_is_read_or_refused(changed: dict[str, object]) -> None:
    file = lora_bytes(tensors_of(SMALL, rank=2))
    end = 8 + int.from_bytes(file[:8], "little")
    header = json.loads(file[8:end])
    for key, value in changed.items():
        old = header.get(key)
        header[key] = old | value if isinstance(old, dict) and isinstance(value, dict) else value
    read_or_refused(file_with(header, file[end:]))


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(NAMES, JSON | st.integers(1, 4), max_size=4))
def test_any_settings_are_read_or_refused(said: dict[str, object]) -> None:
    metadata = {"lora_adapter_metadata": json.dumps(said)}
    read_or_refused(lora_bytes(tensors_of(SMALL, rank=2), metadata))
