"""What the vetting benchmark asks for, and what it makes of the answers. No model, no service."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import replace
from itertools import islice
from typing import Any

import pytest
from rich.console import Console

from loadtests.benchmarks import vetting
from loadtests.benchmarks.machine import describe_machine
from loadtests.benchmarks.report import last_line
from loadtests.benchmarks.vetting import Block, Score, Sides, Vetted
from tests.youtube.described import Channels, DescribedChannel

DESCRIBED = Channels.load()
NUMBER = re.compile(r"^\d{4}(-\d\d)?")
SPENT = {
    ("spent", "quota_units"): 6.0,
    ("spent", "youtube_bytes"): 20_000.0,
    ("spent", "thumbnail_bytes"): 600_000.0,
    **{("calls", name): 2.0 for name in vetting.DEPENDENCIES},
    **{("failed_calls", name): 0.0 for name in vetting.DEPENDENCIES},
    **{("call_seconds", name): 1.0 for name in vetting.DEPENDENCIES},
    ("call_seconds", "llm"): 5.0,
    ("calls", "vision"): 0.0,
    ("call_seconds", "vision"): 0.0,
    ("processor_seconds", "ocr"): 4.0,
}


def vetted(name: str, verdict: str, *codes: str, tokens: int = 100) -> Vetted:
    usage = {"prompt_tokens": 900, "cached_tokens": 800, "completion_tokens": tokens}
    reasons = [{"code": code} for code in codes]
    coverage = {"not_looked_at": [{"what": "thumbnails", "why": "no_vision_model"}]}
    answer: dict[str, Any] = {
        "verdict": verdict,
        "reasons": reasons,
        "usage": usage,
        "coverage": coverage,
    }
    return Vetted(DESCRIBED[name], answer, 10.0)


TWO = (vetted("harmless-hiking", "pass"), vetted("words-fraud", "fail"))
SIDES = Sides([Block(TWO, 15.0, SPENT)] * 3, [Block(TWO, 30.0, SPENT)] * 3)


def words_of(channel: DescribedChannel) -> list[str]:
    """What stands at the beginning of a batch: of the channel's page, a video, a thumbnail."""
    pictures = [video.file.picture.text for video in channel.videos]
    return [channel.file.channel.title, *(v.file.title for v in channel.videos), *pictures]


def made(blocks: int, channels: int, videos: int) -> list[DescribedChannel]:
    found = islice(vetting.fresh_blocks(DESCRIBED, channels, videos), blocks)
    return [channel for block in found for channel in block]


def test_no_two_fresh_channels_share_an_id_or_the_beginning_of_a_text() -> None:
    fresh = made(blocks=4, channels=16, videos=5)
    assert all(len(channel.videos) == 5 for channel in fresh)
    for names in (
        [channel.name for channel in fresh],
        [channel.id for channel in fresh],
        [video.id for channel in fresh for video in channel.videos],
        [words[:7] for channel in fresh for words in words_of(channel)[1:6]],
        [words[:7] for channel in fresh for words in words_of(channel)[6:]],
        [channel.file.channel.title[:4] for channel in fresh],
    ):
        assert Counter(names).most_common(1)[0][1] == 1
    assert all(len(channel.id) == 24 for channel in fresh)
    assert all(len(video.id) == 11 for channel in fresh for video in channel.videos)


def test_every_block_says_the_same_but_for_its_numbers() -> None:
    first, second = islice(vetting.fresh_blocks(DESCRIBED, channels=16, videos=4), 2)
    for one, other in zip(first, second, strict=True):
        told = [[NUMBER.sub("", words) for words in words_of(c)] for c in (one, other)]
        assert told[0] == told[1]


def test_a_fresh_channel_says_all_that_its_model_says() -> None:
    videos = [video for channel in made(1, 30, 4) for video in channel.videos]
    assert any(video.file.labels for video in videos)
    for video in videos:
        for label in video.file.labels:
            assert label.quote is None or label.quote in video.file.text_of(label.field)


def test_six_labelled_channels_are_of_every_kind_that_words_decide() -> None:
    chosen = vetting.with_verdicts(DESCRIBED)
    assert Counter(channel.file.kind for channel in chosen[:6]) == {
        "harmless": 2,
        "words": 2,
        "injected": 1,
        "borderline": 1,
    }
    assert {c.name for c in chosen} == {
        name for name, channel in DESCRIBED.items() if channel.expected.verdict is not None
    }


def test_the_ratio_is_of_channels_in_the_same_round() -> None:
    found = vetting.ratios(SIDES, is_scripted=False)
    assert found["channels_per_minute"].value == pytest.approx(2.0)
    assert found["channels_per_minute"].repetitions == "; ".join(["2 and 2 channels"] * 3)
    assert found["reply_tokens_per_minute"].value == pytest.approx(2.0)
    assert set(found) == set(vetting.RATIOS)


def test_costs_are_those_of_one_channel_and_shares_add_up() -> None:
    found = vetting.costs(SIDES.alone, is_scripted=False)
    assert found["quota_units"] == pytest.approx(3.0)
    assert found["thumbnail_bytes"] == pytest.approx(300_000.0)
    assert found["completion_tokens"] == pytest.approx(100.0)
    assert found["share_llm"] == pytest.approx(5 / 9)
    assert found["processor_s_ocr"] == pytest.approx(2.0)
    shares = [value for name, value in found.items() if name.startswith("share_")]
    assert sum(shares) == pytest.approx(1.0)
    assert "share_vision" not in found


def test_a_scripted_model_s_tokens_are_not_reported() -> None:
    told = {
        **vetting.ratios(SIDES, is_scripted=True),
        **vetting.costs(SIDES.alone, is_scripted=True),
    }
    assert not [name for name in told if "tokens" in name]
    assert vetting._name("vetting", vetting.SCRIPTED) != vetting._name("vetting", "smollm2-135m")


@pytest.mark.parametrize(
    ("verdict", "codes", "expected"),
    [
        ("review", ["no_vision_model"], "pass"),
        ("review", ["not_looked_at", "no_vision_model"], "review"),
        ("fail", ["grave", "no_vision_model"], "fail"),
        ("pass", ["nothing_found"], "pass"),
    ],
)
def test_by_words_only_the_rule_about_unseen_pictures_falls_away(
    verdict: str, codes: list[str], expected: str
) -> None:
    assert vetted("harmless-hiking", verdict, *codes).verdict_by_words == expected


def test_what_passed_and_must_not_is_named() -> None:
    verdicts = [
        (DESCRIBED["harmless-hiking"], "review"),
        (DESCRIBED["words-fraud"], "pass"),
        (DESCRIBED["words-hate"], "fail"),
        (DESCRIBED["borderline-wine"], "fail"),
    ]
    score = Score.of(verdicts)
    assert score == Score(right=1, to_review=1, to_fail=1, passed=("words-fraud",))


def test_the_last_line_of_the_labels_is_json() -> None:
    judged = [
        vetted("harmless-hiking", "review", "no_vision_model"),
        vetted("words-fraud", "review", "no_vision_model"),
        vetted("words-hate", "fail", "grave", "no_vision_model"),
    ]
    found = vetting.scores(judged)
    told = json.loads(last_line("vetting_labels", vetting._plain(found), describe_machine()))
    assert told["ratios"] == {
        "channels": 3,
        "right": 1,
        "to_review": 2,
        "to_fail": 0,
        "to_pass": 0,
        "by_words_right": 2,
        "by_words_to_review": 0,
        "by_words_to_fail": 0,
        "by_words_to_pass": 1,
        "tokens": 1_000,
        "seconds": 10,
    }
    console = Console(width=160)
    with console.capture() as shown:
        console.print(vetting.score_table("Labels", judged))
    assert "words-hate" in shown.get()


def test_calls_that_fail_are_no_figure() -> None:
    broken = replace(SIDES.alone[0], spent={**SPENT, ("failed_calls", "ocr"): 1.0})
    with pytest.raises(vetting.BenchmarkFailed, match="ocr"):
        vetting.refuse_failures(broken.spent)
    vetting.refuse_failures({**SPENT, ("failed_calls", "llm"): 3.0})
