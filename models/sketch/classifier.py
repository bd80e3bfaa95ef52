"""A small network that says what a panel shows, trained on the generator's panels.

It measures whether drawn images follow their captions; nothing that is served uses it. It sees the
lightness of pixels only. Shapes: B panels, H and W pixels.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.sketch.data import HELD_OUT_SEED, Pixels, draw_many, scene_of
from models.sketch.loop import generator, trapezoid
from models.sketch.scene import ANGLES, PLACES, SHOTS, TIMES, Aspect, Scene

QUESTIONS: dict[str, tuple[Sequence[str | int], Callable[[Scene], str | int]]] = {
    "shot": (SHOTS, lambda scene: scene.shot),
    "angle": (ANGLES, lambda scene: scene.angle),
    "figures": (range(4), lambda scene: len(scene.figures)),
    "place": (tuple(PLACES), lambda scene: scene.place),
    "time": (tuple(TIMES), lambda scene: scene.time),
}
"""What is asked of a panel: the possible answers, and the right one."""

BATCH = 64
FIRST_SEED = 20_000_000
"""Apart from the seeds that the image model is trained on."""

_SEED = 5
_LR = 2e-3


class Classifier(nn.Module):
    """Convolutions, a 3x3 pool that keeps rough positions, and one head a question."""

    def __init__(self) -> None:
        super().__init__()
        widths = (1, 24, 48, 96, 128)
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [
                nn.Conv2d(before, after, 3, stride=2, padding=1),
                nn.GroupNorm(8, after),
                nn.SiLU(),
            ]
        self.body = nn.Sequential(
            *layers,
            nn.Conv2d(widths[-1], 128, 3, padding=1),
            nn.SiLU(),
            nn.AdaptiveAvgPool2d(3),
            nn.Flatten(),
            nn.Dropout(0.1),
            nn.Linear(128 * 9, 128),
            nn.SiLU(),
        )
        self.heads = nn.ModuleDict(
            {name: nn.Linear(128, len(answers)) for name, (answers, _) in QUESTIONS.items()}
        )

    def forward(self, lightness_B1HW: Tensor) -> dict[str, Tensor]:
        features = self.body(lightness_B1HW)
        return {name: head(features) for name, head in self.heads.items()}


@dataclass(frozen=True)
class LabelledPanels:
    """Panels of one aspect ratio and what they show."""

    pixels: Pixels
    scenes: Sequence[Scene]


class ClassifierTask:
    """A `loop.Task` that trains the classifier."""

    def __init__(self, panels: Sequence[LabelledPanels], device: str) -> None:
        torch.manual_seed(_SEED)
        self.panels, self.device = panels, device
        self.classifier = Classifier().to(device).train()
        self.answers = [right_answers(part.scenes) for part in panels]
        self.optimiser = torch.optim.AdamW(self.classifier.parameters(), lr=_LR, weight_decay=0.02)

    def step(self, number: int, share: float) -> dict[str, float]:
        source = generator(_SEED, number)
        part = number % len(self.panels)
        pixels, answers = self.panels[part].pixels, self.answers[part]
        chosen = torch.randint(len(pixels), (BATCH,), generator=source)
        given = self.classifier(lightness(pixels[chosen.numpy()]).to(self.device))
        error = sum(
            functional.cross_entropy(given[name], answers[name][chosen].to(self.device))
            for name in QUESTIONS
        )
        self.optimiser.zero_grad()
        error.backward()
        for group in self.optimiser.param_groups:
            group["lr"] = _LR * trapezoid(share, warmup=0.05)
        self.optimiser.step()
        return {"error": error.item()}

    def state(self) -> dict[str, Any]:
        return {
            "classifier": self.classifier.state_dict(),
            "optimiser": self.optimiser.state_dict(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.classifier.load_state_dict(state["classifier"])
        self.optimiser.load_state_dict(state["optimiser"])


def training_panels(count: int) -> list[LabelledPanels]:
    return [
        labelled_panels(range(FIRST_SEED, FIRST_SEED + count // 2), "16:9"),
        labelled_panels(range(FIRST_SEED + count // 2, FIRST_SEED + count), "9:16"),
    ]


def held_out_panels(count: int, aspect: Aspect) -> LabelledPanels:
    return labelled_panels(range(HELD_OUT_SEED, HELD_OUT_SEED + count), aspect)


def labelled_panels(seeds: Sequence[int], aspect: Aspect) -> LabelledPanels:
    return LabelledPanels(draw_many(seeds, aspect), [scene_of(seed, aspect) for seed in seeds])


@torch.no_grad()
def accuracies(classifier: Classifier, panels: LabelledPanels) -> dict[str, float]:
    """The share of right answers to each question."""
    classifier.eval()
    right = right_answers(panels.scenes)
    device = next(classifier.parameters()).device
    given = [classifier(part.to(device)) for part in lightness(panels.pixels).split(BATCH)]
    return {
        name: float(
            (torch.cat([part[name] for part in given]).argmax(1).cpu() == right[name])
            .float()
            .mean()
        )
        for name in QUESTIONS
    }


def commonest(scenes: Sequence[Scene]) -> dict[str, float]:
    """What always giving the commonest answer would score: more than guessing does."""
    return {
        name: float(answers.bincount().max() / len(scenes))
        for name, answers in right_answers(scenes).items()
    }


def right_answers(scenes: Sequence[Scene]) -> dict[str, Tensor]:
    """For each question, the index of each scene's answer."""
    return {
        name: torch.tensor([list(answers).index(answer(scene)) for scene in scenes])
        for name, (answers, answer) in QUESTIONS.items()
    }


def lightness(pixels_BHWC: Pixels) -> Tensor:
    """(B, 1, H, W) in -1 to 1."""
    return torch.from_numpy(pixels_BHWC).float().mean(-1)[:, None] / 127.5 - 1
