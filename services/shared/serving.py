"""How every service is declared to BentoML, as plain values (this module does not import it)."""

from __future__ import annotations

from typing import Any

from services.shared.settings import ServiceSettings

# BentoML's own limit ends at the first byte; ours (deadlines, read timeouts) are inside.
TRAFFIC_TIMEOUT_S = 7_200


def service_options(name: str, settings: ServiceSettings, *, port: int) -> dict[str, Any]:
    """Arguments for `@bentoml.service`. Without a key the service binds loopback only."""
    return {
        "name": name,
        "workers": 1,
        "traffic": {"timeout": TRAFFIC_TIMEOUT_S},
        "http": {"host": "0.0.0.0" if settings.keys() else "127.0.0.1", "port": port},  # noqa: S104
        "metrics": {"enabled": True},
    }
