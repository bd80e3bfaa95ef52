"""The llm service as BentoML runs it."""

from __future__ import annotations

import bentoml

from services.llm.app import create_app, is_ready, vllm_metrics
from services.llm.settings import LLMSettings
from services.shared.serving import service_options

settings = LLMSettings.from_environment()
app = create_app(settings)


@bentoml.service(**service_options("llm", settings, port=3001))
@bentoml.asgi_app(app, path="/")
class LLM:
    """OpenAI's API in front of vLLM; see app.py for the routes."""

    def __is_ready__(self) -> bool:
        return is_ready(app)

    async def __metrics__(self, own: str) -> str:
        """BentoML's families and vLLM's, each once."""
        return own + await vllm_metrics(app)
