"""What a storyboard panel shows, and the caption that says so.

The captions follow the grammar of storyboard prompts: a trigger, "black and white color
illustration", who does what in which place, then shot, angle and time. `GRAMMAR` and `vocabulary`
are what a prompt writer needs. Pure: knows nothing of drawing, torch or files.
"""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Aspect = Literal["16:9", "9:16"]
ASPECTS: tuple[Aspect, ...] = ("16:9", "9:16")

MAX_CAPTION_TOKENS = 32
"""Words of a caption plus the start and end tokens; the pipeline's `max_sequence_length`."""

PUNCTUATION = ",.;:!?"
MEDIUM = "black and white color illustration"
GRAMMAR = (
    "<trigger> black and white color illustration, <who> <doing what> in <place> "
    "[with <thing>], <shot>, <angle>, <time>"
)

SHOTS = ("extreme close-up", "close-up", "medium shot", "wide shot", "extreme wide shot")
ANGLES = ("eye level", "high angle", "low angle")
TIMES = {
    "day": ("day", "morning", "at noon", "daylight"),
    "night": ("night", "at night", "evening", "midnight"),
}
KINDS = {
    "man": (("man", "men"), ("guy", "guys"), ("father", "fathers")),
    "woman": (("woman", "women"), ("lady", "ladies"), ("mother", "mothers")),
    "boy": (("boy", "boys"), ("son", "sons")),
    "girl": (("girl", "girls"), ("daughter", "daughters")),
    "person": (("person", "people"), ("creator", "creators"), ("host", "hosts")),
}
"""Singular and plural of each figure's names; the first is the figure's own."""
ACTIONS = {
    "standing": ("standing", "waiting", "posing"),
    "walking": ("walking", "strolling"),
    "running": ("running", "jogging", "rushing"),
    "sitting": ("sitting", "resting", "relaxing"),
    "pointing": ("pointing", "presenting", "explaining"),
    "waving": ("waving", "greeting"),
    "jumping": ("jumping", "dancing", "cheering"),
    "talking": ("talking", "speaking", "singing"),
    "holding": ("holding", "showing", "using"),
}
PLACES = {
    "room": ("a room", "a living room", "a house"),
    "kitchen": ("a kitchen", "a restaurant"),
    "office": ("an office", "a studio"),
    "classroom": ("a classroom", "a school"),
    "stage": ("a stage", "a theater", "a concert"),
    "street": ("a street", "a city", "a road"),
    "park": ("a park", "a garden"),
    "beach": ("a beach", "a seaside"),
    "forest": ("a forest", "the woods"),
}
INDOORS = frozenset({"room", "kitchen", "office", "classroom", "stage"})
HELD_THINGS = ("phone", "cup", "book", "microphone")
GROUND_THINGS = ("dog", "ball", "camera", "box")
NOBODY = ("nobody", "no people")
TRIGGERS = ("sketch", "ink style", "blueprint style", "sepia style")

_NUMBER = {1: "a", 2: "two", 3: "three"}


@dataclass(frozen=True)
class Scene:
    """One panel's content. Everything that a caption can say, and nothing else."""

    shot: str
    angle: str
    time: str
    place: str
    figures: tuple[str, ...] = ()
    """Kinds from left to right, three at most."""
    action: str = "standing"
    thing: str | None = None
    """Held by the first figure where the action is holding, otherwise on the ground."""
    aspect: Aspect = "16:9"


def random_scene(rng: random.Random, aspect: Aspect | None = None) -> Scene:
    """A scene as the training set has them: closer shots show fewer figures."""
    shot = rng.choices(SHOTS, weights=(12, 20, 25, 28, 15))[0]
    counts = (6, 80, 11, 3) if shot == "extreme close-up" else (13, 40, 27, 20)
    figures = _random_figures(rng, rng.choices(range(4), weights=counts)[0])
    action = rng.choice(tuple(ACTIONS)) if figures else "standing"
    thing = None
    if action == "holding":
        thing = rng.choice(HELD_THINGS)
    elif rng.random() < 0.3 and shot not in SHOTS[:2]:
        thing = rng.choice(GROUND_THINGS)
    return Scene(
        shot=shot,
        angle=rng.choices(ANGLES, weights=(50, 25, 25))[0],
        time=rng.choices(tuple(TIMES), weights=(60, 40))[0],
        place=rng.choice(tuple(PLACES)),
        figures=figures,
        action=action,
        thing=thing,
        aspect=rng.choice(ASPECTS) if aspect is None else aspect,
    )


def caption(scene: Scene, rng: random.Random, trigger: str = "sketch") -> str:
    """The scene in words, with synonyms drawn from `rng`.

    Eye level and day are what a caption that names no angle or no time means.
    """
    parts = [_subject(scene, rng), scene.shot]
    if scene.angle != "eye level" or rng.random() < 0.7:
        parts.append(scene.angle)
    if scene.time != "day" or rng.random() < 0.7:
        parts.append(rng.choice(TIMES[scene.time]))
    return f"{trigger} {MEDIUM}, ".lstrip() + ", ".join(parts)


def words(text: str) -> list[str]:
    """The text as the tokenizers split it: lower case, no commas or stops, "close-up" one word."""
    plain = text.lower().translate({ord(mark): " " for mark in PUNCTUATION})
    return plain.replace("close up", "close-up").split()


def vocabulary() -> dict[str, tuple[str, ...]]:
    """The phrases that each slot of `GRAMMAR` understands; other words are read as unknown."""
    return {
        "trigger": TRIGGERS,
        "who": (
            *(name for names in KINDS.values() for pair in names for name in pair),
            *NOBODY,
        ),
        "number": tuple(_NUMBER.values()),
        "doing what": tuple(word for synonyms in ACTIONS.values() for word in synonyms),
        "place": tuple(phrase for synonyms in PLACES.values() for phrase in synonyms),
        "thing": (*HELD_THINGS, *GROUND_THINGS),
        "shot": SHOTS,
        "angle": ANGLES,
        "time": tuple(phrase for synonyms in TIMES.values() for phrase in synonyms),
    }


def phrases() -> dict[str, list[str]]:
    """The parts of a caption ready to be put together, for a writer who has to choose: one name a
    figure and an action, every place and thing.
    """
    return {
        "who": [f"a {names[0][0]}" for names in KINDS.values()],
        "doing": list(ACTIONS),
        "place": [phrase for synonyms in PLACES.values() for phrase in synonyms],
        "thing": [f"a {thing}" for thing in (*HELD_THINGS, *GROUND_THINGS)],
    }


def known_words() -> list[str]:
    """Every word that a caption can hold, sorted; the tokenizers' vocabulary."""
    phrases = [phrase for slot in vocabulary().values() for phrase in slot]
    joining = ["a an the and in with of", MEDIUM]
    return sorted({word for phrase in [*phrases, *joining] for word in words(phrase)})


def prompt_guide() -> str:
    """The grammar and its words as text for whoever, person or LLM, writes prompts."""
    slots = (f"<{slot}>: {', '.join(phrases)}" for slot, phrases in vocabulary().items())
    return "\n".join([GRAMMAR, *slots])


def _random_figures(rng: random.Random, count: int) -> tuple[str, ...]:
    kinds = tuple(KINDS)
    first = rng.choice(kinds)
    other = first if rng.random() < 0.6 else rng.choice(kinds)
    return (first, *(other for _ in range(count - 1)))[:count]


def _subject(scene: Scene, rng: random.Random) -> str:
    place = rng.choice(PLACES[scene.place])
    if not scene.figures:
        thing = f" with a {scene.thing}" if scene.thing else ""
        return f"{rng.choice(NOBODY)} in {place}{thing}"
    doing = rng.choice(ACTIONS[scene.action])
    if scene.action == "holding":
        return f"{_who(scene.figures, rng)} {doing} a {scene.thing} in {place}"
    thing = f" with a {scene.thing}" if scene.thing else ""
    return f"{_who(scene.figures, rng)} {doing} in {place}{thing}"


def _who(figures: Sequence[str], rng: random.Random) -> str:
    groups = []
    for kind, count in Counter(figures).items():
        singular, plural = rng.choice(KINDS[kind])
        groups.append(f"{_NUMBER[count]} {singular if count == 1 else plural}")
    return " and ".join(groups)
