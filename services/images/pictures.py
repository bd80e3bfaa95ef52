"""Pictures as files: PNG with its own making written into it, JPEG or WebP.

Knows nothing of engines or requests. Encoding takes milliseconds to seconds: not for an event loop.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from typing import TYPE_CHECKING

from services.images.schemas import OutputFormat

if TYPE_CHECKING:
    from PIL.Image import Image

SOFTWARE = "Joing"


def encoded(
    image: Image, form: OutputFormat, quality: int | None, text: Mapping[str, str] | None = None
) -> str:
    """The file in base64. `quality` is percent, of jpeg and webp; `text` goes into a PNG only."""
    file = io.BytesIO()
    if form == "png":
        image.save(file, "PNG", pnginfo=_text_chunks(text or {}))
    else:
        image.save(file, form.upper(), quality=100 if quality is None else quality)
    return base64.b64encode(file.getvalue()).decode("ascii")


def _text_chunks(text: Mapping[str, str]) -> object:
    """International text chunks, which hold all of Unicode but the null character."""
    from PIL.PngImagePlugin import PngInfo

    chunks = PngInfo()
    for key, value in text.items():
        chunks.add_itxt(key, value.replace("\0", "\N{REPLACEMENT CHARACTER}"))
    return chunks
