"""The sheet: what is on it, that texts stay texts, that nothing leaves its page, same bytes."""

from __future__ import annotations

import hashlib
import io
import json
import random
import re
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pypdf
import pypdfium2
import pytest
from PIL import Image, ImageChops

from models.sketch import panels
from models.sketch.scene import Aspect, random_scene
from services.shared.proposals import Language
from services.storyboard.errors import SheetError
from services.storyboard.schemas import Cast, Frame, Note, Scene, Setting, Storyboard
from services.storyboard.sheet import LABELS, MAX_TEXT, PAGE_MM, PNG_WIDTH_PX, clock, compose

NOON = datetime(2026, 5, 4, 3, 0, tzinfo=UTC)
A4_ON_ITS_SIDE_PT = (841.89, 595.28)
MARKUP = (
    "#eval",
    '#read("/etc/passwd")',
    "$x^2$",
    "*bold*",
    "_low_",
    "back\\slash",
    "@ref",
    "<label>",
    "//",
    "= heading",
    "`raw`",
    "#panic()",
)
GARDEN: tuple[tuple[Any, ...], ...] = (
    ("extreme wide shot", "high angle", "day", "아파트 옥상", 5,
     "아침 해가 비치는 아파트 단지. 수많은 발코니 가운데 단 한 곳만 비어 있다.",
     "우리 집 발코니는 3년째 창고였습니다."),
    ("medium shot", "eye level", "day", "빈 발코니", 8,
     "지우가 낡은 상자를 하나씩 치우고 먼지를 쓸어 낸다. 빈 바닥에 햇빛이 든다.",
     "오늘부터 바꿔 보려고요. 예산은 딱 5만 원!"),
    ("wide shot", "eye level", "day", "동네 꽃시장", 8,
     "꽃시장 골목을 걷는 지우. 상인이 모종 세 판을 들어 보이며 웃는다.",
     "상추, 방울토마토, 바질. 처음이면 이 셋이 제일 쉬워요."),
    ("close-up", "high angle", "day", "빈 발코니", 7,
     "흙을 채운 화분에 손가락 두 마디 깊이로 구멍을 내고 모종을 심는 손.", ""),
    ("close-up", "eye level", "day", "빈 발코니", 6,
     "물뿌리개에서 떨어지는 물줄기가 흙에 스며든다.",
     "물은 겉흙이 말랐을 때만, 아침에 듬뿍 주세요."),
    ("medium shot", "low angle", "night", "거실 창가", 7,
     "창가에 앉은 지우가 휴대 전화로 식물의 사진을 찍어 일지에 적는다.",
     "2주째, 드디어 첫 꽃!"),
    ("extreme close-up", "eye level", "day", "빈 발코니", 6,
     "빨갛게 익은 방울토마토 한 알. 이슬이 맺혀 있다.", ""),
    ("wide shot", "eye level", "night", "빈 발코니", 13,
     "작은 전구를 단 발코니 정원. 지우와 할머니가 샐러드를 나눠 먹으며 건배한다.",
     "5만 원으로 만든 우리 집 정원, 여러분도 시작해 보세요."),
)  # fmt: skip


def panel(n: int, aspect: Aspect = "16:9", px: tuple[int, int] | None = None) -> bytes:
    """A frame as the embedded model draws it, or enlarged to `px`."""
    picture = panels.draw(random_scene(random.Random(n), aspect), seed=n)
    if px:
        picture = picture.resize(px, Image.Resampling.BICUBIC)
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def a_gif() -> bytes:
    file = io.BytesIO()
    Image.new("L", (192, 112)).save(file, "GIF")
    return file.getvalue()


A_GIF = a_gif()


def a_scene(n: int, told: tuple[Any, ...]) -> Scene:
    shot, angle, time, place, duration_s, action, dialogue = told
    return Scene(
        n=n, shot=shot, angle=angle, time=time, place=place, duration_s=duration_s,
        action=action, dialogue=dialogue, image_prompt="a woman standing in a garden",
    )  # fmt: skip


def a_storyboard(scenes: int = 8, **changes: Any) -> Storyboard:
    told = [a_scene(n, GARDEN[(n - 1) % len(GARDEN)]) for n in range(1, scenes + 1)]
    return Storyboard.model_validate({
        "id": "sb-1", "state": "done", "progress": 1.0,
        "created_at": NOON, "updated_at": NOON, "expires_at": NOON,
        "title": "5만 원으로 시작하는 발코니 정원", "language": "ko", "style": "ink",
        "width": 192, "height": 112, "seed": 7,
        "duration_s": sum(scene.duration_s for scene in told),
        "cast": [Cast(name="지우", look="woman"), Cast(name="할머니", look="woman")],
        "settings": [Setting(name=name, look="a room") for name in
                     ("빈 발코니", "동네 꽃시장", "거실 창가")],
        "scenes": told, "frames": [], "notes": [], "sheet_url": None, "error": None,
        "model": "scripted", "prompt_version": "1", **changes,
    })  # fmt: skip


def every_frame(storyboard: Storyboard, aspect: Aspect = "16:9") -> dict[int, bytes]:
    return {scene.n: panel(scene.n, aspect) for scene in storyboard.scenes}


def read(pdf: bytes) -> list[str]:
    """Each page's text, as a reader copies it."""
    return [page.extract_text() for page in pypdf.PdfReader(io.BytesIO(pdf)).pages]


def unspaced(text: str) -> str:
    return re.sub(r"\s", "", text)


def rendered(pdf: bytes) -> list[Image.Image]:
    document = pypdfium2.PdfDocument(pdf)
    return [document[i].render(scale=2).to_pil().convert("L") for i in range(len(document))]


def retold(storyboard: Storyboard, texts: list[str], **changes: Any) -> Storyboard:
    """The scenes with `texts`, in turn, in place of their own words."""
    scenes = [
        scene.model_copy(update={"action": text, "dialogue": text, "place": text[:40]})
        for scene, text in zip(storyboard.scenes, texts, strict=True)
    ]
    return storyboard.model_copy(update={"scenes": scenes, **changes})


def margins_are_white(page: Image.Image, mm: float) -> bool:
    """Nothing is drawn within `mm` of the page's edges but the lower one."""
    px = int(mm * page.width / PAGE_MM)
    edges = (
        (0, 0, px, page.height),
        (page.width - px, 0, page.width, page.height),
        (0, 0, page.width, px),
    )
    blank = [page.crop(edge).getextrema() == (255, 255) for edge in edges]
    return all(blank)


HARD = [
    "W" * 200,
    "가" * 200,
    "이모지 \U0001f600\U0001f468\u200d\U0001f469\u200d\U0001f467 끝",
    "مرحبا بالعالم هذا نص عربي طويل " * 6,
    "Z" + "\u0301" * 60 + "algo e\u0301\u0323",
    "ภาษาไทย हिन्दी 한글",
    "긴 문장이 이어지는 동작 설명이 화면에서 어떻게 보이는지 확인합니다. " * 6,
    "\x00\x1b[31m\u202e줄\n바꿈\t",
]


@pytest.mark.parametrize("language", ["ko", "en"])
def test_everything_that_a_director_needs_is_on_it(language: Language) -> None:
    storyboard = a_storyboard(language=language)
    text = " ".join(read(compose(storyboard, every_frame(storyboard), "pdf")))
    say = LABELS[language]
    for word in ("scenes", "length", "style", "date", "cast", "places"):
        assert say[word] in text
    assert "1:00" in text
    assert "2026-05-04" in text
    assert "지우, 할머니" in text
    flowing = " ".join(text.split())
    for scene in storyboard.scenes:
        assert unspaced(f"{say[scene.shot]} · {say[scene.angle]} · {say[scene.time]}") in unspaced(
            text
        )
        assert scene.action in flowing
        assert f"“{scene.dialogue}”" in flowing or not scene.dialogue
        assert scene.place in flowing
    assert "0:47–1:00" in text
    assert say["missing"] not in text
    assert say["notes"] not in text


def test_pages_are_a4_on_their_side_and_numbered() -> None:
    pdf = compose(a_storyboard(24), {}, "pdf")
    reader = pypdf.PdfReader(io.BytesIO(pdf))
    for number, page in enumerate(reader.pages, start=1):
        assert (float(page.mediabox.width), float(page.mediabox.height)) == pytest.approx(
            A4_ON_ITS_SIDE_PT, abs=0.1
        )
        assert f"{number} / {len(reader.pages)}" in page.extract_text()


def test_it_can_be_read_by_those_who_do_not_see_it() -> None:
    storyboard = a_storyboard()
    pdf = compose(storyboard, every_frame(storyboard), "pdf")
    reader = pypdf.PdfReader(io.BytesIO(pdf))
    catalog = reader.root_object
    assert catalog["/Lang"] == "ko"
    assert catalog["/MarkInfo"]["/Marked"]
    assert reader.metadata.title == storyboard.title
    assert reader.metadata.creation_date == NOON
    assert b"pdfuaid" in catalog["/Metadata"].get_object().get_data()
    assert {f"장면 {scene.n}: {scene.action}" for scene in storyboard.scenes} <= set(
        _alternatives(reader)
    )


def _alternatives(reader: pypdf.PdfReader) -> list[str]:
    found = []
    for n in range(1, int(reader.trailer["/Size"])):
        thing = reader.get_object(pypdf.generic.IndirectObject(n, 0, reader))
        if isinstance(thing, dict) and "/Alt" in thing:
            found.append(str(thing["/Alt"]))
    return found


def test_a_missing_frame_is_marked_in_its_place() -> None:
    storyboard = a_storyboard()
    frames = every_frame(storyboard)
    del frames[3], frames[8]
    text = " ".join(read(compose(storyboard, frames, "pdf")))
    assert text.count("그림 없음") == 2
    assert all(unspaced(scene.action) in unspaced(text) for scene in storyboard.scenes)


def test_a_dropped_scene_is_named_and_not_shown() -> None:
    frames = [Frame(n=n, state="dropped", url=None, seed=n, lora=None) for n in (2, 9)]
    told = [Note(n=9, code="scene_dropped", message="장면 9은(는) 폭력성 때문에 뺐습니다.")]
    storyboard = a_storyboard(frames=frames, notes=told)
    pages = read(compose(storyboard, every_frame(storyboard), "pdf"))
    text = " ".join(pages)
    assert storyboard.scenes[1].action not in " ".join(text.split())
    assert text.count("폭력성 때문에") == 1
    assert "장면 2은(는) 심의" in pages[-1]
    assert "장면 9은(는) 심의" not in text


def test_texts_stay_texts() -> None:
    hostile = " ".join(MARKUP)
    one = Cast(name="#eval $x$ *b*", look="woman")
    storyboard = retold(
        a_storyboard(3), [hostile] * 3, title=hostile, cast=[one],
        settings=[Setting(name="@ref <label>", look="a room")],
        notes=[Note(n=None, code="other", message=hostile)], style="a.b_c-d",
    )  # fmt: skip
    text = unspaced(" ".join(read(compose(storyboard, {}, "pdf"))))
    assert text.count(unspaced(hostile)) == 1 + 3 * 2 + 1
    for shown in (hostile[:40], one.name, "@ref <label>", "a.b_c-d"):
        assert unspaced(shown) in text
    assert "root:" not in text


@pytest.mark.parametrize("size", [(1024, 576), (576, 1024), (512, 512), (2048, 64), (64, 2048)])
@pytest.mark.parametrize("scenes", [8, 24])
def test_hard_texts_stay_within_the_page(size: tuple[int, int], scenes: int) -> None:
    width, height = size
    texts = [HARD[n % len(HARD)] for n in range(scenes)]
    storyboard = retold(a_storyboard(scenes), texts, title="X" * 100, width=width, height=height)
    pdf = compose(storyboard, {}, "pdf")
    assert all(margins_are_white(page, 10) for page in rendered(pdf))
    png = compose(storyboard, {}, "png")
    picture = Image.open(io.BytesIO(png)).convert("L")
    assert margins_are_white(picture, 10)
    assert picture.width == PNG_WIDTH_PX
    assert picture.height <= 8000
    assert len(png) <= 16e6


@pytest.mark.parametrize("size", [(1024, 576), (576, 1024), (512, 512)])
def test_no_cell_is_split_or_cut(size: tuple[int, int]) -> None:
    """The longest texts of all cells of a sheet, each from its first to its last word on a page."""
    texts = [
        f"처음{n:02d} {'가나다 라마바사 ' * 30}"[: MAX_TEXT - 5] + f" 끝{n:02d}" for n in range(24)
    ]
    storyboard = retold(a_storyboard(24), texts, width=size[0], height=size[1])
    pages = [unspaced(page) for page in read(compose(storyboard, {}, "pdf"))]
    for n in range(24):
        holding = [page for page in pages if f"처음{n:02d}" in page]
        assert len(holding) == 1
        assert holding[0].count(f"처음{n:02d}") == 3
        assert holding[0].count(f"끝{n:02d}") == 2
    images = rendered(compose(storyboard, {}, "pdf"))
    for page in images:
        gap = page.crop((0, round(page.height * 0.937), page.width, round(page.height * 0.95)))
        assert gap.getextrema() == (255, 255), "a cell reaches into the footer"


def test_korean_words_are_not_broken() -> None:
    words = [f"발코니정원{n:02d}가꾸기를" for n in range(16)]
    storyboard = retold(a_storyboard(3), [" ".join(words)] * 3, width=576, height=1024)
    text = " ".join(read(compose(storyboard, {}, "pdf")))
    assert len(re.findall("|".join(words), text)) >= 3 * 2 * len(words)


def test_a_text_beyond_its_limit_ends_in_an_ellipsis() -> None:
    storyboard = retold(a_storyboard(3), ["가나 " * 1000] * 3, title="제목 " * 200)
    text = " ".join(read(compose(storyboard, {}, "pdf")))
    assert text.count("가나") <= 3 * 3 * MAX_TEXT
    assert text.count("…”") == 3


@pytest.mark.parametrize(("size", "aspect"), [((192, 112), "16:9"), ((112, 192), "9:16")])
def test_small_frames_are_enlarged_smoothly_in_their_own_proportions(
    size: tuple[int, int], aspect: Aspect
) -> None:
    storyboard = a_storyboard(3, width=size[0], height=size[1])
    pdf = compose(storyboard, every_frame(storyboard, aspect), "pdf")
    images = [i.image for page in pypdf.PdfReader(io.BytesIO(pdf)).pages for i in page.images]
    assert len(images) == 3
    for image, scene in zip(images, storyboard.scenes, strict=True):
        assert image.width / image.height == pytest.approx(size[0] / size[1], rel=0.01)
        assert image.width >= 2 * size[0]
        small = Image.open(io.BytesIO(panel(scene.n, aspect))).convert("L")
        back = image.convert("L").resize(size, Image.Resampling.BOX)
        difference = ImageChops.difference(small, back).histogram()
        mean = sum(level * count for level, count in enumerate(difference)) / sum(difference)
        assert mean < 8


def test_a_large_frame_keeps_its_pixels_for_print() -> None:
    storyboard = a_storyboard(3, width=1344, height=768)
    pdf = compose(storyboard, {1: panel(1, px=(1344, 768))}, "pdf")
    (image,) = pypdf.PdfReader(io.BytesIO(pdf)).pages[0].images
    assert image.image.size == (1344, 768)


def test_what_is_transparent_is_white() -> None:
    file = io.BytesIO()
    Image.new("RGBA", (192, 112), (0, 0, 0, 0)).save(file, "PNG")
    pdf = compose(a_storyboard(3), {1: file.getvalue()}, "pdf")
    (image,) = pypdf.PdfReader(io.BytesIO(pdf)).pages[0].images
    assert image.image.convert("L").getextrema()[0] > 250


@pytest.mark.parametrize("form", ["pdf", "png"])
@pytest.mark.parametrize(
    "broken",
    [b"", b"no picture", panel(1)[:200], panel(1)[:-300], A_GIF],
    ids=["empty", "text", "head", "cut", "not PNG"],
)
def test_a_file_that_is_no_picture_is_named(broken: bytes, form: Any) -> None:
    storyboard = a_storyboard()
    with pytest.raises(SheetError, match="scene 5"):
        compose(storyboard, {**every_frame(storyboard), 5: broken}, form)


def test_frames_of_scenes_that_are_not_shown_are_not_read() -> None:
    assert compose(a_storyboard(3), {9: b"no picture"}, "pdf")


def digests(storyboard: Storyboard, frames: Mapping[int, bytes]) -> list[str]:
    return [
        hashlib.sha256(compose(storyboard, frames, form)).hexdigest() for form in ("pdf", "png")
    ]  # type: ignore[arg-type]


def test_the_same_input_gives_the_same_bytes_in_another_process_and_in_threads() -> None:
    storyboard = a_storyboard()
    frames = {n: frame for n, frame in every_frame(storyboard).items() if n < 5}
    here = digests(storyboard, frames)
    code = (
        "import sys, json, hashlib\n"
        "from services.storyboard.schemas import Storyboard\n"
        "from services.storyboard.sheet import compose\n"
        "told = json.load(sys.stdin)\n"
        "frames = {int(n): bytes.fromhex(frame) for n, frame in told['frames'].items()}\n"
        "storyboard = Storyboard.model_validate(told['storyboard'])\n"
        "print(*(hashlib.sha256(compose(storyboard, frames, form)).hexdigest()"
        " for form in ('pdf', 'png')))\n"
    )
    told = {
        "storyboard": storyboard.model_dump(mode="json"),
        "frames": {n: frame.hex() for n, frame in frames.items()},
    }
    other = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps(told),
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        env={"PYTHONPATH": str(Path.cwd()), "TZ": "Asia/Seoul"},
    )
    assert other.stdout.split() == here
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(lambda _: digests(storyboard, frames), range(4))) == [here] * 4


def test_a_time_without_a_zone_is_utc_and_counts_in_seconds() -> None:
    assert compose(a_storyboard(3, created_at=NOON.replace(microsecond=7)), {}, "pdf")
    plain = a_storyboard(3, created_at=NOON.replace(tzinfo=None, microsecond=123456))
    assert compose(plain, {}, "pdf") == compose(a_storyboard(3), {}, "pdf")


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0, "0:00"), (59.4, "0:59"), (59.9999999, "1:00"), (605, "10:05")]
)
def test_a_clock_shows_minutes_and_seconds(seconds: float, shown: str) -> None:
    assert clock(seconds) == shown


@pytest.mark.parametrize(
    ("text", "is_ua", "shown"),
    [
        ("꽃 \U0001f33c\ufe0f 끝", True, "꽃 □ 끝"),
        ("مرحبا", True, "مرحبا"),
        ("ภาษาไทย 끝", False, "끝"),
    ],
)
def test_characters_that_no_font_has_cost_at_most_the_conformance(
    text: str, is_ua: bool, shown: str
) -> None:
    pdf = compose(retold(a_storyboard(3), [text] * 3), {}, "pdf")
    catalog = pypdf.PdfReader(io.BytesIO(pdf)).root_object
    assert (b"pdfuaid" in catalog["/Metadata"].get_object().get_data()) is is_ua
    assert catalog["/MarkInfo"]["/Marked"]
    assert shown in " ".join(read(pdf))


def test_a_backslash_is_no_won_sign() -> None:
    """NanumGothic draws one, so another font has to stand in."""
    fonts = []
    for text in ("한글", "한글\\"):
        pdf = compose(retold(a_storyboard(3), [text] * 3), {}, "pdf")
        page = pypdf.PdfReader(io.BytesIO(pdf)).pages[0]
        fonts.append(
            {str(one.get_object()["/BaseFont"]) for one in page["/Resources"]["/Font"].values()}
        )
    assert not any("Nanum" in name for name in fonts[1] - fonts[0])
    assert len(fonts[1]) > len(fonts[0])


def test_marks_do_not_pile_up_over_the_lines_above() -> None:
    piled, few = (retold(a_storyboard(3), ["q" + "\u0301" * marks] * 3) for marks in (60, 4))
    assert compose(piled, {}, "pdf") == compose(few, {}, "pdf")
