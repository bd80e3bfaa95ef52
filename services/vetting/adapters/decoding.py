"""The process in which pictures from outside are decoded: `python -m` this, see workers.py.

Takes a file whose header was judged (picture_headers.py), gives a clean RGB JPEG of at most
`max_side_px`. Its own limits end it: MEMORY_BYTES more than it has at the start, CPU_S for a
picture. Hostile files cost no more than that, whatever is wrong with a decoder.
"""

from __future__ import annotations

import io
import signal
import struct
import sys
import warnings
from pathlib import Path

from PIL import Image, ImageOps

from services.vetting.adapters.workers import serve

try:
    import resource
except ImportError:  # Windows has no limits for a process
    resource = None  # type: ignore[assignment]

MEMORY_BYTES = 60 * 2**20
CPU_S = 0.8
FORMATS = ("JPEG", "PNG", "WEBP")
QUALITY = 92
MADE, REFUSED = b"+", b"-"
SIZE = struct.Struct(">II")


def main(max_pixels: int, max_side_px: int) -> None:
    Image.MAX_IMAGE_PIXELS = max_pixels
    warnings.simplefilter("error", Image.DecompressionBombWarning)
    Image.init()
    _cleaned(_warm_up(), max_side_px)
    _limit_memory()
    serve(lambda data: _answer(data, max_side_px))


def _answer(data: bytes, max_side_px: int) -> bytes:
    """MADE, width, height and a JPEG; or REFUSED and the reason."""
    signal.setitimer(signal.ITIMER_PROF, CPU_S)  # SIGPROF ends the process, also within C code
    try:
        return _cleaned(data, max_side_px)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        return REFUSED + b"too_many_pixels"
    except MemoryError:
        return REFUSED + b"too_much_memory"
    except Exception:  # noqa: BLE001 - decoders raise whatever they like on hostile files
        return REFUSED + b"damaged"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def _cleaned(data: bytes, max_side_px: int) -> bytes:
    image: Image.Image = Image.open(io.BytesIO(data), formats=FORMATS)
    image.draft("RGB", (max_side_px, max_side_px))
    image = _plain(image)
    image.thumbnail((max_side_px, max_side_px))  # before anything that copies
    image = _on_white(ImageOps.exif_transpose(image))
    image.info.clear()  # a comment would be written again
    file = io.BytesIO()
    image.save(file, "JPEG", quality=QUALITY, subsampling=0)
    return MADE + SIZE.pack(*image.size) + file.getvalue()


def _plain(image: Image.Image) -> Image.Image:
    """In a mode that can be made smaller. 16-bit greys keep their high byte."""
    if image.mode in ("RGB", "RGBA", "CMYK", "L"):
        return image
    if image.mode.startswith("I"):
        image = image.point(lambda value: value / 257).convert("L")
    return image.convert("RGBA" if image.has_transparency_data else "RGB")


def _on_white(image: Image.Image) -> Image.Image:
    """RGB, as a browser shows it on a white page."""
    if image.mode != "RGBA":
        return image.convert("RGB")
    white = Image.new("RGB", image.size, "white")
    white.paste(image, mask=image.getchannel("A"))
    return white


def _warm_up() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "PNG")
    return file.getvalue()


def _limit_memory() -> None:
    """Linux tells how large the process is; elsewhere the CPU limit and the pixel cap must do."""
    sizes = Path("/proc/self/statm")
    if resource is None or not sizes.exists():
        return
    now = int(sizes.read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY_BYTES, now + MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
