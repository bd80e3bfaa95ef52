"""Where services send their traces, and the services as processes of their own.

Tracer providers and HTTP instrumentation belong to a whole process, so what they do is only seen
in one that runs one service. Run by uvicorn: `uvicorn --factory tests.fakes.traced:gateway`.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from fastapi import FastAPI
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from bentos.running import ROOT, tail, wait_until_ready
from services.shared.peers import free_port


def evaluation() -> FastAPI:
    from services.evaluation.app import create_app, is_ready
    from services.evaluation.settings import EvaluationSettings

    app = create_app(EvaluationSettings.from_environment())
    _add_readiness(app, lambda: is_ready(app))
    return app


def gateway() -> FastAPI:
    from services.gateway.app import create_app
    from services.gateway.settings import GatewaySettings

    app = create_app(GatewaySettings.from_environment())
    _add_readiness(app, lambda: True)
    return app


def _add_readiness(app: FastAPI, is_ready) -> None:  # type: ignore[no-untyped-def]
    """What BentoML answers when it runs a service."""
    from fastapi import Response

    @app.get("/readyz")
    def readyz() -> Response:
        return Response(status_code=200 if is_ready() else 503)


@dataclass(frozen=True)
class Span:
    """One span as it came in. `ids` and `parent_id` are hexadecimal."""

    service: str
    name: str
    kind: int
    trace_id: str
    span_id: str
    parent_id: str
    attributes: Mapping[str, object]


@dataclass
class Collector:
    """An OTLP receiver. `bodies` is everything that was sent, as it came over the wire."""

    base_url: str = ""
    bodies: list[bytes] = field(default_factory=list)

    def spans(self) -> list[Span]:
        return [
            Span(
                service=_values(group.resource.attributes)["service.name"],  # type: ignore[arg-type]
                name=span.name,
                kind=span.kind,
                trace_id=span.trace_id.hex(),
                span_id=span.span_id.hex(),
                parent_id=span.parent_span_id.hex(),
                attributes=_values(span.attributes),
            )
            for body in list(self.bodies)
            for group in ExportTraceServiceRequest.FromString(body).resource_spans
            for scope in group.scope_spans
            for span in scope.spans
        ]


def _values(attributes) -> dict[str, object]:  # type: ignore[no-untyped-def]
    return {a.key: getattr(a.value, a.value.WhichOneof("value") or "", None) for a in attributes}


@contextmanager
def collecting() -> Iterator[Collector]:
    collector = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.path == "/v1/traces":
                collector.bodies.append(body)
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    collector.base_url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield collector
    finally:
        server.shutdown()
        server.server_close()


@dataclass
class Process:
    """One service in a process of its own; `log` is its stderr."""

    name: str
    base_url: str
    log: Path
    process: subprocess.Popen[bytes]

    def wait(self) -> None:
        wait_until_ready(self.base_url, self.process, self.log, 180)

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(10)
            raise AssertionError(f"{self.name} did not stop:\n{tail(self.log)}") from None


@contextmanager
def started(name: str, folder: Path, environment: Mapping[str, str]) -> Iterator[Process]:
    """`evaluation` or `gateway`, on its way up: `wait` for it before you call it."""
    port = free_port()
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("JOING_", "OTEL_"))}
    command = [sys.executable, "-m", "uvicorn", "--factory", f"tests.fakes.traced:{name}"]
    log = folder / f"{name}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, "--port", str(port), "--log-level", "error"],
            cwd=ROOT,
            env={**inherited, "JOING_HOME": str(folder), **environment},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    service = Process(name, f"http://127.0.0.1:{port}", log, process)
    try:
        yield service
    finally:
        if process.poll() is None:
            service.stop()
