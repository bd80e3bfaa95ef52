"""The catalog: every LLM is one that vLLM can serve, and a typo in it is refused by name."""

import ast
import importlib.util
from pathlib import Path

import pytest

from models.catalog import (
    CATALOG_FILE,
    DEFAULT_IMAGE_MODEL,
    DEFAULT_LLM,
    AnyRow,
    Catalog,
    EmbeddedSource,
    HubFile,
    HubSource,
    LlmLoraRow,
    LlmRow,
    load_catalog,
)
from models.errors import CatalogInvalid, UnknownModel
from models.llm.arguments import lora_in

CATALOG = load_catalog()
ROWS: tuple[AnyRow, ...] = (*CATALOG.llms, *CATALOG.images, *CATALOG.loras)

ROW = """
[llm."tiny"]
licence = "MIT"
parameters_b = 0.1
context = 4096
languages = ["en"]
source = { kind = "hub", id = "owner/tiny" }
"""

IMAGE_ROW = """
[image."toy"]
source = { kind = "embedded", path = "toy/weights" }
licence = "MIT"
parameters_b = 0.1
steps = 4
max_steps = 8
max_sequence_length = 32
width = 256
height = 144
min_side_px = 64
max_pixels = 65536
"""

LORA_ROW = """
[lora."pen"]
base = "toy"
source = { kind = "embedded", path = "toy/weights/pen.safetensors" }
licence = "MIT"
"""

LLM_LORA_ROW = """
[llm_lora."judge"]
base = "tiny"
source = { kind = "embedded", path = "training/judge/weights" }
rank = 16
licence = "MIT"
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


def test_the_default_image_model_and_its_loras_need_no_pull() -> None:
    rows = CATALOG.image(DEFAULT_IMAGE_MODEL), *CATALOG.loras_of(DEFAULT_IMAGE_MODEL)
    assert len(rows) > 1
    assert {row.source.kind for row in rows} == {"embedded"}


def test_names_and_sources_are_unique() -> None:
    names = [row.name for row in ROWS]
    sources = [row.source.model_dump_json() for row in ROWS]
    assert len(set(names)) == len(names)
    assert len(set(sources)) == len(sources)


@pytest.mark.parametrize("row", CATALOG.llms, ids=lambda row: row.name)
def test_a_row_names_parsers_that_vllm_has(row: LlmRow) -> None:
    assert row.tool_parser is None or row.tool_parser in registry("tool_parsers")
    assert row.reasoning_parser is None or row.reasoning_parser in registry("reasoning")


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_non_commercial_licence_is_said_in_the_note(row: AnyRow) -> None:
    is_restricted = row.licence not in {"Apache-2.0", "MIT"}
    assert ("Non-commercial" in row.note) == is_restricted


def test_a_minimal_row_is_enough(tmp_path: Path) -> None:
    row = load_catalog(written(tmp_path, ROW)).llm("tiny")
    assert row.source == HubSource(id="owner/tiny", revision="main")


def test_minimal_rows_of_images_and_loras_are_enough(tmp_path: Path) -> None:
    catalog = load_catalog(written(tmp_path, IMAGE_ROW + LORA_ROW))
    assert (catalog.image("toy").guidance, catalog.image("toy").size_multiple) == (None, 16)
    assert [(lora.name, lora.trigger) for lora in catalog.loras_of("toy")] == [("pen", "")]
    assert catalog.loras_of("/a/folder") == ()


def test_an_llm_s_loras_are_found_by_their_base(tmp_path: Path) -> None:
    catalog = load_catalog(written(tmp_path, ROW + LLM_LORA_ROW))
    assert [(lora.name, lora.rank) for lora in catalog.llm_loras_of("tiny")] == [("judge", 16)]
    assert catalog.llm_loras_of("other") == ()


@pytest.mark.parametrize("lora", CATALOG.llm_loras, ids=lambda lora: lora.name)
def test_an_llm_s_lora_is_here_as_its_row_says(lora: LlmLoraRow) -> None:
    served = lora_in(lora.source.location, lora.name)
    assert served.rank == lora.rank
    assert lora.licence == CATALOG.llm(lora.base).licence


def test_what_is_embedded_lies_beside_the_catalog() -> None:
    source = CATALOG.image("sketch").source
    assert isinstance(source, EmbeddedSource)
    assert source.location == CATALOG_FILE.parent / "sketch" / "weights"


@pytest.mark.parametrize(
    ("text", "names"),
    [
        (ROW + "contxt = 1\n", r"tiny\.contxt"),
        (ROW.replace("4096", "0"), r"tiny\.context"),
        (ROW.replace("owner/tiny", "tiny"), r"tiny\.source\.hub\.id"),
        (ROW.replace('"hub"', '"ftp"'), r"tiny\.source"),
        (ROW + 'format = "gguf"\n', "tiny"),
        ("[lm]\n", "lm"),
        ('[[llms]]\nname = "tiny"\n', "llms"),
        (ROW.replace('"tiny"', '"../tiny"', 1), r"llm\.\.\./tiny\.name"),
        (IMAGE_ROW + "step = 1\n", r"image\.toy\.step:"),
        (IMAGE_ROW + "guidance = -1\n", r"image\.toy\.guidance"),
        (IMAGE_ROW.replace("steps = 4", "steps = 9"), r"image\.toy: steps is 9"),
        (IMAGE_ROW.replace("= 256", "= 250"), r"image\.toy: width is 250"),
        (IMAGE_ROW.replace("= 144", "= 48"), r"image\.toy: height is 48"),
        (IMAGE_ROW.replace("65536", "30000"), r"image\.toy: .*max_pixels"),
        (IMAGE_ROW.replace("toy/weights", "../weights"), r"image\.toy\.source\.embedded\.path"),
        (IMAGE_ROW.replace("toy/weights", "/weights"), r"image\.toy\.source\.embedded\.path"),
        (LORA_ROW, r"lora\.pen\.base: no image model named 'toy'"),
        (IMAGE_ROW + LORA_ROW.replace('"toy"', '"tot"'), r"lora\.pen\.base: .*'tot'.*are: toy"),
        (IMAGE_ROW + LORA_ROW + "scale = 1\n", r"lora\.pen\.scale"),
        (IMAGE_ROW + LORA_ROW.replace('"pen"', '"toy"'), r"lora\.toy: .*taken by image\.toy"),
        (LLM_LORA_ROW, r"llm_lora\.judge\.base: no LLM named 'tiny'"),
        (ROW + LLM_LORA_ROW.replace("16", "0"), r"llm_lora\.judge\.rank"),
        (ROW + LLM_LORA_ROW.replace('"judge"', '"tiny"'), r"llm_lora\.tiny: .*taken by llm\.tiny"),
        ("llm = 3\n", "catalog.toml"),
        ("[llm", "catalog.toml"),
    ],
)
def test_a_faulty_catalog_is_refused_by_row_and_key(tmp_path: Path, text: str, names: str) -> None:
    with pytest.raises(CatalogInvalid, match=names):
        load_catalog(written(tmp_path, text))


@pytest.mark.parametrize(
    "file", ["weights.bin", "../x.safetensors", "/x.safetensors", "*.safetensors"]
)
def test_a_lora_of_the_hub_is_one_safetensors_file(file: str) -> None:
    with pytest.raises(ValueError, match="file"):
        HubFile(id="owner/loras", file=file)


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


def test_each_service_finds_its_own_kind_and_the_command_line_finds_all(tmp_path: Path) -> None:
    assert [CATALOG.find_any(row.name) for row in ROWS] == [*ROWS]
    assert CATALOG.find_image(DEFAULT_IMAGE_MODEL) == CATALOG.image(DEFAULT_IMAGE_MODEL)
    assert CATALOG.find_image(str(tmp_path)) == tmp_path
    assert CATALOG.find_image("owner/there@v1.0") == HubSource(id="owner/there", revision="v1.0")
    for refused in (DEFAULT_LLM, CATALOG.loras[0].name):
        with pytest.raises(UnknownModel, match=DEFAULT_IMAGE_MODEL):
            CATALOG.find_image(refused)
    with pytest.raises(UnknownModel):
        CATALOG.find(DEFAULT_IMAGE_MODEL)


@pytest.mark.parametrize("name", ["qwen", "./gone", "/gone/too", "a/b/c", "", "owner/x y"])
def test_find_refuses_what_means_nothing(name: str) -> None:
    with pytest.raises(UnknownModel):
        CATALOG.find(name)


def test_an_unknown_row_lists_the_rows_there_are() -> None:
    with pytest.raises(UnknownModel, match=DEFAULT_LLM):
        CATALOG.llm("gpt")
    with pytest.raises(UnknownModel, match=DEFAULT_IMAGE_MODEL):
        CATALOG.image("dall-e")


def test_rows_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        CATALOG.llm(DEFAULT_LLM).context = 1  # type: ignore[misc]
    assert isinstance(CATALOG, Catalog)
