"""Looking at picture files that may be broken, hostile or not what they are called.

Nothing is decoded that is larger than MAX_PIXELS or of a format that is not listed here. What a
look tells is small and kept for thousands of files. Knows Pillow, no caption and no torch.
"""

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Literal

import imagehash
import numpy as np
from PIL import Image, ImageCms, ImageOps

from models.training.dataset.folder import file_hash

MAX_PIXELS = 80_000_000
"""Below Pillow's own limit, whose breach is only a warning; 240 MB when decoded."""

FORMATS = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG", ".webp": "WEBP"}
"""What a file's content should be, by its suffix."""

BLANK_LEVELS = 12
"""A picture in which no channel spans more of the 256 levels shows nothing."""

TINY_PX = 32
"""Side of the grey square by which two pictures of like hashes are compared."""

_OPENED = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "ICO")
_LOOKED_AT_PX = 512
_BROKEN = (OSError, SyntaxError, ValueError, LookupError, EOFError, TypeError, ArithmeticError)
"""What Pillow's decoders raise on damaged files; struct.error beside these."""


class PictureUnusable(Exception):
    """`reason` says why nothing can be read from a picture file."""

    def __init__(self, kind: Literal["unreadable", "too many pixels"], reason: str) -> None:
        super().__init__(reason)
        self.kind = kind


@dataclass(frozen=True)
class Look:
    """What one look at a picture told. `width` and `height` are those of the upright picture."""

    sha256: str
    format: str
    width: int
    height: int
    is_animated: bool
    is_transparent: bool
    is_rotated: bool
    is_blank: bool
    phash: int
    """64 bits: like pictures differ in few of them."""
    tiny: bytes
    """TINY_PX x TINY_PX grey values, row by row."""


def look(file: Path) -> Look:
    """Decodes the whole first frame. Raises PictureUnusable."""
    with _opened(file) as image:
        form = "JPEG" if image.format == "MPO" else str(image.format)
        rotated = image.getexif().get(0x0112, 1) not in (0, 1)
        turned = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
        width, height = image.size[::-1] if turned else image.size
        animated = image.format != "MPO" and bool(getattr(image, "is_animated", False))
        image.draft("RGB", (_LOOKED_AT_PX, _LOOKED_AT_PX))
        image.load()
        transparent = _is_transparent(image)
        upright = _on_white(ImageOps.exif_transpose(image))
    grey = upright.convert("L")
    bits = imagehash.phash(grey).hash
    return Look(
        sha256=file_hash(file),
        format=form,
        width=width,
        height=height,
        is_animated=animated,
        is_transparent=transparent,
        is_rotated=rotated,
        is_blank=all(high - low <= BLANK_LEVELS for low, high in upright.getextrema()),
        phash=int.from_bytes(np.packbits(bits).tobytes(), "big"),
        tiny=grey.resize((TINY_PX, TINY_PX), Image.Resampling.BOX).tobytes(),
    )


def upright_rgb(file: Path) -> Image.Image:
    """The first frame as EXIF means it, in sRGB, on white. Raises PictureUnusable."""
    with _opened(file) as image:
        image.load()
        return _on_white(_in_srgb(ImageOps.exif_transpose(image)))


def thumbnail(file: Path, side_px: int) -> Image.Image:
    """As `upright_rgb`, within a square; colours are not converted."""
    with _opened(file) as image:
        image.draft("RGB", (side_px, side_px))
        image.load()
        small = _on_white(ImageOps.exif_transpose(image))
    small.thumbnail((side_px, side_px))
    return small


@contextmanager
def _opened(file: Path) -> Iterator[Image.Image]:
    """An open picture of bearable size, whose pixels are still to be decoded."""
    try:
        with Image.open(file, formats=_OPENED) as image:
            if image.width * image.height > MAX_PIXELS:
                raise PictureUnusable(
                    "too many pixels", f"{image.width}x{image.height} is over {MAX_PIXELS:,} pixels"
                )
            yield image
    except Image.DecompressionBombError as error:
        raise PictureUnusable("too many pixels", f"it has over {MAX_PIXELS:,} pixels") from error
    except Image.UnidentifiedImageError as error:
        raise PictureUnusable("unreadable", "it is no picture of a known format") from error
    except (*_BROKEN, struct.error) as error:
        reason = str(error).strip().splitlines()[:1] or [type(error).__name__]
        raise PictureUnusable("unreadable", f"it cannot be decoded ({reason[0]})") from error


def _is_transparent(image: Image.Image) -> bool:
    """True when some pixel lets through what is behind it; an alpha channel alone does not."""
    if not image.has_transparency_data:
        return False
    lowest: int = image.convert("RGBA").getchannel("A").getextrema()[0]
    return lowest < 255


def _on_white(image: Image.Image) -> Image.Image:
    """RGB with 8 bits; 16-bit greys keep their upper 8, where Pillow would clip."""
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
    if not image.has_transparency_data:
        return image.convert("RGB")
    layer = image.convert("RGBA")
    white = Image.new("RGBA", layer.size, "white")
    return Image.alpha_composite(white, layer).convert("RGB")


def _in_srgb(image: Image.Image) -> Image.Image:
    """Colours of another profile (a camera's, a printer's) as sRGB; unusable profiles count not."""
    profile = image.info.get("icc_profile")
    if not profile or image.mode not in ("RGB", "RGBA", "CMYK"):
        return image
    mode = "RGBA" if image.mode == "RGBA" else "RGB"
    try:
        source = ImageCms.ImageCmsProfile(BytesIO(profile))
        srgb = ImageCms.createProfile("sRGB")
        converted: Image.Image | None = ImageCms.profileToProfile(
            image, source, srgb, outputMode=mode
        )
    except (ImageCms.PyCMSError, OSError, ValueError):
        return image
    return converted or image
