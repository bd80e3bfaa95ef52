"""LoRAs beside an LLM: which, and what vLLM is told of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from models.catalog import Catalog, EmbeddedSource, HubSource, LlmLoraRow, LlmRow
from models.errors import WeightsMissing
from models.llm.arguments import LoraToServe, Machine, ModelToServe, lora_in, resolve, vllm_command
from services.llm.supervisor import CannotStart
from services.llm.vllm import with_loras

MACHINE = Machine(device="cpu", has_fast_bfloat16=True)
BASE = ModelToServe(name="tiny", path="/models/tiny", is_local=True)


def lora_folder(folder: Path, **told: object) -> Path:
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"r": 8, **told}))
    return folder


def command(*loras: LoraToServe) -> list[str]:
    model = BASE.model_copy(update={"loras": loras})
    return vllm_command(model, machine=MACHINE, port=1, max_concurrent=1, max_queued=1)


def test_without_a_lora_vllm_is_told_nothing() -> None:
    assert not [word for word in command() if "lora" in word]


def test_room_is_made_for_all_at_the_highest_rank() -> None:
    argv = command(
        LoraToServe(name="a", path="/loras/a", rank=4), LoraToServe(name="b", path="/b", rank=12)
    )
    assert "--enable-lora" in argv
    assert argv[argv.index("--max-loras") + 1] == "2"
    assert argv[argv.index("--max-lora-rank") + 1] == "16"
    first = argv.index("--lora-modules") + 1
    modules = [json.loads(word) for word in argv[first : first + 2]]
    assert modules == [{"name": "a", "path": "/loras/a"}, {"name": "b", "path": "/b"}]


def test_a_lora_s_rank_is_its_highest_layer_s(tmp_path: Path) -> None:
    folder = lora_folder(tmp_path / "a", rank_pattern={"q_proj": 32})
    assert lora_in(folder, "a").rank == 32


@pytest.mark.parametrize("text", [None, "{", "[]", "{}", '{"r": 513}', '{"r": 0}'])
def test_a_folder_without_a_lora_is_refused_by_name(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "adapter_config.json").write_text(text)
    with pytest.raises(WeightsMissing, match=f"LoRA pen: {tmp_path}"):
        lora_in(tmp_path, "pen")


def test_a_row_brings_the_catalog_s_loras(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = lora_folder(tmp_path / "judge")
    monkeypatch.setattr("models.catalog.CATALOG_FILE", tmp_path / "catalog.toml")
    row = LlmRow(
        name="tiny",
        source=HubSource(id="owner/tiny"),
        licence="MIT",
        parameters_b=0.1,
        context=512,
        languages=("en",),
    )
    lora = LlmLoraRow(
        name="judge",
        base="tiny",
        source=EmbeddedSource(kind="embedded", path="judge"),
        rank=8,
        licence="MIT",
    )
    found = resolve("tiny", tmp_path, Catalog(llms=(row,), llm_loras=(lora,)))
    assert found.loras == (LoraToServe(name="judge", path=str(folder), rank=8),)
    assert resolve("owner/tiny", tmp_path, Catalog(llms=(row,), llm_loras=(lora,))).loras == ()


def test_an_operator_s_lora_comes_beside_or_in_place_of_the_catalog_s(tmp_path: Path) -> None:
    own = BASE.model_copy(update={"loras": (LoraToServe(name="judge", path="/old", rank=8),)})
    folder = lora_folder(tmp_path / "mine")
    assert [lora.name for lora in with_loras(own, {"mine": folder}).loras] == ["judge", "mine"]
    (replaced,) = with_loras(own, {"judge": folder}).loras
    assert replaced.path == str(folder)
    with pytest.raises(CannotStart, match="JOING_LLM_LORAS: tiny"):
        with_loras(own, {"tiny": folder})
