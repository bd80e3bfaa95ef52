"""What those who follow a storyboard are told, and how its changes are made. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from services.storyboard import policy
from services.storyboard.ports import Change, NewEvent
from services.storyboard.schemas import Frame, FrameState, Note, Scene, Storyboard

LAST_EVENTS = frozenset({"result", "error"})


def frame_path(job_id: str, n: int) -> str:
    return f"{job_id}/frame-{n}.png"


def sheet_path(job_id: str, form: str) -> str:
    return f"{job_id}/sheet.{form}"


def stage(name: str, state: str) -> NewEvent:
    return NewEvent("stage", {"name": name, "state": state})


def result(storyboard: Storyboard) -> NewEvent:
    """The last event of a storyboard that is done or cancelled."""
    return NewEvent("result", storyboard.model_dump(mode="json"))


def error(storyboard: Storyboard) -> NewEvent:
    """The last event of a storyboard that failed."""
    assert storyboard.error is not None
    return NewEvent("error", {"code": storyboard.error.code, "detail": storyboard.error.message})


def begun(now: Storyboard, **known: object) -> Change:
    """Out of the queue, once."""
    if now.state != "queued":
        return Change(now)
    return Change(
        now.model_copy(update={"state": "writing", **known}), (stage("writing", "started"),)
    )


def with_scene(now: Storyboard, scene: Scene, frame: Frame, notes: Sequence[Note]) -> Change:
    """A scene that may be drawn."""
    if policy.scene_of(now, scene.n) is not None:
        return Change(now)
    scenes = sorted([*now.scenes, scene], key=lambda one: one.n)
    changed = _with_frame(now.model_copy(update={"scenes": scenes}), frame)
    told = NewEvent("scene", scene.model_dump(mode="json"))
    return Change(noted(changed, notes), (told,))


def with_frame(now: Storyboard, n: int, state: FrameState, note: Note | None = None) -> Change:
    """A frame that went on to `state`; nothing when it is there or beyond."""
    frame = policy.frame_of(now, n)
    if frame is None or frame.state == state or frame.state in policy.SETTLED:
        return Change(now)
    url = f"/v1/storyboards/{now.id}/frames/{n}" if state == "done" else None
    moved = frame.model_copy(update={"state": state, "url": url})
    changed = noted(_with_frame(now, moved), [note] if note else [])
    return Change(changed, (_frame_event(moved),))


def with_dropped(now: Storyboard, frame: Frame, note: Note) -> Change:
    """A scene that was not allowed: its frame says so, and nothing else of it is kept."""
    if policy.frame_of(now, frame.n) is not None:
        return Change(now)
    return Change(noted(_with_frame(now, frame), [note]), (_frame_event(frame),))


def with_progress(change: Change, before: Storyboard, scenes: int) -> Change:
    """The change, and how far along it brings the storyboard of `scenes` scenes."""
    after = change.storyboard
    if after is before:
        return change
    events = list(change.events)
    settled_scenes = len(after.scenes) + sum(f.state == "dropped" for f in after.frames)
    if after.state == "writing" and settled_scenes >= scenes:
        after = after.model_copy(update={"state": "drawing"})
        events += [stage("writing", "done"), stage("drawing", "started")]
    progress = policy.progress(after, scenes)
    if progress != after.progress:
        after = after.model_copy(update={"progress": progress})
        events.append(NewEvent("progress", {"progress": progress}))
    return Change(after, tuple(events))


def _with_frame(now: Storyboard, frame: Frame) -> Storyboard:
    others = [other for other in now.frames if other.n != frame.n]
    return now.model_copy(update={"frames": sorted([*others, frame], key=lambda one: one.n)})


def noted(now: Storyboard, notes: Sequence[Note]) -> Storyboard:
    new = [note for note in notes if note not in now.notes]
    ordered = sorted([*now.notes, *new], key=lambda note: (note.n or 0, note.code))
    return now.model_copy(update={"notes": ordered}) if new else now


def _frame_event(frame: Frame) -> NewEvent:
    return NewEvent("frame", frame.model_dump(mode="json"))
