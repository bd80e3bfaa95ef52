"""The storyboard service as BentoML runs it."""

from __future__ import annotations

import bentoml

from services.shared.serving import service_options
from services.storyboard.app import create_app, is_ready, metrics
from services.storyboard.settings import StoryboardSettings

settings = StoryboardSettings.from_environment()
app = create_app(settings)


@bentoml.service(**service_options("storyboard", settings, port=3004))
@bentoml.asgi_app(app, path="/")
class Storyboards:
    """Proposals in, storyboards out; see app.py for the routes."""

    def __is_ready__(self) -> bool:
        return is_ready(app)

    def __metrics__(self, own: str) -> str:
        """BentoML's families and the service's own."""
        return own + metrics(app)
