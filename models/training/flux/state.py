"""Where a run stands, on the disk: everything that going on exactly needs, and whose run it is.

All randomness comes from the seed and the step, so no generator is saved. The two newest states are
kept: should the newest be broken, the one before is used and the steps between are trained again,
to the same result. A state is PyTorch's zip archive; its checksums are verified before it is read.
"""

import io
import re
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from models.training.errors import CheckpointUnusable
from models.training.storage import write_whole

KEPT = 2
_NAME = re.compile(r"\d{9}\.pt")


@dataclass(frozen=True)
class State:
    """After `step` steps. Values are tensors, numbers and texts in dicts and lists."""

    step: int
    identity: dict[str, str]
    """What makes the run the one it is: key -> value; another value is another run."""
    lora: dict[str, Any]
    optimizer: dict[str, Any]
    average: dict[str, Any] | None
    scaler: dict[str, Any] | None


def save_state(folder: Path, state: State) -> None:
    """Raises OutOfDisk; the states that there were are then intact."""
    buffer = io.BytesIO()
    torch.save(asdict(state), buffer)
    write_whole(folder / f"{state.step:09d}.pt", buffer.getbuffer())
    for old in _newest_first(folder)[KEPT:]:
        old.unlink(missing_ok=True)


def load_state(folder: Path, identity: Mapping[str, str]) -> State | None:
    """The newest whole one; None where there is none at all.

    Raises CheckpointUnusable when every one is broken, or belongs to another run.
    """
    files = _newest_first(folder)
    for file in files:
        if (state := _read(file)) is not None:
            _require_same(state.identity, identity, folder)
            return state
    if files:
        raise CheckpointUnusable(f"no state in {folder} can be read: delete it to begin anew")
    return None


def _newest_first(folder: Path) -> list[Path]:
    found = folder.iterdir() if folder.is_dir() else ()
    return sorted((f for f in found if _NAME.fullmatch(f.name)), reverse=True)


def _read(file: Path) -> State | None:
    """None for a file that is cut off or changed."""
    try:
        with zipfile.ZipFile(file) as archive:
            if archive.testzip() is not None:
                return None
        return State(**torch.load(file, map_location="cpu", weights_only=True))
    except (OSError, zipfile.BadZipFile, RuntimeError, TypeError, EOFError, KeyError):
        return None


def _require_same(saved: Mapping[str, str], asked: Mapping[str, str], folder: Path) -> None:
    changed = [
        f"{key} was {saved.get(key, 'not set')} and is {asked.get(key, 'not set')}"
        for key in sorted({*saved, *asked})
        if saved.get(key) != asked.get(key)
    ]
    if changed:
        raise CheckpointUnusable(
            f"the run in {folder.parent} is another one ({'; '.join(changed)}): set that back, "
            f"give config.name another name, or delete {folder} to begin anew"
        )
