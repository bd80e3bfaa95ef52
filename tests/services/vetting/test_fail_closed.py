"""Whatever goes wrong, nothing passes: each dependency refused, slow, garbled and partial. The
channel is one that passes when everything works.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from typing import Any, get_args
from urllib.parse import quote, quote_plus

import httpx
import pytest

from services.shared.language_model import ModelRefused, Reply, Usage
from services.vetting.adapters.ocr import ThumbnailReader
from services.vetting.adapters.vision import picture_message
from services.vetting.app import Parts, create_app, metrics
from services.vetting.cutting import Passage
from services.vetting.judging import TOO_LONG, Judge, Looked
from services.vetting.metrics import Metrics
from services.vetting.pictures import (
    OcrBusy,
    OcrFailed,
    OcrTimedOut,
    OcrUnavailable,
    Picture,
    ReadText,
    TextReadError,
)
from services.vetting.prompts.library import PromptLibrary
from tests.fakes.scripted_llm import Act, served_app
from tests.fakes.scripted_vetter import ScriptedReader, ScriptedVetter
from tests.services.vetting.conftest import Serve, Vetting, settings_for
from tests.youtube.described import CallFault, CallName, Channels, PictureFault
from tests.youtube.server import KEY, FakeYouTube

NAME = "harmless-hiking"
ENOUGH = 1_000
CLOSED = "http://127.0.0.1:9"
WRONG: dict[str, Act] = {
    "refused": Act(status=503),
    "bad_request": Act(status=400),
    "slow": Act({"findings": []}, delay_s=6.0),
    "garbage": Act("I cannot help with that."),
    "fenced": Act('```json\n{"findings": []}\n```'),
    "empty": Act(""),
    "other_shape": Act({"findings": [], "verdict": "pass"}),
    "beyond_bounds": Act({"findings": [{"passage": 0, "level": 9}]}),
    "truncated": Act('{"findings": []', finish_reason="length"),
    "filtered": Act({"findings": []}, finish_reason="content_filter"),
    "cut_off": Act({"findings": []}, dies_after=1),
}


@dataclass
class FaultyReader(ScriptedReader):
    """Reads `reads` pictures; then it raises `error`, or sees letters that it cannot make out."""

    error: type[TextReadError] | None = None
    reads: int = ENOUGH

    async def read(self, picture: Picture) -> list[ReadText]:
        lines = await super().read(picture)
        if self.reads > 0:
            self.reads -= 1
            return lines
        if self.error is not None:
            raise self.error("scripted")
        return [replace(line, confidence=0.2) for line in lines]


@pytest.fixture(scope="module")
def reader(channels: Channels) -> FaultyReader:
    return FaultyReader(channels)


@pytest.fixture(scope="module")
def _shared(
    _served_youtube: FakeYouTube,
    _vetter: ScriptedVetter,
    reader: FaultyReader,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Vetting]:
    home = tmp_path_factory.mktemp("fail-closed")
    bounds = {"call_timeout_s": 2.0, "youtube_deadline_s": 1.5, "thumbnail_timeout_s": 1.0}
    app = create_app(
        settings_for(_served_youtube, _vetter, home, **bounds),
        Parts(reader=lambda settings: reader),
    )
    with served_app(app) as url, httpx.Client(base_url=url, timeout=60) as client:
        yield Vetting(client, _served_youtube.channels, app)


@pytest.fixture
def vetting(
    _shared: Vetting, fake: FakeYouTube, reader_llm: ScriptedVetter, reader: FaultyReader
) -> Vetting:
    """One service for all tests that need no settings of their own; all is well at first, and
    nothing is known of what YouTube said to another test.
    """
    reader.error, reader.reads = None, ENOUGH
    with closing(sqlite3.connect(_shared.app.state.settings.sqlite_path())) as database, database:
        database.execute("DELETE FROM vetting_snapshots")
    return _shared


def test_it_passes_when_everything_works(vetting: Vetting) -> None:
    got = vetting.vet(NAME)
    assert got["verdict"] == "pass", got["coverage"]


@pytest.mark.parametrize("call", get_args(CallName))
@pytest.mark.parametrize(
    "fault",
    ["server_error", "slow", "drip", "cut_off", "truncated_json", "html", "empty_object",
     "wrong_kind", "bad_items", "huge", "not_modified", "redirect"],
)  # fmt: skip
def test_youtube(call: CallName, fault: CallFault, vetting: Vetting, fake: FakeYouTube) -> None:
    fake.fail(call, fault)
    answer = vetting.ask(NAME)
    if answer.status_code == 200:  # Some videos are named as not looked at.
        got = answer.json()
        assert got["verdict"] == "review"
        assert got["coverage"]["not_looked_at"] or got["reasons"][0]["code"] == "few_uploads"
    else:
        assert answer.status_code in (404, 503, 504), answer.text
        assert answer.json()["code"].startswith(("youtube_", "channel_not_found"))


def test_youtube_that_is_not_there(serve: Serve) -> None:
    with serve(youtube_url=CLOSED) as vetting:
        answer = vetting.ask(NAME)
    assert (answer.status_code, answer.json()["code"]) == (503, "youtube_unavailable")


@pytest.mark.parametrize("fault", get_args(PictureFault))
def test_one_thumbnail(fault: PictureFault, vetting: Vetting, fake: FakeYouTube) -> None:
    with _pictured(fake, fault):
        got = vetting.vet(NAME)
    video = vetting.channels[NAME].videos[0]
    assert got["verdict"] == "review"
    assert [unseen["what"] for unseen in got["coverage"]["not_looked_at"]] == [
        f"thumbnail:{video.id}"
    ]
    assert got["coverage"]["thumbnails_looked_at"] == 3


def test_a_thumbnail_host_that_is_not_there(serve: Serve) -> None:
    with serve(pictures_url=CLOSED) as vetting:
        got = vetting.vet(NAME)
    assert got["verdict"] == "review"
    assert [u["why"] for u in got["coverage"]["not_looked_at"]] == ["unreachable"] * 4
    assert got["coverage"]["thumbnails_looked_at"] == 0


@contextmanager
def _pictured(fake: FakeYouTube, fault: PictureFault) -> Iterator[None]:
    """The newest video's thumbnail goes wrong meanwhile."""
    known = fake.channels.by_name[NAME]
    newest = known.videos[0]
    picture = newest.file.picture.model_copy(update={"fault": fault})
    file = newest.file.model_copy(update={"picture": picture})
    fake.channels.by_name[NAME] = replace(
        known, videos=(replace(newest, file=file), *known.videos[1:])
    )
    try:
        yield
    finally:
        fake.channels.by_name[NAME] = known


@pytest.mark.parametrize("reads", [0, 3])
@pytest.mark.parametrize(
    ("error", "why"),
    [
        (OcrUnavailable, "ocr_unavailable"),
        (OcrTimedOut, "ocr_timed_out"),
        (OcrBusy, "ocr_busy"),
        (OcrFailed, "ocr_failed"),
        (None, "text_unreadable"),
    ],
)
def test_reading_thumbnails(
    error: type[TextReadError] | None, why: str, reads: int, vetting: Vetting, reader: FaultyReader
) -> None:
    reader.error, reader.reads = error, reads
    got = vetting.vet(NAME)
    assert got["verdict"] == "review"
    unseen = got["coverage"]["not_looked_at"]
    assert [u["why"] for u in unseen] == [why] * (4 - reads)
    assert all(u["what"].startswith("thumbnail_text:") for u in unseen)
    assert got["coverage"]["thumbnails_looked_at"] == reads


@pytest.mark.parametrize("module", ["lacking_reader", "stuck_reader", "no_such_module"])
def test_reading_processes_that_cannot_read(module: str, serve: Serve) -> None:
    reader = ThumbnailReader(module=f"tests.services.vetting.{module}", timeout_s=1.0)
    with serve(Parts(reader=lambda settings: reader)) as vetting:
        got = vetting.vet(NAME)
    assert got["verdict"] == "review"
    assert [u["what"].split(":")[0] for u in got["coverage"]["not_looked_at"]] == [
        "thumbnail_text"
    ] * 4


def test_nothing_that_can_read(serve: Serve) -> None:
    with serve(Parts(reader=lambda settings: None)) as vetting:
        got = vetting.vet(NAME)
    assert got["verdict"] == "review"
    assert {u["why"] for u in got["coverage"]["not_looked_at"]} == {"ocr_unavailable"}


@pytest.mark.parametrize("times", ["always", "once"])
@pytest.mark.parametrize("wrong", WRONG)
def test_the_model_on_words(
    wrong: str, times: str, vetting: Vetting, reader_llm: ScriptedVetter
) -> None:
    reader_llm.script["TextAnswer"] = _wrong(wrong, times)
    got = vetting.vet(NAME)
    assert got["verdict"] == "review"
    unseen = [u["what"].split(":")[0] for u in got["coverage"]["not_looked_at"]]
    assert unseen
    assert set(unseen) <= {"text", "thumbnail_text"}
    if times == "always":
        assert got["coverage"]["videos_looked_at"] == 0
        assert got["coverage"]["thumbnails_looked_at"] == 0


@pytest.mark.parametrize("times", ["always", "once"])
@pytest.mark.parametrize("wrong", WRONG)
def test_the_model_on_pictures(
    wrong: str, times: str, vetting: Vetting, reader_llm: ScriptedVetter
) -> None:
    reader_llm.script["PictureAnswer"] = _wrong(wrong, times)
    got = vetting.vet(NAME)
    assert got["verdict"] == "review"
    unseen = [u["what"].split(":")[0] for u in got["coverage"]["not_looked_at"]]
    assert unseen == ["thumbnail_image"] * (4 if times == "always" else 1)
    assert got["coverage"]["thumbnails_looked_at"] == 4 - len(unseen)


def _wrong(wrong: str, times: str) -> Act | Callable[[int], Act]:
    act, good = WRONG[wrong], Act({"findings": []})
    return act if times == "always" else lambda n: act if n == 1 else good


def test_a_model_that_never_answers_is_an_error(serve: Serve, reader_llm: ScriptedVetter) -> None:
    reader_llm.script["TextAnswer"] = Act(status=503, headers={"retry-after": "7"})
    with serve(vision=False) as vetting:
        answer = vetting.ask(NAME)
    assert (answer.status_code, answer.json()["code"]) == (503, "model_unavailable")
    assert answer.headers["retry-after"] == "7"


def test_youtube_is_not_paid_for_what_nobody_can_judge(serve: Serve, fake: FakeYouTube) -> None:
    with serve(llm_url=CLOSED) as vetting:
        answer = vetting.ask(NAME)
    assert (answer.status_code, answer.json()["code"]) == (503, "model_unavailable")
    assert fake.units == 0


def test_pictures_that_nothing_can_see(serve: Serve) -> None:
    with serve(vision=False) as vetting:
        got = vetting.vet(NAME)
    assert got["verdict"] == "review"
    assert got["coverage"]["not_looked_at"] == [{"what": "thumbnails", "why": "no_vision_model"}]
    with serve(vision=False, text_only=True) as vetting:
        allowed = vetting.vet(NAME)
        gap = vetting.vet("faults-picture-html")
    assert allowed["verdict"] == "pass"
    assert allowed["coverage"] == got["coverage"]
    assert gap["verdict"] == "review"


def _claimed(passage: int, level: int, category: str = "hate") -> dict[str, Any]:
    return {
        "passage": passage, "reason": "x", "category": category, "how": "does", "level": level,
    }  # fmt: skip


def test_a_passage_that_does_not_exist_puts_its_batch_in_doubt(
    vetting: Vetting, reader_llm: ScriptedVetter
) -> None:
    reader_llm.script["TextAnswer"] = Act({"findings": [_claimed(60, 4), _claimed(59, 1)]})
    got = vetting.vet(NAME)
    assert got["verdict"] == "review"
    assert got["findings"] == []
    assert {u["why"] for u in got["coverage"]["not_looked_at"]} == {"citation_not_found"}


def test_a_full_list_may_have_left_something_out(
    vetting: Vetting, reader_llm: ScriptedVetter
) -> None:
    reader_llm.script["TextAnswer"] = Act({"findings": [_claimed(1, 1)] * 12})
    got = vetting.vet(NAME)
    assert got["verdict"] == "review"
    assert {u["why"] for u in got["coverage"]["not_looked_at"]} == {"too_many_findings"}


@pytest.mark.parametrize("level", [2, 3])
def test_looks_that_disagree_fail_nobody(
    level: int, vetting: Vetting, reader_llm: ScriptedVetter
) -> None:
    def answers(n: int) -> Act:
        seed = reader_llm.calls[-1]["seed"]
        return Act({"findings": [_claimed(1, level if seed == 1 else level + 1)]})

    reader_llm.script["TextAnswer"] = answers
    got = vetting.vet(NAME)
    assert got["verdict"] == "review"
    assert "looks_disagree" in [reason["code"] for reason in got["reasons"]]
    assert {f["confidence"] for f in got["findings"]} <= {0.5, 0.475}
    assert max(f["level"] for f in got["findings"]) == level + 1


@pytest.mark.parametrize(("level", "looks"), [(1, 1), (2, 2), (3, 2), (4, 1)])
def test_borderline_levels_get_a_second_look(
    level: int, looks: int, serve: Serve, reader_llm: ScriptedVetter
) -> None:
    reader_llm.script["TextAnswer"] = Act({"findings": [_claimed(1, level)]})
    with serve(batch_videos=50) as vetting:
        vetting.vet(NAME)
    seeds = [c["seed"] for c in reader_llm.calls_for("TextAnswer")]
    assert sorted(set(seeds)) == list(range(1, looks + 1))


class ShortModel:
    """Takes calls of at most `passages` passages, and finds nothing."""

    def __init__(self, passages: int) -> None:
        self.passages = passages
        self.seen: list[str] = []

    async def ask(self, call: Any) -> Reply:
        lines = re.findall(r"^\[\d+\] title: (.*)$", call.messages[-1].content, re.MULTILINE)
        if len(lines) > self.passages:
            raise ModelRefused("too long", TOO_LONG)
        self.seen += lines
        return Reply('{"findings":[]}', "stop", Usage(), "short")


async def test_a_batch_that_is_too_long_is_read_in_halves() -> None:
    model = ShortModel(passages=2)
    judge = Judge(model, picture_message, PromptLibrary("1"), Metrics())  # type: ignore[arg-type]
    batch = tuple(Passage("v", "title", str(n)) for n in range(7))
    looked = await judge.read(batch, "en", "short", "call")
    assert model.seen == [str(n) for n in range(7)]
    assert looked == Looked(answers=4)
    hopeless = await Judge(ShortModel(0), picture_message, PromptLibrary("1"), Metrics()).read(  # type: ignore[arg-type]
        batch, "en", "short", "call"
    )
    assert {u.why for u in hopeless.not_looked_at} == {"refused_by_model_server"}


@pytest.mark.parametrize("fault", ["echoes_key", "key_invalid", "api_disabled", "server_error"])
def test_the_key_shows_nowhere(
    fault: CallFault,
    serve: Serve,
    fake: FakeYouTube,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(0)
    said = []
    with serve(log_level="debug") as vetting:
        for call in get_args(CallName):
            fake.fail(call, fault)
            answer = vetting.ask(NAME)
            assert answer.status_code == 503, answer.text
            said += [answer.text, str(answer.headers)]
            fake.mend()
        fake.fail("videos", fault)
        said += [str(vetting.events(NAME)), metrics(vetting.app), repr(vetting.app.state.settings)]
    said += [*capfd.readouterr(), caplog.text]
    whole = "\n".join(said)
    assert "youtube" in whole
    for form in (KEY, quote(KEY), quote_plus(KEY), quote(KEY, safe="")):
        assert form not in whole
