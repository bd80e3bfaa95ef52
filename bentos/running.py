"""Starting a service with `bentoml serve`, waiting until it is ready, and stopping it for sure.

Used by `python -m bentos`, by the demo, by benchmarks and by tests.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

from services.shared.peers import free_port

ROOT = Path(__file__).resolve().parent.parent
SYSTEM = "bentos.system:Joing"
LOG_TAIL_LINES = 40
GRACE_S = 45  # longer than the llm service drains by default


class StartError(Exception):
    """The service did not become ready; the message ends with the tail of its log."""


@dataclass(frozen=True)
class Running:
    """A service that answers. `log` is the file its output goes to."""

    base_url: str
    pid: int
    log: Path
    model: str = ""


def serve_command(target: str, *, host: str, port: int) -> list[str]:
    return [
        *(sys.executable, "-m", "bentoml", "serve", target),
        *("--working-dir", str(ROOT), "--host", host, "--port", str(port)),
        # BentoML would wait a day for the last answer.
        *("--timeout-graceful-shutdown", str(GRACE_S)),
    ]


def serve_environment(bentoml_home: Path, extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's environment and what BentoML needs. Two servers must not share a home: each
    deletes the metrics files that it finds there when it starts.
    """
    return {
        **os.environ,
        "BENTOML_HOME": str(bentoml_home),
        "BENTOML_DO_NOT_TRACK": "True",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
        **(extra or {}),
    }


@contextmanager
def running(
    target: str,
    *,
    port: int | None = None,
    environment: Mapping[str, str] | None = None,
    start_timeout_s: float = 600.0,
    stop_timeout_s: float = 90.0,
) -> Iterator[Running]:
    """`target` behind loopback. Raises StartError; leaves no process behind, however it ends."""
    port = port or free_port()
    base_url = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryDirectory(prefix="joing-bentoml-") as home:
        command = serve_command(target, host="127.0.0.1", port=port)
        variables = serve_environment(Path(home), environment)
        with answering(command, variables, base_url, start_timeout_s, stop_timeout_s) as server:
            yield server


@contextmanager
def answering(
    command: Sequence[str],
    environment: Mapping[str, str],
    base_url: str,
    start_timeout_s: float,
    stop_timeout_s: float,
) -> Iterator[Running]:
    """`command` once it answers /readyz at `base_url`. Raises StartError; stops it at the end."""
    with tempfile.TemporaryDirectory(prefix="joing-") as folder:
        log = Path(folder) / "log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                command,
                env=environment,
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            wait_until_ready(base_url, process, log, start_timeout_s)
            yield Running(base_url, process.pid, log)
        finally:
            stop(process, stop_timeout_s)


@contextmanager
def running_system(**options: object) -> Iterator[Running]:
    """The whole system, with the name of the model that it serves."""
    with running(SYSTEM, **options) as system:  # type: ignore[arg-type]
        headers = {}
        if key := os.environ.get("JOING_API_KEYS", "").split(",")[0].strip():
            headers["Authorization"] = f"Bearer {key}"
        models = httpx.get(f"{system.base_url}/v1/models", headers=headers, timeout=30).json()
        yield Running(system.base_url, system.pid, system.log, models["data"][0]["id"])


def wait_until_ready(
    base_url: str, process: subprocess.Popen[bytes], log: Path, timeout_s: float
) -> None:
    until = time.monotonic() + timeout_s
    while time.monotonic() < until:
        if process.poll() is not None:
            raise StartError(f"It stopped with exit code {process.returncode}.\n{tail(log)}")
        try:
            if httpx.get(f"{base_url}/readyz", timeout=10).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.25)
    raise StartError(f"It was not ready after {timeout_s:g} s.\n{tail(log)}")


def stop(process: subprocess.Popen[bytes], timeout_s: float) -> None:
    """SIGTERM, then after `timeout_s` SIGKILL to everything it started, wherever that moved to."""
    started = descendants(process.pid)
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout_s)
    _, alive = psutil.wait_procs(started, timeout=timeout_s)
    for left in alive:
        with suppress(psutil.NoSuchProcess):
            left.kill()
    if process.poll() is None:
        process.kill()
        process.wait(10)


def descendants(pid: int) -> list[psutil.Process]:
    """Every process that `pid` started, directly or not; none when it is gone."""
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def tail(log: Path) -> str:
    lines = log.read_text("utf-8", "replace").splitlines()
    return "\n".join(lines[-LOG_TAIL_LINES:])
