"""Text as it arrives, made plain: one normal form, and which of two languages it is in.

Pure: knows nothing of proposals, models or I/O.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Literal

# A Korean proposal keeps English names ("vlog", "unboxing"), an English one may quote a Korean
# dish or place. One Hangul syllable stands for two to three Latin letters, so at 0.2 about a
# third of what is read aloud is Korean.
HANGUL_SHARE_OF_KOREAN = 0.2

_LINE_ENDS = re.compile("\r\n?|[\v\f\x85\u2028\u2029]")
# Tab, and letters that are drawn as nothing: Hangul fillers, the blank Braille cell.
_BLANKS = re.compile("[\t\u115f\u1160\u3164\uffa0\u2800]")
# What no reader sees, or what changes the order in which text is read: C0 and C1 controls, soft
# hyphen, grapheme joiner, zero-width and bidi controls, variation selectors, interlinear marks,
# tag characters (a known carrier of hidden instructions), lone surrogates, noncharacters.
_INVISIBLE = re.compile(
    "[\x00-\x08\x0e-\x1f\x7f-\x9f\u00ad\u034f\u061c\u17b4\u17b5\u180b-\u180f\u200b-\u200f"
    "\u202a-\u202e\u2060-\u206f\ufe00-\ufe0f\ufeff\ufff9-\ufffb\ud800-\udfff\ufdd0-\ufdef\ufffe"
    "\uffff\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)
# Compatibility jamo: NFKC would turn the laughter ㅋㅋㅋ into leading consonants that few fonts
# draw alone, and would join ㅋㅏ into a syllable that nobody wrote.
_NOT_JAMO = re.compile("[^\u3131-\u318e]+")
_SPACES = re.compile("[^\\S\n]+")
_SPACES_AROUND_LINE_END = re.compile(" ?\n ?")
_MANY_LINE_ENDS = re.compile("\n{3,}")
_HANGUL = re.compile("[가-힣\u3131-\u318e\u1100-\u11ff]")
_LETTERS = re.compile(r"[^\W\d_]")


def normalise(text: str) -> str:
    """`text` in NFKC (compatibility jamo as written), without what no reader sees.

    Runs of spaces become one space, more than two line ends two; tabs are spaces; both ends are
    stripped. Never raises, lone surrogates included. Idempotent. NFKC can make text longer:
    one character becomes at most 18.
    """
    text = _BLANKS.sub(" ", _LINE_ENDS.sub("\n", text))
    text = _INVISIBLE.sub("", text)
    text = _NOT_JAMO.sub(lambda run: unicodedata.normalize("NFKC", run[0]), text)
    text = _SPACES.sub(" ", text)
    text = _SPACES_AROUND_LINE_END.sub("\n", text)
    return _MANY_LINE_ENDS.sub("\n\n", text).strip()


def detect_language(text: str) -> Literal["ko", "en"]:
    """`ko` from HANGUL_SHARE_OF_KOREAN of all letters; text without letters is `ko` too,
    the language of the platform.
    """
    letters = len(_LETTERS.findall(text))
    if letters == 0:
        return "ko"
    return "ko" if len(_HANGUL.findall(text)) / letters >= HANGUL_SHARE_OF_KOREAN else "en"
