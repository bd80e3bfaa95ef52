"""The LoRA: which layers it changes, its weights, its file; and an assistant that only helps.

Weights are float32 while training, whatever the base is in. The file's keys are diffusers' own
(`transformer.<module>.lora_A.weight`), which AI-Toolkit writes as well and ComfyUI reads. alpha is
the rank and is not written, as AI-Toolkit has it for Flux.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from models.catalog import HubFile, load_catalog
from models.flux.errors import LoraRefused
from models.flux.lora_files import linear_shapes, read_lora
from models.training.config.schema import Model, Network
from models.training.errors import BaseUnusable, ConfigRefused
from models.weights import locate_lora

TRAINED, ASSISTANT = "trained", "assistant"
_BLOCKS = re.compile(r"(single_)?transformer_blocks\.")
_ASSISTANT_FILE = "pytorch_lora_weights.safetensors"
_ASSISTANT_MAX_RANK = 512
DTYPES: Mapping[str, torch.dtype] = {
    **dict.fromkeys(("bf16", "bfloat16"), torch.bfloat16),
    **dict.fromkeys(("fp16", "float16", "half"), torch.float16),
    **dict.fromkeys(("fp32", "float32", "float"), torch.float32),
}
"""AI-Toolkit's names."""
Weights = dict[str, Tensor]
"""`<module>.lora_A.weight` and `<module>.lora_B.weight`, float32."""


def adapted_layers(linears: Sequence[str], network: Network) -> list[str]:
    """AI-Toolkit's choice: every linear of every block, modulation included, then its two filters.

    Both hold pieces of `transformer.<module>`, of which one is enough. Raises ConfigRefused when
    nothing is left.
    """
    only, ignored = (
        network.network_kwargs.only_if_contains,
        network.network_kwargs.ignore_if_contains,
    )
    layers = [
        layer
        for layer in linears
        if (not network.transformer_only or _BLOCKS.match(layer))
        and (only is None or _contains(layer, only))
        and not _contains(layer, ignored or ())
    ]
    if not layers:
        raise ConfigRefused(
            "network.network_kwargs leaves no layer to train; names look like "
            f"transformer.{linears[-1]}"
        )
    return layers


def _contains(layer: str, pieces: Sequence[str]) -> bool:
    return any(piece in f"transformer.{layer}" for piece in pieces)


class Adapter:
    """The LoRA in a transformer. Adds it there, and nothing else of the transformer is trained."""

    def __init__(self, transformer: Any, network: Network, seed: int) -> None:
        self._transformer = transformer
        self.rank = network.lora_rank
        layers = adapted_layers(list(linear_shapes(transformer)), network)
        torch.manual_seed(seed)
        _add(transformer, TRAINED, dict.fromkeys(layers, self.rank), network.dropout or 0.0)
        self._parameters = {
            name.replace(f".{TRAINED}.", "."): parameter
            for name, parameter in transformer.named_parameters()
            if f".{TRAINED}." in name
        }
        for parameter in self._parameters.values():
            parameter.data = parameter.data.float()
        self._has_assistant = False
        self._activate()

    @property
    def parameters(self) -> list[Tensor]:
        return list(self._parameters.values())

    @property
    def weights(self) -> Weights:
        """Shares memory with what is trained."""
        return {name: parameter.data for name, parameter in self._parameters.items()}

    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Raises KeyError or RuntimeError for weights of other layers or shapes."""
        if weights.keys() != self._parameters.keys():
            raise KeyError("the saved weights are of other layers")
        for name, parameter in self._parameters.items():
            parameter.data.copy_(weights[name])

    def add_assistant(self, file: Path) -> None:
        """A frozen LoRA that is active while training and off while drawing: schnell's adapter.

        Raises BaseUnusable.
        """
        try:
            read = read_lora(file, linears=_shapes(self._transformer), max_rank=_ASSISTANT_MAX_RANK)
        except (OSError, LoraRefused) as unreadable:
            raise BaseUnusable(f"model.assistant_lora_path: {unreadable}") from unreadable
        ranks = {layer: down_RI.shape[0] for layer, (down_RI, _) in read.layers.items()}
        _add(self._transformer, ASSISTANT, ranks, 0.0)
        for layer, (down_RI, up_OR) in read.layers.items():
            module = self._transformer.get_submodule(layer)
            module.lora_A[ASSISTANT].weight.data.copy_(down_RI)
            module.lora_B[ASSISTANT].weight.data.copy_(up_OR)
        self._has_assistant = True
        self._activate()

    def _activate(self) -> None:
        self._use([TRAINED, ASSISTANT] if self._has_assistant else [TRAINED])

    def _use(self, names: list[str]) -> None:
        """PEFT turns gradients on for whatever is active: the assistant's go off again."""
        self._transformer.set_adapter(names)
        for name, parameter in self._transformer.named_parameters():
            parameter.requires_grad_(f".{TRAINED}." in name)

    @contextmanager
    def drawing_with(self, weights: Weights) -> Iterator[None]:
        """Within, the transformer has these weights and no assistant, dropout or training mode."""
        trained = {name: value.clone() for name, value in self.weights.items()}
        self.load(weights)
        self._use([TRAINED])
        self._transformer.eval()
        try:
            yield
        finally:
            self._transformer.train()
            self._activate()
            self.load(trained)


def _add(transformer: Any, name: str, ranks: Mapping[str, int], dropout: float) -> None:
    from peft import LoraConfig

    rank = max(ranks.values())
    different = {f"^{re.escape(layer)}$": r for layer, r in ranks.items() if r != rank}
    transformer.add_adapter(
        LoraConfig(
            r=rank,
            lora_alpha=rank,
            rank_pattern=different,
            alpha_pattern=dict(different),
            lora_dropout=dropout,
            target_modules="|".join(map(re.escape, ranks)),
        ),
        name,
    )


def _shapes(transformer: Any) -> dict[str, tuple[int, int]]:
    """Of the linears as they were before LoRAs were put around them."""
    return {
        name.removesuffix(".base_layer"): shape
        for name, shape in linear_shapes(transformer).items()
        if ".lora_A." not in name and ".lora_B." not in name
    }


def find_assistant(model: Model, root: Path) -> Path | None:
    """The file that `model.assistant_lora_path` means: a file, a LoRA's row or a hub repository.

    Asks no network. Raises BaseUnusable.
    """
    name = model.assistant_lora_path
    if name is None:
        return None
    if (file := Path(name).expanduser()).is_file():
        return file
    for row in load_catalog().loras:
        is_it = isinstance(row.source, HubFile) and row.source.id == name
        if (row.name == name or is_it) and (found := locate_lora(row, root)):
            return found
    return _from_hub_cache(name)


def _from_hub_cache(name: str) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(name, _ASSISTANT_FILE, local_files_only=True))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError) as missing:
        raise BaseUnusable(
            f"model.assistant_lora_path: {name} is no file and not in the hub's cache: run "
            f"`hf download {name}`"
        ) from missing


def lora_bytes(weights: Weights, dtype: torch.dtype, metadata: Mapping[str, str]) -> bytes:
    """The file: what diffusers, AI-Toolkit, ComfyUI and our own image runner read."""
    tensors = {
        f"transformer.{name}": weight.to("cpu", dtype).contiguous()
        for name, weight in weights.items()
    }
    data: bytes = save(tensors, {key: str(value) for key, value in metadata.items()})
    return data


def metadata_of(
    *,
    name: str,
    base: str,
    licence: str,
    trigger: str,
    rank: int,
    step: int,
    epoch: int,
    dataset_sha256: str,
    meta: Mapping[str, Any],
) -> dict[str, str]:
    """The header: AI-Toolkit's and kohya's fields beside ours; `meta` is the file's own section."""
    own = {key: v if isinstance(v, str) else json.dumps(v) for key, v in meta.items()}
    software = {"name": "joing", "peft": version("peft"), "diffusers": version("diffusers")}
    return own | {
        "format": "pt",
        "base": base,
        "trigger": trigger,
        "license": licence or "unknown",
        "rank": str(rank),
        "steps": str(step),
        "dataset_sha256": dataset_sha256,
        "software": json.dumps(software),
        "training_info": json.dumps({"step": step, "epoch": epoch}),
        "ss_base_model_version": "flux1",
        "ss_output_name": name,
        "ss_network_dim": str(rank),
        "ss_network_alpha": str(rank),
        "ss_tag_frequency": json.dumps({f"1_{trigger}": {f"1_{trigger}": 1}} if trigger else {}),
    }
