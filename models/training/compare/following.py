"""Whether pictures show what their prompts ask for, by whatever can tell for this model.

For a model with the sketch vocabulary that is a judge trained for it (judge.py): the share of right
answers. For any other one a CLIP-like model in a local folder: cosine similarity of picture and
prompt (Hessel and others, CLIPScore, 2021; here without its factor of 2.5). Where there is neither
nothing is measured, and the figures say so.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image

from models.training.compare.asked import asked
from models.training.errors import BaseUnusable


class Scorer(Protocol):
    name: str
    unit: str
    """What a score of this scorer is, in words."""
    best: float | None
    """What a perfect drawer would score, where that is known."""

    def score(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> list[float | None]:
        """For each picture; None where its prompt asks for nothing that can be checked."""


class SketchScorer:
    """Right answers to: which shot, angle, number of figures, place and time."""

    name = "sketch judge"
    unit = "share of right answers about shot, angle, figures, place and time"

    def __init__(self) -> None:
        from models.training.compare.judge import load_judge

        self._judge, ceilings = load_judge()
        self.best: float | None = sum(ceilings.values()) / len(ceilings)

    def score(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> list[float | None]:
        from models.training.compare.judge import answers

        scores: list[float | None] = []
        for given, prompt in zip(answers(self._judge, images), prompts, strict=True):
            wanted = asked(prompt)
            right = [given[question] == answer for question, answer in wanted.items()]
            scores.append(sum(right) / len(right) if right else None)
        return scores


class ClipScorer:
    """A CLIP or SigLIP folder as transformers reads it."""

    unit = "cosine similarity of picture and prompt, -1 to 1"
    best: float | None = None

    def __init__(self, folder: Path) -> None:
        """Asks no network. Raises BaseUnusable."""
        from transformers import AutoModel, AutoProcessor

        self.name = folder.name
        try:
            self._model: Any = AutoModel.from_pretrained(folder, local_files_only=True).eval()
            self._processor: Any = AutoProcessor.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, ImportError) as broken:
            raise BaseUnusable(f"--clip {folder} is no CLIP model folder: {broken}") from broken

    def score(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> list[float | None]:
        return [self._one(image, prompt) for image, prompt in zip(images, prompts, strict=True)]

    @torch.no_grad()
    def _one(self, image: Image.Image, prompt: str) -> float:
        inputs = self._processor(
            text=[prompt], images=[image], return_tensors="pt", padding=True, truncation=True
        )
        seen = self._model(**inputs)
        pair = seen.image_embeds[0], seen.text_embeds[0]
        return float(torch.nn.functional.cosine_similarity(*pair, dim=0))


def choose_scorer(vocabulary: str | None, clip: Path | None) -> Scorer | None:
    """A folder that was asked for goes first. None: nothing here can tell."""
    if clip is not None:
        return ClipScorer(clip)
    return SketchScorer() if vocabulary == "sketch" else None
