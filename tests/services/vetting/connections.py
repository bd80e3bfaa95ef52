"""Every address that Python's sockets are asked to connect to, seen by an audit hook."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

_watching: list[list[object]] = []
_hooked = False


@contextmanager
def connections() -> Iterator[list[object]]:
    """A list that fills with the addresses of `socket.connect`, in this process."""
    _hook_once()
    seen: list[object] = []
    _watching.append(seen)
    try:
        yield seen
    finally:
        _watching.remove(seen)


def _hook_once() -> None:
    """Hooks cannot be taken off again; this one does nothing while nobody watches."""
    global _hooked
    if not _hooked:
        _hooked = True
        sys.addaudithook(_note)


def _note(event: str, arguments: tuple[object, ...]) -> None:
    if _watching and event == "socket.connect":
        for seen in _watching:
            seen.append(arguments[1])
