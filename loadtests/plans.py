"""What a run is to do, agreed before it begins: made once, sent to every process.

Making one asks the server for what requests need, so an address that is wrong, a server that is
away or a class that it cannot serve is told before the first request.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import gevent

from loadtests.mixes import reading
from loadtests.mixes.reading import Mix
from loadtests.outcomes import Run
from loadtests.schedules import Arrival, part_of
from loadtests.traffic.base import TrafficClass, Unavailable, Wrong
from loadtests.traffic.classes import TRAFFIC
from loadtests.traffic.wire import BROKEN, Connections, checked_url

KEYS_VARIABLE = "JOING_API_KEYS"
DISCOVERY_S = 30.0
LEAD_S = 2.0  # until the first instant: every process has its plan by then
LEAD_S_FOR_ARRIVALS = 20e-6  # and has worked out the schedule


class Unreachable(Exception):
    """The server does not answer; the message says what to do."""


@dataclass(frozen=True)
class Asked:
    """A run as the operator asks for it. None leaves it to the mix; `only` and `without` are names
    of classes.
    """

    mix: str
    url: str
    rate: float | None = None
    duration_s: float | None = None
    seed: int = 1
    only: frozenset[str] = frozenset()
    without: frozenset[str] = frozenset()
    channels_file: str | None = None

    def read_mix(self) -> Mix:
        """Raises MixError."""
        mix = reading.read(self.mix)
        if unknown := sorted(self.without - set(mix.classes)):
            raise reading.MixError(
                f"--without {unknown[0]}: {mix.name} has only {', '.join(mix.classes)}"
            )
        mix = mix.only((self.only or frozenset(mix.classes)) - self.without)
        return self._with_channels(mix) if self.channels_file else mix

    def _with_channels(self, mix: Mix) -> Mix:
        classes = dict(mix.classes)
        for name in mix.classes:
            if mix.kind_of(name) == "vetting":
                file = str(Path(self.channels_file or "").absolute())
                options = {**classes[name].options, "channels_file": file}
                classes[name] = classes[name].model_copy(update={"options": options})
        return mix.model_copy(update={"classes": classes})


@dataclass(frozen=True)
class Plan:
    """`processes` are Locust's client ids, in the order of their parts; `starts_at` is Unix time;
    `facts` is what each class found out about the server.
    """

    id: str
    mix: Mix
    url: str
    rate: float
    duration_s: float
    seed: int
    starts_at: float
    processes: Sequence[str]
    facts: Mapping[str, Mapping[str, Any]]

    def schedule(self) -> list[Arrival]:
        return self.mix.schedule(rate=self.rate, duration_s=self.duration_s, seed=self.seed)

    def part_of(self, process: str) -> Sequence[Arrival]:
        return part_of(self.schedule(), self.processes.index(process), len(self.processes))

    def classes(self) -> dict[str, TrafficClass]:
        made = {}
        for name in self.mix.classes:
            kind = TRAFFIC[self.mix.kind_of(name)]
            made[name] = kind(name, self.mix.options_of(name), self.facts[name], self.seed)
        return made

    def last_moment_s(self) -> float:
        """Seconds from the start by which everyone has given up."""
        patience_s = max(level.patience_s for level in self.mix.levels.values())
        return max(arrival.due_s for arrival in self.schedule()) + patience_s

    def run(self) -> Run:
        return Run(
            mix=self.mix.name,
            url=self.url,
            rate=self.rate,
            duration_s=self.duration_s,
            seed=self.seed,
            processes=len(self.processes),
            started_at=self.starts_at,
            levels=self.mix.levels,
        )

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "mix": self.mix.model_dump(mode="json", exclude_unset=True)}

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Plan:
        return cls(**{**row, "mix": Mix.model_validate(row["mix"])})


def make(asked: Asked, processes: Sequence[str]) -> Plan:
    """Raises MixError, ScheduleError, BadAddress, Unreachable, Unavailable."""
    mix = asked.read_mix()
    plan = Plan(
        id=uuid4().hex,
        mix=mix,
        url=asked.url,
        rate=mix.rate if asked.rate is None else asked.rate,
        duration_s=mix.duration_s if asked.duration_s is None else asked.duration_s,
        seed=asked.seed,
        starts_at=0.0,
        processes=list(processes),
        facts={},
    )
    arrivals = plan.schedule()
    if mix.arrivals.shape == "trace":
        plan = replace(plan, duration_s=max(arrival.due_s for arrival in arrivals))
    facts = discovered(plan, Counter(arrival.traffic_class for arrival in arrivals))
    lead_s = LEAD_S + LEAD_S_FOR_ARRIVALS * len(arrivals)
    return replace(plan, facts=facts, starts_at=time.time() + lead_s)


def discovered(plan: Plan, due: Mapping[str, int]) -> dict[str, Mapping[str, Any]]:
    """By class. Raises Unreachable and Unavailable."""
    http = connections(plan.url)
    facts = {}
    try:
        with gevent.Timeout(DISCOVERY_S, TimeoutError(f"no answer within {DISCOVERY_S:g} s")):
            with http.send(http.message("GET", "/livez")) as reply:
                reply.read()
            for name in plan.mix.classes:
                kind = TRAFFIC[plan.mix.kind_of(name)]
                try:
                    facts[name] = kind.discover(http, plan.mix.options_of(name), due.get(name, 0))
                except Unavailable as error:
                    raise Unavailable(f"classes.{name}: {error}") from None
                except (Wrong, KeyError, TypeError) as error:
                    raise Unavailable(
                        f"classes.{name}: the server's answer is not Joing's ({error!r}): is "
                        f"{plan.url} the right address?"
                    ) from None
    except BROKEN as error:
        raise Unreachable(
            f"{plan.url} does not answer ({error}): start the system (python -m bentos serve), or "
            "give its address"
        ) from None
    finally:
        http.close()
    return facts


def connections(url: str) -> Connections:
    """With the first key that the system is told, if any. Raises BadAddress."""
    checked_url(url)
    key = os.environ.get(KEYS_VARIABLE, "").split(",")[0].strip()
    headers = {"User-Agent": "joing-loadtests"}
    return Connections(url, headers | ({"Authorization": f"Bearer {key}"} if key else {}))
