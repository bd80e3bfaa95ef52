"""The evaluation service as BentoML runs it."""

from __future__ import annotations

import bentoml

from services.evaluation.app import create_app, is_ready
from services.evaluation.settings import EvaluationSettings
from services.shared.serving import service_options

settings = EvaluationSettings.from_environment()
app = create_app(settings)


@bentoml.service(**service_options("evaluation", settings, port=3002))
@bentoml.asgi_app(app, path="/")
class Evaluation:
    """Proposals in, verdicts out; see app.py for the routes."""

    def __is_ready__(self) -> bool:
        return is_ready(app)
