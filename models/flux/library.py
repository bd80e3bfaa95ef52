"""Every LoRA that may be asked for by name, and the files behind the names.

A name is looked up when a request comes; from then on the request holds on to what it found, so
that replacing or removing a name changes no image that was admitted before. Any thread may call.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from models.flux.errors import LoraRefused, LoraVanished, UnknownLora
from models.flux.lora_files import LoraWeights

Read = Callable[[Path], LoraWeights]
"""Raises LoraRefused; see lora_files.read_lora."""


@dataclass(frozen=True)
class LoraEntry:
    """A file that was read and found right. `digest` is of its bytes."""

    name: str
    file: Path
    digest: str
    rank: int
    metadata: Mapping[str, str]
    """What the file says of itself, overlaid with what its catalog row says."""


class LoraLibrary:
    """Names to files, and the weights of the ones used last within `cache_bytes`."""

    def __init__(self, read: Read, *, cache_bytes: int) -> None:
        self._read = read
        self._cache_bytes = cache_bytes
        self._entries: dict[str, LoraEntry] = {}
        self._weights: OrderedDict[str, LoraWeights] = OrderedDict()
        self._lock = threading.Lock()

    def add(self, name: str, file: Path, metadata: Mapping[str, str] | None = None) -> LoraEntry:
        """Reads and checks `file`, then gives it the name, which may have meant another one.

        Raises LoraRefused, and the name means what it did before.
        """
        weights = self._read(file)
        told = {**weights.metadata, **(metadata or {})}
        entry = LoraEntry(name, file, weights.digest, weights.rank, told)
        with self._lock:
            self._entries[name] = entry
            self._remember(weights)
        return entry

    def remove(self, name: str) -> LoraEntry:
        """Forgets the name. Raises UnknownLora."""
        with self._lock:
            entry = self._entries.pop(name, None)
        if entry is None:
            raise self._unknown(name)
        return entry

    def find(self, name: str) -> LoraEntry:
        """Raises UnknownLora, which lists the names there are."""
        with self._lock:
            entry = self._entries.get(name)
        if entry is None:
            raise self._unknown(name)
        return entry

    def entries(self) -> list[LoraEntry]:
        """By name."""
        with self._lock:
            return sorted(self._entries.values(), key=lambda entry: entry.name)

    def weights(self, entry: LoraEntry) -> LoraWeights:
        """From memory, or from its file again. Raises LoraVanished when that is gone or another."""
        with self._lock:
            if (cached := self._weights.get(entry.digest)) is not None:
                self._weights.move_to_end(entry.digest)
                return cached
        try:
            weights = self._read(entry.file)
        except (OSError, LoraRefused) as gone:
            raise LoraVanished(f"the file of LoRA {entry.name!r} cannot be read any more") from gone
        if weights.digest != entry.digest:
            raise LoraVanished(f"the file of LoRA {entry.name!r} is another one now")
        with self._lock:
            self._remember(weights)
        return weights

    def _remember(self, weights: LoraWeights) -> None:
        self._weights[weights.digest] = weights
        self._weights.move_to_end(weights.digest)
        while len(self._weights) > 1 and self._held_bytes() > self._cache_bytes:
            self._weights.popitem(last=False)

    def _held_bytes(self) -> int:
        return sum(
            tensor.nbytes
            for weights in self._weights.values()
            for pair in weights.layers.values()
            for tensor in pair
        )

    def _unknown(self, name: str) -> UnknownLora:
        known = ", ".join(entry.name for entry in self.entries()) or "none"
        return UnknownLora("lora", f"{name[:64]!r} is not known here; known: {known}")
