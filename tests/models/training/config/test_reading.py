"""From a file to what the trainer trains by, or a refusal with file, line and key."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from models.training.config.reading import read_config
from models.training.config.schema import TrainingFile
from models.training.errors import ConfigRefused


def read(text: str, tmp_path: Path, name: str = "run.yaml", **environ: str) -> TrainingFile:
    file = tmp_path / name
    file.write_text(text, encoding="utf-8")
    return read_config(file, environ)


def test_values_defaults_and_name(sound: str, tmp_path: Path) -> None:
    file = read(sound, tmp_path)
    process = file.process
    assert file.meta == {"name": "ink-storyboard", "version": "1.0"}
    assert process.train.lr == 1e-4
    assert process.network.lora_rank == 16
    assert process.datasets[0].resolutions == (512, 768, 1024)
    assert process.datasets[0].caption_suffix == ".txt"
    assert process.train.gradient_checkpointing  # AI-Toolkit's default
    assert process.train.ema.ema_decay == 0.99
    assert process.sample.filled(1).prompt == "two boys running in a park"
    assert process.sample.filled(1).seed == 0


def test_the_seed_walks_when_told(sound: str, tmp_path: Path) -> None:
    text = sound.replace("sampler: flowmatch", "sampler: flowmatch\n        walk_seed: true")
    assert read(text, tmp_path).process.sample.filled(1).seed == 1


def test_anchors_merges_and_aliases(sound_schnell: str, tmp_path: Path) -> None:
    process = read(sound_schnell, tmp_path).process
    assert [dataset.resolution for dataset in process.datasets] == [512, 1024]
    assert process.datasets[0].folder_path == process.datasets[1].folder_path
    assert process.sample.sampler == process.train.noise_scheduler == "flowmatch"
    assert process.sample.sample_every == process.save.save_every == 250


def test_json_says_the_same(sound: str, tmp_path: Path) -> None:
    as_json = json.dumps(yaml.safe_load(sound), ensure_ascii=False, indent="\t")
    assert read(as_json, tmp_path, "run.json") == read(sound, tmp_path)


def test_keys_of_other_models_are_passed_over(sound: str, tmp_path: Path) -> None:
    more = sound.replace(
        "is_flux: true", "is_flux: true\n        is_xl: false\n        is_v3: false"
    )
    assert read(more, tmp_path) == read(sound, tmp_path)


REFUSED = {
    "unknown": ("batch_size: 1", "batchsize: 1", "train.batchsize: AI-Toolkit knows no such key"),
    "type": ("batch_size: 1", 'batch_size: "1"', "train.batch_size"),
    "bool": ("is_flux: true", 'is_flux: "true"', "model.is_flux"),
    "range": ("batch_size: 1", "batch_size: 0", "train.batch_size"),
    "rate": ("lr: 0.0001", "lr: .nan", "train.lr"),
    "float steps": ("steps: 2000", "steps: 2000.5", "train.steps"),
    "null": ("steps: 2000", "steps:", "train.steps"),
    "union": ("[ 512, 768, 1024 ]", "[ 512, big ]", r"datasets\[0\].resolution\[1\]"),
    "duplicate": ("batch_size: 1", "batch_size: 1\n        batch_size: 2", "twice"),
    "date": ("'1.0'", "2026-11-24", "meta.version: YAML reads a date"),
    "environment": ("ink-storyboard", "${NOT_SET_ANYWHERE}", "NOT_SET_ANYWHERE"),
}


@pytest.mark.parametrize(("old", "new", "why"), REFUSED.values(), ids=REFUSED.keys())
def test_a_refusal_names_file_line_and_key(
    old: str, new: str, why: str, sound: str, tmp_path: Path
) -> None:
    assert sound.count(old) == 1
    line = sound[: sound.index(old)].count("\n") + 1
    with pytest.raises(ConfigRefused, match=why) as refused:
        read(sound.replace(old, new), tmp_path)
    where = str(refused.value).removeprefix(f"{tmp_path / 'run.yaml'}:").split(":")
    assert int(where[0]) - line in (0, 1)  # the second of a duplicate


def test_a_missing_section_is_named(sound: str, tmp_path: Path) -> None:
    start, end = sound.index("      network:"), sound.index("      save:")
    with pytest.raises(ConfigRefused, match=r"config\.process\[0\]\.network: is missing"):
        read(sound[:start] + sound[end:], tmp_path)


def test_a_configuration_is_frozen(sound: str, tmp_path: Path) -> None:
    file = read(sound, tmp_path)
    with pytest.raises(ValidationError, match="frozen"):
        file.process.train.steps = 1  # type: ignore[misc]
