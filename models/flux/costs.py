"""How long things take, for the scheduler: measured at start, corrected as images are drawn.

Pure: knows nothing of torch or clocks.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, field

# The smallest batch whose time per row is within this much of the best one's: a larger one makes
# everybody in it wait and brings nothing.
KNEE = 0.05
_MEMORY = 0.1  # weight of a new observation


@dataclass
class Costs:
    """Seconds of a step, by tokens in it; of encoding a prompt; of decoding an image.

    `step_curve` is what was timed: (tokens of the whole batch, seconds), ascending.
    """

    step_curve: tuple[tuple[int, float], ...]
    encode_s: float
    decode_s_per_token: float
    """Per image token: decoding grows with the picture's area."""
    _corrections: dict[int, float] = field(default_factory=dict)
    """By tokens of a row: how observed steps compare with the curve. Attention grows with the
    square of a row's tokens, which a curve over the batch's tokens does not know."""

    def step_s(self, rows: int, tokens_per_row: int) -> float:
        if rows == 0:
            return 0.0
        raw = _interpolate(self.step_curve, rows * tokens_per_row)
        return raw * self._corrections.get(tokens_per_row, 1.0)

    def decode_s(self, tokens: int) -> float:
        return self.decode_s_per_token * tokens

    def observe_step(self, rows: int, tokens_per_row: int, seconds: float) -> None:
        """Moves the correction of rows of this size towards what was just seen."""
        expected = _interpolate(self.step_curve, rows * tokens_per_row)
        if expected <= 0 or rows == 0:
            return
        before = self._corrections.get(tokens_per_row, 1.0)
        seen = min(max(seconds / expected, 0.2), 5.0)
        self._corrections[tokens_per_row] = before + _MEMORY * (seen - before)


def token_budget(seconds_by_rows: Mapping[int, float], tokens_per_row: int) -> int:
    """Tokens of the smallest batch that draws (nearly) as much a second as any; `seconds_by_rows`
    is one step's time. Raises ValueError when nothing was timed.
    """
    if not seconds_by_rows:
        raise ValueError("no batch was timed")
    per_row = {rows: seconds / rows for rows, seconds in seconds_by_rows.items()}
    enough = min(per_row.values()) * (1 + KNEE)
    return min(rows for rows, seconds in per_row.items() if seconds <= enough) * tokens_per_row


def _interpolate(curve: tuple[tuple[int, float], ...], tokens: int) -> float:
    """On the line through the two points around `tokens`; beyond the ends, on the last line."""
    if len(curve) == 1:
        return curve[0][1] * tokens / curve[0][0]
    at = min(max(bisect_left(curve, (tokens,)), 1), len(curve) - 1)
    (x0, y0), (x1, y1) = curve[at - 1], curve[at]
    line = y0 + (y1 - y0) * (tokens - x0) / (x1 - x0)
    # Below the first point a step still costs most of what one row does.
    return max(line, 0.5 * curve[0][1])
