"""Files that are either whole or not there, on a disk that may be full at any moment.

A file is written beside its place, flushed to the disk and renamed, so a process or a machine that
dies at any moment leaves the old file or the new one. Knows nothing of torch.
"""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from models.training.errors import OutOfDisk

PARTIAL = ".part"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def partial_of(file: Path) -> Path:
    """Where a file is written before it takes its place."""
    return file.with_name(file.name + PARTIAL)


def write_whole(file: Path, data: bytes | memoryview) -> None:
    """Puts `data` in the file's place. Raises OutOfDisk, and leaves what was there before."""
    partial = partial_of(file)
    with full_disk(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            with partial.open("wb") as opened:
                opened.write(data)
                opened.flush()
                os.fsync(opened.fileno())
            partial.replace(file)
        except OSError:
            with suppress(OSError):
                partial.unlink(missing_ok=True)
            raise
        _flush_folder(file.parent)


@contextmanager
def full_disk(path: Path) -> Iterator[None]:
    """The operating system's ways of saying that nothing more fits, as OutOfDisk about `path`."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise OutOfDisk(
            f"{path} could not be written: {os.strerror(error.errno)}. What was saved before is "
            "intact; free some space and run the same command again"
        ) from error


def _flush_folder(folder: Path) -> None:
    """A rename is on the disk when its folder is."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
