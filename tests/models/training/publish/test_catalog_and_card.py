"""The catalog's row keeps everything around it; the card tells what is known, and no more."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file

from models.catalog import CATALOG_FILE, EmbeddedSource, load_catalog
from models.sketch.styles import draw_set
from models.sketch.train import WEIGHTS
from models.training.compare.figures import ColumnFigures, Comparison, Following, Picture
from models.training.errors import CheckpointUnusable, PublishRefused
from models.training.publish.card import write_card
from models.training.publish.catalog_file import add_to_catalog
from models.training.publish.chosen import Chosen, choose, require_fits

INK = WEIGHTS / "loras" / "ink.safetensors"
SEPIA = WEIGHTS / "loras" / "sepia.safetensors"
CONFIG = """\
job: extension
config:
  name: ink
  process:
    - type: sd_trainer
      training_folder: {folder}
      trigger_word: ink style
      network: {{type: lora, linear: 8, linear_alpha: 8}}
      datasets:
        - {{folder_path: {data}, resolution: [144]}}
      train: {{steps: 600, noise_scheduler: flowmatch, lr: 0.001, optimizer: adamw8bit}}
      model: {{name_or_path: sketch, is_flux: true}}
      sample: {{sampler: flowmatch, width: 192, height: 112, sample_steps: 8, guidance_scale: 3,
               prompts: ["[trigger] | a man"]}}
"""


def chosen(name: str, source: Path = INK, step: int | None = None, **told: Any) -> Chosen:
    said = {"trigger": None, "licence": None, **told}
    return choose(name, source, step, catalog=load_catalog(), models_dir=Path("/nowhere"), **said)


@pytest.fixture
def catalog_file(tmp_path: Path) -> Path:
    """A copy of the repository's own, with a comment behind a value and inside of a row."""
    text = CATALOG_FILE.read_text("utf-8")
    file = tmp_path / "models" / "catalog.toml"
    file.parent.mkdir()
    file.write_text(
        text.replace(
            'trigger = "ink style"\n', '# Brush.\ntrigger = "ink style"   # of the prompts\n'
        ),
        "utf-8",
    )
    return file


def location(file: Path, name: str) -> Path:
    row = next(row for row in load_catalog(file).loras if row.name == name)
    assert isinstance(row.source, EmbeddedSource)
    return file.parent / row.source.path


def test_a_new_row_stands_at_the_end_and_nothing_else_changes(catalog_file: Path) -> None:
    before = catalog_file.read_text("utf-8")
    assert add_to_catalog(chosen("my-ink", trigger='a "quoted" 풍'), catalog_file)
    after = catalog_file.read_text("utf-8")
    assert after.startswith(before)
    row = next(row for row in load_catalog(catalog_file).loras if row.name == "my-ink")
    assert (row.base, row.trigger, row.licence) == ("sketch", 'a "quoted" 풍', "Apache-2.0")
    assert location(catalog_file, "my-ink").read_bytes() == INK.read_bytes()


def test_the_same_again_writes_nothing(catalog_file: Path) -> None:
    add_to_catalog(chosen("my-ink"), catalog_file)
    times = [f.stat().st_mtime_ns for f in (catalog_file, location(catalog_file, "my-ink"))]
    assert not add_to_catalog(chosen("my-ink"), catalog_file)
    assert times == [f.stat().st_mtime_ns for f in (catalog_file, location(catalog_file, "my-ink"))]


def test_a_row_is_renewed_with_its_comments(catalog_file: Path) -> None:
    text = catalog_file.read_text("utf-8")
    assert add_to_catalog(chosen("ink", SEPIA, trigger="new words"), catalog_file)
    after = catalog_file.read_text("utf-8")
    assert after == text.replace('trigger = "ink style"   # of', 'trigger = "new words"   # of')
    assert location(catalog_file, "ink").read_bytes() == SEPIA.read_bytes()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("simple-illustration", "of the hub"),
        ("sketch", "a model's name"),
        ("flux.1-dev", "a model's name"),
        ("with_underscore", "no '_'"),
    ],
)
def test_names_that_are_somebody_elses(catalog_file: Path, name: str, words: str) -> None:
    before = catalog_file.read_bytes()
    with pytest.raises(PublishRefused, match=words):
        add_to_catalog(chosen(name), catalog_file)
    assert catalog_file.read_bytes() == before
    assert not list(catalog_file.parent.rglob("*.safetensors"))


def test_a_catalog_that_cannot_be_written_leaves_the_weights_as_they_were(
    catalog_file: Path,
) -> None:
    add_to_catalog(chosen("mine"), catalog_file)
    weights, text = location(catalog_file, "mine"), catalog_file.read_text("utf-8")
    blocked = catalog_file.with_name("catalog.toml.part")  # where its new text would arrive
    blocked.mkdir()
    for name in ("mine", "new"):
        with pytest.raises(OSError, match=r"catalog\.toml"):
            add_to_catalog(chosen(name, SEPIA, trigger="other words"), catalog_file)
    assert weights.read_bytes() == INK.read_bytes()
    assert list(weights.parent.iterdir()) == [weights]
    assert catalog_file.read_text("utf-8") == text


def test_an_installed_catalog_is_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "site-packages" / "models" / "catalog.toml"
    file.parent.mkdir(parents=True)
    shutil.copyfile(CATALOG_FILE, file)
    with pytest.raises(PublishRefused, match="--to URL"):
        add_to_catalog(chosen("my-ink"), file)


def test_a_base_without_a_row_has_no_place_there(catalog_file: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.safetensors"
    save_file(load_file(INK), other, {"base": "somebody/else", "license": "MIT"})
    with pytest.raises(PublishRefused, match=r"no image model of the catalog; there are: sketch"):
        add_to_catalog(chosen("other", other), catalog_file)


def test_a_file_that_would_not_be_drawn_with_is_refused_before_anything(tmp_path: Path) -> None:
    import torch

    bad = tmp_path / "bad.safetensors"
    save_file({"transformer.x.lora_A.weight": torch.ones(2, 2)}, bad, {"base": "sketch"})
    with pytest.raises(PublishRefused, match="no layer of this transformer"):
        require_fits(chosen("bad", bad))
    require_fits(chosen("good"))


# --- which file, and its card ---------------------------------------------------------------------


@pytest.fixture
def run(tmp_path: Path) -> Path:
    draw_set("ink", tmp_path / "data", 4)
    folder = tmp_path / "ink"
    (folder / "samples").mkdir(parents=True)
    (folder / "config.yaml").write_text(CONFIG.format(folder=tmp_path, data=tmp_path / "data"))
    shutil.copyfile(INK, folder / "ink.safetensors")
    shutil.copyfile(SEPIA, folder / "ink_000000100.safetensors")
    Image.new("RGB", (192, 112), "red").save(folder / "samples" / "000000600_0.jpg")
    return folder


def test_the_final_one_unless_a_step_is_named(run: Path) -> None:
    assert chosen("x", run).file.name == "ink.safetensors"
    assert chosen("x", run / "config.yaml", 100).file.name == "ink_000000100.safetensors"
    with pytest.raises(CheckpointUnusable, match="chooses from: 100, 600"):
        chosen("x", run, 200)
    (run / "ink.safetensors").unlink()
    with pytest.raises(CheckpointUnusable, match="no final LoRA"):
        chosen("x", run)


def test_the_licence_is_the_bases(tmp_path: Path) -> None:
    file = tmp_path / "dev.safetensors"
    for told in ({}, {"license": "unknown"}):
        save_file(load_file(INK), file, {"base": "flux.1-dev", **told})
        assert chosen("dev", file).licence == "FLUX.1 [dev] Non-Commercial License"
    save_file(load_file(INK), file, {"base": "somebody/else"})
    with pytest.raises(PublishRefused, match="--licence"):
        chosen("dev", file)
    assert chosen("dev", file, licence="CC0-1.0").licence == "CC0-1.0"


def front_matter(card: Path) -> dict[str, Any]:
    _, front, _ = card.read_text("utf-8").split("---\n", 2)
    return yaml.safe_load(front)


def test_the_card_tells_data_settings_and_samples(run: Path, tmp_path: Path) -> None:
    card = write_card(chosen("my-ink", run), tmp_path / "card")
    told, text = front_matter(card), card.read_text("utf-8")
    assert told["license"] == "apache-2.0"
    assert told["base_model"] == "sketch"
    assert told["instance_prompt"] == "ink style"
    assert {"lora", "flux", "text-to-image"} <= set(told["tags"])
    assert told["widget"] == [{"text": "ink style | a man", "output": {"url": "pictures/0.jpg"}}]
    assert "| data | 4 | drawn by models/sketch/panels.py | Apache-2.0 |" in text
    assert "| `train.lr` | 0.001 |" in text
    assert "| ink style \\| a man | ![](pictures/0.jpg) |" in text
    assert "Not measured" in text
    assert (tmp_path / "card" / "my-ink.safetensors").read_bytes() == INK.read_bytes()
    assert (tmp_path / "card" / "pictures" / "0.jpg").is_file()


def test_the_card_has_the_figures_of_these_very_weights(run: Path, tmp_path: Path) -> None:
    one = chosen("my-ink", run)
    (run / "compare" / "pictures").mkdir(parents=True)
    Image.new("RGB", (192, 112)).save(run / "compare" / "pictures" / "a.png")
    (run / "compare" / "compare.json").write_text(comparison(one.digest).model_dump_json())
    text = write_card(one, tmp_path / "card").read_text("utf-8")
    assert "| distance to the training style (0: none) | 1.26 | 0.11 |" in text
    assert "0.80 | 0.70 (0.60 to 0.75) |" in text
    assert "| variety between seeds (0: none) | not measured | not measured |" in text
    assert "pictures/0.png" in text
    (run / "compare" / "compare.json").write_text(comparison("0" * 64).model_dump_json())
    assert "Not measured" in write_card(one, tmp_path / "card").read_text("utf-8")
    (run / "compare" / "compare.json").write_text("{}")
    with pytest.raises(PublishRefused, match="make them again"):
        write_card(one, tmp_path / "card")


def comparison(digest: str) -> Comparison:
    def column(label: str, lora: str | None, style: float, follows: Following) -> ColumnFigures:
        return ColumnFigures(
            label=label, model="sketch", lora_digest=lora, lora_scale=1.0, steps=8, guidance=3.0,
            size="192x112", style={"all": style}, style_error=None, way_to_style=None,
            following=follows, diversity=None, diversity_bits=None, copies=(),
            suspects=0, seconds=None, seconds_of=0,
            pictures=(Picture(file="a.png", prompt="ink style", seed=1),),
        )  # fmt: skip

    base = Following(mean=0.8, low=0.7, high=0.9, pictures=4)
    trained = Following(mean=0.7, low=0.6, high=0.75, pictures=4)
    return Comparison(
        title="t", kind="checkpoints", prompts=("ink style",), seeds=(1,),
        columns=(column("base", None, 1.26, base), column("final", digest, 0.11, trained)),
        training=None, scorer="judge", scorer_unit="share of right answers", scorer_best=None,
        missing={}, device="cpu",
    )  # fmt: skip


def test_a_licence_that_the_hub_has_no_word_for(tmp_path: Path) -> None:
    file = tmp_path / "dev.safetensors"
    save_file(load_file(INK), file, {"base": "flux.1-dev"})
    told = front_matter(write_card(chosen("dev", file), tmp_path / "card"))
    assert told["license"] == "other"
    assert told["license_name"] == "flux.1-dev-non-commercial-license"
