"""A file system without room. It must be a small one: the machine's own, full, hurts others.

A folder can be given its own, such as `mount -t tmpfs -o size=64m tmpfs FOLDER`, or a
container's volume. Where that cannot be had, `loadtests.faults.processes.LimitFiles` is the quota.
"""

from __future__ import annotations

import asyncio
import errno
import os
from dataclasses import dataclass
from pathlib import Path

MAX_FILL_BYTES = 2 * 2**30
STEP_BYTES = 2**20
FILE = "filled-by-loadtests"


class TooLarge(ValueError):
    """Filling this file system would be no test but an accident."""


@dataclass
class FillDisk:
    """Fills the file system of `folder` until at most `leaves_bytes` are free; frees it at the end.

    Raises TooLarge where more than `max_bytes` would have to be written.
    """

    folder: Path
    leaves_bytes: int = 0
    max_bytes: int = MAX_FILL_BYTES

    @property
    def name(self) -> str:
        return f"fill {self.folder.name}, {self.leaves_bytes:,} bytes left"

    async def begin(self) -> None:
        wanted = free_bytes(self.folder) - self.leaves_bytes
        if wanted > self.max_bytes:
            raise TooLarge(
                f"{self.folder} has {wanted:,} bytes to fill, over {self.max_bytes:,}: give it a "
                "file system of its own"
            )
        await asyncio.to_thread(self._fill)

    async def end(self) -> None:
        (self.folder / FILE).unlink(missing_ok=True)

    def _fill(self) -> None:
        """Real blocks, in steps, since others write at the same time. Not a byte over what is free
        to users: the reserve of an ext4 stays.
        """
        with (self.folder / FILE).open("wb") as file:
            written = 0
            while (left := free_bytes(self.folder) - self.leaves_bytes) > 0:
                step = min(STEP_BYTES, left)
                if written + step > self.max_bytes:
                    raise TooLarge(
                        f"{self.folder} grew while it was filled: stopped at {written:,}"
                    )
                try:
                    os.posix_fallocate(file.fileno(), written, step)
                except OSError as error:
                    if error.errno == errno.ENOSPC:
                        return
                    raise
                written += step


def free_bytes(folder: Path) -> int:
    """What is free to ordinary users on the file system of `folder`. Raises OSError."""
    told = os.statvfs(folder)
    return told.f_bavail * told.f_frsize
