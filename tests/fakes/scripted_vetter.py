"""A careful reader of the described channels (tests/youtube) behind the OpenAI protocol, and one of
their pictures: what they find is what the files' labels say. A request whose id is a channel's
name is about that channel.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from services.shared.passages import SENTENCE_END
from services.shared.text import normalise
from services.vetting.pictures import Box, Picture, ReadText
from tests.fakes.scripted_llm import Act, ScriptedLLM
from tests.youtube.described import Channels, DescribedVideo, Label

NUMBERED = re.compile(r"\[(\d+)\] (\w+): (.*)")
ASKED_AS = {"language": "swearing"}
CALL = re.compile(r"(.+)-(?:text|thumbnails|picture)-")
PICTURE_CALL = re.compile(r"-picture-([A-Za-z0-9_-]{11})(?:-2)?$")
VIDEO_OF_URL = re.compile(r"/vi/([^/]+)/")


@dataclass
class ScriptedVetter(ScriptedLLM):
    """`turns` are the words that it was shown."""

    channels: Channels = field(default_factory=Channels)
    turns: list[str] = field(default_factory=list)

    def reset(self) -> None:
        super().reset()
        self.turns.clear()

    def act_for(self, body: dict[str, Any]) -> Act:
        name = body["response_format"]["json_schema"]["name"]
        if name in self.script:
            return super().act_for(body)
        if name == "TextAnswer":
            turn = body["messages"][-1]["content"]
            self.turns.append(turn)
            return Act({"findings": self.read(turn)})
        return Act({"findings": self.seen(body)})

    def read(self, turn: str) -> list[dict[str, Any]]:
        """A finding for each numbered line that a label's quote stands in."""
        found = []
        for number, source, text in NUMBERED.findall(turn):
            for where, label in self._labels():
                if where == source and stands_in(label, text):
                    found.append({"passage": int(number), **claim(label)})
        return found[:11]

    def seen(self, body: dict[str, Any]) -> list[dict[str, Any]]:
        """A finding for each label of a thumbnail that has no quote: it is drawn."""
        url = body["messages"][-1]["content"][0]["image_url"]["url"]
        head, data = url.split(",", 1)
        assert head == "data:image/jpeg;base64"
        assert Image.open(io.BytesIO(base64.b64decode(data))).format == "JPEG"
        video = self.channels.video(PICTURE_CALL.search(self.calls[-1]["request_id"])[1])
        place = {"x": 10, "y": 10, "width": 80, "height": 100}
        return [
            {**{k: v for k, v in claim(label).items() if k != "how"}, **place}
            for label in video.file.labels
            if label.field == "thumbnail" and label.quote is None
        ]

    def _labels(self) -> Iterator[tuple[str, Label]]:
        """Of the channel that gave the request its id; of all when none did."""
        asked = CALL.match(self.calls[-1]["request_id"] or "")
        name = asked[1] if asked else ""
        for channel in [self.channels[name]] if name in self.channels else self.channels.values():
            yield from (("channel", label) for label in channel.file.channel.labels)
            for video in channel.videos:
                quoted = (label for label in video.file.labels if label.quote is not None)
                yield from ((label.field, label) for label in quoted)


def claim(label: Label) -> dict[str, Any]:
    category = ASKED_AS.get(label.category, label.category)
    return {"reason": "가", "category": category, "how": "does", "level": label.level}


def stands_in(label: Label, text: str) -> bool:
    """True when the quote, or one of its sentences, is in this passage."""
    pieces = (normalise(piece) for piece in SENTENCE_END.split(label.quote or ""))
    return any(piece and piece in text for piece in pieces)


@dataclass
class ScriptedReader:
    """A TextReader that knows what was written in the pictures of `channels`."""

    channels: Channels

    async def read(self, picture: Picture) -> list[ReadText]:
        video = self.channels.video(VIDEO_OF_URL.search(picture.source_url)[1])
        lines = _written(video)
        height = 1 / max(1, len(lines))
        return [
            ReadText(line, Box(0.0, n * height, 1.0, height), 0.95) for n, line in enumerate(lines)
        ]


def _written(video: DescribedVideo) -> list[str]:
    return [line for line in video.file.picture.text.split("\n") if line]
