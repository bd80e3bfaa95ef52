"""The images service as BentoML runs it."""

from __future__ import annotations

import bentoml

from services.images.app import create_app, is_alive, is_ready, metrics
from services.images.settings import ImagesSettings
from services.shared.serving import service_options

settings = ImagesSettings.from_environment()
app = create_app(settings)


@bentoml.service(**service_options("images", settings, port=3005))
@bentoml.asgi_app(app, path="/")
class Images:
    """OpenAI's images API in front of the Flux engine; see app.py for the routes."""

    def __is_ready__(self) -> bool:
        return is_ready(app)

    def __is_alive__(self) -> bool:
        return is_alive(app)

    def __metrics__(self, own: str) -> str:
        """BentoML's families and the engine's."""
        return own + metrics(app)
