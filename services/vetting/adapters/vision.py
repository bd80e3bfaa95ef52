"""A picture as a chat message for a model that can see, in OpenAI's `image_url` parts.

The picture travels inside of the message: nobody fetches an address that a channel gave.
"""

from __future__ import annotations

import base64
from typing import Any, Literal

from services.shared.language_model import Message
from services.vetting.pictures import Picture


class PictureMessage(Message):
    """A user turn of parts: a picture and what is asked about it."""

    role: Literal["user"] = "user"
    content: list[dict[str, Any]]  # type: ignore[assignment]  # a turn of text has a string here


def picture_message(picture: Picture, text: str) -> PictureMessage:
    data = base64.b64encode(picture.data).decode("ascii")
    url = f"data:{picture.media_type};base64,{data}"
    return PictureMessage(
        content=[
            {"type": "image_url", "image_url": {"url": url}},
            {"type": "text", "text": text},
        ]
    )
