"""The gateway as BentoML runs it alone; bentos/system.py runs it with everything behind it."""

from __future__ import annotations

import bentoml

from services.gateway.app import create_app
from services.gateway.settings import GatewaySettings
from services.shared.serving import service_options

settings = GatewaySettings.from_environment()
app = create_app(settings)


@bentoml.service(**service_options("gateway", settings, port=3000))
@bentoml.asgi_app(app, path="/")
class Gateway:
    """The one public door; see app.py for the routes."""
