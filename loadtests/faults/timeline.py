"""Faults at their times: begun, ended again whatever happens, and written down in Unix time, to be
laid beside the records of a run that another process made.

Knows nothing of what a fault does.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

END_LIMIT_S = 60.0


class Fault(Protocol):
    """Something that goes wrong. `end` mends it and may be called though `begin` raised."""

    @property
    def name(self) -> str:
        """For people: what is done to what."""
        ...

    async def begin(self) -> None: ...

    async def end(self) -> None: ...


@dataclass(frozen=True)
class Planned:
    """`fault` from `at_s` after the start, for `for_s`; 0 is a fault that is over at once."""

    at_s: float
    for_s: float
    fault: Fault


@dataclass(frozen=True)
class Mark:
    """A fault that was made. Unix time; `ended_at` is when the cause was gone again. `problem` is
    why it could not be made or mended.
    """

    name: str
    began_at: float
    ended_at: float
    problem: str | None = None


async def carry_out(
    planned: Sequence[Planned], told: Callable[[str], None] = lambda _: None
) -> list[Mark]:
    """Every fault at its time; they may overlap. When this is cancelled, what has begun is ended
    before it returns. A fault that raises OSError or ValueError is told in its mark, and the others
    go on.
    """
    started = time.monotonic()
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(_one(fault, started, told)) for fault in planned]
    return sorted((task.result() for task in tasks), key=lambda mark: mark.began_at)


async def _one(planned: Planned, started: float, told: Callable[[str], None]) -> Mark:
    await asyncio.sleep(max(0.0, started + planned.at_s - time.monotonic()))
    fault, problem = planned.fault, None
    told(f"{fault.name}: begins")
    began_at = time.time()
    try:
        await fault.begin()
        await asyncio.sleep(planned.for_s)
    except (OSError, ValueError) as error:
        problem = str(error)
    finally:
        problem = await asyncio.shield(_ended(fault)) or problem
    ended_at = time.time() if planned.for_s > 0 else began_at
    told(f"{fault.name}: {problem or 'over'}")
    return Mark(fault.name, began_at, ended_at, problem)


async def _ended(fault: Fault) -> str | None:
    try:
        async with asyncio.timeout(END_LIMIT_S):
            await fault.end()
    except (OSError, ValueError, TimeoutError) as error:
        return f"not mended: {error}"
    return None
