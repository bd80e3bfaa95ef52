"""Pulling from the hub: the real client against a server that speaks the hub's HTTP."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

COMMIT = "c" * 40
FILES = {
    "config.json": b"{}",
    "model.safetensors": b"weights" * 100,
    "original/consolidated.pth": b"the same weights again",
}


class _Hub(BaseHTTPRequestHandler):
    """One repository, owner/model, whose branch `main` means COMMIT."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = self.path.partition("?")[0]
        if path == "/api/models/owner/model/revision/main":
            self._send(json.dumps({"id": "owner/model", "sha": COMMIT, "siblings": []}).encode())
        elif path == f"/api/models/owner/model/tree/{COMMIT}":
            self._send(json.dumps([_entry(name, data) for name, data in FILES.items()]).encode())
        elif path.startswith(f"/owner/model/resolve/{COMMIT}/"):
            self._send(FILES[path.partition(f"{COMMIT}/")[2]])
        else:
            self._send(b"{}", status=404, error="RepoNotFound")

    def _send(self, body: bytes, status: int = 200, error: str = "") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", f'"{_oid(body)}"')
        self.send_header("X-Repo-Commit", COMMIT)
        if error:
            self.send_header("X-Error-Code", error)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


def _oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _entry(name: str, data: bytes) -> dict[str, object]:
    return {"type": "file", "path": name, "size": len(data), "oid": _oid(data)}


@pytest.fixture
def hub() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def run(endpoint: str, home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own: the client reads its settings once, when it is imported."""
    settings = {"HF_ENDPOINT": endpoint, "HF_HOME": str(home / "hf"), "HF_HUB_OFFLINE": "0"}
    settings |= {"JOING_MODELS_DIR": str(home / "models"), "NO_PROXY": "127.0.0.1"}
    return subprocess.run(
        [sys.executable, "-m", "models", *arguments],
        env=os.environ | settings,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_pull_records_the_commit_and_leaves_duplicates_out(hub: str, tmp_path: Path) -> None:
    pulled = run(hub, tmp_path, "pull", "owner/model")
    assert pulled.returncode == 0, pulled.stderr

    snapshot = Path(pulled.stdout.strip())
    assert snapshot.name == COMMIT
    assert {file.name for file in snapshot.iterdir()} == {"config.json", "model.safetensors"}
    record = json.loads((tmp_path / "models" / "owner--model" / "joing.json").read_text())
    assert (record["version"], record["commit"]) == ("main", COMMIT)
    assert run("http://127.0.0.1:9", tmp_path, "path", "owner/model").stdout == pulled.stdout


def test_a_repository_that_is_not_there_is_one_line(hub: str, tmp_path: Path) -> None:
    refused = run(hub, tmp_path, "pull", "owner/other")
    assert refused.returncode == 1
    assert "Traceback" not in refused.stderr
    assert refused.stderr.strip().splitlines()[-1].startswith("Error: the hub did not deliver")
