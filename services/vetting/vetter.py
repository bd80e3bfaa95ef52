"""The use case: runs the graph for a channel, within bounds.

Knows nothing of HTTP. Everything it needs arrives in the constructor.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

import structlog

from services.shared.language_model import ModelUnavailable
from services.shared.streaming import Event, told
from services.vetting.channels import parse_channel
from services.vetting.graph import RECURSION_LIMIT, Graph
from services.vetting.nodes import State, Tools, Work
from services.vetting.schemas import VetRequest, Vetting

log = structlog.get_logger()


class Busy(Exception):
    """As many vettings run as are allowed; nothing was started."""


class Vetter:
    def __init__(self, tools: Tools, graph: Graph) -> None:
        self._tools = tools
        self._graph = graph

    async def vet(self, wanted: VetRequest, request_id: str) -> Vetting:
        """Raises Busy, the VettingError family, ModelUnavailable, ModelTimedOut, ModelRefused,
        StorageUnavailable; TimeoutError past the deadline.
        """
        async with self._admitted():
            return await self._run(wanted, request_id, lambda event: None)

    def stream(self, wanted: VetRequest, request_id: str) -> AsyncIterator[Event]:
        """Events as they happen; the last is {"event": "result", "vetting": Vetting}.

        Raises as `vet` does. Closing the iterator ends the vetting and its calls.
        """

        async def run(emit: Callable[[Event], None]) -> Vetting:
            async with self._admitted():
                return await self._run(wanted, request_id, emit)

        return told(run, "vetting")

    @asynccontextmanager
    async def _admitted(self) -> AsyncIterator[None]:
        metrics = self._tools.metrics
        if metrics.running >= self._tools.settings.max_concurrent:
            raise Busy
        metrics.running += 1
        try:
            yield
        finally:
            metrics.running -= 1

    async def _run(
        self, wanted: VetRequest, request_id: str, emit: Callable[[Event], None]
    ) -> Vetting:
        state = State(ref=parse_channel(wanted.channel), language=wanted.language)
        async with asyncio.timeout(self._tools.settings.deadline_s):
            # Before YouTube is paid for what nobody could judge.
            model = self._tools.settings.llm_model or await self._tools.judge.model.default_model()
            work = Work(self._tools, uuid4().hex, request_id, model)
            log.info("vetting started", vetting_id=work.vetting_id, channel=str(state["ref"]))
            vetting = await self._follow(state, work, emit)
        self._tools.metrics.ended(vetting)
        log.info(
            "vetting finished",
            vetting_id=vetting.id,
            channel_id=vetting.channel.id,
            verdict=vetting.verdict,
            reasons=[reason.code for reason in vetting.reasons],
            quota_units=vetting.quota_units,
            duration_ms=vetting.duration_ms,
            **vetting.usage.model_dump(),
        )
        return vetting

    async def _follow(self, state: State, work: Work, emit: Callable[[Event], None]) -> Vetting:
        found: Any = {}
        async for mode, data in self._graph.astream(
            state,
            {"recursion_limit": RECURSION_LIMIT},
            context=work,
            stream_mode=["custom", "values"],
        ):
            if mode == "values":
                found = data
            else:
                emit(data)  # type: ignore[arg-type]
        if "vetting" not in found:
            raise ModelUnavailable("The graph ended without a verdict.")
        vetting: Vetting = found["vetting"]
        return vetting
