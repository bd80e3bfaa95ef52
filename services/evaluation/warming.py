"""Sends each prompt's static part to the model once a language, before the first proposal comes.

The prefix cache then holds it and the grammars of its answers are compiled; without this the first
proposals after a start would each pay for both, at the same time.
"""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import replace

import structlog

from services.evaluation.journal import Entry
from services.evaluation.judging import Interviewer
from services.evaluation.nodes import passages_of
from services.evaluation.settings import EvaluationSettings
from services.shared.language_model import ModelError
from services.shared.prompt_files import LANGUAGES
from services.shared.proposals import Language, Proposal

RETRY_S = 2.0
PROMPTS = ("content", "deliberation", "summary", "feedback")
log = structlog.get_logger()


class Warming:
    """`is_done` is True once every prompt was sent; until then the service is not ready."""

    def __init__(self, interviewer: Interviewer, settings: EvaluationSettings) -> None:
        self._interviewer = interviewer
        self._settings = settings
        self.is_done = False

    async def run(self) -> None:
        """Keeps trying until the model answers; cancelled when the service stops."""
        for name, language in itertools.product(PROMPTS, LANGUAGES):
            while not await self._sent(name, language):  # noqa: ASYNC110 - nobody tells when it is up
                await asyncio.sleep(RETRY_S)
        self.is_done = True
        log.info("prompts warmed", prompt_version=self._settings.prompt_version)

    async def _sent(self, name: str, language: Language) -> bool:
        nothing = Proposal(title="-", content="-", media_type="short_form", language=language)
        call = self._interviewer.call(
            name,
            self._settings.version_for(name),
            nothing,
            passages_of(nothing),
            Entry(name, 1, {}),
            call_id=f"warming-{name}",
            model=self._settings.model_for(name),
        )
        try:
            await self._interviewer.model.ask(replace(call, max_tokens=1))
        except ModelError as error:
            log.info("the model is not ready yet", reason=str(error))
            return False
        return True
