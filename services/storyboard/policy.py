"""The rules of a storyboard: how many scenes, how long, how far along. Pure: no model, no clock,
no I/O.
"""

from __future__ import annotations

from collections.abc import Sequence

from services.shared.proposals import MediaType
from services.storyboard.answers import BeatAnswer, OutlineAnswer
from services.storyboard.ports import ImageModel
from services.storyboard.schemas import MIN_SCENES, Frame, Scene, Storyboard

SCENES: dict[MediaType, int] = {"short_form": 6, "long_form": 10}
TICK_S = 0.5
SETTLED = frozenset({"done", "failed", "dropped"})


def scenes_wanted(asked: int | None, media_type: MediaType) -> int:
    return SCENES[media_type] if asked is None else asked


def beats_of(outline: OutlineAnswer, wanted: int) -> list[BeatAnswer]:
    """The outline's scenes that can be used: no two alike, no more than wanted, and every person
    and place among those that the outline names.
    """
    beats: dict[str, BeatAnswer] = {}
    for beat in outline.scenes:
        kept = beat.model_copy(
            update={
                "who": beat.who if beat.who <= len(outline.cast) else 0,
                "where": min(beat.where, len(outline.settings)),
            }
        )
        beats.setdefault(alike(beat.happens), kept)
    return list(beats.values())[:wanted]


def can_go_on(beats: Sequence[BeatAnswer]) -> bool:
    """True when there are fewer scenes than wanted, and still enough for a storyboard."""
    return len(beats) >= MIN_SCENES


def alike(text: str) -> str:
    """What two texts share that say the same: no case, no spaces, no punctuation."""
    return "".join(c for c in text.casefold() if c.isalnum())


def durations(weights: Sequence[float], total_s: float) -> list[float]:
    """Seconds in proportion to `weights`, in ticks, at least one each; they add up to total_s."""
    ticks = round(total_s / TICK_S)
    spare = ticks - len(weights)
    exact = [spare * weight / sum(weights) for weight in weights]
    whole = [int(share) for share in exact]
    by_remainder = sorted(range(len(weights)), key=lambda i: (whole[i] - exact[i], i))
    for i in by_remainder[: spare - sum(whole)]:
        whole[i] += 1
    return [(1 + share) * TICK_S for share in whole]


def refitted(scenes: Sequence[Scene], total_s: float) -> list[Scene]:
    """The scenes, stretched to fill the whole length after others were dropped."""
    if not scenes:
        return []
    lengths = durations([scene.duration_s for scene in scenes], total_s)
    return [
        scene.model_copy(update={"duration_s": length})
        for scene, length in zip(scenes, lengths, strict=True)
    ]


def progress(storyboard: Storyboard, scenes: int) -> float:
    """Share of the steps that are done: the outline, each scene, each frame, the sheet."""
    settled = sum(frame.state in SETTLED for frame in storyboard.frames)
    written = len(storyboard.scenes) + sum(f.state == "dropped" for f in storyboard.frames)
    done = bool(storyboard.cast) + min(written, scenes) + min(settled, scenes)
    return round(min(1.0, done / (2 * scenes + 2)), 4)


def frame_size(asked: str | None, media_type: MediaType, model: ImageModel) -> tuple[int, int]:
    """Width and height in pixels. The model's usual size is turned to suit the media type."""
    if asked is not None:
        width, height = asked.split("x")
        return int(width), int(height)
    longer, shorter = max(model.width, model.height), min(model.width, model.height)
    return (shorter, longer) if media_type == "short_form" else (longer, shorter)


def size_problem(width: int, height: int, model: ImageModel) -> str | None:
    """What is wrong with a size for this model, and what would be right."""
    if width % model.multiple_px or height % model.multiple_px:
        return f"both sides must be multiples of {model.multiple_px}"
    if min(width, height) < model.min_side_px:
        return f"each side must be {model.min_side_px} pixels or more"
    if width * height > model.max_pixels:
        return f"width times height must be {model.max_pixels} or less"
    return None


def frame_of(storyboard: Storyboard, n: int) -> Frame | None:
    return next((frame for frame in storyboard.frames if frame.n == n), None)


def scene_of(storyboard: Storyboard, n: int) -> Scene | None:
    return next((scene for scene in storyboard.scenes if scene.n == n), None)
