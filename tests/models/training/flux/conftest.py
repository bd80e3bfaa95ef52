"""A tiny base, pictures for it, and configurations: every test trains for real."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from models.training.config.reading import read_config
from models.training.flux import loop, preparation
from tests.models.flux.tiny import TEXT_TOKENS, tiny_pipeline

QUIET = Console(quiet=True)
NOWHERE = Path("no-models-here")
CAPTIONS = ("a street in the rain", "two figures, wide shot", "night, a street")
WriteConfig = Callable[..., Path]


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_pipeline(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three wide ones and two tall ones, so that there are two buckets."""
    return draw_pictures(tmp_path_factory.mktemp("pictures"), wide=3, tall=2)


def draw_pictures(folder: Path, *, wide: int, tall: int = 0) -> Path:
    random = np.random.default_rng(3)
    for number in range(wide + tall):
        shape = (48, 64, 3) if number < wide else (64, 48, 3)
        coarse = Image.fromarray(random.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        coarse.resize((shape[1], shape[0])).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(CAPTIONS[number % len(CAPTIONS)])
    return folder


@pytest.fixture
def write_config(tiny_base: Path, pictures: Path, tmp_path: Path) -> WriteConfig:
    """`write_config(**{"train.lr": 0.1})` is a file; a key of `datasets` changes the only one."""

    def write(name: str = "run", **changes: Any) -> Path:
        process = {
            "type": "sd_trainer",
            "training_folder": str(tmp_path / "out"),
            "device": "cpu",
            "training_seed": 7,
            "trigger_word": "ink",
            "network": {"type": "lora", "linear": 4, "linear_alpha": 4},
            "save": {"save_every": 2, "dtype": "fp32"},
            "datasets": [
                {"folder_path": str(pictures), "resolution": 64, "bucket_tolerance": 16}
                | {"cache_latents": True}
            ],
            "train": {
                "batch_size": 2,
                "steps": 4,
                "lr": 0.01,
                "noise_scheduler": "flowmatch",
                "gradient_checkpointing": False,
                "cache_text_embeddings": True,
                "disable_sampling": True,
            },
            "model": {
                "name_or_path": str(tiny_base),
                "is_flux": True,
                "model_kwargs": {"max_sequence_length": TEXT_TOKENS},
            },
        }
        for path, value in changes.items():
            section: Any = process
            *parts, key = path.split(".")
            for part in parts:
                section = (
                    section["datasets"][0] if part == "datasets" else section.setdefault(part, {})
                )
            section[key] = copy.deepcopy(value)
        file = tmp_path / f"{name}.yaml"
        whole = {"job": "extension", "config": {"name": name, "process": [process]}}
        file.write_text(json.dumps(whole, indent=1))
        return file

    return write


def train(config: Path) -> loop.Outcome:
    return loop.train(config, models_dir=NOWHERE, console=QUIET)


def prepared(config: Path) -> preparation.Prepared:
    return preparation.prepare(read_config(config), NOWHERE, QUIET)


def curve(folder: Path) -> list[dict[str, float]]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]
