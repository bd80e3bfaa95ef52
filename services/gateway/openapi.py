"""One OpenAPI document from those of the services behind the gateway.

Each service describes its own paths; the gateway takes over the ones it forwards. A service that
does not answer is left out of the document, not waited for.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import httpx

WAIT_S = 5.0


async def merged_openapi(
    own: dict[str, Any],
    clients: Mapping[str, httpx.AsyncClient],
    routes: Mapping[str, list[tuple[str, str]]],
) -> dict[str, Any]:
    """`own` with the forwarded paths, and the schemas that these refer to, added."""
    merged = copy.deepcopy(own)
    for service, client in clients.items():
        document = await _document(client)
        for method, path in routes[service]:
            operation = document.get("paths", {}).get(path, {}).get(method.lower())
            if operation is not None:
                merged["paths"].setdefault(path, {})[method.lower()] = operation
        schemas = document.get("components", {}).get("schemas", {})
        merged.setdefault("components", {}).setdefault("schemas", {}).update(schemas)
    return merged


async def _document(client: httpx.AsyncClient) -> dict[str, Any]:
    try:
        response = await client.get("/openapi.json", timeout=WAIT_S)
        response.raise_for_status()
        document: dict[str, Any] = response.json()
    except (httpx.HTTPError, ValueError):
        return {}
    return document
