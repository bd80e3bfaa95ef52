"""A scene in the words that the image model was trained on. Pure.

The grammar is that of the storyboard LoRA's captions: trigger, medium, who does what where, then
shot, angle and time. Who and where are the outline's, word for word, in every scene.
"""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Sequence

from services.storyboard.answers import SceneAnswer, Vocabulary
from services.storyboard.ports import ImageModel
from services.storyboard.schemas import Cast, Setting, Shot

MEDIUM = "black and white color illustration"
NOBODY = "nobody"
WITH_THE_HANDS = frozenset({"holding", "showing", "using"})
PLAIN_DOING = "standing"
MAX_PHRASE_CHARACTERS = 80
SHOTS: tuple[Shot, ...] = ("wide shot", "medium shot", "close-up")
# `--w 4096`, `—ar 16:9`: options of other image services; a model draws them as letters.
_FLAG = re.compile(r"(?:^|\s)[-\u2010-\u2015]{1,2}[A-Za-z]\w*(?:[\s=]+[\d.:]+)?")
_NOT_PLAIN = re.compile(r"[^A-Za-z0-9 ,'-]+")


def image_prompt(
    model: ImageModel,
    style: str | None,
    *,
    who: Cast | None,
    where: Setting,
    written: SceneAnswer,
) -> str:
    """What the image model is asked for. Never empty, whatever was written."""
    trigger = model.triggers.get(style, "") if style else model.trigger
    looks, place = (who.look if who else NOBODY), where.look
    doing = _phrase(written.doing, _words(model, "doing")) or PLAIN_DOING
    thing = _phrase(written.thing, _words(model, "thing"))
    if thing and not thing.startswith(("a ", "an ", "the ")):
        thing = f"a {thing}"
    if doing in WITH_THE_HANDS and not thing:
        doing = PLAIN_DOING
    if who is None:
        subject = f"{looks} in {place}" + (f" with {thing}" if thing else "")
    elif thing and doing in WITH_THE_HANDS:
        subject = f"{looks} {doing} {thing} in {place}"
    else:
        subject = f"{looks} {doing} in {place}" + (f" with {thing}" if thing else "")
    camera = f"{written.shot}, {written.angle}, {written.time}"
    return f"{trigger} {MEDIUM}, {subject}, {camera}".strip()


def look(text: str, model: ImageModel, slot: str) -> str:
    """A person or a place in words that the model understands, for the whole storyboard."""
    phrases = _words(model, slot)
    return _phrase(text, phrases) or (phrases[0] if phrases else "someone")


def plain_english(text: str) -> str:
    """`text` without prompt options, symbols and anything beyond MAX_PHRASE_CHARACTERS."""
    plain = unicodedata.normalize("NFKD", text).translate({0x2019: "'"})
    plain = _NOT_PLAIN.sub(" ", _FLAG.sub(" ", plain))
    return " ".join(plain.split())[:MAX_PHRASE_CHARACTERS].strip(" ,-'")


def without_a_writer(n: int, happens: str) -> SceneAnswer:
    """The scene that the outline alone gives, for a model that wrote nothing usable."""
    return SceneAnswer.model_construct(
        action=happens,
        dialogue="",
        shot=SHOTS[(n - 1) % len(SHOTS)],
        angle="eye level",
        time="day",
        doing=PLAIN_DOING,
        thing="",
    )


def _words(model: ImageModel, slot: str) -> Sequence[str] | None:
    vocabulary: Vocabulary | None = model.vocabulary
    return None if vocabulary is None else vocabulary[slot]


def _phrase(text: str, phrases: Sequence[str] | None) -> str:
    """`text` as a phrase of the prompt; the closest of `phrases` where these are all there is."""
    plain = plain_english(text)
    if phrases is None or not plain:
        return plain
    close = difflib.get_close_matches(plain.lower(), phrases, n=1, cutoff=0.6)
    return close[0] if close else ""
