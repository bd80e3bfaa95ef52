"""Images, each with its own LoRA, size, steps and deadline, so that a batch is as mixed as a
platform's.

LoRAs and the words that the model knows are asked of the server. Right is an answer with as many
pictures as were asked for, each a whole file of the format.
"""

from __future__ import annotations

import binascii
from collections.abc import Mapping, Sequence
from random import Random
from typing import Any

from pydantic import Field

from loadtests.traffic.base import Attempt, Options, Unavailable, Wrong, chance, drawn, known
from loadtests.traffic.wire import Connections, Message

LORAS, PATH = "/v1/loras", "/v1/images/generations"
PNG = b"\x89PNG\r\n\x1a\n"
PNG_END = b"IEND\xaeB`\x82"
# For a model that takes any English.
WORDS: Mapping[str, Sequence[str]] = {
    "who": ("a woman", "an old man", "two children", "a cook", "a bus driver", "a nurse"),
    "doing": ("walking", "reading a map", "cutting bread", "waiting", "laughing", "fixing a bike"),
    "place": ("in a park", "in a small kitchen", "on a night bus", "at a market", "on a balcony"),
}
LIGHT = ("day", "night")


class ImageOptions(Options):
    """Names and weights. `loras` may say `base` for none and `any` for one of those that the server
    has; `sizes` WIDTHxHEIGHT or `auto`; `steps` 0 for the model's own number; `deadlines_s` 0 for
    none.
    """

    loras: Mapping[str, float] = Field(default_factory=lambda: {"base": 0.3, "any": 0.7})
    sizes: Mapping[str, float] = Field(default_factory=lambda: {"auto": 1.0})
    steps: Mapping[str, float] = Field(default_factory=lambda: {"0": 1.0})
    deadlines_s: Mapping[str, float] = Field(default_factory=lambda: {"0": 1.0})
    n: int = Field(1, ge=1, le=8)


class Images:
    options = ImageOptions

    def __init__(
        self, name: str, options: ImageOptions, facts: Mapping[str, Any], seed: int
    ) -> None:
        self._name, self._options, self._seed = name, options, seed
        self._loras: list[str] = facts["loras"]
        self._vocabulary: Mapping[str, Sequence[str]] = facts["vocabulary"]
        self._trigger: str = facts["trigger"]

    @staticmethod
    def discover(http: Connections, options: ImageOptions, arrivals: int) -> dict[str, Any]:
        with http.send(http.message("GET", LORAS)) as reply:
            if reply.status != 200:
                raise Unavailable(f"GET {LORAS} answered {reply.status}: is the images service up?")
            served = known(reply)
        names = [lora["name"] for lora in served["data"]]
        asked = set(options.loras) - {"base", "any"}
        if missing := sorted(asked - set(names)):
            raise Unavailable(f"the server has no LoRA {', '.join(missing)}; it has {names}")
        if options.loras.get("any") and not names:
            raise Unavailable("the server has no LoRA: leave `any` out of loras, or add one")
        base = served["base"]
        words = base.get("vocabulary") or WORDS
        return {"loras": names, "vocabulary": words, "trigger": base["trigger"]}

    def prepare(self, http: Connections, item: int) -> Message:
        random = chance(self._seed, self._name, item)
        lora = drawn(self._options.loras, random)
        if lora == "any":
            lora = random.choice(self._loras)
        body: dict[str, Any] = {
            "prompt": self._prompt(random),
            "n": self._options.n,
            "size": drawn(self._options.sizes, random),
            "seed": Random(f"{self._seed}/{self._name}/seeds").randrange(2**40) + item * 8,
            "response_format": "b64_json",
        }
        if lora != "base":
            body["model"] = lora
        if steps := int(drawn(self._options.steps, random)):
            body["steps"] = steps
        if deadline_s := float(drawn(self._options.deadlines_s, random)):
            body["deadline_s"] = deadline_s
        return http.message("POST", PATH, body)

    def perform(self, http: Connections, message: Message, attempt: Attempt) -> None:
        with http.send(message, within_ms=attempt.within_ms) as reply:
            attempt.accept(reply, 200)
            attempt.first()
            pictures = known(reply).get("data") or []
        if len(pictures) != self._options.n:
            raise Wrong("pictures missing")
        for picture in pictures:
            if not is_whole_png(picture["b64_json"]):
                raise Wrong("no whole picture")
        attempt.service_s = max(picture["duration_ms"] for picture in pictures) / 1e3
        attempt.detail |= {"lora": pictures[0]["lora"], "steps": pictures[0]["steps"]}

    def _prompt(self, random: Random) -> str:
        """The seed beside it differs every time; so does, where any English will do, the text."""
        words = {kind: random.choice(list(found)) for kind, found in self._vocabulary.items()}
        who, doing, place = (words.get(kind, "") for kind in ("who", "doing", "place"))
        said = " ".join(word for word in (who, doing, place) if word)
        lead = f"{self._trigger}, " if self._trigger else ""
        return f"{lead}{said}, {random.choice(LIGHT)}"


def is_whole_png(b64: str) -> bool:
    try:
        picture = binascii.a2b_base64(b64, strict_mode=True)
    except (binascii.Error, ValueError):
        return False
    return picture.startswith(PNG) and picture.endswith(PNG_END)
