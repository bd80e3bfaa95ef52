"""Text in pictures is read, and whatever goes wrong is an error: never an empty answer."""

from __future__ import annotations

import asyncio
import io
import os
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import psutil
import pytest
from PIL import Image

from services.vetting.adapters import reading
from services.vetting.adapters.ocr import ThumbnailReader
from services.vetting.pictures import (
    OcrBusy,
    OcrFailed,
    OcrTimedOut,
    OcrUnavailable,
    Picture,
    ReadText,
    TextReadError,
)
from tests.services.vetting import lacking_reader, stuck_reader

PICTURES = Path(__file__).with_name("pictures")
can_read = pytest.mark.skipif(bool(reading.lacking()), reason=reading.lacking())


def picture(data: bytes) -> Picture:
    return Picture(data, "image/jpeg", 640, 360, "https://i.ytimg.com/vi/a/hqdefault.jpg")


def stored(name: str) -> Picture:
    return picture((PICTURES / f"{name}.jpg").read_bytes())


def texts(found: list[ReadText]) -> list[str]:
    return ["".join(line.text.lower().split()) for line in found]


@pytest.fixture
async def reader() -> AsyncIterator[ThumbnailReader]:
    made = ThumbnailReader(timeout_s=60)
    yield made
    await made.aclose()


@pytest.fixture
async def stuck() -> AsyncIterator[Callable[..., ThumbnailReader]]:
    made: list[ThumbnailReader] = []

    def make(**options: float) -> ThumbnailReader:
        made.append(ThumbnailReader(module=stuck_reader.__name__, **options))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for one in made:
        await one.aclose()


@can_read
async def test_korean_and_english_are_read_in_their_places(reader: ThumbnailReader) -> None:
    korean = await reader.read(stored("korean"))
    assert texts(korean) == ["오늘만무료카지노", "학교폭력가해자공개"]
    upper, lower = korean
    assert upper.box.y + upper.box.height < lower.box.y + lower.box.height
    assert all(0 <= share <= 1 for line in korean for share in line.box)
    assert all(0.5 < line.confidence <= 1 for line in korean)

    assert texts(await reader.read(stored("english"))) == ["freecasinobonus", "donottrythisathome"]
    assert texts(await reader.read(stored("mixed"))) == ["top10먹방맛집"]


@can_read
async def test_a_picture_without_text_has_none(reader: ThumbnailReader) -> None:
    file = io.BytesIO()
    Image.linear_gradient("L").resize((640, 360)).convert("RGB").save(file, "JPEG")
    assert await reader.read(picture(file.getvalue())) == []


@can_read
async def test_the_real_reader_survives_its_process(reader: ThumbnailReader) -> None:
    with pytest.raises(OcrFailed):  # no picture at all: an exception ends the process
        await reader.read(picture(b"no picture"))
    await reader.start()
    (pid,) = reader.pids()
    task = asyncio.create_task(reader.read(stored("mixed")))
    await asyncio.sleep(0.05)
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(OcrFailed):
        await task
    assert texts(await reader.read(stored("mixed"))) == ["top10먹방맛집"]


@can_read
async def test_the_real_reader_is_killed_on_time(reader: ThumbnailReader) -> None:
    await reader.start()
    process = psutil.Process(reader.pids()[0])
    reader._timeout_s = 0.05
    with pytest.raises(OcrTimedOut):
        await reader.read(stored("korean"))
    assert not process.is_running()


@pytest.mark.parametrize(
    ("fault", "error"),
    [("crash", OcrFailed), ("exit", OcrFailed), ("garbage", OcrFailed), ("nonsense", OcrFailed)],
)
async def test_a_fault_is_an_error_and_the_next_picture_is_read(
    stuck: Callable[..., ThumbnailReader], fault: str, error: type[TextReadError]
) -> None:
    reader = stuck()
    with pytest.raises(error):
        await reader.read(picture(fault.encode()))
    assert texts(await reader.read(picture(b"well"))) == ["hello"]


@pytest.mark.parametrize("fault", ["sleep", "spin"])
async def test_late_work_is_ended_not_left_running(
    stuck: Callable[..., ThumbnailReader], fault: str
) -> None:
    reader = stuck(timeout_s=0.3)
    await reader.start()
    process = psutil.Process(reader.pids()[0])
    with pytest.raises(OcrTimedOut):
        await reader.read(picture(fault.encode()))
    assert not process.is_running()
    reader._timeout_s = 10
    assert texts(await reader.read(picture(b"well"))) == ["hello"]


async def test_cancelled_work_is_ended(stuck: Callable[..., ThumbnailReader]) -> None:
    reader = stuck()
    await reader.start()
    process = psutil.Process(reader.pids()[0])
    task = asyncio.create_task(reader.read(picture(b"spin")))
    await asyncio.sleep(0.1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.to_thread(process.wait, 5)
    assert texts(await reader.read(picture(b"well"))) == ["hello"]


async def test_no_more_wait_than_may_and_none_for_ever(
    stuck: Callable[..., ThumbnailReader],
) -> None:
    reader = stuck(workers=1, max_waiting=1, wait_s=0.5)
    await reader.start()
    first = asyncio.create_task(reader.read(picture(b"sleep")))
    await asyncio.sleep(0)
    second = asyncio.create_task(reader.read(picture(b"well")))
    await asyncio.sleep(0)
    with pytest.raises(OcrBusy, match="1 wait already"):
        await reader.read(picture(b"well"))
    with pytest.raises(OcrBusy, match="no worker was free"):
        await second
    assert len(reader.pids()) == 1
    first.cancel()


async def test_what_a_library_prints_is_no_answer(stuck: Callable[..., ThumbnailReader]) -> None:
    assert texts(await stuck().read(picture(b"huge"))) == ["hello"]


async def test_readers_know_no_secrets(
    stuck: Callable[..., ThumbnailReader], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JOING_VETTING_YOUTUBE_KEY", "AIza-secret")
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example")
    (names,) = await stuck().read(picture(b"environment"))
    assert "LC_ALL" in names.text
    assert "JOING" not in names.text
    assert "PROXY" not in names.text


async def test_a_missing_model_says_how_to_install_it() -> None:
    reader = ThumbnailReader(module=lacking_reader.__name__)
    with pytest.raises(OcrUnavailable, match="apt-get install tesseract-ocr-kor"):
        await reader.read(picture(b""))
    await reader.aclose()


@can_read
def test_missing_data_is_told_before_any_picture(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TESSDATA_PREFIX", str(tmp_path))
    with pytest.raises(OcrUnavailable, match="apt-get install tesseract-ocr-kor"):
        ThumbnailReader()


@pytest.mark.parametrize(
    ("latin", "korean", "stands"),
    [
        (("100%合", 0.99), ("대출 100% 승인", 0.9), "대출 100% 승인"),
        (("FREE BONUS", 0.97), ("FREE 8ON니S", 0.6), "FREE BONUS"),
        (("早", 0.77), ("현실 부부 싸움", 0.9), "현실 부부 싸움"),
        (("", 0.0), ("여행", 0.4), "여행"),
        (("必看", 0.99), ("2", 0.3), "必看"),
        (("OK", 0.5), ("", 0.0), "OK"),
    ],
)
def test_the_reading_that_leaves_nothing_out_stands(
    latin: reading.Reading, korean: reading.Reading, stands: str
) -> None:
    assert reading.chosen(latin, korean)[0] == stands
