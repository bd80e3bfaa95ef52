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

from models.catalog import HubFile, load_catalog

COMMIT = "c" * 40
LORA = next(row for row in load_catalog().loras if isinstance(row.source, HubFile))
assert isinstance(LORA.source, HubFile)

REPOSITORIES = {
    "owner/model": {
        "config.json": b"{}",
        "model.safetensors": b"weights" * 100,
        "original/consolidated.pth": b"the same weights again",
    },
    "owner/pipeline": {
        "model_index.json": b"{}",
        "transformer/config.json": b"{}",
        "transformer/diffusion_pytorch_model.safetensors": b"weights" * 100,
        "vae/diffusion_pytorch_model.safetensors": b"more" * 100,
        "flux1-dev.safetensors": b"the same weights again",
        "ae.safetensors": b"and these",
        "grid.jpg": b"a picture",
        "LICENSE.md": b"terms",
    },
    LORA.source.id: {LORA.source.file: b"lora" * 100, "other.safetensors": b"not wanted"},
    "owner/gated": {"config.json": b"{}"},
}


class _Hub(BaseHTTPRequestHandler):
    """REPOSITORIES, whose revisions all mean COMMIT. What is gated tells its files' names only."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = self.path.partition("?")[0].removeprefix("/api/models").strip("/")
        owner, name, verb, revision, *rest = [*path.split("/"), "", "", ""]
        files = REPOSITORIES.get(f"{owner}/{name}")
        file = "/".join(rest).strip("/")
        if files is None:
            self._send(b"{}", status=404, error="RepoNotFound")
        elif verb == "revision":
            self._send(json.dumps({"id": f"{owner}/{name}", "sha": COMMIT}).encode())
        elif verb == "tree" and revision == COMMIT:
            self._send(json.dumps([_entry(name, data) for name, data in files.items()]).encode())
        elif verb == "resolve" and name == "gated":
            self._send(b"{}", status=401, error="GatedRepo")
        elif verb == "resolve" and file in files:
            self._send(files[file])
        else:
            self._send(b"{}", status=404, error="EntryNotFound")

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


def test_a_pipeline_comes_without_the_weights_that_it_holds_twice(hub: str, tmp_path: Path) -> None:
    pulled = run(hub, tmp_path, "pull", "owner/pipeline")
    assert pulled.returncode == 0, pulled.stderr

    snapshot = Path(pulled.stdout.strip())
    wanted = REPOSITORIES["owner/pipeline"].keys()
    wanted -= {"flux1-dev.safetensors", "ae.safetensors", "grid.jpg"}
    here = {str(f.relative_to(snapshot)) for f in snapshot.rglob("*") if not f.is_dir()}
    assert here == wanted
    assert run("http://127.0.0.1:9", tmp_path, "path", "owner/pipeline").stdout == pulled.stdout
    assert run("http://127.0.0.1:9", tmp_path, "pull", "owner/pipeline").stdout == pulled.stdout


def test_of_a_lora_s_repository_only_its_file_comes(hub: str, tmp_path: Path) -> None:
    assert isinstance(LORA.source, HubFile)
    missing = run(hub, tmp_path, "path", LORA.name)
    assert (missing.returncode, missing.stdout) == (1, "")
    pulled = run(hub, tmp_path, "pull", LORA.name)
    assert pulled.returncode == 0, pulled.stderr
    assert LORA.note in pulled.stderr

    file = Path(pulled.stdout.strip())
    assert file.read_bytes() == REPOSITORIES[LORA.source.id][LORA.source.file]
    assert [entry.name for entry in file.parent.iterdir()] == [LORA.source.file]
    assert run("http://127.0.0.1:9", tmp_path, "path", LORA.name).stdout == pulled.stdout


def test_terms_that_nobody_accepted_are_one_line(hub: str, tmp_path: Path) -> None:
    refused = run(hub, tmp_path, "pull", "owner/gated")
    assert refused.returncode == 1
    assert "Traceback" not in refused.stderr
    assert "HF_TOKEN" in refused.stderr.strip().splitlines()[-1]
