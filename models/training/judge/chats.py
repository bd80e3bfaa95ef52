"""Chats as token ids with a weight for every token that is to be learnt, and which of them when.

Only the answer is learnt: the prompt's tokens weigh nothing. Tensors carry shapes: B chats of one
batch, L tokens, right padded. What is learnt in a step depends on the seed and the step alone.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.training.errors import BaseUnusable, DatasetUnusable

_NUMBER = re.compile(r'(?<!\\)":(\d+)')


@dataclass(frozen=True)
class Chat:
    """One question and its answer. `weights[i]` is how much getting token i right counts."""

    ids: tuple[int, ...]
    weights: tuple[float, ...]


@dataclass(frozen=True)
class Batch:
    """Each row of `weight_BL` adds up to 1: a long answer counts as much as a short one."""

    ids_BL: Tensor
    mask_BL: Tensor
    """1 for a token, 0 for padding."""
    weight_BL: Tensor


def read_chats(
    files: Sequence[Path], tokenizer: Any, *, number_weight: float, max_tokens: int
) -> list[Chat]:
    """Every line of `files`, in order. Raises DatasetUnusable naming the line, BaseUnusable."""
    chats = []
    for file in files:
        for number, line in enumerate(_lines(file), 1):
            where = f"{file.name}:{number}"
            try:
                row = json.loads(line)
                messages, answer = row["messages"], row["answer"]
            except (ValueError, KeyError, TypeError) as error:
                raise DatasetUnusable(f"{where}: no messages and answer in JSON") from error
            chat = tokenize(messages, answer, tokenizer, number_weight=number_weight)
            if len(chat.ids) > max_tokens:
                raise DatasetUnusable(
                    f"{where}: {len(chat.ids)} tokens; leave it out or raise training.max_tokens"
                )
            chats.append(chat)
    if not chats:
        raise DatasetUnusable(f"{', '.join(file.name for file in files)}: no chats")
    return chats


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text("utf-8").splitlines()
    except OSError as error:
        raise DatasetUnusable(f"{file}: {error.strerror}; write it with "
                              "`python -m services.evaluation.examples`") from error  # fmt: skip


def tokenize(
    messages: Sequence[dict[str, str]], answer: str, tokenizer: Any, *, number_weight: float = 1.0
) -> Chat:
    """As a server sees it: the prompt by the chat template, the answer's own tokens after it, then
    whatever the template ends a turn with. Raises BaseUnusable when the template changes the text.
    """
    turns = list(messages)
    prompt = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    whole = tokenizer.apply_chat_template(
        [*turns, {"role": "assistant", "content": answer}], tokenize=False
    )
    if not whole.startswith(prompt + answer):
        raise BaseUnusable("the base's chat template rewrites answers: train another base")
    before = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    said = tokenizer(answer, add_special_tokens=False, return_offsets_mapping=True)
    end = tokenizer(whole[len(prompt) + len(answer) :], add_special_tokens=False)["input_ids"][:1]
    spans = [match.span(1) for match in _NUMBER.finditer(answer)]
    weights = [
        number_weight if any(a < stop and start < b for start, stop in spans) else 1.0
        for a, b in said["offset_mapping"]
    ]
    return Chat(
        ids=(*before, *said["input_ids"], *end),
        weights=(*(0.0 for _ in before), *weights, *(1.0 for _ in end)),
    )


def data_hash(files: Sequence[Path]) -> str:
    """SHA-256 over the files' bytes in order."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()


def chats_of_step(step: int, *, chats: int, per_step: int, seed: int) -> list[int]:
    """Which chats step `step` (from 0) learns from: every epoch all of them, in its own order."""
    first = step * per_step
    return [
        _order(position // chats, chats, seed)[position % chats]
        for position in range(first, first + per_step)
    ]


def _order(epoch: int, chats: int, seed: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    order: list[int] = torch.randperm(chats, generator=generator).tolist()
    return order


def batches(chats: Sequence[Chat], batch_tokens: int) -> Iterator[Batch]:
    """`chats` in batches of like lengths, each of at most `batch_tokens` with its padding, unless
    a single chat has more."""
    held: list[Chat] = []
    for chat in sorted(chats, key=lambda chat: len(chat.ids)):
        if held and len(chat.ids) * (len(held) + 1) > batch_tokens:
            yield _padded(held)
            held = []
        held.append(chat)
    if held:
        yield _padded(held)


def _padded(chats: Sequence[Chat]) -> Batch:
    longest = max(len(chat.ids) for chat in chats)
    ids_BL = torch.zeros(len(chats), longest, dtype=torch.long)
    mask_BL = torch.zeros(len(chats), longest, dtype=torch.long)
    weight_BL = torch.zeros(len(chats), longest)
    for row, chat in enumerate(chats):
        length = len(chat.ids)
        ids_BL[row, :length] = torch.tensor(chat.ids)
        mask_BL[row, :length] = 1
        weight_BL[row, :length] = torch.tensor(chat.weights) / sum(chat.weights)
    return Batch(ids_BL, mask_BL, weight_BL)
