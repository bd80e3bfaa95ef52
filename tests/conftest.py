"""What tests of several services share: weights on disk, and one real LLM behind a real port."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import pytest

from bentos.running import running
from models.weights import default_root

MODEL = "smollm2-135m"
CONTEXT_TOKENS = 2048
PULL_TIMEOUT_S = 240.0
START_TIMEOUT_S = 280.0


@dataclass(frozen=True)
class LlmServer:
    """`bentoml serve` of the llm service. `log` is the file that its output goes to."""

    base_url: str
    pid: int
    log: Path
    model: str = MODEL

    def vllm_processes(self) -> list[psutil.Process]:
        """The launcher, vLLM's API server and whatever that started, in this order."""
        below = psutil.Process(self.pid).children(recursive=True)
        launchers = [p for p in below if any("launcher.py" in word for word in _argv(p))]
        return [q for p in launchers for q in (p, *p.children(recursive=True))]

    def metric(self, name: str) -> float:
        """The sum of a family's samples, as /metrics tells them now."""
        text = httpx.get(f"{self.base_url}/metrics", timeout=10).text
        samples = [s for s in text.splitlines() if s.startswith((f"{name}{{", f"{name} "))]
        assert samples, f"no samples of {name}"
        return sum(float(sample.rsplit(" ", 1)[1]) for sample in samples)

    def is_ready(self) -> bool:
        return httpx.get(f"{self.base_url}/readyz", timeout=10).status_code == 200


def lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _argv(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


@pytest.fixture(scope="session")
def models_dir() -> Path:
    """A folder that holds the smallest model, fetched when it was not there."""
    root = Path(os.environ.get("JOING_MODELS_DIR") or default_root())
    subprocess.run(
        [sys.executable, "-m", "models", "--root", str(root), "pull", MODEL],
        check=True,
        timeout=PULL_TIMEOUT_S,
    )
    return root


@pytest.fixture(scope="session")
def llm_server(models_dir: Path) -> Iterator[LlmServer]:
    """One for all tests: leave it as ready as you found it. No vLLM is left at the end."""
    environment = {
        "JOING_LLM": MODEL,
        "JOING_MODELS_DIR": str(models_dir),
        "JOING_LLM_KV_CACHE_GIB": "1",
        "JOING_LLM_CONTEXT_TOKENS": str(CONTEXT_TOKENS),
        "JOING_LLM_RESTART_FIRST_S": "0.5",
        "JOING_LLM_DRAIN_S": "15",
        "JOING_API_KEYS": "",
    }
    target = "services.llm.service:LLM"
    with running(target, environment=environment, start_timeout_s=START_TIMEOUT_S) as service:
        server = LlmServer(service.base_url, service.pid, service.log)
        yield server
        last = server.vllm_processes()
    assert last, "the server ran without a vLLM at the end"
    assert not [process for process in last if lives(process)]
