"""Aspect buckets: the sizes that pictures are cropped to, so that a batch has one shape.

A bucket of resolution R has about R x R pixels, never more, and is never larger than its picture:
nothing is enlarged. Pure: knows no file, no torch. All sizes are pixels.
"""

from collections.abc import Iterator
from typing import NamedTuple

from PIL import Image

from models.training.errors import DatasetUnusable

MAX_ASPECT = 4
"""The longest bucket is four times as long as it is high, as in AI-Toolkit's table; what is longer
still loses its ends."""


class Bucket(NamedTuple):
    """A size in pixels; both sides are multiples of what the model needs."""

    width: int
    height: int

    def __str__(self) -> str:
        return f"{self.width}x{self.height}"


def bucket_for(width: int, height: int, *, resolution: int, multiple: int) -> Bucket:
    """The bucket that keeps most of a `width` x `height` picture with the most pixels.

    A picture with fewer than `resolution` squared pixels gets a smaller bucket of its own shape.
    Raises DatasetUnusable when a side is shorter than `multiple`.
    """
    area = min(resolution * resolution, width * height)
    found = [
        Bucket(bucket_width, bucket_height)
        for bucket_width in range(multiple, width + 1, multiple)
        for bucket_height in _heights(bucket_width, width, height, area, multiple)
    ]
    if not found:
        raise DatasetUnusable(
            f"a picture of {width}x{height} fits into no bucket of resolution {resolution} with "
            f"sides in steps of {multiple}: take it out, or use a larger resolution"
        )
    return max(found, key=lambda bucket: _worth(bucket, width, height))


def kept_share(width: int, height: int, bucket: Bucket) -> float:
    """The share of the picture's area that a centre crop to the bucket's shape keeps, 0 to 1."""
    scale = max(bucket.width / width, bucket.height / height)
    return bucket.width * bucket.height / (scale * scale * width * height)


def fit(image: Image.Image, bucket: Bucket) -> Image.Image:
    """The centre of an upright RGB or L picture, scaled down to the bucket's size.

    Returns a new image. Raises DatasetUnusable when the picture would have to be enlarged.
    """
    if image.width < bucket.width or image.height < bucket.height:
        raise DatasetUnusable(
            f"a picture of {image.width}x{image.height} would be enlarged to {bucket}: use "
            "a smaller bucket"
        )
    scale = max(bucket.width / image.width, bucket.height / image.height)
    crop_width, crop_height = bucket.width / scale, bucket.height / scale
    left, top = (image.width - crop_width) / 2, (image.height - crop_height) / 2
    box = (left, top, left + crop_width, top + crop_height)
    return image.resize(bucket, Image.Resampling.LANCZOS, box=box)


def _heights(bucket_width: int, width: int, height: int, area: int, multiple: int) -> Iterator[int]:
    """Heights worth a look for this width: the highest that picture and area allow, and the two
    about the picture's own shape; none beyond 1:4 or 4:1."""
    highest = min(height, area // bucket_width, bucket_width * MAX_ASPECT) // multiple
    own = bucket_width * height // (width * multiple)
    for steps in sorted({highest, own, own + 1}):
        if 0 < steps <= highest and bucket_width <= steps * multiple * MAX_ASPECT:
            yield steps * multiple


def _worth(bucket: Bucket, width: int, height: int) -> float:
    """What is cropped away weighs more: it is lost, where fewer pixels are only less sharp."""
    return kept_share(width, height, bucket) ** 3 * bucket.width * bucket.height
