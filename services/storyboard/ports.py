"""What a storyboard needs from outside, as Protocols. Adapters and fakes implement these."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol

from services.shared.proposals import Proposal
from services.storyboard.schemas import Storyboard, StoryboardRequest


@dataclass(frozen=True)
class NewEvent:
    """Something to tell whoever follows a storyboard. `data` is JSON."""

    name: str
    data: dict[str, Any]


@dataclass(frozen=True)
class StoredEvent(NewEvent):
    """`seq` counts from 1 without gaps, within one storyboard."""

    seq: int = 0


@dataclass(frozen=True)
class NewJob:
    """A storyboard that was asked for. `owner` is whose it is (16 hex digits of the key's hash);
    `body_hash` tells whether a second request under one idempotency key is the same.
    """

    owner: str
    request: StoryboardRequest
    storyboard: Storyboard
    body_hash: str
    idempotency_key: str | None = None


@dataclass(frozen=True)
class Lease:
    """The right to work on one job until `lease_s` after the last renewal. `token` rises with
    every claim and with cancelling: whoever holds an older one is refused.
    """

    job_id: str
    token: int
    worker: str
    request: StoryboardRequest
    storyboard: Storyboard
    created_at: datetime
    attempts: int
    """Claims since the last recorded change, this one included."""


@dataclass(frozen=True)
class Change:
    """What a storyboard becomes, and what is told about it. No change: the same storyboard."""

    storyboard: Storyboard
    events: tuple[NewEvent, ...] = ()


@dataclass(frozen=True)
class Load:
    """How much there is to do, for metrics. Seconds count from when the oldest was asked for."""

    queued: int = 0
    running: int = 0
    oldest_queued_s: float = 0.0


class JobStore(Protocol):
    """Storyboards, their events and who works on them. Raises StorageUnavailable.

    What returned survives the process. `owner` must match: another's storyboard is as if it were
    not there.
    """

    async def create(self, job: NewJob, *, max_unfinished: int) -> tuple[Storyboard, bool]:
        """The storyboard, and True when it is new; False when its idempotency key was used before
        for the same body. Raises KeyReused, TooManyJobs.
        """
        ...

    async def get(self, owner: str | None, job_id: str) -> Storyboard | None:
        """`owner` None: anybody's."""
        ...

    async def events(self, job_id: str, after: int) -> Sequence[StoredEvent]:
        """Those with a seq above `after`, in order."""
        ...

    async def cancel(self, owner: str, job_id: str) -> Storyboard | None:
        """The storyboard as it is then: `cancelled`, or as it was when it was finished already.
        Whoever works on it has lost its lease.
        """
        ...

    async def delete(self, owner: str | None, job_id: str) -> bool:
        """Forgets a finished storyboard with its events; False when there is none. `owner` None:
        anybody's. Raises StillRunning.
        """
        ...

    async def claim(self, worker: str, lease_s: float, *, max_running: int) -> Lease | None:
        """The oldest unfinished job that nobody holds, of an owner with fewer than `max_running`
        jobs under a live lease; None when there is none.
        """
        ...

    async def renew(self, lease: Lease, lease_s: float) -> None:
        """Raises LeaseLost."""
        ...

    async def release(self, lease: Lease) -> None:
        """Lets another worker claim the job at once; nothing when the lease is lost already."""
        ...

    async def release_all(self) -> None:
        """Of every worker: for the one process that a SQLite database has, when it starts."""
        ...

    async def record(self, lease: Lease, change: Callable[[Storyboard], Change]) -> Storyboard:
        """Applies `change` to the storyboard as it is now, and stores what it gives and its events
        in one transaction. A changed storyboard counts as progress. `change` must be safe to
        repeat: a connection that is lost at the commit says nothing of whether it was stored.
        Raises LeaseLost.
        """
        ...

    async def expired(self, limit: int) -> Sequence[str]:
        """Ids of finished storyboards past their `expires_at`."""
        ...

    async def load(self) -> Load: ...


class Artifacts(Protocol):
    """Files of storyboards, by a path such as `<job id>/frame-1.png`. Raises ArtifactMissing, and
    OSError when the place cannot be reached.
    """

    async def put(self, path: str, data: bytes) -> None:
        """All of it or nothing: a reader never sees a part."""
        ...

    async def get(self, path: str) -> bytes: ...

    async def exists(self, path: str) -> bool: ...

    async def delete_all(self, job_id: str) -> None:
        """Everything of one job; nothing when there is nothing."""
        ...


@dataclass(frozen=True)
class ImageModel:
    """What the images service draws with, as it describes itself.

    `vocabulary` is the phrases that each slot of the prompt grammar understands; None: any English.
    """

    name: str
    trigger: str
    width: int
    height: int
    multiple_px: int
    min_side_px: int
    max_pixels: int
    triggers: Mapping[str, str] = field(default_factory=dict)
    """Of every LoRA, by its name."""
    vocabulary: Mapping[str, tuple[str, ...]] | None = None


@dataclass(frozen=True)
class Order:
    """One picture to be drawn. `key` is the same for every try: it is drawn once."""

    prompt: str
    lora: str | None
    width: int
    height: int
    seed: int
    key: str


class Painter(Protocol):
    """Raises the PaintingError family. Cancelling a call frees what it holds at images."""

    async def model(self) -> ImageModel: ...

    async def draw(self, order: Order) -> bytes:
        """A PNG."""
        ...


class Screen(Protocol):
    """The deliberation that proposals go through. Raises ScreenUnavailable."""

    async def is_allowed(self, text: Proposal) -> Screening: ...


@dataclass(frozen=True)
class Screening:
    """`is_allowed` is True only for a plain pass; a review is not one. `objections` are criteria
    with their levels (`violence 3`), or why it could not be judged.
    """

    is_allowed: bool
    objections: tuple[str, ...] = ()
