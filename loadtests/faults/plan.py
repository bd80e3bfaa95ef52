"""Which faults happen when, from a TOML file.

    [links.llm]                 # a proxy, opened before the first fault
    listen = 3900               # who should feel it is given this port
    to = "127.0.0.1:3001"

    [[faults]]
    kind = "kill"               # kill, stop, terminate, limit_files, link, fill_disk
    at_s = 30
    port = 3002                 # or words = ["services.vetting"]
    which = "workers"           # workers, supervisor or all

    [[faults]]
    kind = "link"
    at_s = 60
    for_s = 10
    link = "llm"
    is_cut = true               # or is_silent, delay_s and jitter_s, bytes_per_s, truncates_at

A YouTube that fails (kind "youtube": `fault`, `calls`) is served here, behind the link "youtube".
What is not known is refused, with the key's name.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from loadtests.faults.disk import MAX_FILL_BYTES, FillDisk
from loadtests.faults.link import BadLink, Condition, Link
from loadtests.faults.processes import Kill, LimitFiles, Service, Stop, Terminate, Which
from loadtests.faults.timeline import Fault, Planned
from loadtests.faults.youtube import CALLS, FailingYouTube, YouTubeFault

YOUTUBE = "youtube"
Port = Annotated[int, Field(ge=1, le=65_535)]


class PlanError(ValueError):
    """A plan that cannot be carried out; the message names the key."""


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class LinkTable(_Table):
    """`to` is host:port; absent only for the link "youtube"."""

    listen: Port
    to: str | None = Field(None, pattern=r"^[^\s:]+:\d{1,5}$")

    def address(self) -> tuple[str, int]:
        assert self.to is not None
        host, _, port = self.to.rpartition(":")
        return host, int(port)


class _When(_Table):
    at_s: float = Field(ge=0, le=86_400)
    for_s: float = Field(0.0, ge=0, le=86_400)


class _OfService(_When):
    port: Port | None = None
    words: tuple[str, ...] = ()
    which: Which = "workers"

    @model_validator(mode="after")
    def _is_found_one_way(self) -> _OfService:
        self.service()
        return self

    def service(self) -> Service:
        return Service(self.port, self.words, self.which)


class KillTable(_OfService):
    kind: Literal["kill"]
    restarts: bool = False

    def fault(self, _: Mapping[str, Link], __: FailingYouTube | None) -> Fault:
        return Kill(self.service(), self.restarts)


class StopTable(_OfService):
    kind: Literal["stop"]
    for_s: float = Field(gt=0, le=86_400)

    def fault(self, _: Mapping[str, Link], __: FailingYouTube | None) -> Fault:
        return Stop(self.service())


class TerminateTable(_OfService):
    kind: Literal["terminate"]

    def fault(self, _: Mapping[str, Link], __: FailingYouTube | None) -> Fault:
        return Terminate(self.service())


class LimitFilesTable(_OfService):
    kind: Literal["limit_files"]
    for_s: float = Field(gt=0, le=86_400)
    max_bytes: int = Field(ge=0)

    def fault(self, _: Mapping[str, Link], __: FailingYouTube | None) -> Fault:
        return LimitFiles(self.service(), self.max_bytes)


class LinkFaultTable(_When):
    kind: Literal["link"]
    for_s: float = Field(gt=0, le=86_400)
    link: str
    is_cut: bool = False
    is_silent: bool = False
    delay_s: float = Field(0.0, ge=0, le=3_600)
    jitter_s: float = Field(0.0, ge=0, le=3_600)
    bytes_per_s: float | None = Field(None, gt=0)
    truncates_at: int | None = Field(None, ge=0)

    def fault(self, links: Mapping[str, Link], _: FailingYouTube | None) -> Fault:
        condition = self.model_dump(exclude={"kind", "at_s", "for_s", "link"})
        return BadLink(links[self.link], Condition(**condition), self.link)


class FillDiskTable(_When):
    kind: Literal["fill_disk"]
    for_s: float = Field(gt=0, le=86_400)
    folder: Path
    leaves_bytes: int = Field(0, ge=0)
    max_bytes: int = Field(MAX_FILL_BYTES, gt=0)

    def fault(self, _: Mapping[str, Link], __: FailingYouTube | None) -> Fault:
        return FillDisk(self.folder, self.leaves_bytes, self.max_bytes)


class YouTubeTable(_When):
    kind: Literal["youtube"]
    for_s: float = Field(gt=0, le=86_400)
    # `fault` is what a table makes.
    what: str = Field("server_error", alias="fault")
    calls: tuple[Literal["channels", "playlist_items", "videos"], ...] = CALLS  # type: ignore[assignment]

    def fault(self, _: Mapping[str, Link], youtube: FailingYouTube | None) -> Fault:
        assert youtube is not None, "a plan with such a fault serves a YouTube"
        return YouTubeFault(youtube, self.what, self.calls)


FaultTable = Annotated[
    KillTable
    | StopTable
    | TerminateTable
    | LimitFilesTable
    | LinkFaultTable
    | FillDiskTable
    | YouTubeTable,
    Field(discriminator="kind"),
]


class Plan(_Table):
    """A whole file."""

    links: dict[str, LinkTable] = Field(default_factory=dict)
    faults: tuple[FaultTable, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _links_are_given(self) -> Plan:
        named = {fault.link for fault in self.faults if isinstance(fault, LinkFaultTable)}
        if self.has_youtube:
            named.add(YOUTUBE)
        if unknown := sorted(named - set(self.links)):
            raise ValueError(f"links.{unknown[0]} is not given: say its listen and to")
        for name, link in self.links.items():
            if link.to is None and not (name == YOUTUBE and self.has_youtube):
                raise ValueError(f"links.{name}.to is not given: say host:port")
        return self

    @property
    def has_youtube(self) -> bool:
        return any(isinstance(fault, YouTubeTable) for fault in self.faults)

    def planned(self, links: Mapping[str, Link], youtube: FailingYouTube | None) -> list[Planned]:
        return [Planned(f.at_s, f.for_s, f.fault(links, youtube)) for f in self.faults]


def read_plan(path: Path) -> Plan:
    """Raises PlanError."""
    try:
        return Plan.model_validate(tomllib.loads(path.read_text("utf-8")))
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise PlanError(f"{path}: {error}") from None
    except ValidationError as error:
        raise PlanError(f"{path}: {_in_words(error)}") from None


def _in_words(error: ValidationError) -> str:
    lines = []
    for entry in error.errors(include_url=False, include_input=False):
        key = ".".join(str(part) for part in entry["loc"])
        lines.append(f"{key}: {entry['msg']}" if key else entry["msg"])
    return "; ".join(lines)
