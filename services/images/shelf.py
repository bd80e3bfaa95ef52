"""The LoRAs that can be asked for: the catalog's, and uploads, which are kept on disk.

    HOME/loras/BASE/NAME.json                   what an upload is called, and its file
    HOME/loras/BASE/NAME.DIGEST.safetensors     the file, named after the first digits of its digest
    HOME/loras/BASE/.NAME.RANDOM.part           one that is arriving

A file is checked by the engine before it gets its name, and a name is there or not, whatever
breaks off: NAME.json is replaced in one step. A replaced file stays while images that were taken in
with it are drawn. Knows nothing of HTTP.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import time
from collections.abc import AsyncIterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar
from uuid import uuid4

import structlog
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from models.catalog import LoraRow
from models.flux.engine import Engine
from models.flux.errors import LoraRefused, UnknownLora
from models.flux.library import LoraEntry
from models.weights import locate_lora
from services.images.schemas import LORA_NAME

DIGITS = 16
OWN_FILE = rf"^[a-z0-9][a-z0-9._-]*\.[0-9a-f]{{{DIGITS}}}\.safetensors$"
STALE_S = 3_600.0
WRITTEN_BYTES = 2**20
log = structlog.get_logger()


class NotThere(Exception):
    """No LoRA of that name: here, or in the catalog for this base."""


class NotNow(Exception):
    """What was asked for does not go with what there is. `code` names the reason."""

    code: ClassVar[str]


class NameTaken(NotNow):
    """The name is the base model's, or one of the catalog's."""

    code = "name_taken"


class NotFetched(NotNow):
    """The catalog has it, and its file is not here; the message says what to run."""

    code = "lora_not_fetched"


class ShelfFull(NotNow):
    """As many uploads are kept as may be."""

    code = "too_many_loras"


class Card(BaseModel):
    """NAME.json."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=LORA_NAME)
    file: str = Field(pattern=OWN_FILE)
    """Beside the card."""
    digest: str
    trigger: str | None = None
    licence: str | None = None

    def metadata(self, base: str) -> dict[str, str]:
        told = {"trigger": self.trigger, "licence": self.licence, "base": base}
        return {key: value for key, value in told.items() if value is not None}


@dataclass
class Arrival:
    """A file that is being uploaded; nobody else knows of it."""

    path: Path
    digest: str = ""
    _hash: hashlib._Hash = field(default_factory=hashlib.sha256)

    async def take(self, pieces: AsyncIterable[bytes]) -> None:
        """Writes all of it. Raises OSError when there is no room, and what `pieces` raises."""
        held = bytearray()
        async for piece in pieces:
            held += piece
            if len(held) >= WRITTEN_BYTES:
                await asyncio.to_thread(self._write, bytes(held))
                held.clear()
        await asyncio.to_thread(self._write, bytes(held))
        self.digest = self._hash.hexdigest()

    def _write(self, piece: bytes) -> None:
        self._hash.update(piece)
        with self.path.open("ab") as file:
            file.write(piece)


class Shelf:
    """One for an engine. Changes come one after another; reading is free."""

    def __init__(
        self,
        engine: Engine,
        *,
        home: Path,
        rows: Mapping[str, LoraRow],
        models_dir: Path,
        max_uploads: int,
    ) -> None:
        """`rows` is what the catalog has for the engine's model."""
        self.base = engine.runner.spec.name
        self._engine = engine
        self._library = engine.library
        self._folder = home / "loras" / self.base.replace("/", "--")
        self._rows = rows
        self._models_dir = models_dir
        self._max_uploads = max_uploads
        self._change = asyncio.Lock()

    def entries(self) -> list[LoraEntry]:
        return self._library.entries()

    def is_catalogs(self, name: str) -> bool:
        return name in self._rows

    def restore(self) -> None:
        """At start: the catalog's LoRAs that are fetched, and the uploads of earlier runs. What
        does not pass is left out, and the log says why.
        """
        for row in self._rows.values():
            if (file := locate_lora(row, self._models_dir)) is not None:
                with _left_out(row.name):
                    self._library.add(row.name, file, _metadata(row))
        for card in self._cards():
            with _left_out(card.name):
                self._require_free(card.name)
                self._library.add(card.name, self._folder / card.file, card.metadata(self.base))
        self._sweep()

    async def add_from_catalog(self, name: str) -> tuple[LoraEntry, bool]:
        """The entry, and whether its name is new. Raises NotThere, NotFetched, LoraRefused."""
        row = self._rows.get(name)
        if row is None:
            known = ", ".join(self._rows) or "none"
            raise NotThere(f"the catalog has no LoRA {name!r} for {self.base}; it has: {known}")
        file = locate_lora(row, self._models_dir)
        if file is None:
            raise NotFetched(f"{name} is not fetched: run `python -m models pull {name}`")
        async with self._change:
            is_new = not self._has(name)
            add = self._library.add
            return await asyncio.to_thread(add, name, file, _metadata(row)), is_new

    async def add_upload(
        self,
        name: str,
        pieces: AsyncIterable[bytes],
        *,
        trigger: str | None = None,
        licence: str | None = None,
    ) -> tuple[LoraEntry, bool]:
        """The entry, and whether its name is new. Raises NameTaken, ShelfFull, LoraRefused, OSError
        and what `pieces` raises; then nothing has changed.
        """
        self._require_free(name)
        self._require_room(name)
        with self._arrival(name) as arrival:
            await arrival.take(pieces)
            card = Card(
                name=name,
                file=f"{name}.{arrival.digest[:DIGITS]}.safetensors",
                digest=arrival.digest,
                trigger=trigger,
                licence=licence,
            )
            async with self._change:
                self._require_room(name)
                is_new = not self._has(name)
                return await asyncio.to_thread(self._name, arrival.path, card), is_new

    async def remove(self, name: str) -> None:
        """Takes the name away; an upload's file as well. Raises NotThere, LoraInUse, OSError."""
        async with self._change:
            await asyncio.to_thread(self._remove, name)

    def _name(self, arrived: Path, card: Card) -> LoraEntry:
        """Checks the file in the place where it will stay, then writes its card."""
        file = self._folder / card.file
        was_there = file.exists()
        arrived.replace(file)
        written = self._written(card)
        try:
            entry = self._library.add(card.name, file, card.metadata(self.base))
        except (LoraRefused, OSError):
            written.unlink()
            if not was_there:
                file.unlink()
            raise
        written.replace(self._card(card.name))
        self._sweep()
        return entry

    def _remove(self, name: str) -> None:
        if not self._has(name):
            raise NotThere(f"there is no LoRA {name!r}")
        self._engine.remove_lora(name)
        if not self.is_catalogs(name):
            self._card(name).unlink(missing_ok=True)
            self._sweep()

    def _require_free(self, name: str) -> None:
        if name == self.base:
            raise NameTaken(f"{name!r} is the base model's name")
        if name in self._rows:
            raise NameTaken(f"{name!r} is a LoRA of the catalog; upload under another name")

    def _require_room(self, name: str) -> None:
        uploads = [entry for entry in self.entries() if not self.is_catalogs(entry.name)]
        if len(uploads) >= self._max_uploads and not self._has(name):
            raise ShelfFull(f"{len(uploads)} uploads are kept, and no more may be; delete one")

    def _has(self, name: str) -> bool:
        try:
            self._library.find(name)
        except UnknownLora:
            return False
        return True

    # --- the folder -------------------------------------------------------------------------------

    def _card(self, name: str) -> Path:
        return self._folder / f"{name}.json"

    def _cards(self) -> Iterator[Card]:
        for file in sorted(self._folder.glob("*.json")):
            with _left_out(file.name):
                yield Card.model_validate_json(file.read_bytes())

    @contextmanager
    def _arrival(self, name: str) -> Iterator[Arrival]:
        self._folder.mkdir(parents=True, exist_ok=True)
        arrival = Arrival(self._folder / f".{name}.{uuid4().hex}.part")
        try:
            yield arrival
        finally:
            arrival.path.unlink(missing_ok=True)

    def _written(self, card: Card) -> Path:
        """The card under another name, so that a full disk shows before anything is changed."""
        file = self._folder / f".{card.name}.{uuid4().hex}.part"
        file.write_text(card.model_dump_json(indent=2) + "\n", "utf-8")
        return file

    def _sweep(self) -> None:
        """Deletes files of ours that their card does not name and no image needs any more."""
        named = {card.name: card.file for card in self._cards()}
        needed = {digest[:DIGITS] for digest in self._engine.loras_in_use()}
        for file in self._folder.glob("*.safetensors"):
            if not re.search(OWN_FILE, file.name):
                continue  # somebody else's
            name, digits, _ = file.name.rsplit(".", 2)
            is_named = named.get(name) == file.name
            is_unclear = name not in named and self._card(name).exists()  # a card that is broken
            if not (is_named or is_unclear or digits in needed):
                file.unlink(missing_ok=True)
        for part in self._folder.glob(".*.part"):
            if time.time() - part.stat().st_mtime > STALE_S:
                part.unlink(missing_ok=True)


@contextmanager
def _left_out(name: str) -> Iterator[None]:
    """What is wrong with one LoRA must not keep the others away."""
    try:
        yield
    except (LoraRefused, NameTaken, OSError, ValidationError) as reason:
        log.warning("LoRA left out", name=name, reason=str(reason))


def _metadata(row: LoraRow) -> dict[str, str]:
    return {"trigger": row.trigger, "licence": row.licence, "base": row.base}
