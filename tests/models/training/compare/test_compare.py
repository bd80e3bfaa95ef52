"""A comparison from its command line to its three files, drawn with the sketch model."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from diffusers import FluxPipeline
from PIL import Image
from safetensors.torch import load_file, save_file

from models.sketch.styles import draw_set
from models.sketch.train import WEIGHTS
from models.training.__main__ import cli
from models.training.compare.figures import Comparison
from models.training.compare.work import Asked, compare
from models.training.errors import BaseUnusable, CheckpointUnusable, ConfigRefused
from tests.models.flux.tiny import tiny_pipeline

LORAS = WEIGHTS / "loras"
STEPS, SCALE = 6, 0.7
PROMPTS = (
    "ink style black and white color illustration, a man standing in a park, wide shot",
    "ink style black and white color illustration, two girls walking in a street, medium shot, "
    "eye level, night",
)
CONFIG = """\
job: extension
config:
  name: ink
  process:
    - type: sd_trainer
      training_folder: {folder}
      trigger_word: ink style
      network: {{type: lora, linear: 8, linear_alpha: 8}}
      save: {{save_every: 100}}
      datasets:
        - {{folder_path: {data}, resolution: [144]}}
      train: {{steps: 600, noise_scheduler: flowmatch, lr: 0.001}}
      model: {{name_or_path: sketch, is_flux: true}}
      sample:
        {{sampler: flowmatch, width: 192, height: 112, seed: 7, guidance_scale: 3.0,
          sample_steps: {steps}, prompts: ["[trigger] {first}", "[trigger] {second}"]}}
"""


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 600 steps as the trainer leaves it: its last LoRA is the shipped ink, and an earlier
    one has half of its strength.
    """
    root = tmp_path_factory.mktemp("training")
    draw_set("ink", root / "data", 24)
    folder = root / "ink"
    folder.mkdir()
    bare = [prompt.removeprefix("ink style ") for prompt in PROMPTS]
    told = CONFIG.format(
        folder=root, data=root / "data", steps=STEPS, first=bare[0], second=bare[1]
    )
    (folder / "config.yaml").write_text(told)
    shutil.copyfile(LORAS / "ink.safetensors", folder / "ink.safetensors")
    weights = load_file(LORAS / "ink.safetensors")
    half = {key: w * (0.5 if "lora_B" in key else 1) for key, w in weights.items()}
    save_file(half, folder / "ink_000000100.safetensors", metadata={"base": "sketch"})
    save_file(half, folder / "ink_bold_000000100.safetensors", metadata={"base": "sketch"})
    return folder


@pytest.fixture(scope="module")
def compared(run: Path) -> Comparison:
    compare(Asked(target=run, seeds=2, threads=1, device="cpu"))
    return read(run / "compare")


def read(out: Path) -> Comparison:
    return Comparison.model_validate_json((out / "compare.json").read_bytes())


def invoke(*words: object) -> Result:
    return CliRunner().invoke(cli, ["compare", *map(str, words)])


def test_columns_are_the_base_and_every_checkpoint_in_order(compared: Comparison) -> None:
    assert [c.label for c in compared.columns] == ["base", "step 100", "final, step 600"]
    assert compared.prompts == PROMPTS
    assert compared.seeds == (7, 8)
    assert {(c.steps, c.guidance, c.size) for c in compared.columns} == {(STEPS, 3.0, "192x112")}


def test_ink_is_nearer_to_its_training_pictures_than_the_base(compared: Comparison) -> None:
    base, half, final = compared.columns
    assert final.style["all"] + final.style_error < base.style["all"] - base.style_error
    assert half.style["all"] < base.style["all"]
    assert compared.columns[0].way_to_style == 0
    assert compared.columns[2].way_to_style > 0.3


def test_every_figure_is_there(compared: Comparison) -> None:
    for column in compared.columns:
        assert 0 < column.following.low <= column.following.mean <= column.following.high <= 1
        assert column.diversity > 0.1
        assert len(column.copies) == len(column.pictures) == column.seconds_of == 4
        assert column.seconds > 0
    assert compared.training.pictures == 24
    assert compared.missing == {}


def test_a_second_run_draws_nothing_and_a_broken_picture_is_drawn_again(
    run: Path, compared: Comparison
) -> None:
    pictures = run / "compare" / "pictures"
    before = {file.name: file.stat().st_mtime_ns for file in pictures.iterdir()}
    broken = pictures / compared.columns[1].pictures[0].file
    whole = broken.read_bytes()
    broken.write_bytes(whole[:-200])
    compare(Asked(target=run / "config.yaml", seeds=2, threads=1, device="cpu"))
    after = {file.name: file.stat().st_mtime_ns for file in pictures.iterdir()}
    assert {name for name in after if after[name] != before.get(name)} == {broken.name}
    assert np.array_equal(pixels(broken), np.asarray(Image.open(_saved(run, whole)).convert("RGB")))
    assert "s an image" in read(run / "compare").missing


def _saved(run: Path, data: bytes) -> Path:
    file = run / "whole.png"
    file.write_bytes(data)
    return file


def pixels(file: Path) -> np.ndarray:
    return np.asarray(Image.open(file).convert("RGB"))


def test_pictures_are_those_of_diffusers_at_the_same_scale(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "scaled"
    compare(Asked(target=run, seeds=1, scale=SCALE, only=(600,), out=out, threads=1, device="cpu"))
    pipeline = FluxPipeline.from_pretrained(WEIGHTS, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.load_lora_weights(LORAS, weight_name="ink.safetensors", adapter_name="ink")
    pipeline.set_adapters(["ink"], [SCALE])
    column = read(out).columns[1]
    for picture in column.pictures:
        drawn = pipeline(
            picture.prompt,
            width=192,
            height=112,
            num_inference_steps=STEPS,
            guidance_scale=3.0,
            max_sequence_length=32,
            generator=torch.Generator().manual_seed(picture.seed),
        ).images[0]
        ours = pixels(out / "pictures" / picture.file).astype(int)
        assert np.abs(ours - np.asarray(drawn)).max() <= 1


def test_the_page_needs_nothing_from_elsewhere_and_runs_nothing(
    run: Path, compared: Comparison
) -> None:
    page = (run / "compare" / "compare.html").read_text()
    sources = re.findall(r"(?:src|href)=\"([^\"]*)\"", page)
    assert all(source.startswith("data:image/webp;base64,") for source in sources)
    assert len(sources) >= 3 * 2 * 2
    assert "<script" not in page
    assert not re.search(r"https?://", page)


def test_the_grid_has_a_cell_for_each_prompt_and_column(run: Path, compared: Comparison) -> None:
    sheet = pixels(run / "compare" / "compare.png")
    first = pixels(run / "compare" / "pictures" / compared.columns[2].pictures[0].file)
    height, width = 187, 320
    assert sheet.shape[0] >= 2 * height
    assert sheet.shape[1] >= 3 * width
    scaled = np.asarray(Image.fromarray(first).resize((width, height), Image.Resampling.LANCZOS))
    left = 210 + 2 * (width + 6)
    assert np.array_equal(sheet[26 : 26 + height, left : left + width], scaled)


def test_prompts_are_text_and_no_markup(tmp_path: Path, tiny_folder: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("# a comment\na street <script>alert(1)</script> 거리\n\n", "utf-8")
    result = invoke("--models", tiny_folder, "--steps", "1,2", "--prompts", file, "--size", "64x48",
                    "--out", tmp_path / "out", "--device", "cpu", "--threads", 1)  # fmt: skip
    assert result.exit_code == 0, result.output
    page = (tmp_path / "out" / "compare.html").read_text()
    assert "&lt;script&gt;alert(1)&lt;/script&gt; 거리" in page


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_pipeline(tmp_path_factory.mktemp("pipelines") / "tiny")


def test_models_and_settings_side_by_side(tmp_path: Path, tiny_folder: Path) -> None:
    """What cannot be measured is said, and no figure stands in its place."""
    schnell = tiny_pipeline(tmp_path / "schnell", guided=False)
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a street at night\n")
    result = invoke("--models", f"{schnell},{tiny_folder}", "--steps", "1,2", "--guidance", "1,3",
                    "--prompts", prompts, "--size", "64x48", "--out", tmp_path / "out",
                    "--device", "cpu", "--threads", 1)  # fmt: skip
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / "out" / "compare.json").read_text())
    settings = [(c["model"], c["steps"], c["guidance"]) for c in found["columns"]]
    assert settings == [
        ("schnell", 1, None), ("schnell", 2, None),
        ("tiny", 1, 1.0), ("tiny", 1, 3.0), ("tiny", 2, 1.0), ("tiny", 2, 3.0),
    ]  # fmt: skip
    for column in found["columns"]:
        assert column["following"] is column["style"] is column["suspects"] is None
        assert column["seconds"] > 0
    assert set(found["missing"]) == {
        "prompt followed", "distance to the style", "like a training picture"
    }  # fmt: skip
    assert "not measured" in (tmp_path / "out" / "compare.html").read_text()


def test_what_is_wrong_is_said_in_one_line(run: Path, tmp_path: Path, tiny_folder: Path) -> None:
    def refuse(kind: type[Exception], **asked: object) -> str:
        with pytest.raises(kind) as refused:
            compare(Asked(**{"device": "cpu", "threads": 1, "out": tmp_path, **asked}))
        return str(refused.value)

    assert "there are: 100, 600" in refuse(CheckpointUnusable, target=run, only=(200,))
    assert "multiple of 16" in refuse(ConfigRefused, target=run, size=(100, 100))
    assert "several with --models" in refuse(ConfigRefused, target=run, steps=(4, 8))
    assert "nothing to compare" in refuse(ConfigRefused, models=("sketch",))
    assert "models pull" in refuse(
        BaseUnusable, models=("flux.1-dev", "sketch"), models_dir=tmp_path
    )
    assert "one a line" in refuse(ConfigRefused, models=(str(tiny_folder),), steps=(1, 2))
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "no .safetensors" in refuse(CheckpointUnusable, target=empty)
    save_file({"a.lora_A.weight": torch.ones(1, 1)}, empty / "x.safetensors", {"base": "sketch"})
    assert "x.safetensors" in refuse(CheckpointUnusable, target=empty)
    assert invoke().exit_code == 2
    assert invoke("--models", "sketch", "--steps", "none").exit_code == 2
