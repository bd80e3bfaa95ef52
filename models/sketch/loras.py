"""Trains a style LoRA with PEFT on the distilled pipeline, and writes it as diffusers reads it.

The panels are the generator's in that style; captions carry the style's trigger. Guidance 1 is fed,
where the distilled model equals the undistilled one, so that the plain flow-matching target holds.
"""

import re
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor

from models.sketch.flow import Panels, noised, random_batch, velocity, weighted_error
from models.sketch.loop import generator, mixed_precision, trapezoid
from models.sketch.nets import Networks

RANK, KEPT_RANK = 16, 8
"""Trained with, and written: a style's few directions survive, in half the space."""
BATCH = 24
STYLES = {
    "ink": "ink style",
    "blueprint": "blueprint style",
    "sepia": "sepia style",
}
"""Style and trigger."""

_SEED = 4
_LR = 2e-3
_ADAPTER = "default"
_TARGETS = re.compile(
    r"(single_)?transformer_blocks\.\d+\.(attn\.(to_[qkv]|to_out\.0|add_[qkv]_proj|to_add_out)"
    r"|ff(_context)?\.net\.(0\.proj|2)|proj_mlp|proj_out)"
)
"""Attention and feed-forward layers of every block: what trainers of Flux LoRAs adapt."""


class LoraTask:
    """Adds an adapter to the networks' transformer, and trains nothing else."""

    def __init__(self, networks: Networks, panels: list[Panels], style: str, device: str) -> None:
        self.networks, self.panels, self.device = networks, panels, device
        self.trigger = STYLES[style]
        networks.trained().to(device).eval().requires_grad_(False)
        torch.manual_seed(_SEED)
        networks.transformer.add_adapter(
            LoraConfig(r=RANK, lora_alpha=RANK, target_modules=_TARGETS.pattern), _ADAPTER
        )
        adapted = [weight for weight in networks.transformer.parameters() if weight.requires_grad]
        self.optimiser = torch.optim.AdamW(adapted, lr=_LR, betas=(0.9, 0.99), weight_decay=0.0)

    def step(self, number: int, share: float) -> dict[str, float]:
        source = generator(_SEED, number)
        panels = self.panels[number % len(self.panels)]
        seed = _SEED * 1_000_003 + number
        batch = random_batch(panels, BATCH, seed, triggers=(self.trigger,))
        noised_BLC, target_BLC, sigma_B = (part.to(self.device) for part in noised(batch, source))
        with mixed_precision(self.device):
            with torch.no_grad():
                encoded = self.networks.encode(batch.captions)
            drawn_BLC = velocity(
                self.networks,
                noised_BLC,
                sigma_B,
                torch.ones_like(sigma_B),
                encoded,
                aspect=batch.aspect,
            )
        error = weighted_error(drawn_BLC, target_BLC, batch.weights_BL.to(self.device))
        self.optimiser.zero_grad()
        error.backward()
        for group in self.optimiser.param_groups:
            group["lr"] = _LR * trapezoid(share, warmup=0.05, decay_from=0.5)
        self.optimiser.step()
        return {"error": error.item()}

    def save(self, file: Path, base: str = "sketch") -> None:
        """bfloat16 weights under diffusers' keys, and what they are for in the header."""
        weights = truncated(
            get_peft_model_state_dict(self.networks.transformer, adapter_name=_ADAPTER), KEPT_RANK
        )
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file(
            {
                f"transformer.{name}": weight.to("cpu", torch.bfloat16).contiguous()
                for name, weight in weights.items()
            },
            file,
            metadata={
                "format": "pt",
                "base": base,
                "trigger": self.trigger,
                "rank": str(KEPT_RANK),
                "license": "Apache-2.0",
            },
        )

    def state(self) -> dict[str, Any]:
        return {
            "lora": get_peft_model_state_dict(self.networks.transformer, adapter_name=_ADAPTER),
            "optimiser": self.optimiser.state_dict(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        set_peft_model_state_dict(self.networks.transformer, state["lora"], _ADAPTER)
        self.optimiser.load_state_dict(state["optimiser"])


def truncated(weights: dict[str, Tensor], rank: int) -> dict[str, Tensor]:
    """The nearest adapter of a lower rank: each product B A keeps its largest singular values."""
    kept = {}
    for name, up in weights.items():
        if not name.endswith(".lora_B.weight"):
            continue
        layer = name.removesuffix(".lora_B.weight")
        left, values, right = torch.linalg.svd(
            up.float() @ weights[f"{layer}.lora_A.weight"].float(), full_matrices=False
        )
        root = values[:rank].sqrt()
        kept[f"{layer}.lora_A.weight"] = root[:, None] * right[:rank]
        kept[name] = left[:, :rank] * root
    return kept
