"""Measures the shipped sketch model: does it draw what the caption says, and in the LoRA's style?

`python -m models.sketch.measure` trains the classifier if the state folder has none, draws images
of held-out captions through the stock FluxPipeline, and prints tables and one JSON line.
"""

import json
import logging
import random
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import diffusers
import numpy as np
import torch
import transformers
from diffusers import FluxPipeline
from rich.console import Console
from rich.table import Table

from models.sketch import classifier
from models.sketch.data import HELD_OUT_SEED, Pixels, draw_many, scene_of
from models.sketch.loop import Budget, train
from models.sketch.panels import SIZES_PX
from models.sketch.scene import MAX_CAPTION_TOKENS, Aspect, caption
from models.sketch.styles import STYLES
from models.sketch.train import DEFAULT_STATE, WEIGHTS

STEPS = 28
GUIDANCE = 3.0
BATCH = 20
CLASSIFIER_PANELS = 12_000
CLASSIFIER_BUDGET = Budget(steps=3_000, minutes=3.0)

_CAPTION_SEED = 6
_NOISE_SEED = 7


@dataclass(frozen=True)
class Look:
    """What a style changes: averages over images."""

    red: float
    green: float
    blue: float
    chroma: float
    """Strongest minus weakest of the three colours, 0 to 1."""
    ink: float
    """Share of pixels darker than a quarter of white."""
    greys: float
    """Share of pixels between a quarter and three quarters of white."""
    edges: float
    """Share of neighbouring pixels that differ by more than a fifth of the range."""


def look(pixels_BHWC: Pixels) -> Look:
    """The look of images of one size."""
    colour = pixels_BHWC.astype(np.float32)
    lightness = colour.mean(-1) / 255
    red, green, blue = (round(float(value), 1) for value in colour.mean((0, 1, 2)))
    shares = {
        "chroma": (colour.max(-1) - colour.min(-1)) / 255,
        "ink": lightness < 0.25,
        "greys": (lightness >= 0.25) & (lightness <= 0.75),
        "edges": np.abs(np.diff(lightness, axis=2)) > 0.2,
    }
    return Look(red, green, blue, **{key: round(float(v.mean()), 3) for key, v in shares.items()})


def held_out_captions(seeds: Iterable[int], aspect: Aspect, trigger: str = "sketch") -> list[str]:
    rng = random.Random(_CAPTION_SEED)  # noqa: S311  (data, no secret)
    return [caption(scene_of(seed, aspect), rng, trigger) for seed in seeds]


def draw_captions(
    pipeline: Any,
    captions: Sequence[str],
    aspect: Aspect,
    guidance: float = GUIDANCE,
    steps: int = STEPS,
) -> Pixels:
    """(B, H, W, 3), each image from its own seeded noise."""
    width_px, height_px = SIZES_PX[aspect]
    images: list[Pixels] = []
    for start in range(0, len(captions), BATCH):
        part = list(captions[start : start + BATCH])
        seeds = range(_NOISE_SEED + start, _NOISE_SEED + start + len(part))
        drawn = pipeline(
            part,
            width=width_px,
            height=height_px,
            num_inference_steps=steps,
            guidance_scale=guidance,
            max_sequence_length=MAX_CAPTION_TOKENS,
            generator=[torch.Generator().manual_seed(seed) for seed in seeds],
            output_type="np",
        ).images
        images.append((drawn * 255).round().astype(np.uint8))
    return np.concatenate(images)


def load_pipeline(weights: Path, device: str) -> Any:
    pipeline = FluxPipeline.from_pretrained(weights, dtype=torch.float32).to(device)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def follows_captions(
    pipeline: Any, judge: classifier.Classifier, count: int
) -> tuple[dict[str, dict[str, float]], float]:
    """Accuracies on panels, on drawn images and of the commonest answer; seconds an image."""
    rows: dict[str, list[dict[str, float]]] = {
        "panels": [],
        "drawn": [],
        "drawn without guidance": [],
        "commonest answer": [],
    }
    seconds = 0.0
    for aspect in SIZES_PX:
        real = classifier.held_out_panels(count // 2, aspect)
        captions = held_out_captions(range(HELD_OUT_SEED, HELD_OUT_SEED + count // 2), aspect)
        rows["commonest answer"].append(classifier.commonest(real.scenes))
        rows["panels"].append(classifier.accuracies(judge, real))
        started = time.perf_counter()
        guided = draw_captions(pipeline, captions, aspect)
        seconds += time.perf_counter() - started
        plain = draw_captions(pipeline, captions, aspect, guidance=1.0)
        for name, pixels in (("drawn", guided), ("drawn without guidance", plain)):
            drawn = classifier.LabelledPanels(pixels, real.scenes)
            rows[name].append(classifier.accuracies(judge, drawn))
    return {name: _means(parts) for name, parts in rows.items()}, seconds / count


def style_looks(pipeline: Any, weights: Path, count: int) -> dict[str, dict[str, Look]]:
    """For each LoRA: its panels, drawn with it, and the same captions and noise without it."""
    looks = {}
    seeds = range(HELD_OUT_SEED, HELD_OUT_SEED + count)
    for style, trigger in STYLES.items():
        captions = held_out_captions(seeds, "16:9", trigger)
        without = look(draw_captions(pipeline, captions, "16:9"))
        pipeline.load_lora_weights(weights / "loras", weight_name=f"{style}.safetensors")
        drawn = look(draw_captions(pipeline, captions, "16:9"))
        pipeline.unload_lora_weights()
        panels = look(draw_many(seeds, "16:9", (style,)))
        looks[style] = {"panels": panels, "with the LoRA": drawn, "without": without}
    return looks


def trained_classifier(state: Path, device: str) -> classifier.Classifier:
    task = classifier.ClassifierTask(classifier.training_panels(CLASSIFIER_PANELS), device)
    train(task, CLASSIFIER_BUDGET, state / "classifier.pt")
    trained: classifier.Classifier = task.classifier
    return trained


@click.command()
@click.option("--state", type=click.Path(path_type=Path), default=DEFAULT_STATE, show_default=True)
@click.option("--weights", type=click.Path(path_type=Path), default=WEIGHTS)
@click.option("--images", default=240, show_default=True, help="Captions to draw.")
@click.option("--device", default="cuda" if torch.cuda.is_available() else "cpu")
def main(state: Path, weights: Path, images: int, device: str) -> None:
    """Print how well the model follows captions and styles."""
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    logging.getLogger("diffusers").setLevel(logging.ERROR)
    judge = trained_classifier(state, device)
    pipeline = load_pipeline(weights, device)
    accuracies, seconds = follows_captions(pipeline, judge, images)
    looks = style_looks(pipeline, weights, min(images, 60))
    console = Console()
    console.print(_accuracy_table(accuracies))
    console.print(_look_table(looks))
    result = {
        "bench": "sketch",
        "images": images,
        "steps": STEPS,
        "guidance": GUIDANCE,
        "seconds_per_image": round(seconds, 3),
        "accuracy": _rounded(accuracies),
        "looks": {style: {k: asdict(v) for k, v in rows.items()} for style, rows in looks.items()},
    }
    click.echo(json.dumps(result))


def _means(parts: Sequence[dict[str, float]]) -> dict[str, float]:
    return {name: sum(part[name] for part in parts) / len(parts) for name in parts[0]}


def _rounded(rows: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    return {row: {name: round(v, 3) for name, v in values.items()} for row, values in rows.items()}


def _accuracy_table(rows: dict[str, dict[str, float]]) -> Table:
    table = Table("right answers", *classifier.QUESTIONS, title="What the classifier sees")
    for row, values in rows.items():
        table.add_row(row, *(f"{values[name]:.1%}" for name in classifier.QUESTIONS))
    return table


def _look_table(looks: dict[str, dict[str, Look]]) -> Table:
    table = Table("style", "images", *Look.__dataclass_fields__, title="How the styles look")
    for style, rows in looks.items():
        for name, values in rows.items():
            table.add_row(style, name, *(str(value) for value in asdict(values).values()))
    return table


if __name__ == "__main__":
    main()
