"""The LoRA's folder, as PEFT and vLLM read it: adapter_config.json, adapter_model.safetensors and
a card. A folder appears whole or not at all, and names no path of the machine that wrote it.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from models.training.judge.base import ADAPTER, Base
from models.training.judge.config import JudgeConfig
from models.training.storage import write_whole

CONFIG_FILE, WEIGHTS_FILE, CARD_FILE = (
    "adapter_config.json",
    "adapter_model.safetensors",
    "README.md",
)


def write_adapter(
    peft: Any, folder: Path, *, base: Base, config: JudgeConfig, step: int, data: Mapping[str, str]
) -> None:
    """`data` is SHA-256 by role. Weights are written in bfloat16. Raises OutOfDisk."""
    from peft import get_peft_model_state_dict

    weights = get_peft_model_state_dict(peft, adapter_name=ADAPTER)
    metadata = {
        "format": "pt",
        "base": base.name,
        "license": base.licence,
        "rank": str(config.lora.rank),
        "steps": str(step),
        **{f"{role}_sha256": digest for role, digest in data.items()},
    }
    arriving = folder.with_name(f".{folder.name}.arriving")
    shutil.rmtree(arriving, ignore_errors=True)
    arriving.mkdir(parents=True)
    write_whole(arriving / WEIGHTS_FILE, save(_bfloat16(weights), metadata))
    write_whole(arriving / CONFIG_FILE, _peft_config(peft, base).encode())
    write_whole(arriving / CARD_FILE, _card(base, config, metadata).encode())
    shutil.rmtree(folder, ignore_errors=True)
    arriving.rename(folder)


def _bfloat16(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        name: value.detach().to("cpu", torch.bfloat16).contiguous()
        for name, value in sorted(weights.items())
    }


def _peft_config(peft: Any, base: Base) -> str:
    """PEFT's own fields, without what is not set; sets in order, so that equal runs write equal
    files."""
    told = peft.peft_config[ADAPTER].to_dict()
    kept = {
        key: sorted(value) if isinstance(value, set) else getattr(value, "value", value)
        for key, value in told.items()
        if value is not None
    }
    kept |= {"base_model_name_or_path": base.name, "inference_mode": True}
    return json.dumps(kept, indent=2, sort_keys=True) + "\n"


def _card(base: Base, config: JudgeConfig, metadata: Mapping[str, str]) -> str:
    training = config.training
    return (
        f"# {config.name}\n\n"
        f"A LoRA for {base.name} that judges video proposals, trained on labelled proposals of "
        "Joing's own (models/training/judge/proposals).\n\n"
        f"Licence: {base.licence}, as its base.\n\n"
        f"Rank {config.lora.rank}, alpha {config.lora.alpha:g}; {metadata['steps']} steps of "
        f"{training.chats_per_step} chats, learning rate {training.lr:g} ({training.schedule}), "
        f"seed {training.seed}. It knows one prompt: version `judge` of the evaluation service.\n"
    )
