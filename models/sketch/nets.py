"""The pipeline's networks and tokenizers: how they are built, and the folder diffusers loads.

Flux.1's layout at about a two-thousandth of its size. The tokenizers know the captions' words and
nothing else. Shapes: B captions, T tokens, D channels.
"""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
)
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)

from models.sketch.scene import MAX_CAPTION_TOKENS, PUNCTUATION, known_words

PAD, UNKNOWN, START, END = "<pad>", "<unk>", "<start>", "<end>"
SPECIAL = (PAD, UNKNOWN, START, END)
"""In the order of their ids. CLIP pools at the end token, whose id must not be 2: transformers
takes 2 for a mark of early checkpoints and pools at the highest id instead."""


@dataclass(frozen=True)
class Sizes:
    """The shapes of all networks; `SHIPPED` trains, `TINY` is for tests."""

    vae_channels: tuple[int, ...] = (16, 32, 64, 96)
    latent_channels: int = 16
    clip_width: int = 128
    clip_layers: int = 2
    t5_width: int = 128
    t5_layers: int = 3
    heads: int = 4
    rope_axes: tuple[int, int, int] = (8, 20, 20)
    double_blocks: int = 2
    single_blocks: int = 6


SHIPPED = Sizes()
TINY = Sizes(
    vae_channels=(4, 4, 4, 4),
    clip_width=16,
    clip_layers=1,
    t5_width=16,
    t5_layers=1,
    heads=1,
    rope_axes=(4, 6, 6),
    double_blocks=1,
    single_blocks=1,
)


@dataclass
class Networks:
    """Everything that training changes or uses. All weights are float32 until `save`."""

    vae: Any
    transformer: Any
    clip: Any
    t5: Any
    clip_tokenizer: Any
    t5_tokenizer: Any

    def encode(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Pooled (B, D) and per-token (B, T, D) encodings, as FluxPipeline computes them."""
        clip_ids_BT, t5_ids_BT = (
            tokenizer(
                list(captions),
                padding="max_length",
                truncation=True,
                max_length=MAX_CAPTION_TOKENS,
                return_tensors="pt",
            ).input_ids.to(self.transformer.device)
            for tokenizer in (self.clip_tokenizer, self.t5_tokenizer)
        )
        return self.clip(clip_ids_BT).pooler_output, self.t5(t5_ids_BT)[0]

    def trained(self) -> torch.nn.ModuleDict:
        """What the transformer's stage trains."""
        return torch.nn.ModuleDict(
            {"transformer": self.transformer, "clip": self.clip, "t5": self.t5}
        )


def build(sizes: Sizes = SHIPPED, vae: Any | None = None) -> Networks:
    """Untrained networks; the same sizes give the same weights."""
    torch.manual_seed(0)
    vocabulary = len(SPECIAL) + len(known_words())
    return Networks(
        vae=vae if vae is not None else build_vae(sizes),
        transformer=_build_transformer(sizes),
        clip=_build_clip(sizes, vocabulary),
        t5=_build_t5(sizes, vocabulary),
        clip_tokenizer=build_tokenizer(with_start=True),
        t5_tokenizer=build_tokenizer(with_start=False),
    )


def build_vae(sizes: Sizes = SHIPPED) -> Any:
    """An untrained AutoencoderKL, eight times smaller latents, almost certain of them at first."""
    torch.manual_seed(0)
    vae = AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * len(sizes.vae_channels),
        up_block_types=("UpDecoderBlock2D",) * len(sizes.vae_channels),
        block_out_channels=sizes.vae_channels,
        layers_per_block=1,
        latent_channels=sizes.latent_channels,
        norm_num_groups=2,
        sample_size=192,
        use_quant_conv=False,
        use_post_quant_conv=False,
        mid_block_add_attention=False,
    )
    with torch.no_grad():
        vae.encoder.conv_out.bias[sizes.latent_channels :] = -5.0
    return vae


def build_tokenizer(with_start: bool) -> Any:
    """One token a word, split as `scene.words` does; ends with the end token."""
    ids = {token: i for i, token in enumerate((*SPECIAL, *known_words()))}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.Lowercase(),
            normalizers.Replace(Regex(f"[{PUNCTUATION}]"), " "),
            normalizers.Replace("close up", "close-up"),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{START} $A {END}" if with_start else f"$A {END}",
        special_tokens=[(token, ids[token]) for token in (START, END)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        unk_token=UNKNOWN,
        bos_token=START,
        eos_token=END,
        model_max_length=MAX_CAPTION_TOKENS,
    )


def assemble(networks: Networks) -> Any:
    """A stock FluxPipeline around these networks; shares their weights."""
    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0, use_dynamic_shifting=False),
        vae=networks.vae,
        text_encoder=networks.clip,
        tokenizer=networks.clip_tokenizer,
        text_encoder_2=networks.t5,
        tokenizer_2=networks.t5_tokenizer,
        transformer=networks.transformer,
    )


def save(networks: Networks, folder: Path) -> None:
    """Write the pipeline in bfloat16 and put it in the folder's place; `networks` stay as they are.

    Other entries of the folder, such as LoRAs, survive.
    """
    partial = folder.with_name(folder.name + ".part")
    shutil.rmtree(partial, ignore_errors=True)
    assemble(networks).save_pretrained(partial)
    FluxPipeline.from_pretrained(partial, dtype=torch.bfloat16).save_pretrained(partial)
    _make_portable(partial)
    folder.mkdir(parents=True, exist_ok=True)
    for fresh in partial.iterdir():
        stale = folder / fresh.name
        if stale.is_dir():
            shutil.rmtree(stale)
        fresh.replace(stale)
    partial.rmdir()


def _make_portable(folder: Path) -> None:
    """Drop this machine's paths, and let transformers load float32 as diffusers does.

    transformers otherwise loads the dtype that it saved, so that a load that names none would mix
    bfloat16 text encoders with a float32 transformer.
    """
    for file in (folder / "model_index.json", *folder.glob("*/config.json")):
        config = json.loads(file.read_text())
        config.pop("_name_or_path", None)
        if "dtype" in config:
            config["dtype"] = "float32"
        file.write_text(json.dumps(config, indent=2) + "\n")


def _build_transformer(sizes: Sizes) -> Any:
    """Modulation and output start at zero, so that training starts from the identity."""
    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=4 * sizes.latent_channels,
        num_layers=sizes.double_blocks,
        num_single_layers=sizes.single_blocks,
        attention_head_dim=sum(sizes.rope_axes),
        num_attention_heads=sizes.heads,
        joint_attention_dim=sizes.t5_width,
        pooled_projection_dim=sizes.clip_width,
        guidance_embeds=True,
        axes_dims_rope=sizes.rope_axes,
    )
    for name, weight in transformer.named_parameters():
        if (".linear." in name and "norm" in name) or name.startswith("proj_out."):
            torch.nn.init.zeros_(weight)
    return transformer


def _build_clip(sizes: Sizes, vocabulary: int) -> Any:
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=vocabulary,
            hidden_size=sizes.clip_width,
            intermediate_size=2 * sizes.clip_width,
            projection_dim=sizes.clip_width,
            num_hidden_layers=sizes.clip_layers,
            num_attention_heads=4,
            max_position_embeddings=MAX_CAPTION_TOKENS,
            pad_token_id=SPECIAL.index(PAD),
            bos_token_id=SPECIAL.index(START),
            eos_token_id=SPECIAL.index(END),
        )
    )


def _build_t5(sizes: Sizes, vocabulary: int) -> Any:
    return T5EncoderModel(
        T5Config(
            vocab_size=vocabulary,
            d_model=sizes.t5_width,
            d_kv=sizes.t5_width // 4,
            d_ff=2 * sizes.t5_width,
            num_layers=sizes.t5_layers,
            num_heads=4,
            dropout_rate=0.0,
            feed_forward_proj="gated-gelu",
            pad_token_id=SPECIAL.index(PAD),
            eos_token_id=SPECIAL.index(END),
        )
    )
