"""Charts as inline SVG: no script, no network, sharp at any size, text that can be searched.

Colours are Okabe and Ito's, which the colour-blind tell apart; no meaning hangs on colour alone:
lines are dashed differently and named at their end or in the legend, and shapes have titles. Every
chart over time has the same axis, so that charts one below the other can be read together. Pure.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from xml.sax.saxutils import escape

BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
YELLOW, BLUE, VERMILION, PURPLE, GREY = "#F0E442", "#0072B2", "#D55E00", "#CC79A7", "#999999"
LINES = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, BLACK)
DASHES = ("", "7 3", "2 3", "9 3 2 3", "4 2", "1 2", "12 4")
WIDTH, LEFT, RIGHT, TOP, BOTTOM = 960, 64, 16, 18, 30

Point = tuple[float, float | None]


@dataclass(frozen=True)
class Line:
    """`points` in order of x; None breaks the line."""

    label: str
    points: Sequence[Point]
    colour: str
    dash: str = ""
    is_stepped: bool = False


@dataclass(frozen=True)
class Layer:
    """One of a stack, a value for each bin."""

    label: str
    values: Sequence[float]
    colour: str


@dataclass(frozen=True)
class Span:
    """A fault: from `begin` to `end`, and `until` for as long as it was felt."""

    label: str
    begin: float
    end: float
    until: float


@dataclass(frozen=True)
class Bar:
    """One row of parts, laid end to end."""

    label: str
    parts: Sequence[tuple[str, float]]


@dataclass(frozen=True)
class Frame:
    """Where a chart's numbers lie on its paper."""

    x_max: float
    y_max: float
    height: int = 200
    y_min: float = 0.0
    is_log: bool = False

    def x(self, value: float) -> float:
        share = min(1.0, max(0.0, value / self.x_max)) if self.x_max > 0 else 0.0
        return LEFT + share * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        share = self._share(value)
        return self.height - BOTTOM - min(1.0, max(0.0, share)) * (self.height - TOP - BOTTOM)

    def _share(self, value: float) -> float:
        if self.is_log:
            low, high = math.log10(self.y_min), math.log10(self.y_max)
            return (math.log10(max(value, self.y_min)) - low) / max(1e-9, high - low)
        return (value - self.y_min) / max(1e-12, self.y_max - self.y_min)


def over_time(
    lines: Sequence[Line],
    *,
    length_s: float,
    title: str,
    spans: Sequence[Span] = (),
    layers: Sequence[Layer] = (),
    step_s: float = 1.0,
    limit: tuple[str, float] | None = None,
    height: int = 200,
) -> str:
    """Lines, over a stack of `layers` if any; `limit` is a level to keep under."""
    heights = [value for line in lines for _, value in line.points if value is not None]
    heights += [sum(values) for values in zip(*(layer.values for layer in layers), strict=True)]
    # A level far above everything would press the lines flat: it is then told in the legend only.
    if limit and limit[1] <= 3 * max(heights, default=limit[1]):
        heights.append(limit[1])
    frame = Frame(length_s, nice_ceiling(max(heights, default=1.0)), height)
    parts = [_spans(frame, spans), _grid(frame, nice_ticks(frame.y_max), _time_ticks(length_s))]
    parts += [_stack(frame, layers, step_s)]
    parts += [_line(frame, line) for line in lines]
    if limit:
        parts.append(_limit(frame, *limit))
    parts.append(_numbers(frame, spans))
    return _svg(title, height, parts)


def spectrum(
    lines: Sequence[Line], percents: Sequence[float], *, title: str, height: int = 240
) -> str:
    """Latency (y, logarithmic) against percentile, whose tail is spread out: x counts how many
    requests there are for each one that takes longer.
    """
    values = [v for line in lines for _, v in line.points if v is not None and v > 0]
    if not values:
        return _svg(title, height, [])
    low = 10 ** math.floor(math.log10(min(values)))
    high = 10 ** math.ceil(math.log10(max(values)) + 1e-9)
    frame = Frame(_spread(max(percents)), max(high, 10 * low), height, low, is_log=True)
    decades = round(math.log10(frame.y_max / low))
    ticks = [(low * 10**n, seconds(low * 10**n)) for n in range(decades + 1)]
    across = [(_spread(p), f"p{p:g}") for p in percents if p > 0]
    shown = [
        Line(one.label, [(_spread(p), v) for p, v in one.points], one.colour, one.dash)
        for one in lines
    ]
    dots = [_dots(frame, line, percents) for line in shown]
    return _svg(
        title, height, [_grid(frame, ticks, across), *(_line(frame, o) for o in shown), *dots]
    )


def _spread(percent: float) -> float:
    return -math.log10(1 - percent / 100)


def bars(
    rows: Sequence[Bar], colours: dict[str, str], names: Callable[[str], str], *, title: str
) -> str:
    """Parts of seconds, a row each."""
    if not rows:
        return ""
    longest = nice_ceiling(max(sum(value for _, value in row.parts) for row in rows))
    label_width, row_height = 210, 26
    height = row_height * len(rows) + BOTTOM + 4
    scale = (WIDTH - label_width - RIGHT) / longest
    drawn = []
    for value, text in nice_ticks(longest):
        x = label_width + value * scale
        drawn.append(
            f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{height - BOTTOM}"/>'
        )
        drawn.append(_text(x, height - 10, f"{text} s", "middle"))
    for number, row in enumerate(rows):
        top, at = number * row_height + 5, float(label_width)
        drawn.append(_text(label_width - 8, top + 13, row.label, "end"))
        for name, value in row.parts:
            width = value * scale
            about = escape(f"{row.label}: {names(name)} {seconds(value)}")
            drawn.append(
                f'<rect x="{at:.1f}" y="{top}" width="{width:.2f}" height="16" '
                f'fill="{colours[name]}" stroke="#fff"><title>{about}</title></rect>'
            )
            at += width
    return _svg(title, height, drawn)


def bracket(
    rows: Sequence[tuple[str, float, float | None]], wanted: Sequence[float | None], *, title: str
) -> str:
    """A row for each capacity: what holds as a bar, the gap to what does not hatched beside it."""
    highest = nice_ceiling(max((breaks or holds for _, holds, breaks in rows), default=1.0) or 1.0)
    label_width, row_height = 210, 30
    height = row_height * len(rows) + BOTTOM + 4
    scale = (WIDTH - label_width - 90) / highest
    drawn = [
        '<defs><pattern id="gap" width="6" height="6" patternUnits="userSpaceOnUse" '
        'patternTransform="rotate(45)"><rect width="6" height="6" fill="#fff"/>'
        f'<rect width="3" height="6" fill="{VERMILION}"/></pattern></defs>'
    ]
    for value, text in nice_ticks(highest):
        x = label_width + value * scale
        drawn.append(
            f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{height - BOTTOM}"/>'
        )
        drawn.append(_text(x, height - 10, f"{text}/s", "middle"))
    for number, ((label, holds, breaks), floor) in enumerate(zip(rows, wanted, strict=True)):
        top = number * row_height + 6
        drawn.append(_text(label_width - 8, top + 13, label, "end"))
        drawn.append(
            f'<rect x="{label_width}" y="{top}" width="{holds * scale:.1f}" height="18" '
            f'fill="{BLUE}"><title>{escape(label)}: {holds:.3g}/s</title></rect>'
        )
        end = label_width + (breaks or holds) * scale
        if breaks:
            begin = label_width + holds * scale
            drawn.append(
                f'<rect x="{begin:.1f}" y="{top}" width="{max(2.0, end - begin):.1f}" height="18" '
                f'fill="url(#gap)" stroke="{VERMILION}"><title>{breaks:.3g}/s</title></rect>'
            )
        text = f"{holds:.3g} – {breaks:.3g}" if breaks else f"≥ {holds:.3g}"
        drawn.append(_text(end + 8, top + 13, text))
        if floor is not None:
            x = label_width + floor * scale
            drawn.append(
                f'<line class="limit" x1="{x:.1f}" x2="{x:.1f}" y1="{top - 4}" y2="{top + 22}"/>'
            )
    return _svg(title, height, drawn)


def legend(entries: Iterable[tuple[str, str, str]]) -> str:
    """HTML: (label, colour, dash); "box" as the dash is an area."""
    items = []
    for label, colour, dash in entries:
        mark = (
            f'<rect width="14" height="12" fill="{colour}"/>'
            if dash == "box"
            else f'<line x1="0" x2="26" y1="6" y2="6" stroke="{colour}" stroke-width="2.5" '
            f'stroke-dasharray="{dash}"/>'
        )
        width = 14 if dash == "box" else 26
        items.append(
            f'<span><svg width="{width}" height="12" aria-hidden="true">{mark}</svg>'
            f"{escape(label)}</span>"
        )
    return f'<p class="legend">{"".join(items)}</p>'


def seconds(value: float | None) -> str:
    """Three digits, in the unit that suits."""
    if value is None:
        return "–"
    if value < 1:
        return f"{1e3 * value:.3g} ms"
    return f"{value:.3g} s" if value < 1_000 else f"{value:,.0f} s"


def nice_ceiling(value: float) -> float:
    """The next of 1, 1.5, 2, 3, 4, 5, 6, 8 times a power of ten."""
    if value <= 0 or not math.isfinite(value):
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(
        n * power for n in (1, 1.5, 2, 3, 4, 5, 6, 8, 10) if n * power >= value * (1 - 1e-9)
    )


def nice_ticks(high: float, about: int = 4) -> list[tuple[float, str]]:
    """Round values from 0 to `high`, with their text."""
    rough = high / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(n * power for n in (1, 2, 2.5, 5, 10) if n * power >= rough * (1 - 1e-9))
    values = [n * step for n in range(int(high / step + 1e-9) + 1)]
    return [(value, short(value)) for value in values]


def short(value: float) -> str:
    """Such as 1.5k, 20M: a number on an axis."""
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= limit:
            divisor = 1e3 if unit == "k" else limit
            return f"{value / divisor:.3g}{unit}"
    return f"{value:.4g}"


def _time_ticks(length_s: float) -> list[tuple[float, str]]:
    steps = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1_800, 3_600, 7_200, 14_400, 86_400)
    step = next((s for s in steps if length_s / s <= 12), steps[-1])
    values = [n * step for n in range(int(length_s / step) + 1)]
    return [(v, f"{v:g} s" if length_s < 180 else f"{v // 60:.0f}:{v % 60:02.0f}") for v in values]


def _grid(
    frame: Frame, up: Sequence[tuple[float, str]], across: Sequence[tuple[float, str]]
) -> str:
    drawn = []
    for value, text in up:
        y = frame.y(value)
        drawn.append(
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        )
        drawn.append(_text(LEFT - 6, y + 4, text, "end"))
    for value, text in across:
        x, low = frame.x(value), frame.height - BOTTOM
        drawn.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{low}"/>')
        drawn.append(_text(x, frame.height - 12, text, "middle"))
    return "".join(drawn)


def _spans(frame: Frame, spans: Sequence[Span]) -> str:
    """Dark while the cause lasts, light while it is felt."""
    drawn = []
    for span in spans:
        begin, end, until = frame.x(span.begin), frame.x(span.end), frame.x(span.until)
        bottom, about = frame.height - BOTTOM, f"<title>{escape(span.label)}</title>"
        for left, right, css in ((begin, end, "fault"), (end, until, "felt")):
            drawn.append(
                f'<rect class="{css}" x="{left:.1f}" y="{TOP}" height="{bottom - TOP}" '
                f'width="{max(0.0, right - left):.1f}">{about}</rect>'
            )
    return "".join(drawn)


def _numbers(frame: Frame, spans: Sequence[Span]) -> str:
    """Where each fault begins."""
    drawn = []
    for number, span in enumerate(spans, 1):
        begin, bottom = frame.x(span.begin), frame.height - BOTTOM
        drawn.append(
            f'<g><title>{escape(span.label)}</title><line class="begins" x1="{begin:.1f}" '
            f'x2="{begin:.1f}" y1="{TOP - 2}" y2="{bottom}"/>'
            f'<circle class="number" cx="{begin:.1f}" cy="{TOP - 5}" r="8"/>'
            f'<text class="on" x="{begin:.1f}" y="{TOP - 1}">{number}</text></g>'
        )
    return "".join(drawn)


def _stack(frame: Frame, layers: Sequence[Layer], step_s: float) -> str:
    if not layers:
        return ""
    base = [0.0] * len(layers[0].values)
    drawn = []
    for layer in layers:
        tops = [low + value for low, value in zip(base, layer.values, strict=True)]
        if any(layer.values):
            outline = _steps(frame, tops, step_s) + _steps(frame, base, step_s)[::-1]
            points = " ".join(f"{x:.1f},{y:.1f}" for x, y in outline)
            drawn.append(
                f'<polygon points="{points}" fill="{layer.colour}">'
                f"<title>{escape(layer.label)}</title></polygon>"
            )
        base = tops
    return "".join(drawn)


def _steps(frame: Frame, values: Sequence[float], step_s: float) -> list[tuple[float, float]]:
    corners = []
    for number, value in enumerate(values):
        y = frame.y(value)
        corners += [(frame.x(number * step_s), y), (frame.x((number + 1) * step_s), y)]
    return corners


def _line(frame: Frame, line: Line) -> str:
    drawn = []
    for piece in _pieces(line.points):
        points = [(frame.x(x), frame.y(y)) for x, y in piece]
        if line.is_stepped:
            points = [p for (x, y), (after, _) in pairwise(points) for p in ((x, y), (after, y))]
        if len(points) == 1:
            (x, y) = points[0]
            drawn.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2" fill="{line.colour}"/>')
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        drawn.append(
            f'<polyline points="{path}" fill="none" stroke="{line.colour}" stroke-width="1.8" '
            f'stroke-dasharray="{line.dash}"/>'
        )
    return f"<g><title>{escape(line.label)}</title>{''.join(drawn)}</g>"


def _pieces(points: Sequence[Point]) -> list[list[tuple[float, float]]]:
    pieces: list[list[tuple[float, float]]] = [[]]
    for x, y in points:
        if y is not None:
            pieces[-1].append((x, y))
        elif pieces[-1]:
            pieces.append([])
    return [piece for piece in pieces if piece]


def _dots(frame: Frame, line: Line, percents: Sequence[float]) -> str:
    names = {_spread(percent): f"p{percent:g}" for percent in percents}
    return "".join(
        f'<circle cx="{frame.x(x):.1f}" cy="{frame.y(y):.1f}" r="3.2" fill="{line.colour}">'
        f"<title>{escape(line.label)} {names[x]}: {seconds(y)}</title></circle>"
        for x, y in line.points
        if y is not None
    )


def _limit(frame: Frame, label: str, value: float) -> str:
    if value > frame.y_max:
        return _text(WIDTH - RIGHT - 4, TOP + 10, f"{label} ↑", "end")
    y = frame.y(value)
    return (
        f'<line class="limit" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        + _text(WIDTH - RIGHT - 4, y - 4, label, "end")
    )


def _text(x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _svg(title: str, height: float, parts: Iterable[str]) -> str:
    return (
        f'<svg class="chart" viewBox="0 0 {WIDTH} {height:g}" role="img" '
        f'aria-label="{escape(title, {chr(34): "&quot;"})}">{"".join(parts)}</svg>'
    )
