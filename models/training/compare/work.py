"""One comparison from what was asked to the three files that answer it."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from models.training.compare.bases import DrawingModel, find_model
from models.training.compare.drawing import Cells, Column, draw_all
from models.training.compare.figures import (
    Comparison,
    Trained,
    measure,
    read_trained,
    training_figures,
)
from models.training.compare.following import Scorer, choose_scorer
from models.training.compare.grid import grid
from models.training.compare.report import html
from models.training.compare.runs import Checkpoint, Run, find_run, read_data
from models.training.errors import CheckpointUnusable, ConfigRefused
from models.training.storage import write_whole

MAX_TRAINED = 400
"""Training pictures that are measured; more are thinned out evenly."""
_PROMPTS, _FIRST_SEED = 6, 42
_BASE = "base"

Tell = Callable[[int, int], None]
"""Called with the pictures that are done, and all there are."""


@dataclass(frozen=True)
class Asked:
    """Everything that `compare` can be told. What is None is the run's or the model's own."""

    target: Path | None = None
    models: tuple[str, ...] = ()
    """Instead of a run."""
    prompts_file: Path | None = None
    seeds: int = 2
    steps: tuple[int, ...] | None = None
    guidance: tuple[float, ...] | None = None
    scale: float = 1.0
    size: tuple[int, int] | None = None
    only: tuple[int, ...] = ()
    """Steps of the checkpoints that are wanted; empty: all."""
    data: Path | None = None
    clip: Path | None = None
    out: Path | None = None
    device: str = "auto"
    threads: int | None = None
    models_dir: Path = Path()


@dataclass(frozen=True)
class _Plan:
    title: str
    kind: Literal["checkpoints", "models"]
    columns: tuple[Column, ...]
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    trained: Trained | None
    scorer: Scorer | None
    missing: dict[str, str]
    out: Path


def compare(asked: Asked, tell: Tell = lambda done, total: None) -> tuple[Path, Path, Path]:
    """Draws, measures and writes; returns compare.png, compare.html and compare.json.

    Raises TrainingError in its kinds; pictures that are drawn by then are found by the next run.
    """
    plan = _of_models(asked) if asked.models else _of_run(asked)
    total, done = len(plan.columns) * len(plan.prompts) * len(plan.seeds), 0
    tell(0, total)

    def count() -> None:
        nonlocal done
        done += 1
        tell(done, total)

    cells = draw_all(
        plan.columns,
        plan.prompts,
        plan.seeds,
        plan.out / "pictures",
        device=asked.device,
        threads=asked.threads,
        on_picture=count,
    )
    return _written(plan, cells, _measured(plan, cells, asked.device))


def _measured(plan: _Plan, cells: Cells, device: str) -> Comparison:
    first = plan.columns[0]
    figures = measure(plan.columns, cells, plan.trained, plan.scorer)
    missing = dict(plan.missing)
    if not all(column.seconds_of for column in figures):
        missing["s an image"] = (
            "Pictures of earlier runs were used again; --out NEW draws all anew."
        )
    if len(plan.seeds) < 2:
        missing["variety"] = "It shows between seeds: --seeds 2 or more."
    return Comparison(
        title=plan.title,
        kind=plan.kind,
        prompts=plan.prompts,
        seeds=plan.seeds,
        columns=figures,
        training=training_figures(plan.trained, first.width / first.height),
        scorer=plan.scorer and plan.scorer.name,
        scorer_unit=plan.scorer and plan.scorer.unit,
        scorer_best=plan.scorer and plan.scorer.best,
        missing=missing,
        device=_device_name(device),
    )


def _written(plan: _Plan, cells: Cells, comparison: Comparison) -> tuple[Path, Path, Path]:
    picture = io.BytesIO()
    grid(cells, plan.prompts, plan.seeds[0]).save(picture, "PNG")
    files = tuple(plan.out / f"compare.{suffix}" for suffix in ("png", "html", "json"))
    page = html(comparison, cells, plan.trained)
    text = comparison.model_dump_json(indent=2) + "\n"
    for file, data in zip(files, (picture.getvalue(), page.encode(), text.encode()), strict=True):
        write_whole(file, data)
    return files[0], files[1], files[2]


# --- checkpoints ----------------------------------------------------------------------------------


def _of_run(asked: Asked) -> _Plan:
    assert asked.target is not None
    run = find_run(asked.target)
    model = find_model(run.base, asked.models_dir)
    prompts = _prompts(asked, run, model)
    trained, missing = _trained(asked, run)
    scorer = _scorer(asked, [model], missing)
    first_seed = run.samples[0].seed if run.samples else None
    return _Plan(
        title=f"{run.name}: {model.name} and {len(run.checkpoints)} checkpoints",
        kind="checkpoints",
        columns=_checkpoint_columns(asked, run, model),
        prompts=prompts,
        seeds=_seeds(asked, first_seed),
        trained=trained,
        scorer=scorer,
        missing=missing,
        out=asked.out or run.folder / "compare",
    )


def _checkpoint_columns(asked: Asked, run: Run, model: DrawingModel) -> tuple[Column, ...]:
    for option, values in (("--steps", asked.steps), ("--guidance", asked.guidance)):
        if values is not None and len(values) > 1:
            raise ConfigRefused(f"{option} takes one value for a run; several with --models")
    sample = run.samples[0] if run.samples else None
    steps = (asked.steps and asked.steps[0]) or (sample and sample.sample_steps) or model.steps
    sampled = sample.guidance_scale if sample else None
    guidance = _first_of(asked.guidance, sampled, model.guidance)
    own = (sample.width, sample.height) if sample and sample.width and sample.height else None
    width, height = asked.size or own or (model.width, model.height)
    base = Column(_BASE, model, steps, guidance, width, height)
    loras = [
        replace(
            base, label=one.label, lora=one.file, lora_digest=one.digest, lora_scale=asked.scale
        )
        for one in _wanted(run, asked.only)
    ]
    return (base, *loras)


def _first_of(
    given: tuple[float, ...] | None, sampled: float | None, usual: float | None
) -> float | None:
    if given is not None:
        return given[0]
    return usual if sampled is None else sampled


def _wanted(run: Run, only: Sequence[int]) -> list[Checkpoint]:
    if not only:
        return list(run.checkpoints)
    there = {one.step for one in run.checkpoints}
    if missing := set(only) - there:
        known = ", ".join(str(step) for step in sorted(step for step in there if step is not None))
        raise CheckpointUnusable(
            f"{run.folder} has no checkpoint of step {sorted(missing)[0]}; there are: {known}"
        )
    return [one for one in run.checkpoints if one.step in only]


def _trained(asked: Asked, run: Run | None) -> tuple[Trained | None, dict[str, str]]:
    examples = read_data(asked.data) if asked.data else run.examples if run else ()
    trained = read_trained(examples, MAX_TRAINED)
    if trained is not None:
        return trained, {}
    why = "The training pictures are not known, or are fewer than two: --data FOLDER names them."
    return None, {"distance to the style": why, "like a training picture": why}


def _prompts(asked: Asked, run: Run | None, model: DrawingModel) -> tuple[str, ...]:
    """The file's; the configuration's; or, for the sketch vocabulary, captions nobody trained on.

    Raises ConfigRefused where there are none.
    """
    if asked.prompts_file is not None:
        return _read_prompts(asked.prompts_file)
    if run is not None and run.samples:
        return tuple(dict.fromkeys(item.prompt for item in run.samples))
    if model.vocabulary == "sketch":
        trigger = (run and run.trigger) or model.trigger
        width, height = asked.size or (model.width, model.height)
        return _sketch_prompts(trigger, is_upright=height > width)
    raise ConfigRefused("no prompts are known: write some into a file, one a line, for --prompts")


def _read_prompts(file: Path) -> tuple[str, ...]:
    try:
        lines = [line.strip() for line in file.read_text("utf-8-sig").splitlines()]
    except UnicodeDecodeError as error:
        raise ConfigRefused(f"{file} is not UTF-8: save it as UTF-8") from error
    prompts = tuple(dict.fromkeys(line for line in lines if line and not line.startswith("#")))
    if not prompts:
        raise ConfigRefused(f"{file} holds no prompt: write one a line")
    return prompts


def _sketch_prompts(trigger: str, *, is_upright: bool) -> tuple[str, ...]:
    from models.sketch.data import HELD_OUT_SEED
    from models.sketch.measure import held_out_captions

    seeds = range(HELD_OUT_SEED, HELD_OUT_SEED + _PROMPTS)
    return tuple(held_out_captions(seeds, "9:16" if is_upright else "16:9", trigger))


def _scorer(asked: Asked, models: Sequence[DrawingModel], missing: dict[str, str]) -> Scorer | None:
    """The sketch judge only where every column understands its vocabulary."""
    known = {model.vocabulary for model in models}
    scorer = choose_scorer(known.pop() if len(known) == 1 else None, asked.clip)
    if scorer is None:
        missing["prompt followed"] = "No judge knows this model: --clip FOLDER names a CLIP model."
    return scorer


def _seeds(asked: Asked, first: int | None) -> tuple[int, ...]:
    start = _FIRST_SEED if first is None or first < 0 else first
    return tuple(range(start, start + asked.seeds))


def _device_name(device: str) -> str:
    from models.flux.loading import choose_device

    chosen = choose_device(device)
    if chosen.type != "cuda":
        return str(chosen.type)
    import torch

    return str(torch.cuda.get_device_name(chosen))


# --- models and settings --------------------------------------------------------------------------


def _of_models(asked: Asked) -> _Plan:
    models = [find_model(name, asked.models_dir) for name in dict.fromkeys(asked.models)]
    columns = tuple(column for model in models for column in _setting_columns(asked, model))
    if len(columns) < 2:
        raise ConfigRefused(
            "there is one column and nothing to compare it with: name two models, or several "
            "--steps or --guidance"
        )
    trained, missing = _trained(asked, None)
    return _Plan(
        title=f"{', '.join(model.name for model in models)}: models and settings",
        kind="models",
        columns=columns,
        prompts=_prompts(asked, None, models[0]),
        seeds=_seeds(asked, None),
        trained=trained,
        scorer=_scorer(asked, models, missing),
        missing=missing,
        out=asked.out or Path("compare"),
    )


def _setting_columns(asked: Asked, model: DrawingModel) -> list[Column]:
    """Every combination; a model without guidance has one column for each number of steps."""
    steps = asked.steps or (model.steps,)
    guidance = (asked.guidance or (model.guidance,)) if model.has_guidance else (None,)
    width, height = asked.size or (model.width, model.height)
    return [
        Column(_label(model, count, g), model, count, g, width, height)
        for count in steps
        for g in guidance
    ]


def _label(model: DrawingModel, steps: int, guidance: float | None) -> str:
    told = "no guidance" if guidance is None else f"guidance {guidance:g}"
    return f"{model.name}, {steps} steps, {told}"
