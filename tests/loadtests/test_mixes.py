"""Mixes are read strictly: what cannot be run is refused with the key and the fix."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from loadtests.mixes import reading
from loadtests.mixes.reading import Mix, MixError

GOOD = """
rate = 2
duration_s = 30
[classes.chat]
share = 0.6
within_s = 5
[classes.images]
share = 0.4
within_s = 10
options = { n = 2 }
"""


def parsed(text: str, folder: Path = Path()) -> Mix:
    return reading.parse(text, folder / "mine.toml")


@pytest.mark.parametrize("name", reading.names())
def test_every_mix_can_be_scheduled(name: str) -> None:
    mix = reading.read(name)
    arrivals = mix.schedule(rate=mix.rate, duration_s=mix.duration_s, seed=3)
    counted = Counter(arrival.traffic_class for arrival in arrivals)
    assert set(counted) == set(mix.classes)
    assert mix.summary


def test_the_mixes_that_are_promised_are_there() -> None:
    assert {"platform-day", "deadline-rush", "image-heavy"} <= set(reading.names())
    kinds = {"evaluation", "vetting", "images", "storyboards", "chat"}
    assert set(reading.read("platform-day").classes) == kinds


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        ("[classes.images]", "[classes.pictures]", "pictures.*unknown traffic.*images"),
        ("share = 0.4", "share = 0.5", "shares add up to 1.1, not 1.*chat 0.6, images 0.5"),
        ("rate = 2", "rate = 0", "rate: .*greater than 0, not 0"),
        ("rate = 2", "", "rate: it is missing"),
        ("duration_s = 30", "duration_s = 0.1", "raise rate or duration_s"),
        ("within_s = 5", "within = 5", "classes.chat.within: there is no such key"),
        ("within_s = 5", "within_s = 5\npatience_s = 4", "classes.chat: .*raise patience_s"),
        ("n = 2", "m = 2", "classes.images.options.m: there is no such key"),
        ("n = 2", "n = 9", "classes.images.options.n: .*8, not 9"),
        ("rate = 2", "rate = 2\nname = 'x'", "name is no key"),
        ("rate = 2", "rate = 2\narrivals.shape = 'wave'", "arrivals.shape: .*spike.*, not 'wave'"),
        ("rate = 2", "rate = 2\narrivals.times = 3", "times has no effect with shape = 'flat'"),
        ("rate = 2", "rate = 2\narrivals.burstiness = 3", "burstiness has no effect"),
        ("rate = 2", "rate = 2\narrivals.shape = 'trace'", "needs file"),
        ("rate = 2", "rate = 2\narrivals = {shape='trace',file='no.csv'}", "cannot be read"),
        ("rate = 2", "rate = 2\narrivals = {shape='spike',starts_at=1.0}", "a spike from 1"),
        ("rate = 2", "rate = ", "no TOML"),
    ],
)
def test_what_is_wrong_is_named_with_its_fix(before: str, after: str, told: str) -> None:
    assert before in GOOD
    with pytest.raises(MixError, match=f"(?s)mine.toml: .*{told}|trace no.csv {told}"):
        parsed(GOOD.replace(before, after, 1))


def test_a_name_that_is_none_is_told_with_those_there_are() -> None:
    with pytest.raises(MixError, match=r"(?s)'nope'.*platform-day"):
        reading.read("nope")


def test_leaving_classes_out_keeps_the_others_proportions() -> None:
    mix = reading.read("platform-day")
    fewer = mix.only(frozenset({"chat", "images"}))
    assert fewer.shares["chat"] / fewer.shares["images"] == pytest.approx(
        mix.shares["chat"] / mix.shares["images"]
    )
    assert sum(fewer.shares.values()) == pytest.approx(1)
    with pytest.raises(MixError, match="no class brew"):
        mix.only(frozenset({"brew"}))
    with pytest.raises(MixError, match="keep one"):
        mix.only(frozenset())


def test_a_trace_lies_beside_its_mix(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("at_s,class\n5,chat\n7,\n6.5,images\n", "utf-8")
    text = GOOD.replace("rate = 2", "rate = 2\narrivals = {shape='trace',file='t.csv'}", 1)
    arrivals = parsed(text, tmp_path).schedule(rate=1.0, duration_s=99.0, seed=1)
    assert [round(arrival.due_s, 9) for arrival in arrivals] == [0.0, 1.5, 2.0]
    assert [arrival.traffic_class for arrival in arrivals[:2]] == ["chat", "images"]
    (tmp_path / "t.csv").write_text("seconds\n5\n", "utf-8")
    with pytest.raises(MixError, match="column at_s"):
        parsed(text, tmp_path)


def test_a_mix_survives_the_way_to_a_worker() -> None:
    mix = reading.read("deadline-rush")
    assert Mix.model_validate(mix.model_dump(mode="json", exclude_unset=True)) == mix
