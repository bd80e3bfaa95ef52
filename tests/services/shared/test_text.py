import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.shared.text import detect_language, normalise

any_text = st.text(st.characters(exclude_categories=()), max_size=300)


@given(any_text)
def test_normalising_twice_is_normalising_once(text: str) -> None:
    once = normalise(text)
    assert normalise(once) == once


@given(any_text)
def test_what_is_left_can_be_stored_and_shown(text: str) -> None:
    clean = normalise(text)
    clean.encode("utf-8")
    assert not any(unicodedata.category(c) in ("Cc", "Cs") for c in clean if c != "\n")
    assert not any(mark in clean for mark in "\t\r\u200b\u200d\u200f\u202e\u2066\ufeff\U000e0041")
    assert "  " not in clean
    assert "\n\n\n" not in clean
    assert clean == clean.strip()


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("  ＡＢＣ　①㎏ ", "ABC 1kg"),
        ("a\tb\u00a0 c", "a b c"),
        ("1\r\n2\r3\u20284", "1\n2\n3\n4"),
        ("a \n \n \n\n b", "a\n\nb"),
        ("무\u200b료\u202e 영\ufeff상", "무료 영상"),
        ("a\ud800b\udfffc", "abc"),
        ("hi\U000e0049\U000e0067there", "hithere"),
        ("\u1112\u1161\u11ab글", "한글"),
        ("\u3164\u3164\u2800", ""),
        ("\x00\x07", ""),
    ],
)
def test_text_becomes_plain(text: str, plain: str) -> None:
    assert normalise(text) == plain


def test_typed_jamo_stay_as_typed() -> None:
    assert normalise("ㅋㅋㅋ ㅋㅏ ㅠㅠ") == "ㅋㅋㅋ ㅋㅏ ㅠㅠ"


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("동네 빵집을 찾아가는 브이로그", "ko"),
        ("LA에서 taco truck을 빌려 운영하는 셰프의 vlog", "ko"),
        ("ㅋㅋㅋㅋ", "ko"),
        ("A short film about a bakery", "en"),
        ("I cook banchan (시금치나물) with my grandmother in Ohio every week", "en"),
        ("فيلم قصير عن مخبز", "en"),
        ("", "ko"),
        ("12:30 🎬", "ko"),
    ],
)
def test_language_is_the_one_most_is_written_in(text: str, language: str) -> None:
    assert detect_language(text) == language


@given(any_text)
def test_every_text_has_a_language(text: str) -> None:
    assert detect_language(text) in ("ko", "en")
