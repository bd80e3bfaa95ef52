"""What an interrupted run goes on from: weights and optimizer moments in one file, replaced whole.

Knows nothing of models; works on named tensors.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from models.training.errors import CheckpointUnusable
from models.training.storage import write_whole


@dataclass(frozen=True)
class State:
    """After `step` steps. `moments` is the optimizer's, by parameter and its own key."""

    step: int
    parameters: Mapping[str, Tensor]
    moments: Mapping[str, Mapping[str, Tensor]]


def save_state(
    file: Path,
    step: int,
    parameters: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer,
    identity: str,
) -> None:
    """`identity` is what the run is: only a run with the same goes on. Raises OutOfDisk."""
    tensors = {f"parameter/{name}": value for name, value in parameters.items()}
    for name, value in parameters.items():
        for key, moment in optimizer.state.get(value, {}).items():
            tensors[f"moment/{name}/{key}"] = moment
    metadata = {"step": str(step), "identity": identity}
    whole = save({n: t.detach().cpu().contiguous() for n, t in tensors.items()}, metadata)
    write_whole(file, whole)


def load_state(file: Path, identity: str) -> State | None:
    """None when there is none. Raises CheckpointUnusable for another run's, or a broken file."""
    if not file.exists():
        return None
    again = f"delete {file.parent} to start again"
    try:
        with safe_open(file, framework="pt") as opened:
            metadata = opened.metadata()
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        step, whose = int(metadata["step"]), metadata["identity"]
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise CheckpointUnusable(f"{file}: cannot be read ({error}): {again}") from error
    if whose != identity:
        differs = ", ".join(_differences(json.loads(whose), json.loads(identity)))
        raise CheckpointUnusable(f"{file}: was trained with another {differs}: {again}")
    parameters, moments = {}, dict[str, dict[str, Tensor]]()
    for name, tensor in tensors.items():
        kind, _, rest = name.partition("/")
        if kind == "parameter":
            parameters[rest] = tensor
        else:
            parameter, key = rest.rsplit("/", 1)
            moments.setdefault(parameter, {})[key] = tensor
    return State(step, parameters, moments)


def restore(
    state: State, parameters: Mapping[str, Tensor], optimizer: torch.optim.Optimizer
) -> None:
    """Puts `state` into the parameters and the optimizer, in place. Raises CheckpointUnusable."""
    if state.parameters.keys() != parameters.keys():
        raise CheckpointUnusable("the state is of other layers: delete it to start again")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(state.parameters[name])
            optimizer.state[parameter] = {
                key: moment if key == "step" else moment.to(parameter.device)
                for key, moment in state.moments.get(name, {}).items()
            }


def _differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    return sorted(key for key in one.keys() | other.keys() if one.get(key) != other.get(key))
