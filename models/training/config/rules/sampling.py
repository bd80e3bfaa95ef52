"""Rules about the pictures drawn while training, and their prompts."""

import re
from collections.abc import Iterator

from models.sketch import scene
from models.training.config.documents import KeyPath
from models.training.config.findings import Hit, rule
from models.training.config.schema import SampleItem
from models.training.config.view import PROCESS, View

SAMPLE: KeyPath = (*PROCESS, "sample")

_MULTIPLE_PX = 16
_FLAGS = frozenset(
    "p2 n n2 w h d seed l cfg s steps m network_multiplier gr a ref ev extra_values frames "
    "num_frames fps ctrl_img ctrl_idx".split()
)
"""What AI-Toolkit reads after `--` in a prompt."""
_PLACEHOLDER = re.compile(r"\[(?:trigger|name)\]")
_NOT_LATIN = re.compile(r"[\u1100-\u11ff\u3040-\u30ff\u3130-\u318f\u3400-\u9fff\uac00-\ud7af]")
_TOO_FEW_STEPS = 10
_USUAL_GUIDANCE = (1.0, 10.0)


@rule("sampler-mismatch", "error")
def sampler_mismatch(view: View) -> Iterator[Hit]:
    """Of Flux's two, the noise scheduler has a rule of its own: both end at flowmatch."""
    sample, is_flux = view.process.sample, view.process.model.family == "flux"
    scheduler = "flowmatch" if is_flux else view.process.train.noise_scheduler
    if _draws(view) and sample.sampler != scheduler:
        says = {"sampler": sample.sampler, "scheduler": scheduler}
        yield Hit((*SAMPLE, "sampler"), says)


@rule("no-prompts", "warning")
def no_prompts(view: View) -> Iterator[Hit]:
    if not view.process.train.disable_sampling and not view.process.sample.items:
        yield Hit((*SAMPLE, "prompts"))


@rule("sample-every", "warning")
def sample_every(view: View) -> Iterator[Hit]:
    steps, every = view.process.train.steps, view.process.sample.sample_every
    if _draws(view) and every > steps:
        yield Hit((*SAMPLE, "sample_every"), {"steps": steps, "every": every})


@rule("prompt-cut", "error")
def prompt_cut(view: View) -> Iterator[Hit]:
    for path, item in _prompts(view):
        for flag in _flags(item.prompt):
            if flag not in _FLAGS:
                kept = item.prompt.split("--")[0].strip()
                yield Hit(path, {"kept": kept}, view.document.place(path))
                break


@rule("prompt-flags", "warning")
def prompt_flags(view: View) -> Iterator[Hit]:
    for path, item in _prompts(view):
        flags = _flags(item.prompt)
        if flags and all(flag in _FLAGS for flag in flags):
            says = {"flags": ", ".join(f"--{flag}" for flag in flags)}
            yield Hit(path, says, view.document.place(path))


@rule("prompt-not-english", "warning")
def prompt_not_english(view: View) -> Iterator[Hit]:
    for path, item in _prompts(view):
        if _NOT_LATIN.search(item.prompt):
            yield Hit(path, place=view.document.place(path))


@rule("prompt-unknown-words", "warning")
def prompt_unknown_words(view: View) -> Iterator[Hit]:
    """For a base that understands a vocabulary and no more."""
    if view.row is None or view.row.vocabulary is None:
        return
    known = set(scene.known_words())
    for path, item in _prompts(view):
        text = _PLACEHOLDER.sub("", item.prompt).split("--")[0]
        if unknown := [word for word in scene.words(text) if word not in known]:
            yield Hit(path, {"words": ", ".join(unknown)}, view.document.place(path))


@rule("negative-prompt", "warning")
def negative_prompt(view: View) -> Iterator[Hit]:
    if view.process.sample.neg:
        yield Hit((*SAMPLE, "neg"))


@rule("sample-size", "error")
def sample_size(view: View) -> Iterator[Hit]:
    for path, side in _sides(view):
        if side % _MULTIPLE_PX:
            down = side // _MULTIPLE_PX * _MULTIPLE_PX
            says = {"side": side, "multiple": _MULTIPLE_PX, "down": down, "up": down + _MULTIPLE_PX}
            yield Hit(path, says, view.document.place(path))


@rule("sample-size-of-model", "warning")
def sample_size_of_model(view: View) -> Iterator[Hit]:
    row = view.row
    if row is None or not _draws(view):
        return
    for index in range(len(view.process.sample.items)):
        item = view.process.sample.filled(index)
        width, height = item.width or 0, item.height or 0
        if min(width, height) < row.min_side_px or width * height > row.max_pixels:
            says = {
                "size": f"{width}x{height}",
                "base": row.name,
                "usual": f"{row.width}x{row.height}",
            }
            yield Hit((*SAMPLE, "width"), says)
            return


@rule("schnell-guidance", "warning")
def schnell_guidance(view: View) -> Iterator[Hit]:
    if not view.is_schnell or not _draws(view):
        return
    for path, item in _filled(view, "guidance_scale"):
        if item.guidance_scale != 1:
            yield Hit(path, {"guidance": item.guidance_scale})


@rule("schnell-steps", "warning")
def schnell_steps(view: View) -> Iterator[Hit]:
    most = view.row.max_steps if view.row else 8
    if not view.is_schnell or not _draws(view):
        return
    for path, item in _filled(view, "sample_steps"):
        if (item.sample_steps or 0) > most:
            yield Hit(path, {"steps": item.sample_steps, "most": most})


@rule("few-sample-steps", "warning")
def few_sample_steps(view: View) -> Iterator[Hit]:
    if view.is_schnell or not _draws(view):
        return
    for path, item in _filled(view, "sample_steps"):
        if (item.sample_steps or 0) < _TOO_FEW_STEPS:
            yield Hit(path, {"steps": item.sample_steps, "least": _TOO_FEW_STEPS})


@rule("unusual-guidance", "warning")
def unusual_guidance(view: View) -> Iterator[Hit]:
    if view.is_schnell or not _draws(view):
        return
    low, high = _USUAL_GUIDANCE
    for path, item in _filled(view, "guidance_scale"):
        if not low <= (item.guidance_scale or 0) <= high:
            yield Hit(path, {"guidance": item.guidance_scale, "low": low, "high": high})


def _draws(view: View) -> bool:
    return not view.process.train.disable_sampling and bool(view.process.sample.items)


def _flags(prompt: str) -> list[str]:
    return [part.split(" ")[0].strip() for part in prompt.strip().split("--")[1:]]


def _prompts(view: View) -> Iterator[tuple[KeyPath, SampleItem]]:
    sample = view.process.sample
    has_samples = sample.samples is not None
    for index, item in enumerate(sample.items):
        at = ("samples", index, "prompt") if has_samples else ("prompts", index)
        yield (*SAMPLE, *at), item


def _filled(view: View, name: str) -> Iterator[tuple[KeyPath, SampleItem]]:
    """Each value of `name` that is written once: the section's, then those of single pictures."""
    sample = view.process.sample
    seen: set[KeyPath] = set()
    for index in range(len(sample.items)):
        is_own = sample.samples is not None and getattr(sample.samples[index], name) is not None
        path: KeyPath = (*SAMPLE, "samples", index, name) if is_own else (*SAMPLE, name)
        if path not in seen:
            seen.add(path)
            yield path, sample.filled(index)


def _sides(view: View) -> Iterator[tuple[KeyPath, int]]:
    sample = view.process.sample
    for name in ("width", "height"):
        yield (*SAMPLE, name), getattr(sample, name)
        for index, item in enumerate(sample.samples or ()):
            if (side := getattr(item, name)) is not None:
                yield (*SAMPLE, "samples", index, name), side
