"""A real PostgreSQL server for tests: a cluster in a temporary folder, gone when they end.

PostgreSQL refuses to run as root; there it runs as an unprivileged user.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg

from services.shared.peers import free_port

DEBIAN_FOLDERS = "postgresql/*/bin"
UNPRIVILEGED = ("postgres", "nobody")
START_TIMEOUT_S = 60.0


class PostgresMissing(Exception):
    """The tests need PostgreSQL's server programs."""


@dataclass
class Postgres:
    """One cluster behind loopback. `stop` and `start` keep its data and its port."""

    folder: Path
    port: int
    process: subprocess.Popen[bytes] | None = None

    def url(self, database: str = "postgres") -> str:
        return f"postgresql://tester@127.0.0.1:{self.port}/{database}"

    def create(self) -> None:
        command = [program("initdb"), "-D", self._data, "-U", "tester", "-A", "trust",
                   "-E", "UTF8", "--locale=C", "--no-sync"]  # fmt: skip
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, **self._as_owner())

    def start(self) -> None:
        options = {
            "listen_addresses": "127.0.0.1",
            "port": self.port,
            "unix_socket_directories": self.folder,
            "fsync": "off",
            "max_connections": 100,
        }
        settings = [part for k, v in options.items() for part in ("-c", f"{k}={v}")]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [program("postgres"), "-D", self._data, *settings],
                stdout=log,
                stderr=log,
                **self._as_owner(),
            )
        until = time.monotonic() + START_TIMEOUT_S
        while not self._answers():
            log_text = (self.folder / "log").read_text("utf-8", "replace")
            assert self.process.poll() is None, log_text
            assert time.monotonic() < until, log_text
            time.sleep(0.05)

    def stop(self) -> None:
        """Every session is cut off; returns when the server is gone."""
        if self.process is None:
            return
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGQUIT)
            self.process.wait(20)
        self.process = None

    def new_database(self) -> str:
        """The address of an empty database."""
        name = f"test_{uuid4().hex}"
        with psycopg.connect(self.url(), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}")  # type: ignore[call-overload]
        return self.url(name)

    @property
    def _data(self) -> str:
        return str(self.folder / "data")

    def _answers(self) -> bool:
        try:
            psycopg.connect(self.url(), connect_timeout=5).close()
        except psycopg.OperationalError:
            return False
        return True

    def _as_owner(self) -> dict[str, Any]:
        if os.geteuid() != 0:
            return {"cwd": self.folder}
        owner = unprivileged()
        return {
            "cwd": self.folder,
            "user": owner.pw_uid,
            "group": owner.pw_gid,
            "extra_groups": [],
        }


@contextmanager
def running_postgres() -> Iterator[Postgres]:
    """Raises PostgresMissing where PostgreSQL is not installed."""
    program("postgres")
    folder = Path(tempfile.mkdtemp(prefix="joing-pg-"))
    if os.geteuid() == 0:
        owner = unprivileged()
        os.chown(folder, owner.pw_uid, owner.pw_gid)
    server = Postgres(folder, free_port())
    try:
        server.create()
        server.start()
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder)


def program(name: str) -> str:
    """The path of a server program: on PATH, or where Debian keeps it."""
    folders = sorted(Path("/usr/lib").glob(DEBIAN_FOLDERS), reverse=True)
    found = shutil.which(name) or shutil.which(name, path=os.pathsep.join(map(str, folders)))
    if found is None:
        raise PostgresMissing(f"There is no {name} here: apt-get install postgresql")
    return found


def unprivileged() -> pwd.struct_passwd:
    known = {user.pw_name: user for user in pwd.getpwall()}
    return next(known[name] for name in UNPRIVILEGED if name in known)
