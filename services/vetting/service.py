"""The vetting service as BentoML runs it."""

from __future__ import annotations

import bentoml

from services.shared.serving import service_options
from services.vetting.app import create_app, is_ready, metrics
from services.vetting.settings import VettingSettings

settings = VettingSettings.from_environment()
app = create_app(settings)


@bentoml.service(**service_options("vetting", settings, port=3003))
@bentoml.asgi_app(app, path="/")
class Vetting:
    """Channels in, verdicts with evidence out; see app.py for the routes."""

    def __is_ready__(self) -> bool:
        return is_ready(app)

    def __metrics__(self, own: str) -> str:
        """BentoML's families and the service's own."""
        return own + metrics(app)
