"""Files of storyboards on anything that fsspec reaches: a local folder, or S3 and its like."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from typing import Any, TypeVar
from uuid import uuid4

import fsspec
from fsspec.core import url_to_fs

from services.shared.settings import ConfigurationError
from services.storyboard.errors import ArtifactMissing

PATH = re.compile(r"[0-9a-f]{32}(/[a-z0-9.-]{1,40})?")
TIMEOUT_S = 60.0
T = TypeVar("T")


class FsspecArtifacts:
    """Paths are `<job id>/<file>` below `url`. Calls block in threads of their own."""

    def __init__(self, url: str) -> None:
        """Raises ConfigurationError for an address that no installed package can open."""
        try:
            self._fs, self._root = url_to_fs(url)
        except (ValueError, ImportError) as error:
            raise ConfigurationError(f"JOING_ARTIFACTS_URL: {error}") from None
        self._fs = _blocking(self._fs)
        self._is_local = "file" in _protocols(self._fs)

    async def put(self, path: str, data: bytes) -> None:
        await self._do(self._put, self._at(path), data)

    async def get(self, path: str) -> bytes:
        try:
            found: bytes = await self._do(self._fs.cat_file, self._at(path))
        except FileNotFoundError:
            raise ArtifactMissing(path) from None
        return found

    async def exists(self, path: str) -> bool:
        return bool(await self._do(self._fs.exists, self._at(path)))

    async def delete_all(self, job_id: str) -> None:
        def delete(folder: str) -> None:
            if self._fs.exists(folder):
                self._fs.rm(folder, recursive=True)

        await self._do(delete, self._at(job_id))

    def _put(self, place: str, data: bytes) -> None:
        """A local file gets its name when it is complete; an object store shows whole objects."""
        if not self._is_local:
            self._fs.pipe_file(place, data)
            return
        folder, _, name = place.rpartition("/")
        self._fs.makedirs(folder, exist_ok=True)
        unfinished = f"{folder}/.{name}.{uuid4().hex}"
        self._fs.pipe_file(unfinished, data)
        self._fs.mv(unfinished, place)

    def _at(self, path: str) -> str:
        if not PATH.fullmatch(path):
            raise ValueError(f"{path!r} is not a place for an artifact")
        return f"{self._root}/{path}"

    async def _do(self, work: Callable[..., T], *arguments: Any) -> T:
        async with asyncio.timeout(TIMEOUT_S):
            return await asyncio.to_thread(work, *arguments)


def _protocols(fs: fsspec.AbstractFileSystem) -> tuple[str, ...]:
    return (fs.protocol,) if isinstance(fs.protocol, str) else tuple(fs.protocol)


def _blocking(fs: fsspec.AbstractFileSystem) -> fsspec.AbstractFileSystem:
    """Without fsspec's cache of listings: another replica may have written since."""
    fs.invalidate_cache()
    fs.use_listings_cache = False
    return fs
