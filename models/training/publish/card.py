"""The model card: what a LoRA is, what it was made from, how well it does, and what may be done.

Markdown with the Hugging Face hub's front matter, as README.md in a folder that also holds the
weights and the pictures: the folder can be given away, or uploaded to a hub, as it is. Only what is
known is told; what is not says so.
"""

from __future__ import annotations

import re
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import yaml
from pydantic import ValidationError

from models.training.compare.figures import ColumnFigures, Comparison
from models.training.compare.runs import Run
from models.training.config.schema import Process
from models.training.dataset.folder import read_examples
from models.training.dataset.manifest import read_manifest
from models.training.dataset.sources import Source, read_sources
from models.training.errors import PublishRefused
from models.training.publish.chosen import Chosen
from models.training.storage import write_whole

TEMPLATE = "card.md"
FIGURES = Path("compare") / "compare.json"
"""Below a run's folder."""
_PICTURES = 4
_SAMPLE_SUFFIXES = (".png", ".jpg", ".webp")
_HUB_LICENCES = {
    "Apache-2.0": "apache-2.0",
    "MIT": "mit",
    "CC0-1.0": "cc0-1.0",
    "CC-BY-4.0": "cc-by-4.0",
    "CC-BY-SA-4.0": "cc-by-sa-4.0",
    "CC-BY-NC-4.0": "cc-by-nc-4.0",
    "OpenRAIL": "openrail",
}
"""SPDX ids and what the hub calls them; every other licence is `other` there, with its name."""


@dataclass(frozen=True)
class _Data:
    """One data set. `origins`: source, licence and how many pictures."""

    folder: str
    pictures: int
    origins: tuple[tuple[Source, int], ...]
    data_hash: str


@dataclass(frozen=True)
class _Shown:
    """One picture of the card: where it is, and its name in the card's folder."""

    file: Path
    name: str
    prompt: str


def write_card(chosen: Chosen, folder: Path, figures: Path | None = None) -> Path:
    """README.md, NAME.safetensors and pictures in `folder`; returns README.md.

    `figures` is a compare.json; None: the run's own, where there is one. Raises PublishRefused for
    one that is none, OSError and OutOfDisk.
    """
    comparison, beside = _comparison(chosen, figures)
    column = _column(chosen, comparison)
    shown = _pictures(chosen, column, beside)
    text = _text(chosen, comparison, column, shown)
    for one in shown:
        (folder / one.name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(one.file, folder / one.name)
    write_whole(folder / f"{chosen.name}.safetensors", chosen.file.read_bytes())
    write_whole(folder / "README.md", text.encode())
    return folder / "README.md"


def _text(
    chosen: Chosen,
    comparison: Comparison | None,
    column: ColumnFigures | None,
    shown: Sequence[_Shown],
) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=False,  # noqa: S701  (Markdown; every text from outside goes through `cell`)
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["cell"] = _cell
    process = chosen.run.config.process if chosen.run and chosen.run.config else None
    return environment.get_template(TEMPLATE).render(
        front_matter=_front_matter(chosen, shown),
        chosen=chosen,
        told=chosen.checkpoint.metadata,
        data=_data(process),
        settings=_settings(process),
        column=column,
        base_column=comparison.columns[0] if comparison and column else None,
        comparison=comparison,
        shown=shown,
    )


def _front_matter(chosen: Chosen, shown: Sequence[_Shown]) -> str:
    told: dict[str, Any] = _licence(chosen)
    told["base_model"] = (chosen.model and chosen.model.hub_id) or chosen.base
    told["base_model_relation"] = "adapter"
    told["library_name"] = "diffusers"
    told["pipeline_tag"] = "text-to-image"
    told["tags"] = ["text-to-image", "diffusers", "lora", "flux", "style"]
    if chosen.trigger:
        told["instance_prompt"] = chosen.trigger
    if shown:
        told["widget"] = [{"text": one.prompt, "output": {"url": one.name}} for one in shown]
    return yaml.safe_dump(told, sort_keys=False, allow_unicode=True, width=10_000)


def _licence(chosen: Chosen) -> dict[str, Any]:
    if (known := _HUB_LICENCES.get(chosen.licence)) is not None:
        return {"license": known}
    slug = re.sub(r"[^a-z0-9.]+", "-", chosen.licence.lower()).strip("-")
    told = {"license": "other", "license_name": slug}
    if chosen.model is not None and chosen.model.hub_id:
        told["license_link"] = f"https://huggingface.co/{chosen.model.hub_id}"
    return told


def _comparison(chosen: Chosen, figures: Path | None) -> tuple[Comparison | None, Path]:
    """The figures, and the folder that their pictures lie below."""
    file = figures or (chosen.run and chosen.run.folder / FIGURES) or Path()
    if not file.is_file():
        return None, file.parent
    try:
        return Comparison.model_validate_json(file.read_bytes()), file.parent
    except ValidationError as invalid:
        raise PublishRefused(f"{file} holds no figures of `compare`: make them again") from invalid


def _column(chosen: Chosen, comparison: Comparison | None) -> ColumnFigures | None:
    """The one that was drawn with these very bytes."""
    columns = comparison.columns if comparison else ()
    return next((one for one in columns if one.lora_digest == chosen.digest), None)


def _pictures(chosen: Chosen, column: ColumnFigures | None, beside: Path) -> list[_Shown]:
    """One of each of the first prompts; else the run's last samples, with their prompts."""
    found: dict[str, Path] = {}
    for picture in column.pictures if column else ():
        found.setdefault(picture.prompt, beside / "pictures" / picture.file)
    if not found and chosen.run is not None:
        found = _samples(chosen.run, chosen.checkpoint.step)
    there = [(prompt, file) for prompt, file in found.items() if file.is_file()][:_PICTURES]
    return [
        _Shown(file, f"pictures/{number}{file.suffix}", prompt)
        for number, (prompt, file) in enumerate(there)
    ]


def _samples(run: Run, step: int | None) -> dict[str, Path]:
    """`samples/STEP_INDEX.jpg` of the checkpoint's own step, by prompt."""
    if step is None:
        return {}
    return {
        item.prompt: file
        for index, item in enumerate(run.samples)
        for suffix in _SAMPLE_SUFFIXES
        if (file := run.folder / "samples" / f"{step:09d}_{index}{suffix}").is_file()
    }


def _data(process: Process | None) -> list[_Data]:
    found = []
    for dataset in process.datasets if process else ():
        folder = Path(dataset.folder or "")
        if folder.is_dir():
            found.append(_data_of(folder, dataset.caption_ext))
    return found


def _data_of(folder: Path, caption_ext: str) -> _Data:
    """From dataset.json where `dataset prepare` made the folder, else from its sources.csv."""
    manifest = read_manifest(folder)
    if manifest is not None:
        origins = Counter(Source(one.source, one.licence) for one in manifest.pictures)
        return _Data(folder.name, len(manifest.pictures), _sorted(origins), manifest.data_hash)
    sources = read_sources(folder)
    examples = read_examples(folder, caption_ext=caption_ext, default_caption="")
    names = [one.picture.relative_to(folder).as_posix() for one in examples]
    return _Data(folder.name, len(names), _sorted(Counter(map(sources.find, names))), "")


def _sorted(origins: Counter[Source]) -> tuple[tuple[Source, int], ...]:
    return tuple(sorted(origins.items(), key=lambda one: (-one[1], one[0].source)))


def _settings(process: Process | None) -> dict[str, object]:
    """What somebody would change first, in the configuration's own words."""
    if process is None:
        return {}
    train, resolutions = process.train, {r for d in process.datasets for r in d.resolutions}
    return {
        "network.linear": process.network.lora_rank,
        "train.steps": train.steps,
        "train.lr": f"{train.lr:g}",
        "train.batch_size": train.batch_size,
        "train.gradient_accumulation": train.gradient_accumulation,
        "train.optimizer": train.optimizer,
        "train.lr_scheduler": train.lr_scheduler,
        "train.timestep_type": train.timestep_type,
        "train.dtype": train.dtype,
        "train.ema_config.ema_decay": train.ema.ema_decay if train.ema.use_ema else "no EMA",
        "datasets.resolution": ", ".join(str(r) for r in sorted(resolutions)),
        "datasets.caption_dropout_rate": ", ".join(
            f"{d.caption_dropout_rate:g}" for d in process.datasets
        ),
    }


def _cell(value: object) -> str:
    """Text from outside, in a table or a paragraph: no line breaks, no markup of its own."""
    text = " ".join(str(value).split())
    return re.sub(r"([\\`*_{}\[\]<>|#])", r"\\\1", text)
