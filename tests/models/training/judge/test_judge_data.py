"""The labelled proposals that ship, and the checks that keep them fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from models.training.__main__ import cli
from models.training.errors import DatasetUnusable
from models.training.judge import proposals
from models.training.judge.checking import balance, faults, ngrams, similarity
from models.training.judge.proposals import FOLDER, Labelled, read_labelled, read_splits
from services.evaluation.answers import ContentAnswer, DeliberationAnswer
from services.evaluation.examples import read_labelled as read_as_served

CONTENT = {
    name: {"reason": "r", "passage": 1, "score": 20} for name in ("message", "target", "relevance")
}
DELIBERATION = {
    name: {"passage": 0, "level": 0}
    for name in ("theme", "sexuality", "violence", "horror", "swearing", "drugs", "imitation")
}
ROW: dict[str, Any] = {
    "id": "en-a-1",
    "topic": "a",
    "language": "en",
    "media_type": "long_form",
    "category": "TECH",
    "title": "Build a silent home server",
    "content": "We choose parts, build it in one afternoon and measure the noise at night.",
    "content_label": CONTENT,
    "deliberation_label": DELIBERATION,
}


def labelled(**changes: Any) -> Labelled:
    return Labelled.model_validate_json(json.dumps({**ROW, **changes}))


OTHER = labelled(id="en-b-1", topic="b", title="Night bus", content="Three drivers answer alike.")


def test_a_label_has_the_service_s_own_shape() -> None:
    for label, answer in (
        (proposals.ContentLabel, ContentAnswer),
        (proposals.DeliberationLabel, DeliberationAnswer),
    ):
        ours, theirs = label.model_json_schema(), answer.model_json_schema()
        assert list(ours["properties"]) == list(theirs["properties"])
        assert bounds(ours) == bounds(theirs)


def bounds(schema: dict[str, Any]) -> list[Any]:
    """Of every property of every part, in order: type and limits."""
    found = []
    for part in schema["properties"].values():
        definition = schema["$defs"][part["$ref"].rsplit("/", 1)[1]]
        for name, field in definition["properties"].items():
            limits = {k: v for k, v in field.items() if k not in ("title", "description")}
            found.append((name, limits))
    return found


def test_shipped_proposals_are_fit_and_are_what_the_service_takes() -> None:
    splits = read_splits()
    assert faults(splits) == []
    for split in splits:
        for language in ("ko", "en"):
            assert read_as_served(FOLDER / f"{split}.{language}.jsonl")
    assert sum(balance(these).proposals for these in splits.values()) >= 300


def test_a_topic_an_id_or_a_near_copy_across_splits_is_a_fault() -> None:
    assert faults({"train": [labelled()], "development": [], "test": [OTHER]}) == []
    same_topic = labelled(id="en-a-2", title="Night bus", content="Three drivers answer alike.")
    (fault,) = faults({"train": [labelled()], "development": [], "test": [same_topic]})
    assert "topic a is in train and in test" in fault
    copy = labelled(id="en-c-1", topic="c", title="Build a SILENT  home server!")
    (fault,) = faults({"train": [labelled()], "development": [copy], "test": []})
    assert "en-a-1 (train) and en-c-1 (development) share" in fault
    (fault,) = faults({"train": [labelled(), OTHER.model_copy(update={"id": "en-a-1"})],
                       "development": [], "test": []})  # fmt: skip
    assert "en-a-1: 2 proposals" in fault


def test_similarity_knows_nothing_of_case_and_spaces() -> None:
    assert similarity(ngrams("One  plan\nhere"), ngrams("one plan here")) == 1.0
    assert similarity(ngrams("one plan here"), ngrams("quite another")) == 0.0
    assert ngrams("abc") == {"abc"}


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"language": "ja"}, "language"),
        ({"content_label": {**CONTENT, "target": {"reason": "r", "passage": 1, "score": 31}}},
         r"content_label\.target\.score"),
        ({"deliberation_label": {**DELIBERATION, "drugs": {"passage": 0, "level": 5}}},
         r"deliberation_label\.drugs\.level"),
        ({"note": "x"}, "note"),
    ],
)  # fmt: skip
def test_a_line_that_is_none_is_named(tmp_path: Path, changes: dict[str, Any], names: str) -> None:
    file = tmp_path / "train.en.jsonl"
    file.write_text(json.dumps(ROW) + "\n" + json.dumps({**ROW, **changes}) + "\n")
    with pytest.raises(DatasetUnusable, match=rf"train\.en\.jsonl:2: {names}"):
        read_labelled(file)


def test_the_check_ends_with_1_for_a_fault_and_0_without(tmp_path: Path) -> None:
    def run() -> Any:
        return CliRunner().invoke(cli, ["judge", "check", str(tmp_path)])

    assert run().exit_code == 1, "no data is a fault"
    (tmp_path / "train.en.jsonl").write_text(labelled().model_dump_json() + "\n")
    (tmp_path / "test.en.jsonl").write_text(OTHER.model_dump_json() + "\n")
    told = run()
    assert told.exit_code == 0, told.output
    assert "train: 1 proposals (1 en)" in told.output
    copy = labelled(id="en-b-2", topic="b")
    (tmp_path / "test.en.jsonl").write_text(copy.model_dump_json() + "\n")
    told = run()
    assert told.exit_code == 1
    assert "rewrite one" in told.output
