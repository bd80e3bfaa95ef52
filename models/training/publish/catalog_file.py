"""A LoRA of this checkout's own: its file beside the others, its row in catalog.toml.

For whoever develops with the repository: the row is committed, and every service that starts from
the checkout has the LoRA. An operator's LoRAs are uploads, which the image service keeps in its own
folder; a row in an installed package would be gone with the next version, and is refused.

The text of catalog.toml stays as it is but for the row: its comments are worth as much as its rows.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

from models.catalog import CATALOG_FILE, Catalog, EmbeddedSource, LoraRow, load_catalog
from models.errors import CatalogInvalid
from models.training.dataset.folder import file_hash
from models.training.errors import OutOfDisk, PublishRefused
from models.training.publish.chosen import Chosen
from models.training.storage import write_whole

_NAME = re.compile(r"[a-z0-9][a-z0-9.-]*")  # a catalog row's, which is also a folder's
_INSTALLED = ("site-packages", "dist-packages")


def add_to_catalog(chosen: Chosen, file: Path = CATALOG_FILE) -> bool:
    """Copies the weights to where `file`'s LoRAs of that base lie and writes the row. False when
    all of it was there already.

    Raises PublishRefused, OSError and OutOfDisk, and then nothing has changed.
    """
    _require_own(file)
    if not _NAME.fullmatch(chosen.name):
        raise PublishRefused(f"{chosen.name!r} cannot be a catalog row's name: no '_' in it")
    catalog = load_catalog(file)
    there = _there(chosen, catalog)
    path = _path(chosen, catalog, there)
    weights, text = file.parent / path, file.read_text("utf-8")
    written = _with_row(text, chosen, path, is_new=there is None)
    _require_valid(written, file)
    is_copied = weights.is_file() and file_hash(weights) == chosen.digest
    if is_copied and written == text:
        return False
    before = weights.read_bytes() if weights.is_file() else None
    if not is_copied:
        write_whole(weights, chosen.file.read_bytes())
    try:
        if written != text:
            write_whole(file, written.encode())
    except (OSError, OutOfDisk):
        weights.unlink() if before is None else write_whole(weights, before)
        raise
    return True


def _require_own(file: Path) -> None:
    if any(part in _INSTALLED for part in file.resolve().parts):
        raise PublishRefused(
            f"{file} belongs to an installed package, and the next version would replace it: --to "
            "URL gives the LoRA to an image service, which keeps it"
        )


def _there(chosen: Chosen, catalog: Catalog) -> LoraRow | None:
    """The row that is to be renewed. Raises PublishRefused for one that is somebody else's."""
    if chosen.name in [row.name for row in catalog.llms] + [row.name for row in catalog.images]:
        raise PublishRefused(f"{chosen.name} is a model's name in the catalog: choose another")
    row = next((row for row in catalog.loras if row.name == chosen.name), None)
    if row is not None and not isinstance(row.source, EmbeddedSource):
        raise PublishRefused(
            f"{chosen.name} is {row.source.id} of the hub in the catalog: choose another name"
        )
    if row is not None and row.base != chosen.base:
        raise PublishRefused(
            f"{chosen.name} is a LoRA of {row.base} in the catalog, and {chosen.file.name} is for "
            f"{chosen.base}: choose another name"
        )
    return row


def _path(chosen: Chosen, catalog: Catalog, there: LoraRow | None) -> str:
    """Below `models/`: where the row's file is, or with the base's weights, or in `loras`."""
    if there is not None and isinstance(there.source, EmbeddedSource):
        return there.source.path
    base = next((row for row in catalog.images if row.name == chosen.base), None)
    if base is None:
        known = ", ".join(row.name for row in catalog.images)
        raise PublishRefused(
            f"{chosen.file.name} was trained on {chosen.base or 'nothing that it names'}, which is "
            f"no image model of the catalog; there are: {known}"
        )
    beside = f"{base.source.path}/" if isinstance(base.source, EmbeddedSource) else ""
    return f"{beside}loras/{chosen.name}.safetensors"


def _with_row(text: str, chosen: Chosen, path: str, *, is_new: bool) -> str:
    told = {"base": chosen.base, "trigger": chosen.trigger, "licence": chosen.licence}
    if not is_new:
        return _renewed(text, chosen.name, told)
    row = [
        f"[lora.{_toml(chosen.name)}]",
        f"base = {_toml(chosen.base)}",
        f'source = {{ kind = "embedded", path = {_toml(path)} }}',
        f"trigger = {_toml(chosen.trigger)}",
        f"licence = {_toml(chosen.licence)}",
    ]
    return text.rstrip("\n") + "\n\n" + "\n".join(row) + "\n"


def _renewed(text: str, name: str, told: Mapping[str, str]) -> str:
    """The row with other values; what stands behind a value stays."""
    quoted = re.escape(name)
    header = re.compile(rf"^\[lora\.(?:\"{quoted}\"|'{quoted}'|{quoted})\][^\n]*\n", re.M)
    found = header.search(text)
    if found is None:
        raise PublishRefused(f"the row of {name} is written in a way that cannot be renewed here")
    after = re.compile(r"^\[", re.M).search(text, found.end())
    end = after.start() if after else len(text)
    row = text[found.end() : end]
    for key, value in told.items():
        line = re.compile(rf"^({key}\s*=\s*)(?:\"(?:[^\"\\\n]|\\.)*\"|'[^'\n]*')", re.M)
        if (old := line.search(row)) is not None:
            row = row[: old.start()] + old[1] + _toml(value) + row[old.end() :]
        elif value:
            row = f"{key} = {_toml(value)}\n{row}"
    return text[: found.end()] + row + text[end:]


def _toml(text: str) -> str:
    """A basic string: JSON's escapes are TOML's."""
    return json.dumps(text, ensure_ascii=False)


def _require_valid(text: str, file: Path) -> None:
    """A catalog that nobody could read is never written."""
    trial = file.with_name(f".{file.name}.trial")
    try:
        trial.write_text(text, "utf-8")
        load_catalog(trial)
    except CatalogInvalid as invalid:
        raise PublishRefused(f"the catalog would not be readable with it: {invalid}") from invalid
    except OSError as error:
        raise PublishRefused(f"{file.parent} cannot be written: {error}") from error
    finally:
        trial.unlink(missing_ok=True)
