import json
import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from services.evaluation.volume import (
    VolumeMeter,
    VolumeProblem,
    VolumeReading,
    VolumeThresholds,
    judge,
    thresholds_for,
)
from services.shared.passages import SENTENCE_END

LABELLED = Path(__file__).parents[2] / "data" / "volume.jsonl"
ROWS: list[dict[str, Any]] = [json.loads(line) for line in LABELLED.read_text("utf-8").splitlines()]
ENOUGH = [row for row in ROWS if row["label"] == "enough"]
CHARACTERS = 2_500
SHORT, LONG = thresholds_for("short_form"), thresholds_for("long_form")
ARABIC = (
    "يزور الفيلم ثلاثة مخابز قديمة في المدينة. يبدأ الخباز عمله قبل الفجر ويعجن الدقيق بيديه. "
    "تصل أول زبونة وتحكي عن خبز جدتها. في النهاية نقارن الأرغفة الثلاثة على مائدة واحدة."
)
HEBREW = (
    "הסרט מבקר בשלוש מאפיות ותיקות בעיר. האופה מתחיל לעבוד לפני הזריחה ולש את הבצק בידיו. "
    "הלקוחה הראשונה מגיעה ומספרת על הלחם של סבתא. בסוף משווים את הכיכרות על שולחן אחד."
)


@pytest.fixture(scope="session")
def meter() -> VolumeMeter:
    return VolumeMeter()


def filled(text: str) -> str:
    return "".join(islice(cycle(text), CHARACTERS))


def is_enough(meter: VolumeMeter, row: dict[str, Any], content: str | None = None) -> bool:
    reading = meter.measure(row["title"], row["content"] if content is None else content)
    return judge(reading, thresholds_for(row["media_type"])).is_enough


def test_the_labelled_set_is_what_its_readme_says() -> None:
    assert len({row["id"] for row in ROWS}) == len(ROWS) >= 100
    assert all(len(r["title"]) <= 100 and len(r["content"]) <= CHARACTERS for r in ROWS)
    assert 0.5 < sum(r["language"] == "ko" for r in ROWS) / len(ROWS) < 0.7
    assert 0.4 < len(ENOUGH) / len(ROWS) < 0.6
    assert 0.3 < sum(r["split"] == "holdout" for r in ROWS) / len(ROWS) < 0.4


@pytest.mark.parametrize("split", ["calibration", "holdout"])
@pytest.mark.parametrize("language", ["ko", "en"])
def test_judgements_agree_with_the_labels(meter: VolumeMeter, split: str, language: str) -> None:
    rows = [r for r in ROWS if (r["split"], r["language"]) == (split, language)]
    wrong = [r["id"] for r in rows if is_enough(meter, r) != (r["label"] == "enough")]
    assert len(wrong) <= 0.05 * len(rows), wrong


def test_a_first_sentence_repeated_to_the_limit_is_not_enough(meter: VolumeMeter) -> None:
    firsts = {row["id"]: SENTENCE_END.split(row["content"])[0] for row in ENOUGH}
    passed = [r["id"] for r in ENOUGH if is_enough(meter, r, filled(firsts[r["id"]] + " "))]
    assert passed == []


def test_pasting_twice_by_accident_is_forgiven(meter: VolumeMeter) -> None:
    once = [row for row in ENOUGH if not row["why"].startswith("proposal pasted twice")]
    failed = [r["id"] for r in once if not is_enough(meter, r, f"{r['content']}\n{r['content']}")]
    assert failed == []


def test_the_order_of_sentences_changes_nothing(meter: VolumeMeter) -> None:
    every = "\n".join(row["content"] for row in ENOUGH if row["language"] == "ko")
    lines = [line for line in every[: 2 * CHARACTERS].split("\n") if line]
    shuffled = random.Random(1).sample(lines, len(lines))
    assert shuffled != lines
    one, other = (meter.measure("제목", "\n".join(order)) for order in (lines, shuffled))
    assert one == other


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    title=st.text(st.characters(exclude_categories=()), max_size=100),
    content=st.text(st.characters(exclude_categories=()), max_size=400)
    | st.text("가나다ㅋㅁㄴ abz.,\n#@:/1😀\u200b\ud800", max_size=400),
)
def test_any_text_can_be_measured(meter: VolumeMeter, title: str, content: str) -> None:
    reading = meter.measure(title, content)
    for ratio in (
        reading.link_ratio,
        reading.distinct_ratio,
        reading.word_variety,
        reading.known_ratio,
        reading.grammar_ratio,
    ):
        assert 0 <= ratio <= 1
    assert min(reading.letters, reading.sentences, reading.content_words) >= 0
    judgement = judge(reading, SHORT)
    assert judgement.is_enough == (not judgement.problems)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("", VolumeProblem.NO_TEXT),
        ("\u200b\u2060\x00 ", VolumeProblem.NO_TEXT),
        ("😀" * CHARACTERS, VolumeProblem.NO_TEXT),
        ("2026.11.24 / 100% !!! " * 40, VolumeProblem.NO_TEXT),
        ("ㅋㅋㅋㅋㅋ ㅠㅠㅠ ㅎㅎ", VolumeProblem.NO_TEXT),
        ("https://example.com/plan @channel #먹방", VolumeProblem.ONLY_LINKS),
        ("ㅁㄴㅇㄹ ㅂㅈㄷㄱ " * 30, VolumeProblem.GIBBERISH),
        ("sdkfjh qpwoei zmxncb vlskdj " * 30, VolumeProblem.GIBBERISH),
        ("Lorem ipsum dolor sit amet, consectetur adipiscing elit.", VolumeProblem.GIBBERISH),
        ("바다 연필 코끼리 의자 구름 달력 호수 망치 기차 거울 소금", VolumeProblem.ONLY_KEYWORDS),
        ("먹방 브이로그를 찍습니다. " * 90, VolumeProblem.REPEATED),
        (filled("정말최고로재미있는영상을만들겠습니다"), VolumeProblem.REPEATED),
        (filled("a"), VolumeProblem.REPEATED),
        ("친구와 여행을 갑니다.", VolumeProblem.TOO_FEW_WORDS),
    ],
)
def test_a_problem_is_named(meter: VolumeMeter, content: str, problem: VolumeProblem) -> None:
    assert problem in judge(meter.measure("제목", content), SHORT).problems


def test_a_content_that_only_repeats_the_title_is_repeated(meter: VolumeMeter) -> None:
    title = "강아지와 처음 떠나는 제주도 캠핑 브이로그"
    reading = meter.measure(title, title)
    assert reading.distinct_ratio == 0
    assert VolumeProblem.REPEATED in judge(reading, SHORT).problems


@pytest.mark.parametrize("content", [ARABIC, HEBREW])
def test_right_to_left_text_is_judged_by_its_words(meter: VolumeMeter, content: str) -> None:
    assert judge(meter.measure("", content), LONG).is_enough
    first = SENTENCE_END.split(content)[0]
    assert not judge(meter.measure("", filled(first + " ")), LONG).is_enough


def test_missing_spaces_do_not_hide_substance(meter: VolumeMeter) -> None:
    row = next(row for row in ENOUGH if row["id"] == "ko-enough-05")
    assert is_enough(meter, row, row["content"].replace(" ", ""))


def test_mash_around_a_plan_outweighs_it(meter: VolumeMeter) -> None:
    row = next(row for row in ENOUGH if row["id"] == "en-enough-02")
    assert not is_enough(meter, row, row["content"] + " " + "sdkfjh qpwoei zmxncb " * 40)


def test_threads_share_a_meter(meter: VolumeMeter) -> None:
    texts = [row["content"] for row in ROWS]
    alone = [meter.measure("", text) for text in texts]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda text: meter.measure("", text), texts))
    assert together == alone


def test_importing_the_module_does_not_load_kiwi() -> None:
    code = "import sys, services.evaluation.volume; sys.exit('kiwipiepy' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


READING = VolumeReading(
    characters=200,
    letters=150,
    link_ratio=0.0,
    distinct_ratio=SHORT.min_distinct_ratio,
    word_variety=SHORT.min_word_variety,
    known_ratio=SHORT.min_known_ratio,
    grammar_ratio=SHORT.min_grammar_ratio,
    sentences=3,
    content_words=SHORT.min_content_words,
)


def test_a_reading_on_every_threshold_passes() -> None:
    assert judge(READING, SHORT).is_enough


@pytest.mark.parametrize(
    ("field", "value", "problem"),
    [
        ("letters", 0, VolumeProblem.NO_TEXT),
        ("known_ratio", SHORT.min_known_ratio - 0.01, VolumeProblem.GIBBERISH),
        ("grammar_ratio", SHORT.min_grammar_ratio - 0.01, VolumeProblem.ONLY_KEYWORDS),
        ("distinct_ratio", SHORT.min_distinct_ratio - 0.01, VolumeProblem.REPEATED),
        ("word_variety", SHORT.min_word_variety - 0.01, VolumeProblem.REPEATED),
        ("content_words", SHORT.min_content_words - 1, VolumeProblem.TOO_FEW_WORDS),
    ],
)
def test_one_value_below_its_threshold_is_one_problem(
    field: str, value: float, problem: VolumeProblem
) -> None:
    reading = VolumeReading(**{**READING.__dict__, field: value})
    assert judge(reading, SHORT).problems == (problem,)


def test_links_matter_only_when_words_are_few() -> None:
    linked = VolumeReading(**{**READING.__dict__, "link_ratio": 0.9})
    few = VolumeReading(**{**linked.__dict__, "content_words": 0})
    assert judge(linked, SHORT).is_enough
    assert judge(few, SHORT).problems == (VolumeProblem.ONLY_LINKS,)


def test_a_long_video_needs_more_than_a_short_one() -> None:
    assert LONG.min_content_words > SHORT.min_content_words


def test_thresholds_are_bounded_and_know_their_names() -> None:
    with pytest.raises(ValidationError):
        VolumeThresholds(min_content_words=-1)
    with pytest.raises(ValidationError):
        VolumeThresholds.model_validate({"min_content_words": 9, "min_words": 9})
