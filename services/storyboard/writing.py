"""Asking the language model for an outline and for scenes, and taking what can be used of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from services.shared.language_model import (
    Answer,
    AnswerInvalid,
    Call,
    Message,
    ModelRefused,
    ModelTimedOut,
    accepted,
)
from services.shared.text import normalise
from services.storyboard import policy, prompting
from services.storyboard.answers import (
    BeatAnswer,
    OutlineAnswer,
    SceneAnswer,
    outline_schema,
    scene_schema,
)
from services.storyboard.ports import ImageModel
from services.storyboard.prompts.library import PromptLibrary
from services.storyboard.schemas import Cast, Scene, Setting
from services.storyboard.state import Plan, Work, image_model

A = TypeVar("A", bound=Answer)
MAX_TOKENS_A_BEAT = 90
TRIES = 2
# The second try must be able to differ from the first, which is greedy.
TEMPERATURES, SEEDS = (0.0, 0.7), (1, 2)
NOT_USABLE = (AnswerInvalid, ModelTimedOut)


@dataclass(frozen=True)
class Question:
    """What the model is asked, whichever try it is."""

    name: str
    messages: Sequence[Message]
    schema: dict[str, Any]
    max_tokens: int
    model: str


async def outline(work: Work, image: ImageModel, model: str) -> OutlineAnswer:
    """As many scenes as are wanted where the model can, else as many as it could.

    Raises JobFailed (no_scenes, model_refused), TimeoutError past the deadline.
    """
    library, proposal = PromptLibrary(work.prompt_version, image.vocabulary), work.request.proposal
    question = Question(
        "outline",
        library.outline(proposal, work.scenes),
        outline_schema(work.scenes, image.vocabulary, proposal.answer_language),
        library.head("outline").max_tokens + MAX_TOKENS_A_BEAT * work.scenes,
        model,
    )
    best: OutlineAnswer | None = None
    for attempt in range(TRIES):
        try:
            answer = await _ask(work, question, OutlineAnswer, attempt)
        except NOT_USABLE:
            continue
        found = answer.model_copy(update={"scenes": policy.beats_of(answer, work.scenes)})
        if best is None or len(found.scenes) > len(best.scenes):
            best = found
        if len(best.scenes) == work.scenes:
            break
    if best is None or not policy.can_go_on(best.scenes):
        raise work.texts.failure("no_scenes")
    return _in_known_words(best, image)


async def scene(
    work: Work, plan: Plan, n: int, version: int, objections: Sequence[str]
) -> tuple[SceneAnswer, bool]:
    """Scene `n`, and True when the model wrote it; False: it is what the outline alone gives.

    Raises JobFailed (model_refused), TimeoutError past the deadline.
    """
    image, planned = image_model(plan["image"]), OutlineAnswer.model_validate(plan["outline"])
    library, proposal = PromptLibrary(work.prompt_version, image.vocabulary), work.request.proposal
    question = Question(
        f"scene-{n}-{version}",
        library.scene(proposal, planned, planned.scenes, n, objections),
        scene_schema(image.vocabulary, proposal.answer_language),
        library.head("scene").max_tokens,
        plan["model"],
    )
    for attempt in range(TRIES):
        try:
            return await _ask(work, question, SceneAnswer, attempt), True
        except NOT_USABLE:
            continue
    return prompting.without_a_writer(n, planned.scenes[n - 1].happens), False


def filled_in(work: Work, plan: Plan, n: int, written: SceneAnswer) -> Scene:
    """The scene with its place, its length and its image prompt."""
    image, planned = image_model(plan["image"]), OutlineAnswer.model_validate(plan["outline"])
    beat: BeatAnswer = planned.scenes[n - 1]
    where = planned.settings[beat.where - 1]
    who = planned.cast[beat.who - 1] if beat.who else None
    prompt = prompting.image_prompt(
        image,
        work.request.style,
        who=Cast(name=who.name, look=who.look) if who else None,
        where=Setting(name=where.name, look=where.look),
        written=written,
    )
    return Scene(
        n=n,
        shot=written.shot,
        angle=written.angle,
        action=normalise(written.action),
        dialogue=normalise(written.dialogue),
        place=normalise(where.name),
        time=written.time,
        duration_s=plan["durations_s"][n - 1],
        image_prompt=prompt,
    )


def _in_known_words(answer: OutlineAnswer, image: ImageModel) -> OutlineAnswer:
    """People and places in words that the image model understands."""
    cast = [
        p.model_copy(update={"look": prompting.look(p.look, image, "who")}) for p in answer.cast
    ]
    settings = [
        s.model_copy(update={"look": prompting.look(s.look, image, "place")})
        for s in answer.settings
    ]
    return answer.model_copy(update={"cast": cast, "settings": settings})


async def _ask(work: Work, question: Question, answer: type[A], attempt: int) -> A:
    """Raises AnswerInvalid, ModelTimedOut, JobFailed."""
    call = Call(
        messages=tuple(question.messages),
        schema_name=answer.__name__,
        schema=question.schema,
        max_tokens=question.max_tokens,
        call_id=f"{work.job_id}-{question.name}-{attempt + 1}",
        model=question.model,
        temperature=TEMPERATURES[attempt],
        seed=SEEDS[attempt],
    )
    async with work.writing:
        try:
            reply = await work.patience.wait_for(lambda: work.writer.ask(call))
        except ModelRefused as error:
            raise work.texts.failure("model_refused", why=error.code) from error
    return accepted(reply, answer)
