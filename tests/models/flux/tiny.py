"""A complete Flux.1-layout pipeline with random weights, small enough for every test of the engine.

With guidance and dynamic shifting, as FLUX.1-dev has them; `guided=False` is the layout of schnell.
"""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
)
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)

from models.flux.config import ModelSpec

TEXT_TOKENS = 16
WIDTH, HEIGHT = 64, 48  # 12 x 16 latents with a VAE factor of 4: 48 image tokens
WORDS = "a street in the rain at night two figures wide shot ink 거리 밤 비".split()


def tiny_pipeline(folder: Path, *, guided: bool = True, seed: int = 0) -> Path:
    """Writes it to `folder`, in float32."""
    torch.manual_seed(seed)
    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        axes_dims_rope=(4, 4, 8),
        guidance_embeds=guided,
    )
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=2,
        use_quant_conv=False,
        use_post_quant_conv=False,
        shift_factor=0.0609,
        scaling_factor=1.5035,
    )
    scheduler = FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=guided, shift=3.0 if guided else 1.0
    )
    FluxPipeline(
        scheduler=scheduler,
        vae=vae,
        text_encoder=_clip(),
        tokenizer=_tokenizer(24),
        text_encoder_2=_t5(),
        tokenizer_2=_tokenizer(512),
        transformer=transformer,
    ).save_pretrained(folder)
    return folder


def tiny_spec(folder: Path) -> ModelSpec:
    return ModelSpec("tiny", folder, max_sequence_length=TEXT_TOKENS, max_pixels=128 * 128)


def _clip() -> CLIPTextModel:
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=64,
            hidden_size=32,
            intermediate_size=37,
            num_attention_heads=4,
            num_hidden_layers=2,
            max_position_embeddings=24,
            bos_token_id=0,
            eos_token_id=3,
            pad_token_id=1,
            projection_dim=32,
        )
    )


def _t5() -> T5EncoderModel:
    return T5EncoderModel(
        T5Config(vocab_size=64, d_model=32, d_ff=37, d_kv=8, num_heads=4, num_layers=2)
    )


def _tokenizer(length: int) -> PreTrainedTokenizerFast:
    words = ["<bos>", "<pad>", "<unk>", "<eos>", *WORDS]
    tokenizer = Tokenizer(
        WordLevel({word: n for n, word in enumerate(dict.fromkeys(words))}, unk_token="<unk>")
    )
    tokenizer.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        model_max_length=length,
    )
