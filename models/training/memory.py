"""Memory that runs out while training, told as the image engine tells it, with what to lower."""

from collections.abc import Iterator
from contextlib import contextmanager

from models.flux import memory
from models.flux.errors import OutOfMemory as EngineOutOfMemory
from models.training.errors import OutOfMemory


@contextmanager
def memory_errors(advice: str) -> Iterator[None]:
    """Every way in which torch and Python say that memory ran out, as OutOfMemory with `advice`."""
    try:
        with memory.memory_errors():
            yield
    except EngineOutOfMemory as full:
        raise OutOfMemory(advice) from full.__cause__
