"""Starts services as processes of their own, fast enough to kill hundreds of them.

`python -m tests.services.storyboard.forking` imports everything once and forks a child for each
line of JSON on its standard input: {"what", "port", "settings", "crash"}. It answers with the
child's process id. `crash` is a boundary and how often it is passed before the child kills itself.
An application is built once for all children with the same settings, and opened in each of them.
"""

from __future__ import annotations

import json
import os
import signal
import ssl
import subprocess
import sys
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import httpx
import psutil
import uvicorn
from starlette.applications import Starlette
from starlette.routing import Route

from services.images.app import create_app as create_images
from services.images.settings import ImagesSettings
from services.shared.peers import free_port
from services.storyboard.adapters.artifacts import FsspecArtifacts
from services.storyboard.adapters.jobs import SQLJobStore
from services.storyboard.adapters.peers import HttpPainter
from services.storyboard.app import Parts
from services.storyboard.app import create_app as create_storyboard
from services.storyboard.settings import StoryboardSettings
from tests.fakes.scripted_llm import models
from tests.fakes.scripted_writer import ScriptedWriter

BOUNDARIES = (
    "create.after",
    "claim.after",
    "renew.before",  # before every checkpoint
    "renew.after",
    "record.before",
    "record.after",
    "draw.before",
    "draw.after",
    "put.before",
    "put.after",
)
T = TypeVar("T")


@dataclass
class Crash:
    """Kills this process when `boundary` is passed for the `left`th time."""

    boundary: str = ""
    left: int = 0

    async def around(self, name: str, work: Awaitable[T]) -> T:
        self.passed(f"{name}.before")
        result = await work
        self.passed(f"{name}.after")
        return result

    def passed(self, boundary: str) -> None:
        if boundary == self.boundary:
            self.left -= 1
            if self.left <= 0:
                os.kill(os.getpid(), signal.SIGKILL)


def parts(crash: Crash) -> Parts:
    """The real adapters, which die at a boundary."""

    class Store(SQLJobStore):
        async def create(self, *args: Any, **kwargs: Any) -> Any:
            return await crash.around("create", super().create(*args, **kwargs))

        async def claim(self, *args: Any, **kwargs: Any) -> Any:
            lease = await super().claim(*args, **kwargs)
            if lease is not None:
                crash.passed("claim.after")
            return lease

        async def renew(self, *args: Any, **kwargs: Any) -> None:
            await crash.around("renew", super().renew(*args, **kwargs))

        async def record(self, *args: Any, **kwargs: Any) -> Any:
            return await crash.around("record", super().record(*args, **kwargs))

    class Painter(HttpPainter):
        async def draw(self, *args: Any, **kwargs: Any) -> bytes:
            return await crash.around("draw", super().draw(*args, **kwargs))

    class Artifacts(FsspecArtifacts):
        async def put(self, *args: Any, **kwargs: Any) -> None:
            await crash.around("put", super().put(*args, **kwargs))

    return Parts(store=Store, artifacts=Artifacts, painter=Painter)


def application(what: str, settings: dict[str, Any], crash: Crash) -> Any:
    match what:
        case "storyboard":
            return create_storyboard(StoryboardSettings(**settings), parts(crash))
        case "images":
            return create_images(ImagesSettings(**settings))
        case "writer":
            writer = ScriptedWriter(**settings)
            return Starlette(
                routes=[
                    Route("/v1/models", models),
                    Route("/v1/chat/completions", writer.complete, methods=["POST"]),
                ]
            )
    raise ValueError(what)


def main() -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    built: dict[str, tuple[Any, Crash]] = {}
    for line in sys.stdin:
        asked = json.loads(line)
        key = json.dumps([asked["what"], asked["settings"]])
        if key not in built:
            crash = Crash()
            built[key] = application(asked["what"], asked["settings"], crash), crash
        app, crash = built[key]
        pid = os.fork()
        if pid == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            crash.boundary, crash.left = asked["crash"]
            uvicorn.run(app, port=asked["port"], log_level="error")
            os._exit(0)
        sys.stdout.write(f"{pid}\n")
        sys.stdout.flush()


@dataclass
class Forks:
    """The other end: asks for children, and kills them."""

    process: subprocess.Popen[str]

    def start(self, what: str, settings: dict[str, Any], port: int, crash: Any = ("", 0)) -> int:
        asked = {"what": what, "settings": settings, "port": port, "crash": list(crash)}
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(asked, default=str) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())


def kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    wait_for_end(pid)


def lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def wait_for_end(pid: int, within_s: float = 10.0) -> None:
    with suppress(psutil.NoSuchProcess):
        psutil.Process(pid).wait(within_s)


@contextmanager
def forks() -> Iterator[Forks]:
    command = [sys.executable, "-m", "tests.services.storyboard.forking"]
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[3],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    ) as process:
        try:
            yield Forks(process)
        finally:
            for child in psutil.Process(process.pid).children(recursive=True):
                child.kill()
            process.kill()


PLAIN = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""Without certificates, which take longer to read than these tests' requests to be answered."""


def is_up(port: int) -> bool:
    try:
        url = f"http://127.0.0.1:{port}/livez"
        return httpx.get(url, timeout=2, verify=PLAIN).status_code < 500
    except httpx.HTTPError:
        return False


__all__ = ["BOUNDARIES", "PLAIN", "Forks", "forks", "free_port", "is_up", "kill", "lives"]


if __name__ == "__main__":
    main()
