"""Buckets keep pictures' shapes, hold the pixel budget and enlarge nothing."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from models.training.dataset.buckets import Bucket, bucket_for, fit, kept_share
from models.training.errors import DatasetUnusable

sides = st.integers(64, 3000)


@settings(max_examples=150, deadline=None)
@given(sides, sides, st.sampled_from([144, 160, 512, 1024]), st.sampled_from([8, 16, 64]))
def test_a_bucket_lies_within_its_picture_and_the_budget(
    width: int, height: int, resolution: int, multiple: int
) -> None:
    bucket = bucket_for(width, height, resolution=resolution, multiple=multiple)
    assert bucket.width % multiple == bucket.height % multiple == 0
    assert bucket.width <= width
    assert bucket.height <= height
    assert bucket.width * bucket.height <= resolution**2
    assert max(bucket) <= 4 * min(bucket)


@settings(max_examples=150, deadline=None)
@given(st.integers(900, 4000), st.floats(0.4, 2.5))
def test_large_pictures_lose_little_and_use_the_budget(height: int, aspect: float) -> None:
    width = round(height * aspect)
    bucket = bucket_for(width, height, resolution=512, multiple=16)
    assert kept_share(width, height, bucket) > 0.95
    assert bucket.width * bucket.height > 0.85 * 512**2


@pytest.mark.parametrize(
    ("size", "resolution", "expected"),
    [
        ((1024, 1024), 512, (512, 512)),
        ((512, 512), 1024, (512, 512)),
        ((192, 112), 160, (192, 112)),
        ((112, 192), 147, (112, 192)),
        ((1920, 1088), 160, (208, 112)),
        ((256, 192), 64, (64, 48)),
        ((4000, 400), 512, (1024, 256)),
    ],
)
def test_known_sizes(size: tuple[int, int], resolution: int, expected: Bucket) -> None:
    assert bucket_for(*size, resolution=resolution, multiple=16) == expected


def test_a_picture_smaller_than_a_step_is_refused() -> None:
    with pytest.raises(DatasetUnusable, match="40x15"):
        bucket_for(40, 15, resolution=512, multiple=16)


def test_fit_keeps_the_centre() -> None:
    image = Image.new("RGB", (400, 100), "red")
    image.paste("blue", (100, 0, 300, 100))
    fitted = fit(image, Bucket(64, 32))
    assert fitted.size == (64, 32)
    assert {fitted.getpixel((x, y)) for x in (4, 32, 59) for y in (0, 31)} == {(0, 0, 255)}


def test_fit_at_the_same_size_changes_nothing() -> None:
    image = Image.effect_noise((64, 48), 90)
    assert fit(image, Bucket(64, 48)).tobytes() == image.tobytes()


def test_fit_does_not_enlarge() -> None:
    with pytest.raises(DatasetUnusable, match="enlarged"):
        fit(Image.new("RGB", (64, 40)), Bucket(64, 48))
