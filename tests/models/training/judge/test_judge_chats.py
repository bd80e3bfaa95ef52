"""What is learnt of a chat, and in which order."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from models.training.errors import BaseUnusable, DatasetUnusable
from models.training.judge.base import Base, load_tokenizer
from models.training.judge.chats import batches, chats_of_step, read_chats, tokenize

ASKED = [{"role": "system", "content": "Judge."}, {"role": "user", "content": "[1] 300 m"}]
ANSWER = '{"reason":"\\"a\\":7 of 9","passage":2,"score":27}'


@pytest.fixture(scope="module")
def tokenizer(tiny_base: Path) -> Any:
    return load_tokenizer(Base(tiny_base, "tiny", "MIT"))


def test_a_chat_is_what_the_template_makes_of_it(tokenizer: Any) -> None:
    chat = tokenize(ASKED, ANSWER, tokenizer)
    whole = tokenizer.apply_chat_template(
        [*ASKED, {"role": "assistant", "content": ANSWER}], tokenize=False
    )
    assert tokenizer.decode(chat.ids) + "\n" == whole


def test_only_the_answer_and_the_turn_s_end_are_learnt(tokenizer: Any) -> None:
    chat = tokenize(ASKED, ANSWER, tokenizer)
    learnt = [token for token, weight in zip(chat.ids, chat.weights, strict=True) if weight]
    assert tokenizer.decode(learnt) == ANSWER + "<|im_end|>"


def test_numbers_weigh_more_and_digits_in_prose_do_not(tokenizer: Any) -> None:
    chat = tokenize(ASKED, ANSWER, tokenizer, number_weight=5.0)
    heavy = [token for token, weight in zip(chat.ids, chat.weights, strict=True) if weight == 5.0]
    assert tokenizer.decode(heavy) == "227"


def test_a_template_that_rewrites_answers_is_refused(tokenizer: Any) -> None:
    class Rewriting:
        def apply_chat_template(self, messages: Any, **options: Any) -> str:
            text: str = tokenizer.apply_chat_template(messages, **options)
            return text.replace("score", "points")

    with pytest.raises(BaseUnusable, match="rewrites"):
        tokenize(ASKED, ANSWER, Rewriting())


def test_every_epoch_has_every_chat_once_in_an_order_of_its_own() -> None:
    taken = [
        index for step in range(6) for index in chats_of_step(step, chats=8, per_step=4, seed=1)
    ]
    epochs = [taken[:8], taken[8:16], taken[16:]]
    assert all(sorted(epoch) == list(range(8)) for epoch in epochs)
    assert epochs[0] != epochs[1]
    assert chats_of_step(5, chats=8, per_step=4, seed=1) == taken[20:]
    assert chats_of_step(5, chats=8, per_step=4, seed=2) != taken[20:]


def test_batches_hold_like_lengths_within_their_tokens(tokenizer: Any, chats: Path) -> None:
    read = read_chats([chats], tokenizer, number_weight=1.0, max_tokens=512)
    made = list(batches(read, 256))
    assert sum(len(batch.ids_BL) for batch in made) == len(read)
    assert all(batch.ids_BL.numel() <= 256 or len(batch.ids_BL) == 1 for batch in made)
    lengths = [batch.ids_BL.shape[1] for batch in made]
    assert lengths == sorted(lengths)
    assert len(made) > 1
    for batch in made:
        assert torch.allclose(batch.weight_BL.sum(1), torch.ones(len(batch.ids_BL)))
        assert not (batch.weight_BL * (1 - batch.mask_BL)).any()


def test_what_cannot_be_learnt_is_refused_by_line(
    tokenizer: Any, chats: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.jsonl"
    broken.write_text(chats.read_text() + json.dumps({"messages": []}) + "\n")
    with pytest.raises(DatasetUnusable, match=r"broken\.jsonl:9"):
        read_chats([broken], tokenizer, number_weight=1.0, max_tokens=512)
    with pytest.raises(DatasetUnusable, match=r"chats\.jsonl:\d.*max_tokens"):
        read_chats([chats], tokenizer, number_weight=1.0, max_tokens=60)
    with pytest.raises(DatasetUnusable, match=r"services\.evaluation\.examples"):
        read_chats([tmp_path / "none"], tokenizer, number_weight=1.0, max_tokens=60)
