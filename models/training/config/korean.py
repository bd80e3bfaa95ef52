"""Korean particles after words that are only known when a message is filled.

`을(를)`, `은(는)`, `이(가)`, `과(와)`, `(으)로`, `(이)나` and `(이)라는` become what the last sound
before them asks for: whether it ends in a consonant, and for `(으)로` whether that is ㄹ. Pure.
"""

import re

_AFTER_CONSONANT_OR_VOWEL = {
    "을(를)": ("을", "를"),
    "은(는)": ("은", "는"),
    "이(가)": ("이", "가"),
    "과(와)": ("과", "와"),
    "(으)로": ("으로", "로"),
    "(이)라는": ("이라는", "라는"),
    "(이)나": ("이나", "나"),
}
_PARTICLE = re.compile(
    r"(?P<last>[0-9A-Za-z가-힣])(?P<marks>[^0-9A-Za-z가-힣]*?)(?P<particle>"
    + "|".join(map(re.escape, _AFTER_CONSONANT_OR_VOWEL))
    + ")"
)
_DIGITS = {"0": "ㅇ", "1": "ㄹ", "3": "ㅁ", "6": "ㄱ", "7": "ㄹ", "8": "ㄹ"}
"""The last consonant of digits as they are read: 영 일 이 삼 사 오 육 칠 팔 구."""
_LETTERS = {"l": "ㄹ", "m": "ㅁ", "n": "ㄴ"}
"""Latin letters that end a word in a consonant, near enough."""
_FIRST, _FINALS, _RIEUL = 0xAC00, 28, 8  # Unicode's Hangul syllables: 28 finals to a vowel


def with_particles(text: str) -> str:
    """The text with every open particle chosen."""
    return _PARTICLE.sub(_chosen, text)


def _chosen(found: re.Match[str]) -> str:
    after_consonant, after_vowel = _AFTER_CONSONANT_OR_VOWEL[found["particle"]]
    final = _final(found["last"].lower())
    takes_vowel_form = not final or (final == "ㄹ" and found["particle"] == "(으)로")
    return found["last"] + found["marks"] + (after_vowel if takes_vowel_form else after_consonant)


def _final(character: str) -> str:
    """The consonant that its sound ends in; empty for a vowel."""
    if "가" <= character <= "힣":
        index = (ord(character) - _FIRST) % _FINALS
        return "ㄹ" if index == _RIEUL else "ㄱ" * bool(index)
    return _DIGITS.get(character) or _LETTERS.get(character, "")
