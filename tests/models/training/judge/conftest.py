"""A chat model with random weights, small enough to train in a test, and chats to train it on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from models.training.judge.config import JudgeConfig, LoraTable, SaveTable, TrainingTable

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
ENDS = ["<|im_start|>", "<|im_end|>"]


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of 20,000 parameters that reads bytes, with ChatML's template."""
    folder = tmp_path_factory.mktemp("base") / "tiny"
    alphabet = sorted(ByteLevel.alphabet())
    bytes_only = Tokenizer(BPE({c: i for i, c in enumerate(alphabet)}, []))
    bytes_only.pre_tokenizer = Sequence([Digits(True), ByteLevel(add_prefix_space=False)])
    bytes_only.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bytes_only, eos_token=ENDS[1], additional_special_tokens=ENDS
    )
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        initializer_range=0.3,  # The frozen head must be able to say anything loudly.
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture
def chats(tmp_path: Path) -> Path:
    """Eight chats of several lengths."""
    file = tmp_path / "chats.jsonl"
    lines = [
        {
            "messages": [{"role": "user", "content": f"plan {'x' * (3 * n)}"}],
            "answer": json.dumps({"reason": "ok" * n, "score": n}, separators=(",", ":")),
        }
        for n in range(1, 9)
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


@pytest.fixture
def config(tiny_base: Path, chats: Path, tmp_path: Path) -> JudgeConfig:
    return JudgeConfig(
        name="judge",
        base=str(tiny_base),
        licence="MIT",
        train=(chats,),
        folder=tmp_path / "runs",
        lora=LoraTable(rank=4, alpha=8, dropout=0.1),
        training=TrainingTable(epochs=3, chats_per_step=4, batch_tokens=256, lr=1e-2, seed=3),
        save=SaveTable(every_steps=2, keep=1),
    )
