"""What a judge is trained on is what the service sends, and what its grammar lets a model say."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import CliRunner

from services.evaluation.answers import ContentAnswer
from services.evaluation.examples import (
    Chat,
    LabelledProposal,
    ProposalUnusable,
    chats,
    main,
    read_labelled,
)
from services.evaluation.prompts.library import PromptLibrary
from tests.fakes.scripted_llm import CLEAN, GOOD_CONTENT, ScriptedLLM

LIBRARY = PromptLibrary()


@pytest.fixture
def row(proposal: dict[str, Any]) -> dict[str, Any]:
    return {
        **proposal,
        "id": "ko-garden-1",
        "topic": "garden",
        "language": "ko",
        "category": "EDUCATION",
        "content_label": GOOD_CONTENT,
        "deliberation_label": CLEAN,
    }


def labelled(row: dict[str, Any]) -> LabelledProposal:
    return LabelledProposal.model_validate_json(json.dumps(row))


def test_messages_are_those_that_the_service_sends(
    client: httpx.Client, llm: ScriptedLLM, row: dict[str, Any]
) -> None:
    one = labelled(row)
    client.post("/v1/proposals/evaluate", json=one.proposal().model_dump(mode="json"))
    for chat in chats(one, LIBRARY, "2"):
        answer = {"content": "ContentAnswer", "deliberation": "DeliberationAnswer"}[chat.stage]
        sent = llm.calls_for(answer)[-1]
        assert sent["messages"] == [message.model_dump() for message in chat.messages]


def test_an_answer_is_the_label_in_the_grammar_s_own_order_and_without_spaces(
    row: dict[str, Any],
) -> None:
    turned = {**row, "content_label": dict(reversed(GOOD_CONTENT.items()))}
    content, deliberation = chats(labelled(turned), LIBRARY)
    assert content.answer == json.dumps(GOOD_CONTENT, ensure_ascii=False, separators=(",", ":"))
    assert ContentAnswer.model_validate_json(content.answer) == labelled(row).content_label
    assert deliberation.answer == json.dumps(CLEAN, separators=(",", ":"))


def test_what_the_grammar_cannot_say_is_left_out_and_named(
    row: dict[str, Any], tmp_path: Path
) -> None:
    reason = {**GOOD_CONTENT["message"], "reason": "3분이면 된다."}
    row["content_label"] = {**GOOD_CONTENT, "message": reason}
    file, out = tmp_path / "train.ko.jsonl", tmp_path / "out" / "chats.jsonl"
    file.write_text(json.dumps(row) + "\n")
    told = CliRunner().invoke(main, [str(file), "--out", str(out)])
    assert told.exit_code == 0, told.output
    assert "ko-garden-1: content: left out" in told.output
    (chat,) = [Chat.model_validate_json(line) for line in out.read_text().splitlines()]
    assert chat.stage == "deliberation"


def test_balanced_chats_show_each_outcome_as_often(row: dict[str, Any], tmp_path: Path) -> None:
    thin = {part: {**GOOD_CONTENT[part], "score": 1} for part in GOOD_CONTENT}
    rows = [{**row, "id": f"good-{n}"} for n in range(6)]
    rows += [{**row, "id": f"bad-{n}", "content_label": thin} for n in range(2)]
    file, out = tmp_path / "train.ko.jsonl", tmp_path / "chats.jsonl"
    file.write_text("".join(json.dumps(one) + "\n" for one in rows))
    assert not CliRunner().invoke(main, [str(file), "--out", str(out), "--balanced"]).exception
    told = [Chat.model_validate_json(line) for line in out.read_text().splitlines()]
    often = Counter((chat.stage, chat.id.partition("-")[0]) for chat in told)
    assert often == {
        ("content", "good"): 6,
        ("content", "bad"): 6,
        ("deliberation", "good"): 6,
        ("deliberation", "bad"): 2,  # They pass this stage like the others.
    }


@pytest.mark.parametrize(
    ("place", "changes", "names"),
    [
        (("content_label", "target"), {"passage": 60}, "target cites passage 60 of 6"),
        (("deliberation_label", "drugs"), {"passage": 8, "level": 3}, "drugs cites passage 8 of 6"),
        (("deliberation_label", "drugs"), {"level": 1}, "drugs has level 1 and passage 0"),
        (("content_label", "target"), {"score": 31}, r"content_label\.target\.score"),
    ],
)
def test_a_label_that_does_not_fit_is_refused_by_line(
    row: dict[str, Any],
    tmp_path: Path,
    place: tuple[str, str],
    changes: dict[str, int],
    names: str,
) -> None:
    file = tmp_path / "train.ko.jsonl"
    stage, part = place
    wrong = {**row, stage: {**row[stage], part: {**row[stage][part], **changes}}}
    file.write_text(f"{json.dumps(row)}\n{json.dumps(wrong)}\n")
    with pytest.raises(ProposalUnusable, match=rf"train\.ko\.jsonl:2: .*{names}"):
        read_labelled(file)
    assert CliRunner().invoke(main, [str(file), "--out", str(tmp_path / "out")]).exit_code == 1
    assert not (tmp_path / "out").exists()
