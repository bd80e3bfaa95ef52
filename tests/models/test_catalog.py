"""The catalog: every row is one that vLLM can serve, and a typo in it is refused by name."""

import ast
import importlib.util
from pathlib import Path

import pytest

from models.catalog import DEFAULT_LLM, Catalog, HubSource, LlmRow, load_catalog
from models.errors import CatalogInvalid, UnknownModel

CATALOG = load_catalog()

ROW = """
[llm."tiny"]
licence = "MIT"
parameters_b = 0.1
context = 4096
languages = ["en"]
source = { kind = "hub", id = "owner/tiny" }
"""


def written(folder: Path, text: str) -> Path:
    file = folder / "catalog.toml"
    file.write_text(text, encoding="utf-8")
    return file


def registry(package: str) -> set[str]:
    """The lazily registered parser names of vllm.`package`, read without importing vLLM."""
    found = importlib.util.find_spec("vllm")
    if found is None or not found.submodule_search_locations:
        pytest.skip("vLLM is not installed")
    source = Path(found.submodule_search_locations[0]) / package / "__init__.py"
    nodes = ast.walk(ast.parse(source.read_text()))
    keys = [key for table in nodes if isinstance(table, ast.Dict) for key in table.keys]
    return {str(key.value) for key in keys if isinstance(key, ast.Constant)}


def test_the_default_is_a_row_that_needs_no_account() -> None:
    assert CATALOG.llm(DEFAULT_LLM).source.kind == "pypi"


def test_names_and_sources_are_unique() -> None:
    names = [row.name for row in CATALOG.llms]
    sources = [row.source.model_dump_json() for row in CATALOG.llms]
    assert len(set(names)) == len(names)
    assert len(set(sources)) == len(sources)


@pytest.mark.parametrize("row", CATALOG.llms, ids=lambda row: row.name)
def test_a_row_names_parsers_that_vllm_has(row: LlmRow) -> None:
    assert row.tool_parser is None or row.tool_parser in registry("tool_parsers")
    assert row.reasoning_parser is None or row.reasoning_parser in registry("reasoning")


@pytest.mark.parametrize("row", CATALOG.llms, ids=lambda row: row.name)
def test_a_non_commercial_licence_is_said_in_the_note(row: LlmRow) -> None:
    is_restricted = row.licence not in {"Apache-2.0", "MIT"}
    assert ("Non-commercial" in row.note) == is_restricted


def test_a_minimal_row_is_enough(tmp_path: Path) -> None:
    row = load_catalog(written(tmp_path, ROW)).llm("tiny")
    assert row.source == HubSource(id="owner/tiny", revision="main")


@pytest.mark.parametrize(
    ("text", "names"),
    [
        (ROW + "contxt = 1\n", r"tiny\.contxt"),
        (ROW.replace("4096", "0"), r"tiny\.context"),
        (ROW.replace("owner/tiny", "tiny"), r"tiny\.source\.hub\.id"),
        (ROW.replace('"hub"', '"ftp"'), r"tiny\.source"),
        (ROW + 'format = "gguf"\n', "tiny"),
        ("[lm]\n", "lm"),
        ("llm = 3\n", "catalog.toml"),
        ("[llm", "catalog.toml"),
    ],
)
def test_a_faulty_catalog_is_refused_by_row_and_key(tmp_path: Path, text: str, names: str) -> None:
    with pytest.raises(CatalogInvalid, match=names):
        load_catalog(written(tmp_path, text))


def test_parts_need_a_package_each(tmp_path: Path) -> None:
    parts = """{ kind = "pypi", package = "same", version = "1", parts = 2, member = "m",
        sha256 = "%s", bytes = 1 }""" % ("0" * 64)
    text = ROW.replace('{ kind = "hub", id = "owner/tiny" }', parts.replace("\n", " "))
    with pytest.raises(CatalogInvalid, match=r"\{part\}"):
        load_catalog(written(tmp_path, text + 'format = "gguf"\n'))


def test_a_missing_file_is_invalid(tmp_path: Path) -> None:
    with pytest.raises(CatalogInvalid, match="gone"):
        load_catalog(tmp_path / "gone.toml")


def test_find_prefers_a_row_then_a_folder_then_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner" / "here").mkdir(parents=True)
    (tmp_path / DEFAULT_LLM).mkdir()

    assert CATALOG.find(DEFAULT_LLM) == CATALOG.llm(DEFAULT_LLM)
    assert CATALOG.find("owner/here") == tmp_path / "owner" / "here"
    assert CATALOG.find("owner/there") == HubSource(id="owner/there")
    assert CATALOG.find("owner/there@v1.0") == HubSource(id="owner/there", revision="v1.0")


@pytest.mark.parametrize("name", ["qwen", "./gone", "/gone/too", "a/b/c", "", "owner/x y"])
def test_find_refuses_what_means_nothing(name: str) -> None:
    with pytest.raises(UnknownModel):
        CATALOG.find(name)


def test_an_unknown_row_lists_the_rows_there_are() -> None:
    with pytest.raises(UnknownModel, match=DEFAULT_LLM):
        CATALOG.llm("gpt")


def test_rows_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        CATALOG.llm(DEFAULT_LLM).context = 1  # type: ignore[misc]
    assert isinstance(CATALOG, Catalog)
