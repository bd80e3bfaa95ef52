"""Captions: where the trigger stands, and how a caption gets it. Pure: text only.

A caption of a storyboard follows a grammar: "<trigger> <style words>, <who> <doing what> in
<place>, <shot>, <angle>, <time>". The rest of Joing writes its prompts in it.
"""

import re

STORYBOARD = (
    "<who> <doing what> in <place> [with <thing>], <shot: close-up, medium shot or wide shot>, "
    "<angle: eye level, high angle or low angle>, <time: day or night>"
)
"""What follows the trigger and the style words, for whoever writes captions."""

PLACEHOLDERS = ("[trigger]", "[name]")
"""What AI-Toolkit replaces by the trigger."""
_PLACEHOLDER = re.compile("|".join(map(re.escape, PLACEHOLDERS)))


def has_words(caption: str, words: str, *, in_any_case: bool = False) -> bool:
    """True when `words` stand in the caption, not as a part of longer words."""
    flags = re.IGNORECASE if in_any_case else 0
    return re.search(rf"(?<!\w){re.escape(words)}(?!\w)", caption, flags) is not None


def has_trigger(caption: str, trigger: str) -> bool:
    """True when a trainer's caption will have the trigger as words of its own."""
    return has_words(caption, trigger) or any(mark in caption for mark in PLACEHOLDERS)


def hides_trigger(caption: str, trigger: str) -> bool:
    """True when the trigger stands in other words only: AI-Toolkit then leaves it out."""
    return trigger in caption and not has_trigger(caption, trigger)


def fill(text: str, trigger: str) -> str:
    """Placeholders replaced and nothing else: what a sample's prompt gets."""
    return _PLACEHOLDER.sub(lambda _: trigger, text).strip()


def dressed(caption: str, *, trigger: str = "", style_words: str = "") -> str:
    """The caption with the trigger in front and the style words after it, each where absent.

    Placeholders become the trigger, and two dashes one long one.
    """
    caption = re.sub(r"\s*-{2,}\s*", " — ", caption).strip()
    if not trigger:
        return caption
    caption = fill(caption, trigger)
    begins = re.match(rf"{re.escape(trigger)}(?!\w)", caption)
    if not begins and has_words(caption, trigger):
        return caption if _has(caption, style_words) else f"{caption}, {style_words}"
    joined = " " if style_words and caption.startswith(style_words) else ", "
    rest = caption[begins.end() :] if begins else joined + caption
    if _has(caption, style_words):
        return f"{trigger}{rest}"
    return f"{trigger} {style_words}, {rest.lstrip(' ,')}".rstrip(" ,")


def _has(caption: str, style_words: str) -> bool:
    return not style_words or has_words(caption, style_words)
