"""The whole system as one Bento: the gateway, and every service that it leads to.

`depends` only declares what `bentoml serve` starts; the services talk plain HTTP
(docs/decisions/0002).
"""

from __future__ import annotations

import bentoml

from services.evaluation.service import Evaluation
from services.gateway.service import app, settings
from services.images.service import Images
from services.llm.service import LLM
from services.shared.serving import service_options
from services.storyboard.service import Storyboards
from services.vetting.service import Vetting


@bentoml.service(**service_options("gateway", settings, port=3000))
@bentoml.asgi_app(app, path="/")
class Joing:
    """One port for all of it."""

    evaluation = bentoml.depends(Evaluation)
    llm = bentoml.depends(LLM)
    images = bentoml.depends(Images)
    storyboard = bentoml.depends(Storyboards)
    vetting = bentoml.depends(Vetting)
