"""A mix: which classes of traffic, in which shares, when, and what each was promised.

One TOML file:

    summary = "An ordinary day, all classes."
    rate = 0.5            # requests a second, all classes together, mean
    duration_s = 180

    [arrivals]            # absent: Poisson at an even rate
    gaps = "gamma"        # poisson, gamma or even
    burstiness = 0.3      # of gamma: 1 is Poisson, less comes in bursts
    shape = "spike"       # flat, ramp, spike, day or trace, and that shape's own keys

    [classes.chat]
    share = 0.25          # of all requests; the shares add up to 1
    traffic = "chat"      # a name of loadtests/traffic/classes.py; absent: the class's own
    within_s = 20         # the level, see outcomes.Level
    first_s = 2
    good = 0.95           # the share of all scheduled requests that have to be good
    patience_s = 60
    [classes.chat.options]

What it does not know it refuses, with the key's name and what would be right.
"""

from __future__ import annotations

import csv
import io
import math
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from loadtests import schedules
from loadtests.outcomes import Level
from loadtests.schedules import Arrival, Gaps, ScheduleError, Shape
from loadtests.traffic.base import Options
from loadtests.traffic.classes import TRAFFIC

FOLDER = Path(__file__).parent
SHAPE_KEYS: dict[str, frozenset[str]] = {
    "flat": frozenset(),
    "ramp": frozenset({"first", "last"}),
    "spike": frozenset({"times", "starts_at", "lasts"}),
    "day": frozenset({"hours"}),
    "trace": frozenset({"file"}),
}
SHAPES_OWN = frozenset().union(*SHAPE_KEYS.values())


class MixError(ValueError):
    """A mix that cannot be run; the message names the key and the fix."""


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Arrivals(_Table):
    """When requests come. `first` and `last` are weights of a ramp; a spike comes `times` as thick
    from `starts_at` for `lasts`, shares of the run; `hours` are weights of equal parts of a day;
    `file` is a trace: CSV with a column `at_s` and, optionally, `class`.
    """

    gaps: Gaps = "poisson"
    burstiness: float = Field(1.0, ge=0.01, le=100)
    shape: Literal["flat", "ramp", "spike", "day", "trace"] = "flat"
    first: float = Field(0.1, ge=0)
    last: float = Field(1.0, ge=0)
    times: float = Field(5.0, gt=0)
    starts_at: float = Field(0.4, ge=0, le=1)
    lasts: float = Field(0.2, gt=0, le=1)
    hours: tuple[float, ...] = schedules.DAY
    file: str | None = None

    @model_validator(mode="after")
    def _keys_have_an_effect(self) -> Arrivals:
        idle = (self.model_fields_set & SHAPES_OWN) - SHAPE_KEYS[self.shape]
        if idle:
            raise ValueError(f"{min(idle)} has no effect with shape = {self.shape!r}: leave it out")
        if "burstiness" in self.model_fields_set and self.gaps != "gamma":
            raise ValueError(f"burstiness has no effect with gaps = {self.gaps!r}: use 'gamma'")
        if self.shape == "trace" and self.file is None:
            raise ValueError("shape = 'trace' needs file: the name of a CSV beside the mix")
        return self

    def rate_over_time(self) -> Shape:
        """Not of a trace. Raises ScheduleError."""
        match self.shape:
            case "ramp":
                return schedules.ramp(self.first, self.last)
            case "spike":
                return schedules.spike(self.times, self.starts_at, self.lasts)
            case "day":
                return schedules.day(self.hours)
        return schedules.FLAT


class ClassOfTraffic(_Table):
    """One class of a mix. `traffic` is its kind."""

    share: float = Field(gt=0, le=1)
    traffic: str = ""
    within_s: float = Field(gt=0, le=86_400)
    first_s: float | None = Field(None, gt=0, le=86_400)
    tokens_per_s: float | None = Field(None, gt=0)
    good: float = Field(0.95, gt=0, le=1)
    patience_s: float | None = Field(None, gt=0, le=86_400)
    options: Mapping[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _patience_outlasts_the_level(self) -> ClassOfTraffic:
        if self.patience_s is not None and self.patience_s < self.within_s:
            raise ValueError(
                f"patience_s is {self.patience_s:g}, under within_s ({self.within_s:g}): a client "
                "that gives up before the level ends is never late; raise patience_s"
            )
        return self

    @property
    def level(self) -> Level:
        """Who says nothing about patience waits three times as long as the level allows."""
        return Level(
            within_s=self.within_s,
            share=self.good,
            patience_s=self.patience_s or 3 * self.within_s,
            first_s=self.first_s,
            tokens_per_s=self.tokens_per_s,
        )


class Mix(_Table):
    """A file of this folder, or the operator's own. `trace` is what `arrivals.file` holds: seconds,
    and a class or None.
    """

    name: str
    summary: str = ""
    rate: float = Field(gt=0, le=100_000)
    duration_s: float = Field(gt=0, le=7 * 86_400)
    arrivals: Arrivals = Arrivals()
    classes: dict[str, ClassOfTraffic] = Field(min_length=1)
    trace: tuple[tuple[float, str | None], ...] = ()

    @model_validator(mode="after")
    def _shares_add_up(self) -> Mix:
        total = math.fsum(one.share for one in self.classes.values())
        if abs(total - 1) > 1e-6:
            given = ", ".join(f"{name} {one.share:g}" for name, one in self.classes.items())
            raise ValueError(f"the shares add up to {total:g}, not 1 ({given}): change one share")
        return self

    @model_validator(mode="after")
    def _traffic_is_known(self) -> Mix:
        for name, one in self.classes.items():
            kind = one.traffic or name
            if kind not in TRAFFIC:
                raise ValueError(
                    f"classes.{name} is of the unknown traffic {kind!r}: it is one of "
                    f"{', '.join(TRAFFIC)}; name it with traffic = ..."
                )
            try:
                self.options_of(name)
            except ValidationError as error:
                raise ValueError(explained(error, f"classes.{name}.options")) from None
        return self

    def kind_of(self, name: str) -> str:
        return self.classes[name].traffic or name

    def options_of(self, name: str) -> Options:
        kind: type[Options] = TRAFFIC[self.kind_of(name)].options
        return kind.model_validate(self.classes[name].options)

    @property
    def levels(self) -> dict[str, Level]:
        return {name: one.level for name, one in self.classes.items()}

    @property
    def shares(self) -> dict[str, float]:
        return {name: one.share for name, one in self.classes.items()}

    def only(self, names: frozenset[str]) -> Mix:
        """The same with these classes, in the same proportions. Raises MixError."""
        if unknown := sorted(names - set(self.classes)):
            raise MixError(
                f"{self.name} has no class {', '.join(unknown)}: it has {', '.join(self.classes)}"
            )
        if not names:
            raise MixError(f"no class of {self.name} is left: keep one")
        kept = {name: one for name, one in self.classes.items() if name in names}
        total = math.fsum(one.share for one in kept.values())
        return self.model_copy(
            update={
                "classes": {
                    name: one.model_copy(update={"share": one.share / total})
                    for name, one in kept.items()
                },
                "trace": tuple(row for row in self.trace if row[1] in {None, *names}),
            }
        )

    def schedule(self, *, rate: float, duration_s: float, seed: int) -> list[Arrival]:
        """Raises ScheduleError. A trace has its own duration."""
        if self.arrivals.shape == "trace":
            return schedules.replay(self.trace, self.shares, rate=rate, seed=seed)
        return schedules.schedule(
            self.shares,
            rate=rate,
            duration_s=duration_s,
            seed=seed,
            shape=self.arrivals.rate_over_time(),
            gaps=self.arrivals.gaps,
            burstiness=self.arrivals.burstiness,
        )


def names() -> list[str]:
    """Of the mixes in this folder."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def read(name: str) -> Mix:
    """A mix of this folder by its name, or any by its file's. Raises MixError."""
    path = Path(name) if name.endswith(".toml") else FOLDER / f"{name}.toml"
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = "there is none of that name" if isinstance(error, FileNotFoundError) else str(error)
        raise MixError(
            f"the mix {name!r} cannot be read ({why}): give a .toml file, or one of "
            f"{', '.join(names())}"
        ) from None
    return parse(text, path)


def parse(text: str, path: Path) -> Mix:
    """Raises MixError."""
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise MixError(f"{path}: no TOML: {error}") from None
    if computed := {"name", "trace"} & set(table):
        raise MixError(f"{path}: {min(computed)} is no key of a mix: leave it out")
    try:
        mix = Mix(name=path.stem, **table)
        if mix.arrivals.shape == "trace":
            trace = read_trace(path.parent / str(mix.arrivals.file))
            mix = mix.model_copy(update={"trace": trace})
        mix.schedule(rate=mix.rate, duration_s=mix.duration_s, seed=0)
    except ValidationError as error:
        raise MixError(f"{path}: {explained(error)}") from None
    except ScheduleError as error:
        raise MixError(f"{path}: {error}") from None
    return mix


def read_trace(path: Path) -> tuple[tuple[float, str | None], ...]:
    """Raises MixError."""
    try:
        rows = list(csv.DictReader(io.StringIO(path.read_text("utf-8"))))
        return tuple((float(row["at_s"]), row.get("class") or None) for row in rows)
    except OSError as error:
        raise MixError(f"the trace {path} cannot be read: {error}") from None
    except (KeyError, ValueError, TypeError) as error:
        raise MixError(
            f"the trace {path} is no CSV with a column at_s (seconds) and, optionally, class: "
            f"{error!r}"
        ) from None


def explained(error: ValidationError, prefix: str = "") -> str:
    """Each problem with the key that it is about."""
    told = []
    for problem in error.errors(include_url=False):
        key = ".".join(filter(None, [prefix, *map(str, problem["loc"])]))
        message = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "extra_forbidden":
            message = "there is no such key; check its spelling or leave it out"
        elif problem["type"] == "missing":
            message = "it is missing; give it"
        elif not problem["msg"].startswith("Value error") and key:
            message = f"{message[0].lower()}{message[1:]}, not {problem['input']!r}"
        told.append(f"{key}: {message}" if key else message)
    return "; ".join(told)
