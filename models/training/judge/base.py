"""The causal language model that is fine-tuned, and the LoRA in it. Reads the disk, not the hub."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models import weights
from models.catalog import HubSource, LlmRow, load_catalog
from models.training.errors import BaseUnusable, ConfigRefused
from models.training.judge.config import JudgeConfig, LoraTable

ADAPTER = "default"  # PEFT's own name for the first


@dataclass(frozen=True)
class Base:
    """`name` and `licence` are what the LoRA says of it."""

    folder: Path
    name: str
    licence: str


def find_base(config: JudgeConfig, root: Path | None = None) -> Base:
    """Raises UnknownModel; BaseUnusable when it was not pulled; ConfigRefused without a licence."""
    found = load_catalog().find(config.base)
    folder = weights.locate(found, root or weights.default_root())
    if folder is None:
        raise BaseUnusable(
            f"{config.base} is not fetched: run `python -m models pull {config.base}`"
        )
    if isinstance(found, LlmRow):
        return Base(folder, found.name, found.licence)
    if config.licence is None:
        raise ConfigRefused(f"licence: say under which {config.base} stands; the LoRA inherits it")
    name = found.id if isinstance(found, HubSource) else found.name
    return Base(folder, name, config.licence)


def load_tokenizer(base: Base) -> Any:
    """Raises BaseUnusable for one without a chat template."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base.folder)
    if not tokenizer.chat_template:
        raise BaseUnusable(f"{base.name} has no chat template: take an instruct model")
    return tokenizer


class Judge:
    """The base with a LoRA of float32 in it; nothing else of it is trained."""

    def __init__(self, base: Base, lora: LoraTable, *, precision: str, seed: int) -> None:
        from peft import LoraConfig, get_peft_model
        from transformers import AutoModelForCausalLM

        self._dtype = getattr(torch, precision)
        model = AutoModelForCausalLM.from_pretrained(base.folder, dtype=self._dtype)
        model.to("cuda" if torch.cuda.is_available() else "cpu")
        torch.manual_seed(seed)
        layers = model.config.num_hidden_layers
        try:
            self.peft = get_peft_model(
                model,
                LoraConfig(
                    r=lora.rank,
                    lora_alpha=lora.alpha,
                    lora_dropout=lora.dropout,
                    target_modules=list(lora.targets),
                    layers_to_transform=None
                    if lora.last_layers is None
                    else list(range(max(0, layers - lora.last_layers), layers)),
                    task_type="CAUSAL_LM",
                ),
            )
        except ValueError as error:
            raise ConfigRefused(f"lora.targets: {base.name} has none of {lora.targets}") from error
        self._decoder = model.get_decoder()
        self._head = model.get_output_embeddings()

    @property
    def parameters(self) -> dict[str, Tensor]:
        """What is trained, by name."""
        named = self.peft.named_parameters()
        return {name: parameter for name, parameter in named if parameter.requires_grad}

    @property
    def device(self) -> torch.device:
        device: torch.device = next(self.peft.parameters()).device
        return device

    def loss(self, ids_BL: Tensor, mask_BL: Tensor, weight_BL: Tensor) -> Tensor:
        """The weighted sum of negative log-likelihoods, in nats. Token i is predicted from those
        before it, and only where it weighs something are logits computed: the vocabulary is a
        fifth of a small model.
        """
        device = self.device
        wanted_BL = weight_BL[:, 1:] > 0
        with torch.autocast(device.type, torch.bfloat16, enabled=self._dtype == torch.bfloat16):
            hidden_BLD = self._decoder(
                input_ids=ids_BL.to(device), attention_mask=mask_BL.to(device), use_cache=False
            ).last_hidden_state
            logits_NV = self._head(hidden_BLD[:, :-1][wanted_BL.to(device)])
        nll_N = torch.nn.functional.cross_entropy(
            logits_NV.float(), ids_BL[:, 1:][wanted_BL].to(device), reduction="none"
        )
        return (nll_N * weight_BL[:, 1:][wanted_BL].to(device)).sum()
