"""Logs and traces: one id from the gateway to vLLM.

Logs are one JSON object a line on stderr (structlog). Traces are made only when an OTLP endpoint
is configured, and carry no user text unless the operator asks for it.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from typing import TYPE_CHECKING

import structlog

from services.shared.settings import ServiceSettings

if TYPE_CHECKING:
    from fastapi import FastAPI


def configure_logs(service: str, settings: ServiceSettings) -> None:
    """Modifies the process's structlog configuration; called once, when a service starts."""
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer(ensure_ascii=False)
        if settings.log_format == "json"
        else structlog.dev.ConsoleRenderer(colors=False)
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            lambda _logger, _method, event: {"service": service, **event},
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(
            logging.getLevelNamesMapping()[settings.log_level.upper()]
        ),
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )


def configure_traces(service: str, settings: ServiceSettings, app: FastAPI) -> None:
    """Sends spans of `app`, of httpx and of LangChain to the configured OTLP endpoint."""
    if settings.otlp_endpoint is None:
        return
    from opentelemetry import trace
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
    from opentelemetry.instrumentation.httpx import HTTPXClientInstrumentor
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.sdk.trace.sampling import ALWAYS_ON

    # BentoML wraps each request in a span that is not sampled, and ours would inherit that.
    provider = TracerProvider(
        sampler=ALWAYS_ON, resource=Resource.create({"service.name": f"joing-{service}"})
    )
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)
    FastAPIInstrumentor.instrument_app(app, tracer_provider=provider)
    HTTPXClientInstrumentor().instrument(tracer_provider=provider)
    _trace_langchain(settings, provider)


async def send_last_spans() -> None:
    """For a service that stops: it may be killed before the process's own exit handlers run.

    Waits for the collector, at most as long as the exporter's timeout (10 s).
    """
    from opentelemetry import trace

    flush = getattr(trace.get_tracer_provider(), "force_flush", None)
    if flush is not None:
        await asyncio.to_thread(flush)


def _trace_langchain(settings: ServiceSettings, provider: object) -> None:
    try:
        from openinference.instrumentation import TraceConfig
        from openinference.instrumentation.langchain import LangChainInstrumentor
    except ImportError:
        return  # A service without LangChain has no such spans.
    hidden = not settings.trace_text
    LangChainInstrumentor().instrument(
        tracer_provider=provider,
        config=TraceConfig(
            hide_llm_invocation_parameters=hidden,  # they hold the messages too
            hide_inputs=hidden,
            hide_outputs=hidden,
            hide_input_messages=hidden,
            hide_output_messages=hidden,
            hide_input_text=hidden,
            hide_output_text=hidden,
        ),
    )
