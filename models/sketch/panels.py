"""Draws a scene as a storyboard panel: bold outlines, flat greys, few and simple shapes.

The same scene, seed and style give the same pixels. Lengths inside a drawing are in `unit`s, the
shorter side of the panel, unless a name says otherwise; tones are grey levels from 0 (black) to
255 (paper) that a style turns into colours. Needs Pillow; knows nothing of torch or captions.
"""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from PIL import Image, ImageDraw

from models.sketch.scene import INDOORS, Aspect, Scene

SIZES_PX: dict[Aspect, tuple[int, int]] = {"16:9": (192, 112), "9:16": (112, 192)}
"""Width and height of a panel."""

Point = tuple[float, float]
Colour = tuple[int, int, int]

PAPER, PALE, LIGHT, GREY, MID, DARK, BLACK = 255, 228, 200, 160, 120, 70, 0

_OVERSAMPLING = 2
_LINE = 0.018
_NIGHT_SHARE = 0.45
_ZOOM: dict[str, float] = {
    "extreme close-up": 2.2,
    "close-up": 1.7,
    "medium shot": 1.35,
    "wide shot": 1.0,
    "extreme wide shot": 0.55,
}
_FLOOR = {"eye level": 0.66, "high angle": 0.36, "low angle": 0.88}
"""Where floor meets wall, or ground meets sky, as a share of the panel's height."""


@dataclass(frozen=True)
class Style:
    """How tones become colours, and how heavy the lines are."""

    name: str
    line: Colour
    fill: Callable[[float], Colour]
    weight: float = 1.0
    rough: float = 0.0
    """Brush wobble as a share of the line's width."""
    night_line: Colour | None = None
    """The lines of the place at night, where they would vanish in the dark."""
    night_figures: float = 0.95
    """How bright figures stay at night."""


def _between(dark: Colour, bright: Colour) -> Callable[[float], Colour]:
    def fill(tone: float) -> Colour:
        share = min(tone, 255) / 255
        red, green, blue = (round(d + (b - d) * share) for d, b in zip(dark, bright, strict=True))
        return red, green, blue

    return fill


def _black_or_white(tone: float) -> Colour:
    return (255, 255, 255) if tone > 128 else (0, 0, 0)


STYLES = {
    "sketch": Style("sketch", (0, 0, 0), _between((0, 0, 0), (255, 255, 255))),
    "ink": Style("ink", (0, 0, 0), _black_or_white, 1.7, 0.35, (255, 255, 255), 2.0),
    "blueprint": Style("blueprint", (240, 246, 255), _between((12, 36, 92), (38, 92, 178)), 1.2),
    "sepia": Style("sepia", (84, 50, 24), _between((92, 58, 30), (246, 230, 198)), 1.1),
}


def draw(scene: Scene, seed: int, style: str = "sketch") -> Image.Image:
    """The scene as an RGB image of `SIZES_PX[scene.aspect]`."""
    width_px, height_px = SIZES_PX[scene.aspect]
    large = (width_px * _OVERSAMPLING, height_px * _OVERSAMPLING)
    rng = random.Random(seed)  # noqa: S311  (a drawing, no secret)
    canvas = Image.new("RGB", large)
    _Panel(scene, STYLES[style], canvas, rng).draw()
    return canvas.resize((width_px, height_px), Image.Resampling.BOX)


class _Pen:
    """Draws outlined shapes in pixels of the oversampled canvas."""

    def __init__(self, style: Style, canvas: Image.Image, rng: random.Random) -> None:
        self.style = style
        self.line_px = _LINE * min(canvas.size) * style.weight
        self.line = style.line
        self.share = 1.0
        self._draw = ImageDraw.Draw(canvas)
        self._rng = random.Random(rng.random())  # noqa: S311  (wobble must not move the scene)

    def colour(self, tone: float) -> Colour:
        return self.style.fill(tone * self.share)

    def polygon(self, points: Sequence[Point], tone: float, outline: bool = True) -> None:
        self._draw.polygon(points, fill=self.colour(tone))
        if outline:
            self.stroke([*points, points[0]])

    def box(self, left: float, top: float, right: float, bottom: float, tone: float) -> None:
        self.polygon([(left, top), (right, top), (right, bottom), (left, bottom)], tone)

    def fill_box(self, left: float, top: float, right: float, bottom: float, tone: float) -> None:
        self._draw.rectangle((left, top, right, bottom), fill=self.colour(tone))

    def ellipse(
        self, centre: Point, rx: float, ry: float, tone: float, outline: bool = True
    ) -> None:
        steps = 24
        ring = [
            (
                centre[0] + rx * math.cos(math.tau * i / steps),
                centre[1] + ry * math.sin(math.tau * i / steps),
            )
            for i in range(steps)
        ]
        self.polygon(ring, tone, outline)

    def stroke(self, points: Sequence[Point], width_px: float | None = None) -> None:
        self._path(points, width_px or self.line_px, self.line)

    def limb(self, points: Sequence[Point], width_px: float, tone: float) -> None:
        """A thick path with an outline and round ends."""
        self._path(points, width_px + 2 * self.line_px, self.line)
        self._path(points, width_px, self.colour(tone), rough=False)

    def _path(
        self, points: Sequence[Point], width_px: float, colour: Colour, rough: bool = True
    ) -> None:
        wobble = self.style.rough if rough else 0.0
        for start, end in pairwise(points):
            width = max(1.0, width_px * (1 + self._rng.uniform(-wobble, wobble)))
            self._draw.line((start, end), fill=colour, width=round(width))
        if width_px >= 3:
            for x, y in points:
                radius = width_px / 2 * (1 + self._rng.uniform(-wobble, wobble)) - 0.5
                self._draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)


class _Panel:
    """One drawing: the place, then the figures, then what they say or hold."""

    def __init__(self, scene: Scene, style: Style, canvas: Image.Image, rng: random.Random) -> None:
        self.scene = scene
        self.rng = rng
        self.pen = _Pen(style, canvas, rng)
        self.width: int = canvas.width
        self.height: int = canvas.height
        self.unit: int = min(self.width, self.height)
        self.zoom: float = _ZOOM[scene.shot] * rng.uniform(0.96, 1.04)
        self.side = rng.choice((-1, 1))
        self.floor = (_FLOOR[scene.angle] + rng.uniform(-0.015, 0.015)) * self.height
        self.slide = rng.uniform(-0.06, 0.06)

    def draw(self) -> None:
        night = self.scene.time == "night"
        if night:
            self.pen.share = _NIGHT_SHARE
            self.pen.line = self.pen.style.night_line or self.pen.style.line
        _ground(self)
        _PLACES[self.scene.place](self)
        self.pen.share = self.pen.style.night_figures if night else 1.0
        self.pen.line = self.pen.style.line
        _cast(self)

    def at(self, x: float, y: float) -> Point:
        """World to canvas: x from the middle, y down from the floor line, both in units."""
        return (
            self.width / 2 + (x + self.slide) * self.side * self.zoom * self.unit,
            self.floor + y * self.zoom * self.unit,
        )

    def size(self, length: float) -> float:
        return length * self.zoom * self.unit

    def box(self, x: float, y: float, width: float, height: float, tone: float) -> None:
        """A box whose left top corner, before mirroring, is (x, y)."""
        (x0, y0), (x1, y1) = self.at(x, y), self.at(x + width, y + height)
        self.pen.box(min(x0, x1), y0, max(x0, x1), y1, tone)

    def disc(self, x: float, y: float, rx: float, ry: float, tone: float) -> None:
        self.pen.ellipse(self.at(x, y), self.size(rx), self.size(ry), tone)

    def shape(self, points: Sequence[Point], tone: float) -> None:
        self.pen.polygon([self.at(*point) for point in points], tone)

    def stroke(self, *points: Point) -> None:
        self.pen.stroke([self.at(*point) for point in points])


def _ground(panel: _Panel) -> None:
    indoors = panel.scene.place in INDOORS
    pen, floor = panel.pen, panel.floor
    night = panel.scene.time == "night"
    share = pen.share
    if night and not indoors:
        pen.share = 0.2
    pen.fill_box(0, 0, panel.width, floor, PAPER)
    pen.share = share
    pen.fill_box(0, floor, panel.width, panel.height, PALE if indoors else LIGHT)
    if indoors:
        _floor_boards(panel)
    else:
        _sun_or_moon(panel)
    pen.stroke([(0, floor), (panel.width, floor)])


def _floor_boards(panel: _Panel) -> None:
    """Lines that run towards the viewer from a vanishing point behind the wall."""
    top = panel.floor
    vanishing = (panel.width / 2, top - 0.55 * panel.unit)
    depth = panel.height - vanishing[1]
    for i in range(-6, 7):
        x = vanishing[0] + i * 0.22 * panel.unit
        share = (top - vanishing[1]) / depth
        far = (vanishing[0] + (x - vanishing[0]) * 2.2 * share, top)
        near = (vanishing[0] + (x - vanishing[0]) * 2.2, float(panel.height))
        panel.pen.stroke([far, near])


def _sun_or_moon(panel: _Panel) -> None:
    night = panel.scene.time == "night"
    pen = panel.pen
    centre = (panel.width * (0.5 + 0.38 * panel.side), max(0.13 * panel.height, 0.16 * panel.unit))
    radius = 0.09 * panel.unit
    share, pen.share = pen.share, 1.0
    if not night:
        for i in range(8):
            dx, dy = math.cos(math.tau * i / 8), math.sin(math.tau * i / 8)
            near, far = 1.35 * radius, 1.8 * radius
            pen.stroke(
                [
                    (centre[0] + dx * near, centre[1] + dy * near),
                    (centre[0] + dx * far, centre[1] + dy * far),
                ]
            )
    pen.ellipse(centre, radius, radius, PAPER)
    pen.share = share


def _window(panel: _Panel, x: float, y: float) -> None:
    """A window of 0.34 by 0.3 units that shows the time of day."""
    pen = panel.pen
    night = panel.scene.time == "night"
    share, pen.share = pen.share, 0.12 if night else 1.0
    panel.box(x, y, 0.34, 0.3, PAPER)
    pen.share = 1.0
    if night:
        panel.disc(x + 0.25, y + 0.09, 0.045, 0.045, PAPER)
    pen.share = share
    panel.stroke((x + 0.17, y), (x + 0.17, y + 0.3))
    panel.stroke((x, y + 0.15), (x + 0.34, y + 0.15))


def _room(panel: _Panel) -> None:
    _window(panel, -0.46, -0.56)
    panel.box(0.14, -0.5, 0.26, 0.2, GREY)
    panel.box(0.02, -0.22, 0.62, 0.24, MID)
    panel.box(-0.02, -0.12, 0.12, 0.2, MID)
    panel.box(0.56, -0.12, 0.12, 0.2, MID)
    panel.box(0.1, -0.06, 0.46, 0.12, LIGHT)
    panel.stroke((-0.3, 0.04), (-0.3, -0.2))
    panel.shape([(-0.38, -0.16), (-0.22, -0.16), (-0.26, -0.28), (-0.34, -0.28)], LIGHT)
    panel.box(-1.2, -0.5, 0.4, 0.54, LIGHT)
    panel.box(0.95, -0.62, 0.5, 0.66, GREY)


def _kitchen(panel: _Panel) -> None:
    for x in (-1.5, -1.2, -0.9, -0.6, -0.3):
        panel.box(x, -0.68, 0.28, 0.24, GREY)
        panel.disc(x + 0.22, -0.48, 0.012, 0.012, BLACK)
    _window(panel, 0.02, -0.66)
    panel.box(-1.5, -0.26, 1.9, 0.05, DARK)
    for x in (-1.5, -1.2, -0.9, -0.6, -0.3, 0.0):
        panel.box(x, -0.21, 0.3, 0.23, LIGHT)
    panel.box(0.42, -0.72, 0.36, 0.76, PALE)
    panel.stroke((0.42, -0.42), (0.78, -0.42))
    panel.stroke((0.47, -0.36), (0.47, -0.2))
    panel.box(-0.26, -0.36, 0.14, 0.1, MID)
    panel.box(0.8, -0.68, 0.6, 0.24, GREY)
    panel.box(0.8, -0.26, 0.7, 0.28, LIGHT)


def _office(panel: _Panel) -> None:
    for x in (-1.25, 0.98, -0.5):
        panel.box(x, -0.74, 0.4, 0.76, LIGHT)
        for row in range(3):
            y = -0.7 + 0.24 * row
            for book in range(4):
                panel.box(x + 0.04 + 0.08 * book, y, 0.07, 0.18, (DARK, GREY, MID, DARK)[book])
    panel.box(0.06, -0.44, 0.4, 0.26, DARK)
    panel.box(0.22, -0.18, 0.08, 0.06, DARK)
    panel.box(-0.06, -0.12, 0.76, 0.05, GREY)
    panel.box(-0.03, -0.07, 0.05, 0.2, GREY)
    panel.box(0.62, -0.07, 0.05, 0.2, GREY)


def _classroom(panel: _Panel) -> None:
    panel.box(-0.5, -0.68, 1.0, 0.42, DARK)
    pen = panel.pen
    line, pen.line = pen.line, pen.colour(PAPER)
    for row, end in enumerate((0.2, 0.05, 0.28)):
        panel.stroke((-0.42, -0.58 + 0.11 * row), (end, -0.58 + 0.11 * row))
    pen.line = line
    panel.disc(0.68, -0.58, 0.09, 0.09, PAPER)
    panel.stroke((0.68, -0.64), (0.68, -0.58), (0.72, -0.58))
    for x in (-1.3, -0.72, 0.42, 1.0):
        panel.box(x, -0.1, 0.34, 0.05, GREY)
        panel.stroke((x + 0.04, -0.05), (x + 0.04, 0.14))
        panel.stroke((x + 0.3, -0.05), (x + 0.3, 0.14))


def _stage(panel: _Panel) -> None:
    pen = panel.pen
    share, pen.share = pen.share, pen.share * 1.5
    panel.shape([(0.0, -1.4), (-0.42, 0.16), (0.42, 0.16)], PALE)
    panel.disc(0.0, 0.16, 0.42, 0.06, PALE)
    pen.share = share
    for sign in (-1, 1):
        for fold in range(7):
            near = 0.46 + 0.16 * fold
            (x0, _), (x1, _) = panel.at(sign * near, 0), panel.at(sign * (near + 0.16), 0)
            foot = panel.at(0, 0.06)[1]
            pen.box(min(x0, x1), -9, max(x0, x1), foot, (DARK, MID)[fold % 2])
    (_, top) = panel.at(0, -0.8)
    pen.box(-9, -9, panel.width + 9, max(top, 0.07 * panel.height), MID)


def _street(panel: _Panel) -> None:
    heights = (0.7, 0.95, 0.6, 0.85, 0.55, 0.9, 0.65, 0.8)
    tones = (GREY, LIGHT, MID, PALE, GREY, LIGHT, MID, PALE)
    for i, (height, tone) in enumerate(zip(heights, tones, strict=True)):
        x = -1.8 + 0.45 * i
        panel.box(x, -height, 0.42, height, tone)
        for row in range(int(height / 0.2)):
            for column in (0.06, 0.25):
                _lit_window(panel, x + column, -height + 0.07 + 0.2 * row)
    panel.shape([(-0.12, 0.05), (0.12, 0.05), (0.9, 1.2), (-0.9, 1.2)], MID)
    for y in (0.1, 0.24, 0.44, 0.7):
        panel.shape(
            [
                (-0.02 - 0.02 * y, y),
                (0.02 + 0.02 * y, y),
                (0.025 + 0.02 * y, y * 1.3),
                (-0.025 - 0.02 * y, y * 1.3),
            ],
            PAPER,
        )


def _lit_window(panel: _Panel, x: float, y: float) -> None:
    pen = panel.pen
    share = pen.share
    if panel.scene.time == "night":
        pen.share = 1.0
    panel.box(x, y, 0.11, 0.11, PAPER)
    pen.share = share


def _park(panel: _Panel) -> None:
    panel.shape([(-0.1, 0.0), (0.08, 0.0), (0.5, 1.3), (-0.5, 1.3)], PALE)
    for x, y in (
        (-1.5, 0.02),
        (-0.95, 0.05),
        (-0.42, 0.04),
        (0.56, 0.06),
        (1.1, 0.03),
        (1.6, 0.05),
    ):
        panel.box(x - 0.035, y - 0.3, 0.07, 0.3, DARK)
        panel.disc(x, y - 0.44, 0.22, 0.22, GREY)
    panel.box(0.08, -0.14, 0.3, 0.05, MID)
    panel.box(0.08, -0.06, 0.3, 0.04, MID)
    panel.stroke((0.11, -0.02), (0.11, 0.06))
    panel.stroke((0.35, -0.02), (0.35, 0.06))


def _beach(panel: _Panel) -> None:
    panel.box(-2.0, -0.13, 4.0, 0.16, GREY)
    for row in range(2):
        for i in range(-8, 9):
            x, y = 0.22 * i + 0.1 * row, -0.09 + 0.06 * row
            panel.stroke((x, y), (x + 0.04, y - 0.02), (x + 0.09, y))
    panel.stroke((-0.5, 0.14), (-0.46, -0.2), (-0.38, -0.55))
    for dx, dy in ((-0.2, 0.02), (-0.14, -0.12), (0.02, -0.16), (0.18, -0.06), (0.16, 0.1)):
        tip = (-0.38 + dx, -0.55 + dy)
        bend = (-0.38 + dx * 0.5, -0.55 + dy * 0.5 - 0.06)
        panel.shape([(-0.38, -0.55), bend, tip, (-0.38 + dx * 0.5, -0.55 + dy * 0.5 + 0.02)], DARK)
    panel.stroke((0.48, 0.2), (0.48, -0.28))
    panel.shape([(0.22, -0.2), (0.34, -0.32), (0.48, -0.36), (0.62, -0.32), (0.74, -0.2)], MID)
    panel.shape([(0.38, -0.2), (0.48, -0.36), (0.58, -0.2)], PAPER)


def _forest(panel: _Panel) -> None:
    for i in range(-7, 8):
        x = 0.24 * i + 0.08
        y = 0.03 if i % 2 else -0.02
        panel.box(x - 0.025, y - 0.16, 0.05, 0.18, DARK)
        for level in range(3):
            base = y - 0.12 - 0.18 * level
            half = 0.14 - 0.03 * level
            tone = MID if i % 2 else GREY
            panel.shape([(x - half, base), (x + half, base), (x, base - 0.28)], tone)


_PLACES: dict[str, Callable[[_Panel], None]] = {
    "room": _room,
    "kitchen": _kitchen,
    "office": _office,
    "classroom": _classroom,
    "stage": _stage,
    "street": _street,
    "park": _park,
    "beach": _beach,
    "forest": _forest,
}

_HEAD = {
    "16:9": {
        "extreme close-up": (1.15, 0.85, 0.6),
        "close-up": (0.58, 0.52, 0.42),
        "medium shot": (0.3, 0.29, 0.27),
        "wide shot": (0.15, 0.15, 0.145),
        "extreme wide shot": (0.09, 0.09, 0.085),
    },
    "9:16": {
        "extreme close-up": (1.0, 0.62, 0.46),
        "close-up": (0.62, 0.44, 0.33),
        "medium shot": (0.34, 0.29, 0.25),
        "wide shot": (0.19, 0.17, 0.15),
        "extreme wide shot": (0.1, 0.095, 0.09),
    },
}
"""Head diameters in units, for one, two and three figures."""
_CENTRES = {1: (0.5,), 2: (0.3, 0.7), 3: (0.19, 0.5, 0.81)}
_SMALL = {"boy": 0.8, "girl": 0.8}


@dataclass(frozen=True)
class _Body:
    """A figure's measures; x grows where it faces, y downwards, in head diameters."""

    kind: str
    head_px: float
    top: Point
    """The middle of the head on the canvas."""
    facing: int
    legs: float
    """Legs' length: short when seen from above, long when seen from below."""
    gaze: float
    """Where the face sits on the head: lower when seen from above."""

    def at(self, x: float, y: float) -> Point:
        return (self.top[0] + x * self.facing * self.head_px, self.top[1] + y * self.head_px)


_TORSO = 1.6
_SHOULDER, _HIP = 0.75, 0.75 + _TORSO
_LEGS = {"eye level": 1.9, "high angle": 1.25, "low angle": 2.4}
_GAZE = {"eye level": 0.0, "high angle": 0.16, "low angle": -0.14}
_CLOTHES = {"man": DARK, "woman": GREY, "boy": PAPER, "girl": PALE, "person": MID}


def _cast(panel: _Panel) -> None:
    scene = panel.scene
    if scene.thing and scene.action != "holding":
        _ground_thing(panel)
    bodies = [_body(panel, i) for i in range(len(scene.figures))]
    for body in bodies:
        _figure(panel, body, scene.action)
    if bodies and scene.action == "holding" and scene.thing:
        for body in bodies:
            _held_thing(panel.pen, body, scene.thing)


def _body(panel: _Panel, index: int) -> _Body:
    scene, rng = panel.scene, panel.rng
    kind = scene.figures[index]
    count = len(scene.figures)
    head = _HEAD[scene.aspect][scene.shot][count - 1] * panel.unit * rng.uniform(0.97, 1.03)
    legs = _LEGS[scene.angle]
    x = (_CENTRES[count][index] + rng.uniform(-0.025, 0.025)) * panel.width
    y = _head_height(panel, head, legs)
    if kind in _SMALL:
        shrunk = head * _SMALL[kind]
        y += (head - shrunk) * (_HIP + legs) if scene.shot in _FULL else 0.5 * (head - shrunk)
        head = shrunk
    return _Body(kind, head, (x, y), panel.side, legs, _GAZE[scene.angle])


_SMALLEST_FACE_PX, _RAISED_HANDS_PX = 28, 42
"""Heads smaller than this have eyes only; at larger ones things are held near the face."""

_FULL = ("wide shot", "extreme wide shot")


def _head_height(panel: _Panel, head: float, legs: float) -> float:
    """Where the head's middle is on the canvas, so that the shot cuts the body where it should."""
    shot, height = panel.scene.shot, panel.height
    if shot == "extreme close-up":
        return 0.5 * height
    if shot == "close-up":
        return 0.48 * height
    if shot == "medium shot":
        return 0.36 * height if panel.scene.aspect == "16:9" else 0.42 * height
    if shot == "wide shot":
        feet = 0.95 * height if panel.scene.aspect == "16:9" else 0.92 * height
    else:
        feet = min(panel.floor + 0.16 * panel.unit, 0.97 * height)
    sitting = 0.55 * head * legs if panel.scene.action == "sitting" else 0.0
    jump = 0.45 * head if panel.scene.action == "jumping" else 0.0
    return feet - head * (_HIP + legs) + sitting - jump


_ARMS: dict[str, tuple[Sequence[Point], Sequence[Point]]] = {
    "standing": (((-0.5, 0.9), (-0.62, 1.6), (-0.6, 2.3)), ((0.5, 0.9), (0.62, 1.6), (0.6, 2.3))),
    "walking": (((-0.5, 0.9), (-0.9, 1.5), (-0.75, 2.1)), ((0.5, 0.9), (0.85, 1.5), (1.2, 1.9))),
    "running": (((-0.5, 0.9), (-1.1, 1.4), (-1.25, 2.0)), ((0.5, 0.9), (0.95, 1.5), (1.4, 1.0))),
    "sitting": (((-0.5, 0.9), (-0.65, 1.6), (0.0, 2.1)), ((0.5, 0.9), (0.7, 1.6), (0.75, 2.15))),
    "pointing": (((-0.5, 0.9), (-0.65, 1.6), (-0.6, 2.3)), ((0.5, 0.9), (1.2, 0.75), (1.95, 0.6))),
    "waving": (((-0.5, 0.9), (-0.65, 1.6), (-0.6, 2.3)), ((0.5, 0.9), (1.05, 0.45), (1.0, -0.5))),
    "jumping": (((-0.5, 0.9), (-1.0, 0.3), (-0.95, -0.6)), ((0.5, 0.9), (1.0, 0.3), (0.95, -0.6))),
    "talking": (((-0.5, 0.9), (-0.65, 1.6), (-0.6, 2.3)), ((0.5, 0.9), (0.85, 1.5), (1.15, 1.15))),
    "holding": (((-0.5, 0.9), (-0.7, 1.5), (0.15, 1.45)), ((0.5, 0.9), (0.75, 1.5), (0.3, 1.45))),
}
"""Shoulder, elbow and hand of each arm, in head diameters from the head's middle."""

_LEG_STEPS: dict[str, tuple[Sequence[Point], Sequence[Point]]] = {
    "walking": (((-0.2, 0.0), (-0.3, 0.5), (-0.75, 1.0)), ((0.2, 0.0), (0.5, 0.5), (0.6, 1.0))),
    "running": (((-0.2, 0.0), (-0.3, 0.5), (-1.15, 0.62)), ((0.2, 0.0), (0.85, 0.35), (0.8, 0.95))),
    "sitting": (((-0.2, 0.0), (0.55, 0.05), (0.5, 0.45)), ((0.2, 0.0), (0.95, 0.05), (0.95, 0.45))),
    "jumping": (((-0.2, 0.0), (-0.7, 0.4), (-0.6, 0.85)), ((0.2, 0.0), (0.7, 0.4), (0.6, 0.85))),
}
"""Hip, knee and foot of each leg: x in head diameters, y as a share of the leg's length."""
_STANDING_LEGS: tuple[Sequence[Point], Sequence[Point]] = (
    ((-0.22, 0.0), (-0.26, 0.5), (-0.3, 1.0)),
    ((0.22, 0.0), (0.26, 0.5), (0.3, 1.0)),
)


def _figure(panel: _Panel, body: _Body, action: str) -> None:
    pen, head = panel.pen, body.head_px
    tone = _CLOTHES[body.kind]
    if action == "sitting":
        seat = _HIP + 0.18
        left, right = body.at(-0.75, seat), body.at(0.75, seat)
        bottom = body.at(0, _HIP + 0.45 * body.legs)[1]
        pen.box(min(left[0], right[0]), left[1], max(left[0], right[0]), bottom, PALE)
    for leg in _LEG_STEPS.get(action, _STANDING_LEGS):
        joints = [body.at(x, _HIP - 0.1 + y * (body.legs + 0.1)) for x, y in leg]
        pen.limb(joints, 0.27 * head, _leg_tone(body.kind))
    back, front = _ARMS[action]
    pen.limb([body.at(*joint) for joint in back], 0.24 * head, tone)
    _torso(pen, body, tone)
    pen.limb([body.at(*joint) for joint in front], 0.24 * head, tone)
    for hand in (back[-1], front[-1]):
        pen.ellipse(body.at(*hand), 0.17 * head, 0.17 * head, PAPER)
    _head(pen, body, action)
    if action == "talking":
        _speech(panel, body)


def _leg_tone(kind: str) -> int:
    return {"man": BLACK, "woman": PAPER, "boy": MID, "girl": PAPER, "person": DARK}[kind]


def _torso(pen: _Pen, body: _Body, tone: float) -> None:
    pen.limb([body.at(0, 0.3), body.at(0, 0.8)], 0.22 * body.head_px, PAPER)
    flare = 0.75 if body.kind in ("woman", "girl") else 0.4
    hem = _HIP + (0.5 if flare > 0.5 else 0.1)
    top = _SHOULDER - 0.05
    outline = [(-0.35, top), (0.35, top), (0.58, top + 0.2), (flare, hem), (-flare, hem)]
    pen.polygon([body.at(*point) for point in [*outline, (-0.58, top + 0.2)]], tone)
    if body.kind == "man":
        pen.polygon([body.at(-0.16, top), body.at(0.16, top), body.at(0, top + 0.5)], PAPER)


def _head(pen: _Pen, body: _Body, action: str) -> None:
    radius = 0.5 * body.head_px
    if body.kind == "woman":
        hair = [(-0.56, -0.1), (-0.4, -0.55), (0.4, -0.55), (0.56, -0.1), (0.62, 0.6), (-0.62, 0.6)]
        pen.polygon([body.at(*point) for point in hair], BLACK)
    if body.kind == "girl":
        for x in (-0.68, 0.68):
            pen.ellipse(body.at(x, -0.05), 0.48 * radius, 0.62 * radius, BLACK)
    pen.ellipse(body.top, 0.92 * radius, radius, PAPER)
    _hair(pen, body)
    _face(pen, body, action)


def _hair(pen: _Pen, body: _Body) -> None:
    tone = GREY if body.kind == "person" else BLACK
    line = -0.2 + 0.9 * body.gaze
    arc = [
        (0.47 * math.cos(math.pi * i / 10), -0.52 * math.sin(math.pi * i / 10)) for i in range(11)
    ]
    cap = [(x * 1.02, y + 0.5 * line + 0.04) for x, y in arc]
    pen.polygon(
        [body.at(*point) for point in [*cap, (-0.2, line - 0.08), (0.2, line - 0.08)]], tone
    )
    if body.kind == "boy":
        brim = [(0.1, line - 0.02), (0.72, line + 0.02), (0.72, line - 0.1), (0.1, line - 0.14)]
        pen.polygon([body.at(*point) for point in brim], BLACK)


def _face(pen: _Pen, body: _Body, action: str) -> None:
    head = body.head_px
    y = 0.04 + body.gaze
    for x in (-0.14, 0.22):
        pen.ellipse(body.at(x, y), 0.055 * head, 0.075 * head, BLACK, outline=False)
    if head < _SMALLEST_FACE_PX:
        return
    pen.stroke([body.at(x, y - 0.15) for x in (-0.22, -0.06)], 0.03 * head)
    pen.stroke([body.at(x, y - 0.15) for x in (0.14, 0.3)], 0.03 * head)
    if action in ("talking", "jumping"):
        pen.ellipse(body.at(0.05, y + 0.26), 0.11 * head, 0.09 * head, BLACK, outline=False)
    else:
        smile = [(-0.1, y + 0.22), (0.05, y + 0.28), (0.2, y + 0.22)]
        pen.stroke([body.at(*point) for point in smile], 0.035 * head)


def _speech(panel: _Panel, body: _Body) -> None:
    """A bubble with three dots, beside the head and inside the frame."""
    pen, head = panel.pen, body.head_px
    size = min(max(head, 0.1 * panel.unit), 0.34 * panel.unit)
    x, y = body.at(0.62, -0.42)
    x += 0.5 * size * body.facing
    x = min(max(x, 0.55 * size), panel.width - 0.55 * size)
    y = max(y - 0.2 * size, 0.36 * size)
    tail = [(x - 0.1 * size, y + 0.2 * size), (x + 0.1 * size, y + 0.2 * size), body.at(0.45, 0.15)]
    pen.polygon(tail, PAPER)
    pen.ellipse((x, y), 0.52 * size, 0.32 * size, PAPER)
    for dx in (-0.24, 0.0, 0.24):
        pen.ellipse((x + dx * size, y), 0.06 * size, 0.06 * size, BLACK, outline=False)


def _held_thing(pen: _Pen, body: _Body, thing: str) -> None:
    def shape(points: Sequence[Point], tone: float) -> None:
        pen.polygon([body.at(*point) for point in points], tone)

    lift = -0.55 if body.head_px > _RAISED_HANDS_PX else 0.0
    if thing == "phone":
        shape(
            [(0.0, 0.75 + lift), (0.6, 0.75 + lift), (0.6, 1.75 + lift), (0.0, 1.75 + lift)], BLACK
        )
        shape(
            [(0.1, 0.87 + lift), (0.5, 0.87 + lift), (0.5, 1.55 + lift), (0.1, 1.55 + lift)], PAPER
        )
    elif thing == "cup":
        pen.limb(
            [body.at(0.5, 1.1 + lift), body.at(0.78, 1.3 + lift), body.at(0.5, 1.5 + lift)],
            2,
            PAPER,
        )
        shape(
            [(-0.1, 0.9 + lift), (0.56, 0.9 + lift), (0.46, 1.7 + lift), (0.0, 1.7 + lift)], PAPER
        )
    elif thing == "book":
        shape(
            [(0.15, 1.0 + lift), (0.9, 0.85 + lift), (0.9, 1.7 + lift), (0.15, 1.85 + lift)], PAPER
        )
        shape(
            [(0.15, 1.0 + lift), (-0.6, 0.85 + lift), (-0.6, 1.7 + lift), (0.15, 1.85 + lift)],
            LIGHT,
        )
    elif thing == "microphone":
        pen.limb([body.at(0.22, 1.6 + lift), body.at(0.22, 0.9 + lift)], 0.14 * body.head_px, BLACK)
        pen.ellipse(body.at(0.22, 0.72 + lift), 0.24 * body.head_px, 0.26 * body.head_px, DARK)


def _ground_thing(panel: _Panel) -> None:
    """A thing on the ground at the side that the figures face."""
    scale = {"extreme wide shot": 0.1, "wide shot": 0.24}.get(panel.scene.shot, 0.36) * panel.unit
    x = panel.width * (0.5 + 0.36 * panel.side)
    if panel.scene.shot == "extreme wide shot":
        y = min(panel.floor + 0.17 * panel.unit, 0.97 * panel.height)
    else:
        y = 0.96 * panel.height
    _GROUND_THINGS[panel.scene.thing or "box"](panel.pen, x, y, scale, panel.side)


def _dog(pen: _Pen, x: float, y: float, s: float, side: int) -> None:
    for dx in (-0.32, -0.2, 0.2, 0.32):
        pen.limb([(x + dx * s, y - 0.35 * s), (x + dx * s, y)], 0.08 * s, MID)
    pen.stroke([(x + 0.4 * s * side, y - 0.5 * s), (x + 0.6 * s * side, y - 0.8 * s)], 0.08 * s)
    pen.ellipse((x, y - 0.42 * s), 0.45 * s, 0.2 * s, MID)
    head = (x - 0.45 * s * side, y - 0.68 * s)
    pen.ellipse(head, 0.23 * s, 0.2 * s, MID)
    pen.ellipse((head[0] + 0.12 * s * side, head[1]), 0.08 * s, 0.18 * s, BLACK)
    pen.ellipse((head[0] - 0.22 * s * side, head[1] + 0.02 * s), 0.06 * s, 0.06 * s, BLACK)


def _ball(pen: _Pen, x: float, y: float, s: float, side: int) -> None:
    centre = (x, y - 0.38 * s)
    pen.ellipse(centre, 0.38 * s, 0.38 * s, PAPER)
    pen.ellipse(centre, 0.14 * s, 0.14 * s, BLACK)
    for i in range(5):
        dx, dy = math.sin(math.tau * i / 5) * s, -math.cos(math.tau * i / 5) * s
        pen.stroke(
            [
                (centre[0] + 0.14 * dx, centre[1] + 0.14 * dy),
                (centre[0] + 0.36 * dx, centre[1] + 0.36 * dy),
            ]
        )


def _camera(pen: _Pen, x: float, y: float, s: float, side: int) -> None:
    for dx in (-0.35, 0.0, 0.35):
        pen.stroke([(x, y - 0.65 * s), (x + dx * s, y)], 0.07 * s)
    pen.box(x - 0.38 * s, y - 1.1 * s, x + 0.38 * s, y - 0.62 * s, DARK)
    pen.ellipse((x - 0.42 * s * side, y - 0.86 * s), 0.17 * s, 0.17 * s, PAPER)


def _box_thing(pen: _Pen, x: float, y: float, s: float, side: int) -> None:
    pen.box(x - 0.42 * s, y - 0.6 * s, x + 0.42 * s, y, LIGHT)
    pen.box(x - 0.1 * s, y - 0.6 * s, x + 0.1 * s, y, DARK)
    lid = [(-0.42, -0.6), (-0.28, -0.8), (0.56, -0.8), (0.42, -0.6)]
    pen.polygon([(x + dx * s, y + dy * s) for dx, dy in lid], PALE)


_GROUND_THINGS: dict[str, Callable[[_Pen, float, float, float, int], None]] = {
    "dog": _dog,
    "ball": _ball,
    "camera": _camera,
    "box": _box_thing,
}
