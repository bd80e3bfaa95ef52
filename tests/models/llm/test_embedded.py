"""The conversion's child process: its failures become one sentence."""

import sys
from pathlib import Path

import pytest

from models.errors import ConversionFailed
from models.llm import embedded


@pytest.mark.parametrize(
    ("script", "says"),
    [
        ("echo noise >&2; echo 'ValueError: bad magic' >&2; exit 1", "ValueError: bad magic"),
        ("exit 3", "exit code 3"),
        ("kill -9 $$", "memory"),
    ],
)
def test_a_failing_child_is_explained(
    script: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    with pytest.raises(ConversionFailed, match=says):
        embedded.convert_in_child(tmp_path / "model.gguf", tmp_path / "out")


def test_the_child_gets_the_file_and_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "$@" > "$4"\n')
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    gguf, folder = tmp_path / "model.gguf", tmp_path / "out"
    embedded.convert_in_child(gguf, folder)
    assert folder.read_text().split() == ["-m", "models.llm.embedded", str(gguf), str(folder)]
