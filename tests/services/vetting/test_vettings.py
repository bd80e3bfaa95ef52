"""Vettings over HTTP: what is told, streamed and stored, and the bounds within which it runs."""

from __future__ import annotations

import json
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from services.shared.storage import Storage, open_storage
from services.vetting.adapters.database import SQLSnapshotCache, SQLVettingStore, metadata
from services.vetting.app import metrics
from services.vetting.channels import ChannelRef
from services.vetting.ports import Cached
from services.vetting.schemas import Vetting as Document
from tests.databases import Database
from tests.fakes.scripted_llm import Act
from tests.fakes.scripted_vetter import ScriptedVetter
from tests.services.vetting.conftest import VET, Serve
from tests.youtube.server import FakeYouTube

MAY_DIFFER = ("id", "duration_ms", "fetched_at", "expires_at")
LINE = re.compile(r"A video:|The channel's page:|Answer language: .+|\[\d+\] [a-z]+: .+")


def test_what_is_told_about_a_channel(serve: Serve) -> None:
    with serve() as vetting:
        got = vetting.vet("words-gambling", language="en")
        channel = vetting.channels["words-gambling"]
    assert got["channel"]["id"] == channel.id
    assert got["channel"]["title"] == channel.file.channel.title
    assert got["channel"]["subscribers"] == channel.file.channel.subscribers
    assert got["channel"]["videos"] == len(channel.videos)
    assert got["coverage"] == {
        "videos_looked_at": 4,
        "thumbnails_looked_at": 4,
        "not_looked_at": [],
    }
    assert got["quota_units"] == 3
    fetched, expires = (datetime.fromisoformat(got[k]) for k in ("fetched_at", "expires_at"))
    assert expires - fetched == timedelta(days=30)
    assert (got["model"], got["prompt_version"]) == ("scripted", "1")
    assert got["usage"]["prompt_tokens"] > 0
    assert "gambling" in got["reasons"][0]["text"]


@pytest.mark.parametrize("form", ["id", "handle", "encoded", "address"])
def test_every_way_to_name_a_channel(form: str, serve: Serve) -> None:
    with serve() as vetting:
        channel = vetting.channels["words-gambling"]
        handle = channel.file.channel.handle
        encoded = "".join(f"%{byte:02X}" for byte in handle.removeprefix("@").encode())
        named = {
            "id": channel.id,
            "handle": handle,
            "encoded": f"https://www.youtube.com/@{encoded}",
            "address": f"m.youtube.com/channel/{channel.id}/videos?view=0",
        }[form]
        answer = vetting.client.post(VET, json={"channel": named})
    assert answer.json()["channel"]["id"] == channel.id


@pytest.mark.parametrize("named", ["https://youtu.be/abc", "file:///etc/passwd", "@", "\ufeff"])
def test_what_names_no_channel_is_a_422(named: str, serve: Serve, fake: FakeYouTube) -> None:
    with serve() as vetting:
        answer = vetting.client.post(VET, json={"channel": named})
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["field"] == "channel"
    assert fake.calls == []


def test_the_events_tell_the_same_as_the_result(serve: Serve) -> None:
    with serve() as vetting:
        plain = vetting.vet("both-violence")
        by_path = vetting.events("both-violence")
        by_header = vetting.events("both-violence", VET, accept="text/event-stream")
    for events in (by_path, by_header):
        name, result = events[-1]
        assert name == "result"
        assert _same(result) == _same(plain)
        told = [data for name, data in events if name == "finding"]
        assert _counted(told) == _counted(result["findings"])
        stages = [(d["name"], d["state"]) for name, d in events if name == "stage"]
        assert [s for s in stages if s[0] == "decide"] == [
            ("decide", "started"),
            ("decide", "fail"),
        ]
        assert [n for n, _ in stages if n in ("fetch", "signals")] == ["fetch"] * 2 + [
            "signals"
        ] * 2
        progress = [data["progress"] for name, data in events if name == "progress"]
        assert progress == sorted(progress)
        assert progress[-1] == 1.0


def _same(vetting: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in vetting.items() if key not in MAY_DIFFER}


def _counted(findings: list[dict[str, Any]]) -> Counter[str]:
    return Counter(json.dumps(finding, sort_keys=True) for finding in findings)


def test_an_error_after_the_first_byte_is_an_event(serve: Serve) -> None:
    with serve() as vetting:
        name, problem = vetting.events("faults-server-error")[-1]
    assert (name, problem["status"], problem["code"]) == ("error", 503, "youtube_unavailable")


def test_a_stored_vetting_is_the_one_that_was_told(serve: Serve) -> None:
    with serve() as vetting:
        told = vetting.vet("borderline-wine")
        stored = vetting.client.get(f"/v1/vettings/{told['id']}").json()
        missing = vetting.client.get(f"/v1/vettings/{'0' * 32}")
    assert stored == told
    assert (missing.status_code, missing.json()["code"]) == (404, "vetting_not_found")


def test_what_youtube_said_is_asked_once(serve: Serve, fake: FakeYouTube, tmp_path: Path) -> None:
    with serve(cache_ttl_s=600.0) as vetting:
        first = vetting.vet("harmless-hiking")
        again = vetting.vet("harmless-hiking")
    with serve(cache_ttl_s=600.0) as restarted:
        later = restarted.vet("harmless-hiking")
    assert [v["quota_units"] for v in (first, again, later)] == [3, 0, 0]
    assert {v["fetched_at"] for v in (first, again, later)} == {first["fetched_at"]}
    assert fake.units == 3


def test_without_a_key_nobody_is_told_more_than_that(
    serve: Serve, fake: FakeYouTube, capfd: pytest.CaptureFixture[str]
) -> None:
    with serve(youtube_key=SecretStr("")) as vetting:
        answers = [vetting.ask("harmless-hiking")]
        answers.append(vetting.client.get(f"/v1/vettings/{'0' * 32}"))
    assert (answers[0].status_code, answers[0].json()["code"]) == (503, "youtube_not_configured")
    assert int(answers[0].headers["retry-after"]) > 0
    assert "JOING" not in answers[0].text
    assert answers[1].status_code == 404
    assert "JOING_YOUTUBE_KEY" in capfd.readouterr().err


def test_more_than_can_run_are_told_when_to_come_back(
    serve: Serve, reader_llm: ScriptedVetter
) -> None:
    reader_llm.script["TextAnswer"] = Act({"findings": []}, delay_s=1.5)
    with serve(max_concurrent=1, call_timeout_s=10.0) as vetting:
        with _running(lambda: vetting.ask("harmless-hiking")):
            _until(lambda: reader_llm.running > 0)
            busy = vetting.ask("harmless-woodworking")
        assert (busy.status_code, busy.json()["code"]) == (503, "busy")
        assert int(busy.headers["retry-after"]) > 0
        reader_llm.script.clear()
        assert vetting.ask("harmless-woodworking").status_code == 200


def test_the_deadline_ends_a_vetting_and_its_calls(
    serve: Serve, reader_llm: ScriptedVetter
) -> None:
    reader_llm.script["TextAnswer"] = Act({"findings": []}, delay_s=30.0)
    with serve(deadline_s=1.5, call_timeout_s=30.0) as vetting:
        assert vetting.ask("harmless-hiking").status_code == 504
        _until(lambda: reader_llm.running == 0)


@pytest.mark.parametrize("path", [VET, f"{VET}/stream"])
def test_hanging_up_ends_everything(
    path: str, serve: Serve, reader_llm: ScriptedVetter, fake: FakeYouTube
) -> None:
    reader_llm.script["TextAnswer"] = Act({"findings": []}, delay_s=30.0)
    with serve(max_concurrent=1, call_timeout_s=60.0, deadline_s=60.0) as vetting:
        body = {"channel": vetting.channels["harmless-hiking"].id}
        with suppress(httpx.ReadTimeout), httpx.Client(base_url=vetting.client.base_url) as caller:
            caller.post(path, json=body, timeout=1.0)
            raise AssertionError("it answered before the caller left")
        _until(lambda: reader_llm.running == 0 and fake.running == 0)
        assert reader_llm.calls
        reader_llm.script.clear()
        _until(lambda: vetting.ask("harmless-woodworking").status_code == 200)


@contextmanager
def _running(work: Callable[[], object]) -> Iterator[None]:
    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        thread.join(30)


def _until(holds: Callable[[], object], within_s: float = 8.0) -> None:
    until = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < until, "it did not come about"
        time.sleep(0.02)


@pytest.mark.parametrize(
    "name", ["injected-gambling", "injected-harmless", "injected-hate", "injected-picture"]
)
def test_what_a_channel_wrote_stands_in_the_user_turn_only(
    name: str, serve: Serve, reader_llm: ScriptedVetter
) -> None:
    with serve() as vetting:
        vetting.vet(name)
        clean = [c["messages"][:-1] for c in reader_llm.calls_for("TextAnswer")]
        vetting.vet("harmless-hiking")
    other = [c["messages"][:-1] for c in reader_llm.calls_for("TextAnswer")]
    assert all(static == other[-1] for static in clean)
    for turn in reader_llm.turns:
        assert all(LINE.fullmatch(line) for line in turn.split("\n"))
        assert not any(token in turn for token in ("<|", "|>", "</", "[INST", "[|"))


def test_a_long_description_is_read_to_its_end(
    serve: Serve, reader_llm: ScriptedVetter, fake: FakeYouTube
) -> None:
    hidden = "Filler goes here. " * 260 + "THE LAST WORDS."
    with _described(fake, "harmless-hiking", hidden), serve(batch_characters=1_000) as vetting:
        got = vetting.vet("harmless-hiking")
    assert any("THE LAST WORDS." in turn for turn in reader_llm.turns)
    assert all(len(turn) < 2_500 for turn in reader_llm.turns)
    assert got["verdict"] == "pass"


def test_what_is_too_long_to_read_is_named(
    serve: Serve, reader_llm: ScriptedVetter, fake: FakeYouTube
) -> None:
    with (
        _described(fake, "harmless-hiking", "Filler goes here. " * 20 + "THE LAST WORDS."),
        serve(description_characters=300) as vetting,
    ):
        got = vetting.vet("harmless-hiking")
        video = vetting.channels["harmless-hiking"].videos[0]
    assert not any("THE LAST WORDS." in turn for turn in reader_llm.turns)
    assert got["verdict"] == "review"
    unseen = {"what": f"text:{video.id}", "why": "description_too_long"}
    assert got["coverage"]["not_looked_at"] == [unseen]
    assert got["coverage"]["videos_looked_at"] == 3


@contextmanager
def _described(fake: FakeYouTube, name: str, description: str) -> Iterator[None]:
    """The newest video of a channel has another description meanwhile."""
    known = fake.channels.by_name[name]
    newest = known.videos[0]
    file = newest.file.model_copy(update={"description": description})
    changed = replace(known, videos=(replace(newest, file=file), *known.videos[1:]))
    fake.channels.by_name[name] = changed
    try:
        yield
    finally:
        fake.channels.by_name[name] = known


def _opened(database: Database) -> AbstractAsyncContextManager[Storage]:
    return open_storage(database.url, database.file, metadata, pool_size=2)


async def test_vettings_survive_and_end_in_both_databases(database: Database, serve: Serve) -> None:
    with serve(database_url=database.url) as vetting:
        told = Document.model_validate(vetting.vet("both-gambling"))
    with serve(database_url=database.url) as restarted:
        stored = restarted.client.get(f"/v1/vettings/{told.id}").json()
    assert Document.model_validate(stored) == told
    async with _opened(database) as storage:
        await _ends(storage, told)
    with serve(database_url=database.url) as restarted:
        assert restarted.client.get(f"/v1/vettings/{told.id}").status_code == 404


async def _ends(storage: Storage, told: Document) -> None:
    just_before = told.expires_at - timedelta(seconds=1)
    for moment, is_there in ((just_before, True), (told.expires_at, False)):
        store = SQLVettingStore(storage.engine, clock=lambda moment=moment: moment)
        assert (await store.get(told.id) is not None) is is_there
    assert await store.delete_expired(just_before) == 0
    assert await store.delete_expired(told.expires_at) == 1


async def test_what_youtube_said_is_kept_whole_and_deleted_in_both_databases(
    database: Database, serve: Serve
) -> None:
    with serve(database_url=database.url) as vetting:
        vetting.vet("signals-kmrb-adult")
        key = ChannelRef("id", vetting.channels["signals-kmrb-adult"].id).key
    async with _opened(database) as storage:
        cache = SQLSnapshotCache(storage.engine)
        kept = await cache.get(key)
        assert kept is not None
        assert kept.etags.keys() == {"channels", "playlist_items", "videos"}
        newer = Cached(replace(kept.snapshot, fetched_at=datetime.now(UTC)), {"videos": "x"})
        await cache.put(key, newer)
        assert await cache.get(key) == newer
        await cache.delete_older_than(newer.fetched_at)
        assert await cache.get(key) == newer
        await cache.delete_older_than(newer.fetched_at + timedelta(microseconds=1))
        assert await cache.get(key) is None


def test_each_dependency_is_counted(serve: Serve) -> None:
    with serve() as vetting:
        vetting.vet("pictures-violence")
        vetting.ask("faults-server-error")
        text = metrics(vetting.app)
    samples = dict(re.findall(r"^(joing_vetting_\w+\{[^}]*\}) (\S+)$", text, re.MULTILINE))
    assert samples['joing_vetting_ended_total{verdict="fail"}'] == "1.0"
    assert samples['joing_vetting_calls_total{dependency="youtube"}'] == "2.0"
    assert samples['joing_vetting_failed_calls_total{dependency="youtube"}'] == "1.0"
    for dependency in ("thumbnails", "ocr"):
        assert samples[f'joing_vetting_calls_total{{dependency="{dependency}"}}'] == "4.0"
    for dependency in ("youtube", "thumbnails", "vision", "llm", "database"):
        assert float(samples[f'joing_vetting_call_seconds_total{{dependency="{dependency}"}}']) > 0
    assert float(samples['joing_vetting_spent_total{what="thumbnail_bytes"}']) > 0
    assert samples['joing_vetting_spent_total{what="quota_units"}'] == "3.0"
