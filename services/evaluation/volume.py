"""Is there enough in a proposal to be judged? Decided from the text alone, without a model.

Substance is counted, not length: distinct content-bearing words, found in text that is known,
not repeated, and more than a list of links, hashtags or single words. Korean words are Kiwi's
morphemes; words of every other script are runs of letters. What the words mean is not looked
at: a pleasant text about nothing passes here, and the content stage sees it next.

Work is bounded: Kiwi reads at most ANALYSED_CHARACTERS, whatever arrives.
"""

from __future__ import annotations

import re
import unicodedata
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise
from threading import Lock
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from services.evaluation.passages import SENTENCE_END
from services.evaluation.text import normalise

# Kiwi reads about 150 characters a millisecond on one slow core. 900 characters hold some 200
# distinct content words, far more than any threshold asks for.
ANALYSED_CHARACTERS = 900
PHRASE_CHARACTERS = 100
# In letters, Hangul spelt out as jamo: about two Korean or three English words. Shorter shingles
# call common endings repetition, longer ones miss sentences in which one word is swapped.
SHINGLE_LETTERS = 14
# A word of letter pairs that English does not use is not a word. Compounds ("cardboard") and
# names hold one or two such pairs; keyboard mash is made of them.
UNUSUAL_PAIRS_SHARE = 0.25
ACRONYM_LETTERS = 5
ITEM_CHARACTERS = 8  # Of one word between commas. Longer Korean "words" are missing spaces.
KEYBOARD_RUN_LETTERS = 5  # "property" and "liberty" hold four neighbours of one keyboard row.


class VolumeProblem(StrEnum):
    """Why a proposal is not enough. Stable names; they appear on the wire."""

    NO_TEXT = "no_text"
    ONLY_LINKS = "only_links"
    GIBBERISH = "gibberish"
    REPEATED = "repeated"
    TOO_FEW_WORDS = "too_few_words"


@dataclass(frozen=True)
class VolumeReading:
    """What was counted in one proposal. Ratios are 0-1."""

    characters: int
    """Of the content, normalised."""
    letters: int
    """Letters of any script outside links, addresses, handles and hashtags. Laughter (ㅋㅋㅋ,
    ㅠㅠ) is not counted."""
    link_ratio: float
    """Share of characters, spaces aside, in links, addresses, handles and hashtags."""
    distinct_ratio: float
    """Share of SHINGLE_LETTERS-long shingles of letters that repeat neither the title nor an
    earlier sentence; 0 without letters."""
    word_variety: float
    """Distinct words over words, both as written; 0 without words."""
    known_ratio: float
    """Share of letters in words that exist (Korean) or could exist (Latin script); other scripts
    count as known; 0 without letters."""
    sentences: int
    content_words: int
    """Distinct content-bearing words that are known: nouns, verbs, adjectives, roots. In long
    Korean texts those of the part that Kiwi reads."""


class VolumeThresholds(BaseModel):
    """From where a proposal is enough. Every bound is inclusive on the passing side."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    min_content_words: int = Field(ge=0, le=100, description="Distinct content-bearing words.")
    min_distinct_ratio: float = Field(ge=0, le=1, description="Share that is not repetition.")
    min_word_variety: float = Field(ge=0, le=1, description="Distinct words over words.")
    min_known_ratio: float = Field(ge=0, le=1, description="Share of letters in known words.")
    min_link_ratio: float = Field(
        ge=0, le=1, description="Share of links from which too few words are called only links."
    )

    @classmethod
    def short_form(cls) -> VolumeThresholds:
        """For one idea of up to a minute."""
        return cls(min_content_words=11, **_COMMON)

    @classmethod
    def long_form(cls) -> VolumeThresholds:
        """For a video with parts."""
        return cls(min_content_words=20, **_COMMON)


_COMMON = {
    "min_distinct_ratio": 0.4,
    "min_word_variety": 0.3,
    "min_known_ratio": 0.6,
    "min_link_ratio": 0.5,
}


@dataclass(frozen=True)
class VolumeJudgement:
    is_enough: bool
    problems: tuple[VolumeProblem, ...]
    """Empty exactly when is_enough; the gravest first."""


def thresholds_for(media_type: Literal["short_form", "long_form"]) -> VolumeThresholds:
    """The calibrated thresholds of one media type."""
    by_type = {
        "short_form": VolumeThresholds.short_form,
        "long_form": VolumeThresholds.long_form,
    }
    return by_type[media_type]()


def judge(reading: VolumeReading, thresholds: VolumeThresholds) -> VolumeJudgement:
    """Compares, and nothing else. Pure."""
    problems = tuple(_problems(reading, thresholds))
    return VolumeJudgement(is_enough=not problems, problems=problems)


def _problems(reading: VolumeReading, thresholds: VolumeThresholds) -> Iterator[VolumeProblem]:
    is_short = reading.content_words < thresholds.min_content_words
    if is_short and reading.link_ratio >= thresholds.min_link_ratio:
        yield VolumeProblem.ONLY_LINKS
        return
    if reading.letters == 0:
        yield VolumeProblem.NO_TEXT
        return
    if reading.known_ratio < thresholds.min_known_ratio:
        yield VolumeProblem.GIBBERISH
    if (
        reading.distinct_ratio < thresholds.min_distinct_ratio
        or reading.word_variety < thresholds.min_word_variety
    ):
        yield VolumeProblem.REPEATED
    if is_short:
        yield VolumeProblem.TOO_FEW_WORDS


class VolumeMeter:
    """Counts what a proposal holds. Loads Kiwi when constructed: seconds, some 300 MiB.

    Safe to share between threads, which take turns with Kiwi.
    """

    def __init__(self) -> None:
        from kiwipiepy import Kiwi

        self._kiwi = Kiwi(num_workers=1)
        self._turn = Lock()
        self._kiwi.tokenize("기획안")  # Kiwi loads its dictionaries on first use.

    def measure(self, title: str, content: str) -> VolumeReading:
        """Reads `content`; `title` counts only as something that content may repeat.

        Never raises, whatever the text. The order of sentences changes nothing.
        """
        content = normalise(content)
        text = _without_expressive_jamo(_LINKS.sub(" ", content))
        sentences = [s for s in SENTENCE_END.split(text) if _LETTER.search(s)]
        words = [word for s in sentences for word in _words(s)]
        foreign = _read_foreign(text)
        korean = self._read_korean(text)
        hangul = len(_SYLLABLE.findall(text))
        letters = hangul + len(_JAMO.findall(text)) + foreign.letters
        known = hangul * korean.known_share + foreign.known_letters
        return VolumeReading(
            characters=len(content),
            letters=letters,
            link_ratio=_share(_inked(" ".join(_LINKS.findall(content))), _inked(content)),
            distinct_ratio=_distinct_ratio(sentences, title),
            word_variety=_share(len(set(words)), len(words)),
            known_ratio=min(1.0, _share(known, letters)),
            sentences=len(sentences),
            content_words=len(korean.content_words | foreign.content_words),
        )

    def _read_korean(self, text: str) -> _Korean:
        sample = _sample(text)
        if not sample:
            return _Korean(known_share=1.0, content_words=frozenset())
        with self._turn:
            tokens = self._kiwi.tokenize(sample)
        hangul = [t for t in tokens if _SYLLABLE.search(sample[t.start : t.end])]
        known = [t for t in hangul if not t.oov]
        return _Korean(
            known_share=_share(sum(t.len for t in known), sum(t.len for t in hangul)),
            content_words=frozenset(
                t.form for t in known if t.tag in _CONTENT_TAGS and t.form not in _LIGHT_KOREAN
            ),
        )


@dataclass(frozen=True)
class _Korean:
    known_share: float
    """Share of Hangul in words of Kiwi's dictionaries, 0-1; 1 when there was nothing to read."""
    content_words: frozenset[str]


@dataclass(frozen=True)
class _Foreign:
    letters: int
    known_letters: int
    content_words: frozenset[str]


def _read_foreign(text: str) -> _Foreign:
    """Every word that is not Hangul. Single words between commas are not content."""
    words = _FOREIGN_WORD.findall(text)
    known = [word for word in words if _is_plausible(word)]
    in_phrases = (w for phrase in _phrases(text) for w in _FOREIGN_WORD.findall(phrase))
    return _Foreign(
        letters=sum(map(len, words)),
        known_letters=sum(map(len, known)),
        content_words=frozenset(
            piece for word in in_phrases if _is_plausible(word) for piece in _content_of(word)
        ),
    )


def _content_of(word: str) -> list[str]:
    """The content words in one run of letters: one, none, or pairs of signs in scripts that do
    not put spaces between words.
    """
    if _UNSPACED_SCRIPT.search(word):
        return [word[i : i + 2] for i in range(0, len(word), 2)]
    lower = word.lower()
    is_content = (len(word) >= 3 or word.isupper()) and lower not in _LIGHT_ENGLISH
    return [lower] if is_content else []


def _is_plausible(word: str) -> bool:
    """Could `word` be one? True for acronyms and for scripts other than Latin."""
    if not word.isascii() or (word.isupper() and len(word) <= ACRONYM_LETTERS):
        return True
    lower = word.lower()
    if lower in _PLACEHOLDERS or _has_keyboard_run(lower):
        return False
    pairs = [a + b for a, b in pairwise(lower)]
    unusual = sum(b not in _FOLLOWERS[a] for a, b in pairs)
    return unusual <= UNUSUAL_PAIRS_SHARE * len(pairs)


def _has_keyboard_run(lower: str) -> bool:
    runs = (lower[i : i + KEYBOARD_RUN_LETTERS] for i in range(len(lower)))
    return any(len(run) == KEYBOARD_RUN_LETTERS and run in _KEYBOARD for run in runs)


def _sample(text: str) -> str:
    """Distinct phrases with Hangul, at most ANALYSED_CHARACTERS, in an order that depends on the
    phrases alone: a part of a long text stands for all of it, wherever its sentences stand.
    """
    phrases = {p for p in _phrases(text) if _SYLLABLE.search(p)}
    shuffled = sorted(phrases, key=lambda p: (zlib.crc32(p.encode()), p))
    return "\n".join(_fill(shuffled))[:ANALYSED_CHARACTERS]


def _fill(phrases: Iterable[str]) -> Iterator[str]:
    room = ANALYSED_CHARACTERS
    for phrase in phrases:
        if room <= 0:
            return
        yield phrase
        room -= len(phrase) + 1


def _phrases(text: str) -> Iterator[str]:
    """What stands between punctuation, in pieces of at most PHRASE_CHARACTERS, immediate
    repetition collapsed. Items of one short word are left out: they make a list of keywords.
    """
    for part in _PHRASE_END.split(text):
        phrase = _IMMEDIATE_REPETITION.sub(r"\1", part.strip())
        if " " not in phrase and len(phrase) <= ITEM_CHARACTERS:
            continue
        yield from _cut(phrase)


def _cut(phrase: str) -> Iterator[str]:
    while len(phrase) > PHRASE_CHARACTERS:
        space = phrase.rfind(" ", 1, PHRASE_CHARACTERS)
        end = space if space > 0 else PHRASE_CHARACTERS
        yield phrase[:end]
        phrase = phrase[end:].lstrip()
    yield phrase


def _words(sentence: str) -> Iterator[str]:
    for word in sentence.casefold().split():
        stripped = _EDGES.sub("", word)
        if stripped:
            yield stripped


def _distinct_ratio(sentences: Iterable[str], title: str) -> float:
    shingles = [shingle for s in sentences for shingle in _shingles(s)]
    fresh = set(shingles).difference(_shingles(normalise(title)))
    return _share(len(fresh), len(shingles))


def _shingles(sentence: str) -> list[str]:
    """Every run of SHINGLE_LETTERS letters, jamo by jamo; spaces and signs do not count."""
    spelt = unicodedata.normalize("NFD", sentence.casefold())
    letters = "".join(filter(str.isalpha, spelt))
    last = max(1, len(letters) - SHINGLE_LETTERS + 1)
    return [letters[i : i + SHINGLE_LETTERS] for i in range(last)] if letters else []


def _without_expressive_jamo(text: str) -> str:
    """Without laughter, tears and two-letter shorthand: runs of up to two different jamo, or two
    jamo long. What stays is mash such as ㅁㄴㅇㄹ.
    """
    return _JAMO_RUN.sub(lambda run: "" if len(set(run[0])) <= 2 else run[0], text)


def _inked(text: str) -> int:
    return len(text) - sum(map(str.isspace, text))


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


_LINKS = re.compile(
    r"(?:https?://|www\.)\S+"
    r"|[\w.+-]{1,64}@[\w-]{1,64}\.[\w.-]{1,64}"
    r"|(?<!\S)[#@]\w\S*"
    r"|\b[a-z0-9-]{1,63}(?:\.[a-z0-9-]{1,63}){0,3}\.(?:com|net|org|kr|io|be|tv|me|gg)\b(?:/\S*)?",
    re.IGNORECASE,
)
_LETTER = re.compile(r"[^\W\d_]")
_SYLLABLE = re.compile("[가-힣]")
_JAMO = re.compile("[\u3131-\u318e\u1100-\u11ff]")
_JAMO_RUN = re.compile("[\u3131-\u318e\u1100-\u11ff]+")
_FOREIGN_WORD = re.compile(r"(?:(?![가-힣\u3131-\u318e\u1100-\u11ff])[^\W\d_])+")
# Thai to Burmese, Khmer, kana, and Chinese characters.
_UNSPACED_SCRIPT = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff]")
_PHRASE_END = re.compile(r"[.!?,;:/|()\[\]{}<>\"“”~…。！？、،؛؟·•\n]+")
_IMMEDIATE_REPETITION = re.compile(r"(.{1,20}?)\1{2,}")
_EDGES = re.compile(r"^[\W_]+|[\W_]+$")
# Kiwi's tags of words that carry content: nouns, names, verbs, adjectives, adverbial roots.
_CONTENT_TAGS = frozenset({"NNG", "NNP", "VV", "VV-I", "VV-R", "VA", "VA-I", "VA-R", "XR", "MAG"})
# Words that any proposal holds and that tell nothing about one.
_LIGHT_KOREAN = frozenset(
    "하 되 있 없 이 같 그렇 이렇 어떻 보 주 가 오 영상 기획 기획안 내용 유튜브 콘텐츠 컨텐츠 촬영 "
    "정말 진짜 아주 너무 매우 많이 그냥 다 더 또 잘 안 못".split()
)
_LIGHT_ENGLISH = frozenset(
    "a about after all also am an and any are as at be because been before but by can could did "
    "do does doing done each for from get go goes going had has have having he her here hers him "
    "his how i if in into is it its just lot lots make makes making many may me might more most "
    "much must my no not of off on one or other our out over own really shall she should so some "
    "such than that the their them then there these they thing things this those through to too "
    "up us very video videos want was we were what when where which while who whom whose why will "
    "with would you your content youtube truly".split()
)
# The printers' filler text, as every generator begins it.
_PLACEHOLDERS = frozenset(
    "lorem ipsum dolor sit amet consectetur adipiscing elit sed eiusmod tempor incididunt ut "
    "labore et dolore magna aliqua enim ad minim veniam quis nostrud exercitation ullamco laboris "
    "nisi aliquip ex ea commodo consequat duis aute irure reprehenderit voluptate velit esse "
    "cillum eu fugiat nulla pariatur excepteur sint occaecat cupidatat non proident sunt culpa "
    "qui officia deserunt mollit anim id est laborum".split()
)
_KEYBOARD_ROWS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
_KEYBOARD = " ".join([*_KEYBOARD_ROWS, *(row[::-1] for row in _KEYBOARD_ROWS)])
# Which letters follow which in 3,641 English words: those in the docstrings of at least three
# modules of CPython 3.11's standard library, and in the texts of five free licences.
_FOLLOWERS = {
    "a": "bcdefgijklmnpqrstuvwxy",
    "b": "abcdeijlmoprstuy",
    "c": "acehiklmnopqrstuy",
    "d": "abcdeghijlorstuvwy",
    "e": "abcdefghijklmnopqrstuvwxyz",
    "f": "acdefilorstuy",
    "g": "aefghilmnoprstuz",
    "h": "aeilmnorstuwy",
    "i": "abcdefgiklmnopqrstuvxz",
    "j": "aeou",
    "k": "adegilnpsuw",
    "l": "abcdefghiklmnoprstuvwyz",
    "m": "abdeilmnopstuvy",
    "n": "abcdefghijklmnopqrstuvwyz",
    "o": "abcdefghiklmnoprstuvwxyz",
    "p": "abcdefhilmoprstuy",
    "q": "nu",
    "r": "abcdefghiklmnoprstuvwy",
    "s": "acdefghiklmopqrstuwy",
    "t": "abcdefhiklmnoprstuvwy",
    "u": "abcdefgilmnoprstu",
    "v": "aeio",
    "w": "adehilnorsw",
    "x": "acehilpsty",
    "y": "abcefgilmnoprstwy",
    "z": "aeimo",
}
