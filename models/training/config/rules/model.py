"""Rules about the base model and its number formats."""

import difflib
from collections.abc import Iterator
from pathlib import Path

from models.catalog import ImageRow
from models.errors import UnknownModel
from models.training.config.documents import KeyPath
from models.training.config.findings import Hit, rule
from models.training.config.view import PROCESS, View

MODEL: KeyPath = (*PROCESS, "model")

_HALF = ("fp16", "float16", "half")
_FULL = ("fp32", "float32", "float")
_SAME = {"bf16": "bfloat16", "fp16": "float16", "half": "float16", "fp32": "float32"}
_SAME["float"] = "float32"
_LARGE_B = 1.0  # billions of parameters above which float32 is a waste
_Q_TYPES = (
    "qfloat8 qint8 qint4 qint2 float8 int8 "
    "uint1 uint2 uint3 uint4 uint5 uint6 uint7 uint8 nf4".split()
)


@rule("not-flux", "error")
def not_flux(view: View) -> Iterator[Hit]:
    model = view.process.model
    if model.family == "flux":
        return
    key = "arch" if model.arch is not None else "name_or_path"
    yield Hit((*MODEL, key), {"family": model.family or "sd1"})


@rule("unknown-model", "error")
def unknown_model(view: View) -> Iterator[Hit]:
    name = view.process.model.name_or_path
    if not view.is_written("model", "name_or_path"):
        return
    try:
        view.catalog.find_image(name)
    except UnknownModel:
        rows = [row.name for row in view.catalog.images]
        close = difflib.get_close_matches(name.lower(), rows, n=1, cutoff=0.5)
        yield Hit((*MODEL, "name_or_path"), {"nearest": (close or rows)[0]})


@rule("schnell-without-adapter", "error")
def schnell_without_adapter(view: View) -> Iterator[Hit]:
    if view.is_schnell and view.process.model.assistant_lora_path is None:
        yield Hit((*MODEL, "name_or_path"))


@rule("adapter-without-schnell", "error")
def adapter_without_schnell(view: View) -> Iterator[Hit]:
    model = view.process.model
    is_for_schnell = "schnell" in (model.assistant_lora_path or "").lower()
    if is_for_schnell and not view.is_schnell:
        yield Hit((*MODEL, "assistant_lora_path"), {"base": model.name_or_path})


@rule("model-dtype-overwritten", "warning")
def model_dtype_overwritten(view: View) -> Iterator[Hit]:
    model, train = view.process.model, view.process.train
    if model.dtype is not None and _exact(model.dtype) != _exact(train.dtype):
        yield Hit((*MODEL, "dtype"), {"dtype": train.dtype})


@rule("half-precision", "warning")
def half_precision(view: View) -> Iterator[Hit]:
    if view.process.train.dtype in _HALF:
        yield Hit((*PROCESS, "train", "dtype"))


@rule("full-precision", "warning")
def full_precision(view: View) -> Iterator[Hit]:
    if view.process.train.dtype in _FULL and _is_large(view.row):
        yield Hit((*PROCESS, "train", "dtype"))


@rule("quantize-type", "warning")
def quantize_type(view: View) -> Iterator[Hit]:
    for name in ("qtype", "qtype_te"):
        qtype = getattr(view.process.model, name).split("|")[0]
        if qtype not in _Q_TYPES:
            close = difflib.get_close_matches(qtype, _Q_TYPES, n=1)
            yield Hit((*MODEL, name), {"nearest": (close or ["qfloat8"])[0]})


@rule("lora-missing", "error")
def lora_missing(view: View) -> Iterator[Hit]:
    """A path, not a hub id: it has a suffix or begins like one."""
    paths = (
        ((*MODEL, "lora_path"), view.process.model.lora_path),
        ((*PROCESS, "network", "pretrained_lora_path"), view.process.network.pretrained_lora_path),
    )
    for path, value in paths:
        if value and value.endswith(".safetensors") and not Path(value).expanduser().is_file():
            yield Hit(path)


def _exact(dtype: str) -> str:
    return _SAME.get(dtype, dtype)


def _is_large(row: ImageRow | None) -> bool:
    """A model that is no row is taken for a large one."""
    return row is None or row.parameters_b > _LARGE_B
