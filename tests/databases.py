"""Both databases that the services' state can be kept in, empty for each test."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.postgres import Postgres, running_postgres


@dataclass(frozen=True)
class Database:
    """An empty database. `url` is what JOING_DATABASE_URL is set to; None means `home`."""

    url: str | None
    home: Path

    @property
    def file(self) -> Path:
        return self.home / "joing.sqlite3"


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    with running_postgres() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Database:
    if request.param == "sqlite":
        return Database(None, tmp_path)
    server: Postgres = request.getfixturevalue("postgres")
    return Database(server.new_database(), tmp_path)
