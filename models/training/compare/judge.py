"""The judge of what a sketch panel shows, in every style: `models.sketch.classifier`, trained once.

    python -m models.training.compare.judge      trains it (minutes on two cores) and writes
                                                 judge.safetensors beside this file

It learns from the generator's panels in all four styles, from seeds that no image model was trained
on, and the file says how many of its answers are right on held-out panels: what a perfect drawer
would score. B pictures, H and W pixels.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import click
import numpy as np
import torch
from PIL import Image, ImageOps
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from models.sketch.classifier import (
    FIRST_SEED,
    QUESTIONS,
    Classifier,
    ClassifierTask,
    LabelledPanels,
    accuracies,
    lightness,
)
from models.sketch.data import HELD_OUT_SEED, draw_many, scene_of
from models.sketch.loop import Budget, train
from models.sketch.panels import SIZES_PX, STYLES
from models.sketch.scene import ASPECTS, Aspect
from models.training.compare.asked import Answer

FILE = Path(__file__).with_name("judge.safetensors")
_PANELS, _HELD_OUT = 16_000, 800
_BUDGET = Budget(steps=4_000, minutes=5.0)
_STATE = Path(".run/compare/judge.pt")


@cache
def load_judge(file: Path = FILE) -> tuple[Classifier, dict[str, float]]:
    """The trained network, and by question its share of right answers on held-out panels."""
    judge = Classifier()
    judge.load_state_dict({name: weight.float() for name, weight in load_file(file).items()})
    with safe_open(file, "pt") as opened:
        ceilings: dict[str, float] = json.loads(opened.metadata()["held_out"])
    return judge.eval(), ceilings


@torch.no_grad()
def answers(judge: Classifier, images: Sequence[Image.Image]) -> list[dict[str, Answer]]:
    """What the judge sees in each picture. Other sizes are cropped and scaled to a panel's."""
    found = []
    for image in images:
        aspect: Aspect = "16:9" if image.width >= image.height else "9:16"
        panel = ImageOps.fit(image.convert("RGB"), SIZES_PX[aspect], Image.Resampling.LANCZOS)
        given = judge(lightness(np.array(panel)[None]))
        found.append({name: QUESTIONS[name][0][int(said.argmax())] for name, said in given.items()})
    return found


def styled_panels(first_seed: int, count: int, aspect: Aspect) -> LabelledPanels:
    """Panels in the four styles by turns."""
    seeds = range(first_seed, first_seed + count)
    scenes = [scene_of(seed, aspect) for seed in seeds]
    return LabelledPanels(draw_many(seeds, aspect, tuple(STYLES)), scenes)


def held_out_accuracies(judge: Classifier, count: int = _HELD_OUT) -> dict[str, float]:
    """By question, over panels that nothing was trained on."""
    parts = [accuracies(judge, styled_panels(HELD_OUT_SEED, count // 2, a)) for a in ASPECTS]
    return {name: round(sum(p[name] for p in parts) / len(parts), 4) for name in QUESTIONS}


@click.command()
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), default=FILE)
@click.option("--state", type=click.Path(path_type=Path, dir_okay=False), default=_STATE)
def main(out: Path, state: Path) -> None:
    """Train the judge; running it again goes on."""
    half = _PANELS // 2
    panels = [styled_panels(FIRST_SEED + n * half, half, a) for n, a in enumerate(ASPECTS)]
    task = ClassifierTask(panels, "cpu")
    train(task, _BUDGET, state)
    held_out = held_out_accuracies(task.classifier)
    weights = {name: w.half().contiguous() for name, w in task.classifier.state_dict().items()}
    save_file(weights, out, metadata={"format": "pt", "held_out": json.dumps(held_out)})
    click.echo(f"{out}: {held_out}")


if __name__ == "__main__":
    main()
