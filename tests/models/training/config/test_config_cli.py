"""The command line: what a person types and reads."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from models.training.__main__ import cli


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["config", *arguments])


def test_what_new_prints_check_takes(tmp_path: Path) -> None:
    file = tmp_path / "new.yaml"
    file.write_text(run("new", "--lang", "ko", "--model", "sketch").output, encoding="utf-8")
    result = run("check", str(file), "--lang", "ko")
    assert result.exit_code == 0
    assert "오류 0개" in result.output
    assert "예상 메모리" in result.output


def test_errors_exit_with_one_and_name_their_place(sound: str, tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(sound.replace("sampler: flowmatch", "sampler: ddpm"), encoding="utf-8")
    line = sound[: sound.index("sampler: flowmatch")].count("\n") + 1
    result = run("check", str(file))
    assert result.exit_code == 1
    assert f"{file}:{line}:" in result.output
    assert "[sampler-mismatch] config.process[0].sample.sampler" in result.output
    assert "Errors: 1, warnings: 0" in result.output


def test_warnings_alone_exit_with_zero(sound: str, tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(sound.replace("linear_alpha: 16", "linear_alpha: 1"), encoding="utf-8")
    result = run("check", str(file))
    assert result.exit_code == 0
    assert "warnings: 1" in result.output


@pytest.mark.parametrize("text", ["a: [", "3", "[1]", "{}", "config: {process: [1]}", "job: 2"])
def test_what_is_no_configuration_ends_in_words(text: str, tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(text, encoding="utf-8")
    result = run("check", str(file))
    assert result.exit_code == 1
    assert not isinstance(result.exception, Exception) or isinstance(result.exception, SystemExit)
    assert "error" in result.output


def test_check_leaves_the_file_as_it_is(sound: str, tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(sound, encoding="utf-8")
    before = (file.read_bytes(), file.stat().st_mtime_ns)
    run("check", str(file))
    assert (file.read_bytes(), file.stat().st_mtime_ns) == before


def test_explain_says_default_and_range() -> None:
    result = run("explain", "train.lr", "--lang", "ko")
    assert "학습률" in result.output
    assert "기본값 0.000001" in result.output
    assert "Default 4; 1 or more; usually 2 to 128." in run("explain", "linear").output


@pytest.mark.parametrize(
    ("typo", "says"),
    [("train.stepz", "train.steps"), ("is_xl", "other models"), ("qqq", "datasets")],
)
def test_explain_suggests_what_was_meant(typo: str, says: str) -> None:
    result = run("explain", typo)
    assert result.exit_code == 1
    assert says in result.output


def test_an_unknown_model_is_one_line() -> None:
    result = run("new", "--model", "flux-dev")
    assert result.exit_code == 1
    assert result.output.startswith("Error: 'flux-dev' is no catalog row")


def test_none_of_it_loads_torch() -> None:
    code = (
        "import sys, models.training.config.cli as c; "
        "assert 'torch' not in sys.modules and 'diffusers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
