"""A YouTube that fails for a while. The fake one of tests/youtube, or whatever fails as it does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

CALLS = ("channels", "playlist_items", "videos")


class FailingYouTube(Protocol):
    """tests.youtube.server.FakeYouTube is one."""

    def fail(self, name: Any, fault: Any) -> None: ...

    def mend(self) -> None: ...


@dataclass
class YouTubeFault:
    """Every one of these `calls` ends in `fault`, a CallFault such as "server_error" or
    "quota_exceeded", until the end.
    """

    youtube: FailingYouTube
    fault: str = "server_error"
    calls: Sequence[str] = CALLS

    @property
    def name(self) -> str:
        return f"YouTube {self.fault}"

    async def begin(self) -> None:
        for call in self.calls:
            self.youtube.fail(call, self.fault)

    async def end(self) -> None:
        self.youtube.mend()
