"""A LoRA beside its base in a real vLLM: by name, and to the numbers that transformers computes."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from bentos.running import running
from tests.conftest import MODEL

pytestmark = pytest.mark.vllm

QUESTION = [{"role": "user", "content": "Say hello in three words."}]
NAMES = ("noise", "other-noise")
TOP = 5
# vLLM computes in bfloat16 where the processor can, transformers in float32 here.
ROUNDING = 0.15
CHANGE = 4 * ROUNDING


@pytest.fixture(scope="module")
def loras(models_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two LoRAs of noise, rank 4 and 8, that change every linear of every block."""
    folders = {}
    for seed, name in enumerate(NAMES):
        torch.manual_seed(seed)
        base = AutoModelForCausalLM.from_pretrained(models_dir / MODEL, dtype=torch.float32)
        settings = LoraConfig(r=4 * (seed + 1), lora_alpha=16, target_modules="all-linear")
        model = get_peft_model(base, settings)
        for parameter_name, parameter in model.named_parameters():
            if "lora_" in parameter_name:
                parameter.data.normal_(0, 0.05)
        folders[name] = tmp_path_factory.mktemp("loras") / name
        model.save_pretrained(folders[name])
    return folders


@pytest.fixture(scope="module")
def server(models_dir: Path, loras: dict[str, Path]) -> Iterator[str]:
    environment = {
        "JOING_LLM": MODEL,
        "JOING_MODELS_DIR": str(models_dir),
        "JOING_LLM_LORAS": json.dumps({name: str(folder) for name, folder in loras.items()}),
        "JOING_LLM_CONTEXT_TOKENS": "512",
        "JOING_LLM_KV_CACHE_GIB": "1",
        "JOING_LLM_DRAIN_S": "5",
        "JOING_API_KEYS": "",
    }
    with running(
        "services.llm.service:LLM", environment=environment, start_timeout_s=280
    ) as service:
        yield service.base_url


def first_logprobs(base_url: str, model: str) -> dict[str, float]:
    """Of the likeliest first tokens of the answer."""
    body = {
        "model": model,
        "messages": QUESTION,
        "max_tokens": 1,
        "temperature": 0,
        "logprobs": True,
        "top_logprobs": TOP,
    }
    answer = httpx.post(f"{base_url}/v1/chat/completions", json=body, timeout=60).json()
    assert answer["model"] == model
    top = answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
    return {token["token"]: token["logprob"] for token in top}


def expected_logprobs(models_dir: Path, folder: Path) -> dict[str, float]:
    """The same by transformers and PEFT."""
    base = AutoModelForCausalLM.from_pretrained(models_dir / MODEL, dtype=torch.float32)
    tokenizer: Any = AutoTokenizer.from_pretrained(models_dir / MODEL)
    prompt = tokenizer.apply_chat_template(QUESTION, tokenize=False, add_generation_prompt=True)
    ids = tokenizer(prompt, add_special_tokens=False, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        logits = PeftModel.from_pretrained(base, folder).eval()(ids).logits[0, -1]
    values, indices = logits.log_softmax(-1).topk(TOP)
    return {
        tokenizer.decode([index]): value
        for index, value in zip(indices.tolist(), values.tolist(), strict=True)
    }


def furthest(one: dict[str, float], other: dict[str, float]) -> float:
    """The largest difference where both know a token; neither lists more than TOP."""
    both = one.keys() & other.keys()
    return max((abs(one[token] - other[token]) for token in both), default=math.inf)


def test_loras_are_listed_after_their_base(server: str) -> None:
    client = openai.OpenAI(base_url=f"{server}/v1", api_key="unused", max_retries=0)
    assert [model.id for model in client.models.list()] == [MODEL, *NAMES]


def test_each_answers_as_transformers_does_with_it(
    server: str, models_dir: Path, loras: dict[str, Path]
) -> None:
    base = first_logprobs(server, MODEL)
    for name, folder in loras.items():
        told, expected = first_logprobs(server, name), expected_logprobs(models_dir, folder)
        assert furthest(told, expected) < ROUNDING
        assert furthest(told, base) > CHANGE
    assert furthest(first_logprobs(server, MODEL), base) < ROUNDING
