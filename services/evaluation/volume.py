"""Is there enough in a proposal to be judged? Decided from the text alone, without a model.

Substance is counted, not length: distinct content-bearing words, in text that is known, not
repeated, and more than links, hashtags or a list of keywords. Korean words are Kiwi's morphemes;
words of every other script are runs of letters. What the words mean is not looked at: a pleasant
text about nothing passes here, and the content stage sees it next.

Work is bounded: Kiwi reads at most ANALYSED_CHARACTERS, whatever arrives.
"""

from __future__ import annotations

import re
import string
import unicodedata
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from itertools import accumulate, pairwise, takewhile
from threading import Lock
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from services.shared.passages import SENTENCE_END
from services.shared.text import normalise

# Kiwi needs some 10 us a character on one slow core, and twice that where spaces are missing.
# 300 characters of a plan hold 50 distinct content words, more than twice what any threshold asks
# for, in at least six phrases from all over a long text.
ANALYSED_CHARACTERS = 300
PHRASE_CHARACTERS = 50
# In letters, Hangul spelt out as jamo: about two Korean or three English words. Shorter shingles
# call common endings repetition, longer ones miss sentences in which one word is swapped.
SHINGLE_LETTERS = 14
# A word of letter pairs that English does not use is not a word. Compounds ("cardboard") and
# names hold one or two such pairs; keyboard mash is made of them.
UNUSUAL_PAIRS_SHARE = 0.25
ACRONYM_LETTERS = 5


class VolumeProblem(StrEnum):
    """Why a proposal is not enough. Stable names; they appear on the wire."""

    NO_TEXT = "no_text"
    ONLY_LINKS = "only_links"
    GIBBERISH = "gibberish"
    ONLY_KEYWORDS = "only_keywords"
    REPEATED = "repeated"
    TOO_FEW_WORDS = "too_few_words"


@dataclass(frozen=True)
class VolumeReading:
    """What was counted in one proposal. Ratios are 0-1. Links are web and mail addresses,
    @handles and #hashtags; nothing but `characters` and `link_ratio` counts what is in them.
    """

    characters: int
    """Of the content, normalised."""
    letters: int
    """Of any script. Laughter and tears (ㅋㅋㅋ, ㅠㅠ) are not counted."""
    link_ratio: float
    """Share of characters, spaces aside, in links."""
    distinct_ratio: float
    """Share of runs of SHINGLE_LETTERS letters that repeat neither the title nor an earlier run;
    0 without letters."""
    word_variety: float
    """Distinct words over words, both as written; 0 without words."""
    known_ratio: float
    """Share of letters in words that exist (Korean) or could exist (Latin script); other scripts
    count as known; 0 without letters."""
    grammar_ratio: float
    """Share of particles, endings, articles and the like among Korean morphemes and words in
    Latin script; 1 where there are neither."""
    sentences: int
    content_words: int
    """Distinct content-bearing words that are known: nouns, verbs, adjectives, adverbs. Korean
    ones are those of the part that Kiwi reads."""


class VolumeThresholds(BaseModel):
    """From where a proposal is enough; a value on the threshold passes.

    The defaults are calibrated on tests/data/volume.jsonl, its calibration split. "Thin" below
    means the texts there that the threshold is for, "enough" all that should pass.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    min_content_words: int = Field(ge=0, le=100, description="Distinct content-bearing words.")
    # Thin: at most 0.31. Enough: at least 0.96, but 0.5 when pasted twice, which is no fault.
    min_distinct_ratio: float = Field(
        0.4, ge=0, le=1, description="Share of the text that is not repetition, 0-1."
    )
    # Thin: at most 0.17. Enough: at least 0.72; 2,500 characters of English have 0.6.
    min_word_variety: float = Field(0.3, ge=0, le=1, description="Distinct words over words, 0-1.")
    # Thin: at most 0.31. Enough: at least 0.87, in a text full of invented names.
    min_known_ratio: float = Field(
        0.6, ge=0, le=1, description="Share of letters in words that could be words, 0-1."
    )
    # Thin: at most 0.10. Enough: at least 0.23, in an English memo of noun phrases.
    min_grammar_ratio: float = Field(
        0.15, ge=0, le=1, description="Share of function words, below which words form a list, 0-1."
    )
    # Not calibrated: it only names the problem of a text that has too few words anyway.
    link_ratio_of_only_links: float = Field(
        0.5, gt=0, le=1, description="Share of links from which too few words are only links, 0-1."
    )

    @classmethod
    def short_form(cls) -> VolumeThresholds:
        """For one idea of up to a minute. Thin: at most 6 words; enough: at least 11."""
        return cls(min_content_words=9)

    @classmethod
    def long_form(cls) -> VolumeThresholds:
        """For a video with parts. Thin: at most 13 words; enough: at least 30."""
        return cls(min_content_words=20)


@dataclass(frozen=True)
class VolumeJudgement:
    is_enough: bool
    problems: tuple[VolumeProblem, ...]
    """Empty exactly when is_enough; the one to solve first comes first."""


def thresholds_for(media_type: Literal["short_form", "long_form"]) -> VolumeThresholds:
    """The calibrated thresholds of one media type."""
    if media_type == "short_form":
        return VolumeThresholds.short_form()
    return VolumeThresholds.long_form()


def judge(reading: VolumeReading, thresholds: VolumeThresholds) -> VolumeJudgement:
    """Compares, and nothing else. Pure."""
    problems = tuple(_problems(reading, thresholds))
    return VolumeJudgement(is_enough=not problems, problems=problems)


def _problems(reading: VolumeReading, limits: VolumeThresholds) -> Iterator[VolumeProblem]:
    is_short = reading.content_words < limits.min_content_words
    if is_short and reading.link_ratio >= limits.link_ratio_of_only_links:
        yield VolumeProblem.ONLY_LINKS
        return
    if reading.letters == 0:
        yield VolumeProblem.NO_TEXT
        return
    if reading.known_ratio < limits.min_known_ratio:
        yield VolumeProblem.GIBBERISH
    elif reading.grammar_ratio < limits.min_grammar_ratio:
        yield VolumeProblem.ONLY_KEYWORDS
    if (
        reading.distinct_ratio < limits.min_distinct_ratio
        or reading.word_variety < limits.min_word_variety
    ):
        yield VolumeProblem.REPEATED
    if is_short:
        yield VolumeProblem.TOO_FEW_WORDS


class VolumeMeter:
    """Counts what a proposal holds. Loads Kiwi when constructed, which takes seconds.

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
        text = _without_expressive_jamo(_LINK.sub(" ", content))
        sentences = [s for s in SENTENCE_END.split(text) if _LETTER.search(s)]
        words = [word for s in sentences for word in _words(s)]
        korean, foreign = self._read_korean(text), _read_foreign(text)
        hangul = len(_SYLLABLE.findall(text))
        letters = hangul + len(_JAMO.findall(text)) + foreign.letters
        known = hangul * korean.known_share + foreign.known_letters
        morphemes = korean.morphemes + foreign.latin_words
        return VolumeReading(
            characters=len(content),
            letters=letters,
            link_ratio=_share(_inked("".join(_LINK.findall(content))), _inked(content)),
            distinct_ratio=_distinct_ratio(sentences, title),
            word_variety=_share(len(set(words)), len(words)),
            known_ratio=_share(known, letters),
            grammar_ratio=_share(korean.grammar + foreign.grammar, morphemes) if morphemes else 1.0,
            sentences=len(sentences),
            content_words=len(korean.content_words | foreign.content_words),
        )

    def _read_korean(self, text: str) -> _Korean:
        sample = _sample(text)
        if not sample:
            return _Korean()
        with self._turn:
            tokens = self._kiwi.tokenize(sample)
        hangul = [t for t in tokens if _SYLLABLE.search(sample, t.start, t.end)]
        known = [t for t in hangul if not t.oov]
        return _Korean(
            known_share=_share(sum(t.len for t in known), sum(t.len for t in hangul)),
            morphemes=len(hangul),
            grammar=sum(t.tag.startswith(_GRAMMAR_TAGS) for t in known),
            content_words=frozenset(
                t.form
                for t in known
                if t.tag.startswith(_CONTENT_TAGS) and t.form not in _LIGHT_KOREAN
            ),
        )


@dataclass(frozen=True)
class _Korean:
    """What Kiwi found in the sample it read."""

    known_share: float = 1.0
    """Share of Hangul in words of Kiwi's dictionaries, 0-1."""
    morphemes: int = 0
    grammar: int = 0
    content_words: frozenset[str] = frozenset()


@dataclass(frozen=True)
class _Foreign:
    """Every run of letters that is not Hangul."""

    letters: int
    known_letters: int
    latin_words: int
    grammar: int
    """Of the Latin words."""
    content_words: frozenset[str]


def _read_foreign(text: str) -> _Foreign:
    words = _FOREIGN_WORD.findall(text)
    known = [word for word in words if _is_plausible(word)]
    latin = [word.lower() for word in words if _is_latin(word)]
    return _Foreign(
        letters=sum(map(len, words)),
        known_letters=sum(map(len, known)),
        latin_words=len(latin),
        grammar=sum(word in _LIGHT_ENGLISH or word in _LIGHT_ELSEWHERE for word in latin),
        content_words=frozenset(piece for word in known for piece in _content_of(word)),
    )


def _content_of(word: str) -> list[str]:
    """The content words in one run of letters: one, none, or pairs of signs in scripts that put
    no spaces between words.
    """
    if _UNSPACED_SCRIPT.search(word):
        return [word[i : i + 2] for i in range(0, len(word), 2)]
    is_content = (len(word) >= 3 or word.isupper()) and word.lower() not in _LIGHT_ENGLISH
    return [word.lower()] if is_content else []


def _is_plausible(word: str) -> bool:
    """Could `word` be one? True for acronyms and for letters beyond A-Z."""
    if not word.isascii() or (word.isupper() and len(word) <= ACRONYM_LETTERS):
        return True
    lower = word.lower()
    if lower in _PLACEHOLDERS:
        return False
    pairs = list(pairwise(lower))
    unusual = sum(after not in _FOLLOWERS[letter] for letter, after in pairs)
    return unusual <= UNUSUAL_PAIRS_SHARE * len(pairs)


def _is_latin(word: str) -> bool:
    return word[0] < "\u0250"  # Where Unicode's Latin Extended-B ends.


def _sample(text: str) -> str:
    """Distinct phrases with Hangul, at most ANALYSED_CHARACTERS (half as many without spaces),
    in an order that depends on the phrases alone: a part of a long text stands for all of it,
    wherever its sentences stand.
    """
    phrases = {phrase for phrase in _phrases(text) if _SYLLABLE.search(phrase)}
    shuffled = sorted(phrases, key=lambda phrase: (zlib.crc32(phrase.encode()), phrase))
    costs = accumulate(len(phrase) * (1 if " " in phrase else 2) for phrase in shuffled)
    affordable = takewhile(
        lambda pair: pair[1] <= ANALYSED_CHARACTERS, zip(shuffled, costs, strict=True)
    )
    return "\n".join(phrase for phrase, _ in affordable)


def _phrases(text: str) -> Iterator[str]:
    """What stands between punctuation, in pieces of at most PHRASE_CHARACTERS, with immediate
    repetition collapsed: Kiwi is slowest on long runs of few syllables.
    """
    for part in _PHRASE_END.split(text):
        phrase = _IMMEDIATE_REPETITION.sub(r"\1", part.strip())
        while len(phrase) > PHRASE_CHARACTERS:
            space = phrase.rfind(" ", 1, PHRASE_CHARACTERS)
            end = space if space > 0 else PHRASE_CHARACTERS
            yield phrase[:end]
            phrase = phrase[end:].lstrip()
        yield phrase


def _words(sentence: str) -> Iterator[str]:
    """As written, without case and without punctuation at both ends."""
    stripped = (word.strip(_PUNCTUATION) for word in sentence.casefold().split())
    return (word for word in stripped if word)


def _distinct_ratio(sentences: Iterable[str], title: str) -> float:
    shingles = [shingle for s in sentences for shingle in _shingles(s)]
    fresh = set(shingles).difference(_shingles(normalise(title)))
    return _share(len(fresh), len(shingles))


def _shingles(sentence: str) -> list[str]:
    """Every run of SHINGLE_LETTERS letters, jamo by jamo; spaces and signs do not count. A
    sentence with fewer letters is one shingle.
    """
    spelt = unicodedata.normalize("NFD", sentence.casefold())
    letters = "".join(filter(str.isalpha, spelt))
    count = max(1, len(letters) - SHINGLE_LETTERS + 1)
    return [letters[i : i + SHINGLE_LETTERS] for i in range(count)] if letters else []


def _without_expressive_jamo(text: str) -> str:
    """Without laughter, tears and shorthand: runs of jamo with at most two different ones. What
    stays is mash such as ㅁㄴㅇㄹ.
    """
    return _JAMO_RUN.sub(lambda run: run[0] if len(set(run[0])) > 2 else "", text)


def _inked(text: str) -> int:
    return len(text) - sum(map(str.isspace, text))


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


_LINK = re.compile(
    r"(?:https?://|www\.)\S+"
    r"|(?<![\w.+-])[\w.+-]{1,64}@[\w-]{1,64}\.[\w.-]{1,64}"
    r"|(?<!\S)[#@]\w\S*"
    r"|(?<![\w.-])[a-z0-9-]{1,63}(?:\.[a-z0-9-]{1,63}){0,3}"
    r"\.(?:com|net|org|kr|io|be|tv|me|gg)\b(?:/\S*)?",
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
_PUNCTUATION = string.punctuation + "“”‘’…。、·•،؛؟"
# Kiwi's tags, by their beginnings: nouns, verbs, adjectives, roots, adverbs; then particles,
# endings, affixes, auxiliaries, copulas, pronouns, determiners, dependent nouns.
_CONTENT_TAGS = ("NNG", "NNP", "VV", "VA", "XR", "MAG")
_GRAMMAR_TAGS = ("J", "E", "XP", "XS", "VX", "VC", "NP", "MM", "MAJ", "NNB")
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
# Enough of other languages' commonest words to tell their prose from a list of keywords.
_LIGHT_ELSEWHERE = frozenset(
    "al avec con como da das de dei del den der des di die do du e ein eine el em en es est et "
    "für het il ist ke la las le les lo los mais mas mit na nicht o os para pas per por que "
    "se si sie su sur um un una und une van von y yang dan untuk của và là các một".split()
)
# The printers' filler text, as every generator begins it.
_PLACEHOLDERS = frozenset(
    "lorem ipsum dolor sit amet consectetur adipiscing elit sed eiusmod tempor incididunt ut "
    "labore et dolore magna aliqua enim ad minim veniam quis nostrud exercitation ullamco laboris "
    "nisi aliquip ex ea commodo consequat duis aute irure reprehenderit voluptate velit esse "
    "cillum eu fugiat nulla pariatur excepteur sint occaecat cupidatat non proident sunt culpa "
    "qui officia deserunt mollit anim id est laborum".split()
)
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
