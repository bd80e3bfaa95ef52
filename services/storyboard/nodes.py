"""The nodes of the graph: each reads the state, does one step, records what came of it.

A step may be run a second time after a crash. What it recorded the first time stands: a scene is
not written over, a frame that is there is not drawn again, an event is not told twice.
"""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from typing import Any

from langgraph.runtime import Runtime
from langgraph.types import Send

from services.shared.proposals import Proposal
from services.storyboard import policy, telling, writing
from services.storyboard.answers import SceneAnswer
from services.storyboard.errors import (
    CheckpointStale,
    FrameFailed,
    FrameRefused,
)
from services.storyboard.ports import Change, Order
from services.storyboard.schemas import Cast, Frame, FrameState, Note, Setting, Storyboard
from services.storyboard.sheet import compose as typeset
from services.storyboard.state import Plan, SceneState, State, Work, image_model

Update = dict[str, Any]
PLACE_CHARACTERS = 100


# --- The whole storyboard -------------------------------------------------------------------------


async def prepare(state: State, runtime: Runtime[Work]) -> Update:
    """What the pictures are drawn with, and whether the request fits it.

    Raises JobFailed: style_not_found, size_not_possible.
    """
    work, asked = runtime.context, runtime.context.request
    image = await work.patience.wait_for(work.painter.model)
    model = work.model or await work.patience.wait_for(work.writer.default_model)
    if asked.style is not None and asked.style not in image.triggers:
        raise work.texts.failure("style_not_found", style=asked.style)
    width, height = policy.frame_size(asked.size, asked.proposal.media_type, image)
    if problem := policy.size_problem(width, height, image):
        raise work.texts.failure("size_not_possible", why=problem)
    await work.record(lambda now: telling.begun(now, width=width, height=height, model=model))
    return {"image": asdict(image), "model": model}


async def outline(state: State, runtime: Runtime[Work]) -> Update:
    """Who appears, where, and what happens in each scene. Raises JobFailed: no_scenes."""
    work = runtime.context
    written = await writing.outline(work, image_model(state["image"]), state["model"])
    found = len(written.scenes)
    notes = []
    if found < work.scenes:
        notes.append(work.texts.note("fewer_scenes", found=found, wanted=work.scenes))
    people = {
        "cast": [Cast(name=one.name, look=one.look) for one in written.cast],
        "settings": [Setting(name=one.name, look=one.look) for one in written.settings],
    }

    def planned(now: Storyboard) -> Change:
        changed = telling.noted(now.model_copy(update=people), notes)
        return telling.with_progress(Change(changed), now, found)

    await work.record(planned)
    plan = Plan(
        image=state["image"],
        model=state["model"],
        outline=written.model_dump(),
        durations_s=policy.durations([beat.weight for beat in written.scenes], work.length_s),
    )
    return {"plan": plan}


def every_scene(state: State) -> list[Send]:
    """Each scene's own graph, all at the same time."""
    numbers = range(1, len(state["plan"]["outline"]["scenes"]) + 1)
    return [Send("scene", _new_scene(n, state["plan"])) for n in numbers]


async def compose(state: State, runtime: Runtime[Work]) -> Update:
    """The sheet, and the end of the job. Raises JobFailed: nothing_allowed."""
    work = runtime.context
    now = await work.record(Change)
    settled = sum(frame.state in policy.SETTLED for frame in now.frames)
    if settled < len(state["plan"]["outline"]["scenes"]):
        raise CheckpointStale(f"{settled} frames are settled")
    if not now.scenes:
        raise work.texts.failure("nothing_allowed")
    finished = _finished(work, now)
    pictures = await _pictures(work, finished)
    for form in ("png", "pdf"):
        sheet = await asyncio.to_thread(typeset, finished, pictures, form)
        await _put(work, telling.sheet_path(work.job_id, form), sheet)
    last = (telling.stage("drawing", "done"), telling.result(finished))
    await work.record(lambda _: Change(finished, last))
    return {}


def _finished(work: Work, now: Storyboard) -> Storyboard:
    texts, seen = work.texts, set[str]()
    notes: list[Note] = []
    for scene in now.scenes:
        if policy.alike(scene.action) in seen:
            notes.append(texts.note("scene_repeated", scene.n))
        seen.add(policy.alike(scene.action))
    return telling.noted(now, notes).model_copy(
        update={
            "state": "done",
            "progress": 1.0,
            "scenes": policy.refitted(now.scenes, work.length_s),
            "sheet_url": f"/v1/storyboards/{now.id}/sheet",
        }
    )


async def _pictures(work: Work, storyboard: Storyboard) -> dict[int, bytes]:
    """The frames that are done, by scene. Raises ArtifactMissing: somebody deleted one."""
    numbers = [frame.n for frame in storyboard.frames if frame.state == "done"]
    return {n: await _get(work, telling.frame_path(work.job_id, n)) for n in numbers}


# --- One scene ------------------------------------------------------------------------------------


def _new_scene(n: int, plan: Plan) -> SceneState:
    return SceneState(n=n, plan=plan, version=1, objections=[], settled={})


async def write(state: SceneState, runtime: Runtime[Work]) -> Update:
    """The scene in full, or as the outline has it when the model cannot write it."""
    written, is_the_models = await writing.scene(
        runtime.context, state["plan"], state["n"], state["version"], state["objections"]
    )
    return {"written": written.model_dump(), "is_simplified": not is_the_models}


async def screen(state: SceneState, runtime: Runtime[Work]) -> Update:
    """The deliberation that proposals go through. Only a plain pass may be drawn."""
    work, n = runtime.context, state["n"]
    scene = writing.filled_in(work, state["plan"], n, _written(state))
    text = Proposal(
        title=scene.place[:PLACE_CHARACTERS],
        content="\n".join(filter(None, (scene.action, scene.dialogue, scene.image_prompt))),
        media_type=work.request.proposal.media_type,
        language=work.request.proposal.answer_language,
    )
    screening = await work.patience.wait_for(lambda: work.screen.is_allowed(text))
    if not screening.is_allowed:
        return {
            "is_allowed": False,
            "objections": list(screening.objections),
            "version": state["version"] + 1,
        }
    notes = [work.texts.note("scene_simplified", n)] if state.get("is_simplified") else []

    def kept(now: Storyboard) -> Change:
        change = telling.with_scene(now, scene, _frame(work, n, "waiting"), notes)
        return telling.with_progress(change, now, _scenes(state))

    await work.record(kept)
    return {"is_allowed": True}


def after_screening(state: SceneState) -> str:
    """Drawn when allowed; written again once; then dropped."""
    if state.get("is_allowed"):
        return "draw"
    return "write" if state["version"] == 2 else "drop"


async def drop(state: SceneState, runtime: Runtime[Work]) -> Update:
    """Leaves the scene out, and says so."""
    work, n = runtime.context, state["n"]
    note = work.texts.note("scene_dropped", n, why=", ".join(state["objections"]))

    def dropped(now: Storyboard) -> Change:
        change = telling.with_dropped(now, _frame(work, n, "dropped"), note)
        return telling.with_progress(change, now, _scenes(state))

    await work.record(dropped)
    return {"settled": {str(n): "dropped"}}


async def draw(state: SceneState, runtime: Runtime[Work]) -> Update:
    """The frame, once. What images will not draw leaves its place marked."""
    work, n = runtime.context, state["n"]
    async with work.drawing:
        now = await work.record(lambda now: telling.with_frame(now, n, "drawing"))
        frame = policy.frame_of(now, n)
        if frame is None:
            raise CheckpointStale(f"scene {n} is not recorded")
        if frame.state in policy.SETTLED:
            return {"settled": {str(n): frame.state}}
        try:
            picture = await _drawn(work, _order(work, now, n))
        except (FrameFailed, FrameRefused) as error:
            note = work.texts.note("frame_missing", n, why=getattr(error, "code", "failed"))
            return await _settle(state, work, "failed", note)
        await _put(work, telling.frame_path(work.job_id, n), picture)
        return await _settle(state, work, "done")


async def _settle(
    state: SceneState, work: Work, became: FrameState, note: Note | None = None
) -> Update:
    def settled(now: Storyboard) -> Change:
        change = telling.with_frame(now, state["n"], became, note)
        return telling.with_progress(change, now, _scenes(state))

    await work.record(settled)
    return {"settled": {str(state["n"]): became}}


async def _put(work: Work, path: str, data: bytes) -> None:
    await work.patience.wait_for(lambda: work.artifacts.put(path, data))


async def _get(work: Work, path: str) -> bytes:
    return await work.patience.wait_for(lambda: work.artifacts.get(path))


async def _drawn(work: Work, order: Order) -> bytes:
    """Raises FrameRefused, and FrameFailed when it failed as often as it may."""
    for tried in range(1, work.tries + 1):
        try:
            return await work.patience.wait_for(lambda: work.painter.draw(order))
        except FrameFailed:
            if tried == work.tries:
                raise
    raise AssertionError("tries is at least 1")


def _order(work: Work, now: Storyboard, n: int) -> Order:
    scene = policy.scene_of(now, n)
    assert scene is not None
    assert now.width is not None
    assert now.height is not None
    return Order(
        prompt=scene.image_prompt,
        lora=work.request.style,
        width=now.width,
        height=now.height,
        seed=work.seed + n,
        key=f"{work.job_id}-{n}",
    )


def _frame(work: Work, n: int, state: FrameState) -> Frame:
    return Frame(n=n, state=state, url=None, seed=work.seed + n, lora=work.request.style)


def _written(state: SceneState) -> SceneAnswer:
    return SceneAnswer.model_construct(**state["written"])


def _scenes(state: SceneState) -> int:
    return len(state["plan"]["outline"]["scenes"])
