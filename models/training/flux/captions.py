"""What a picture is called in one step: trigger, tokens shuffled or dropped, or nothing at all.

AI-Toolkit's grammar: a caption is tokens between commas; [trigger] and [name] stand for the trigger
word. Where AI-Toolkit looks for the trigger as a substring, here it must be whole words, so that
"art" is not found in "party". Pure but for the generator that it is given.
"""

from dataclasses import dataclass
from random import Random

from models.training.dataset.captions import fill, has_words


@dataclass(frozen=True)
class CaptionRules:
    """What a data set's configuration says about its captions. Rates are fractions of 1."""

    trigger: str = ""
    dropout_rate: float = 0.0
    """Of whole captions: such a picture is shown with the empty prompt."""
    token_dropout_rate: float = 0.0
    shuffle_tokens: bool = False
    keep_tokens: int = 0
    """Leading tokens that are neither dropped nor moved."""

    @property
    def can_be_foreseen(self) -> bool:
        """True when a caption has two forms at most: itself, and nothing."""
        return not (self.shuffle_tokens or self.token_dropout_rate)


def caption_of(written: str, rules: CaptionRules, rng: Random) -> str:
    """The caption for one step. Takes the same numbers from `rng` whatever comes out."""
    is_dropped = rng.random() < rules.dropout_rate
    tokens = [token for part in written.replace("\n", ",").split(",") if (token := part.strip())]
    kept, rest = tokens[: rules.keep_tokens], tokens[rules.keep_tokens :]
    rest = [token for token in rest if rng.random() >= rules.token_dropout_rate]
    if rules.shuffle_tokens:
        rng.shuffle(rest)
    return "" if is_dropped else with_trigger(", ".join(kept + rest), rules.trigger)


def with_trigger(caption: str, trigger: str) -> str:
    """Placeholders replaced, and the trigger put first where the caption has it nowhere."""
    replaced = fill(caption, trigger)
    if not trigger or has_words(replaced, trigger, in_any_case=True):
        return replaced
    return f"{trigger} {replaced}".strip()
