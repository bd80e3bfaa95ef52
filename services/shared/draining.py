"""Answering what runs before the server shuts down.

On SIGTERM uvicorn stops accepting connections at once and then waits for running requests without
a bound, while BentoML's parent process keeps the listening socket open: who connects then hears
nothing. Here the service drains first, refusing aloud, and the server hears of the signal after.
"""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


@contextmanager
def drained_on_sigterm(drain: Callable[[], Coroutine[Any, Any, None]]) -> Iterator[None]:
    """Inside, the first SIGTERM runs `drain`, and the server's own handler when that is over; a
    second one goes straight to the server. Needs a running event loop; does nothing outside of
    the main thread, where no signal arrives.
    """
    servers = signal.getsignal(signal.SIGTERM)
    if threading.current_thread() is not threading.main_thread() or not callable(servers):
        yield
        return
    loop = asyncio.get_running_loop()
    tasks: set[asyncio.Task[None]] = set()

    async def drain_then_tell(number: int) -> None:
        try:
            await drain()
        finally:
            servers(number, None)

    def on_signal(number: int, _frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, servers)
        loop.call_soon_threadsafe(lambda: tasks.add(loop.create_task(drain_then_tell(number))))

    signal.signal(signal.SIGTERM, on_signal)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, servers)
