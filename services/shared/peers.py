"""Where the other services are, and the HTTP client that reaches them.

Started together (`bentoml serve` at the root), BentoML tells every service the addresses of
the others in BENTOML_RUNNER_MAP: Unix sockets on one machine. Started alone, a service is told
with `JOING_<NAME>_URL`. We speak plain HTTP either way; `bentoml.depends` only declares the
topology (docs/decisions/0002).
"""

from __future__ import annotations

import json
import os
import socket
from dataclasses import dataclass
from urllib.parse import urlsplit

import httpx

from services.shared.settings import ConfigurationError

RUNNER_MAP = "BENTOML_RUNNER_MAP"
# A worker closes idle connections after 5 s (uvicorn's default); the client's go first, so that
# no request meets a socket that is being closed.
IDLE_S = 3.0


@dataclass(frozen=True)
class Peer:
    """One reachable service. `socket` is a Unix socket path, or None for TCP."""

    name: str
    base_url: str
    socket: str | None = None
    key: str | None = None

    def client(
        self, *, timeout_s: float, max_connections: int, connect_timeout_s: float = 5.0
    ) -> httpx.AsyncClient:
        """A pooled client; the caller closes it. `timeout_s` bounds each read, not the total."""
        limits = httpx.Limits(
            max_connections=max_connections,
            max_keepalive_connections=max_connections,
            keepalive_expiry=IDLE_S,
        )
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        return httpx.AsyncClient(
            base_url=self.base_url,
            headers=headers,
            timeout=httpx.Timeout(timeout_s, connect=connect_timeout_s),
            transport=httpx.AsyncHTTPTransport(uds=self.socket, limits=limits),
        )


def find_peer(name: str, url: str | None, key: str | None = None) -> Peer:
    """The peer called `name`: `url` when given, else what BentoML says.

    Raises ConfigurationError when neither knows it.
    """
    if url:
        return Peer(name, url.rstrip("/"), key=key)
    address = json.loads(os.environ.get(RUNNER_MAP, "{}")).get(name)
    if address is None:
        raise ConfigurationError(
            f"Nothing says where the {name} service is. Start the whole system from the root "
            f"(make serve), or set JOING_{name.upper()}_URL."
        )
    if address.startswith("file://"):
        return Peer(name, f"http://{name}", socket=urlsplit(address).path, key=key)
    return Peer(name, address.replace("tcp://", "http://").rstrip("/"), key=key)


def free_port() -> int:
    """A TCP port on loopback that nothing listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
