"""Hostile pictures are refused, or decoded at a cost that is bounded: a second, and 64 MiB."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from services.vetting.adapters.thumbnails import ThumbnailFetcher
from services.vetting.picture_headers import read_header
from services.vetting.pictures import PictureRefused
from tests.services.vetting.hostile_pictures import PICTURES, black, file_of, noise, png
from tests.services.vetting.picture_host import picture, serving

URL = "https://i.ytimg.com/vi/a/hqdefault.jpg"
PATH = "/vi/a/hqdefault.jpg"
linux = pytest.mark.skipif(sys.platform != "linux", reason="peaks are read from /proc")


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    return {name: hostile.make() for name, hostile in PICTURES.items()}


@pytest.fixture
async def costs(files: dict[str, bytes]) -> AsyncIterator[dict[str, Any]]:
    """What each picture cost, measured by a process of its own."""
    async with serving() as host:
        paths = {name: f"/vi/{number}/a.jpg" for number, name in enumerate(files)}
        for name, path in paths.items():
            host.replies[path] = picture(files[name], PICTURES[name].media_type)
        host.replies[PATH] = picture(file_of(noise(320, 180), "JPEG"))
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.services.vetting.weigh_pictures", host.base, PATH,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
            cwd=Path(__file__).parents[3],
        )  # fmt: skip
        said, _ = await process.communicate("\n".join(paths.values()).encode())
        lines = said.splitlines()
        assert len(lines) == len(paths)
        yield dict(zip(paths, map(json.loads, lines), strict=True))


@linux
async def test_every_hostile_picture_is_refused_or_costs_little(costs: dict[str, Any]) -> None:
    wrong = {
        name: cost
        for name, cost in costs.items()
        if cost["outcome"] not in PICTURES[name].outcomes
        or cost["cpu_s"] >= 1.0
        or cost["memory_mib"] >= 64
    }
    assert wrong == {}


def test_there_are_enough_hostile_pictures(files: dict[str, bytes]) -> None:
    assert len(files) >= 40
    assert all(len(data) < 5_000_000 for name, data in files.items() if name != "six megabytes")


async def test_a_picture_that_is_slow_to_decode_does_not_hold_up_the_next(
    files: dict[str, bytes],
) -> None:
    async with serving() as host:
        host.replies |= {
            PATH: picture(files["jpeg of thousands of scans"]),
            "/vi/b/hqdefault.jpg": picture(file_of(noise(32, 32), "JPEG")),
        }
        fetcher = ThumbnailFetcher(base_override=host.base)
        with pytest.raises(PictureRefused, match="too_slow_to_decode"):
            await fetcher.fetch([URL])
        assert (await fetcher.fetch(["https://i.ytimg.com/vi/b/hqdefault.jpg"])).width == 32
        await fetcher.aclose()


@linux
async def test_memory_ends_at_a_limit_even_where_the_pixel_cap_lets_a_picture_through() -> None:
    async with serving() as host:
        host.replies[PATH] = picture(png(6_000, 6_000, black(6_000, 6_000)), "image/png")
        fetcher = ThumbnailFetcher(base_override=host.base, max_pixels=40_000_000)
        with pytest.raises(PictureRefused, match="too_much_memory"):
            await fetcher.fetch([URL])
        await fetcher.aclose()


async def test_decoders_know_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOING_VETTING_YOUTUBE_KEY", "AIza-secret")
    async with serving() as host:
        host.replies[PATH] = picture(file_of(noise(32, 32), "JPEG"))
        fetcher = ThumbnailFetcher(base_override=host.base)
        await fetcher.fetch([URL])
        (pid,) = fetcher._decoders.pids()
        assert b"AIza-secret" not in Path(f"/proc/{pid}/environ").read_bytes()
        await fetcher.aclose()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("size", [(1, 1), (3, 700), (1280, 720)])
def test_headers_tell_what_a_decoder_would(kind: str, size: tuple[int, int]) -> None:
    found = read_header(file_of(noise(*size), kind))
    assert found == (f"image/{kind.lower()}", *size)


def test_lossless_and_extended_webp_headers_are_read() -> None:
    assert read_header(file_of(noise(300, 7), "WEBP", lossless=True))[1:] == (300, 7)
    assert read_header(file_of(noise(300, 7, "RGBA"), "WEBP", exif=b"Exif\0\0"))[1:] == (300, 7)


def test_a_cut_header_is_refused_or_tells_the_truth() -> None:
    for kind in ("JPEG", "PNG", "WEBP"):
        data = file_of(noise(40, 30), kind)
        for length in range(min(160, len(data))):
            with suppress(PictureRefused):
                assert read_header(data[:length])[1:] == (40, 30)
