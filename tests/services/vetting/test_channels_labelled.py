"""Every described channel gets the verdict that a careful person gives it, when the model finds
what a careful person finds.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from services.vetting.app import create_app
from tests.fakes.scripted_llm import served_app
from tests.fakes.scripted_vetter import ScriptedVetter
from tests.services.vetting.conftest import Vetting, scripted_parts, settings_for
from tests.youtube.described import FOLDER, Channels
from tests.youtube.server import FakeYouTube

NAMES = sorted(path.stem for path in FOLDER.glob("*.toml"))
ERRORS = {
    "ChannelNotFound": (404, "channel_not_found"),
    "SourceUnavailable": (503, "youtube_unavailable"),
    "SourceTimedOut": (504, "youtube_timeout"),
    "QuotaExhausted": (429, "youtube_quota_exhausted"),
}
READ_FROM_PIXELS = ("pictures-gambling", "pictures-drugs", "harmless-hiking")


@pytest.fixture(scope="module")
def vetting(
    _served_youtube: FakeYouTube,
    _vetter: ScriptedVetter,
    channels: Channels,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Vetting]:
    home = tmp_path_factory.mktemp("labelled")
    app = create_app(settings_for(_served_youtube, _vetter, home), scripted_parts(channels))
    with served_app(app) as url, httpx.Client(base_url=url, timeout=60) as client:
        yield Vetting(client, channels, app)


@pytest.mark.parametrize("name", [n for n in NAMES if n != "faults-quota-exceeded"])
def test_the_verdict_is_the_expected_one(
    name: str, vetting: Vetting, fake: FakeYouTube, reader_llm: ScriptedVetter
) -> None:
    expected = vetting.channels[name].expected
    answer = vetting.ask(name)
    if expected.error is not None:
        assert (answer.status_code, answer.json()["code"]) == ERRORS[expected.error]
        return
    assert answer.status_code == 200, answer.text
    got = answer.json()
    assert got["verdict"] == expected.verdict, (expected.why, got["reasons"], got["coverage"])
    assert got["reasons"][0]["verdict"] == expected.verdict


def test_a_day_that_google_calls_spent_is_over_for_all(
    serve,
    channels: Channels,  # type: ignore[no-untyped-def]
) -> None:
    with serve() as vetting:
        for name in ("faults-quota-exceeded", "harmless-hiking"):
            answer = vetting.ask(name)
            assert (answer.status_code, answer.json()["code"]) == ERRORS["QuotaExhausted"]
            assert 0 < int(answer.headers["retry-after"]) <= 25 * 3600


def test_evidence_is_cut_from_what_the_channel_wrote(
    vetting: Vetting, fake: FakeYouTube, reader_llm: ScriptedVetter
) -> None:
    for name in ("words-gambling", "both-gambling", "words-in-tags", "pictures-gambling"):
        channel = vetting.channels[name]
        texts = {v.id: v.file for v in channel.videos}
        found = [f for f in vetting.vet(name)["findings"] if f["quote"] is not None]
        assert found
        for finding in found:
            if finding["video_id"] is None:
                assert finding["quote"] in channel.file.channel.description
                continue
            wrote = texts[finding["video_id"]].text_of(finding["source"])
            assert finding["quote"] in wrote.replace("\n", ", ")
            assert (finding["box"] is not None) == (finding["source"] == "thumbnail")


@pytest.mark.parametrize("name", READ_FROM_PIXELS)
def test_letters_are_read_from_the_pixels(
    name: str,
    serve,
    tmp_path: Path,  # type: ignore[no-untyped-def]
) -> None:
    from services.vetting.app import Parts

    with serve(Parts(), ocr_timeout_s=30.0, call_timeout_s=20.0, deadline_s=100.0) as vetting:
        got = vetting.vet(name)
    assert got["verdict"] == vetting.channels[name].expected.verdict, got["reasons"]
    assert got["coverage"]["thumbnails_looked_at"] == 4
