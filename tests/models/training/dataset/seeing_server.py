"""A server that speaks OpenAI's chat completions and sees: it looks at the picture it was sent.

It stands for a vision model that misbehaves on demand; what it does with a call is a test's choice.
"""

from __future__ import annotations

import base64
import json
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from typing import Any

from PIL import Image


@dataclass
class Act:
    """What one call gets. `body` is sent in place of a completion of `text`."""

    text: str | None = None
    status: int = 200
    finish_reason: str = "stop"
    refusal: str | None = None
    body: bytes | None = None
    delay_s: float = 0.0
    trickle_s: float = 0.0
    """Pause after each byte of the answer."""
    hangs_up: bool = False


@dataclass
class SeeingServer:
    """Acts are used up one a call; None, and no act, describes the picture truly."""

    url: str = ""
    acts: deque[Act | None] = field(default_factory=deque)
    calls: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    busiest: int = 0
    """Most calls that were in the server at once."""
    lock: threading.Lock = field(default_factory=threading.Lock)
    inside: int = 0

    def answer(self, call: dict[str, Any]) -> Act:
        with self.lock:
            self.calls.append(call)
            act = self.acts.popleft() if self.acts else None
            return act or Act(f"a {describe(call)} picture")


def describe(call: dict[str, Any]) -> str:
    """Size and mean grey of the picture in the call."""
    (part,) = call["messages"][1]["content"]
    head, _, data = part["image_url"]["url"].partition(",")
    assert head == "data:image/png;base64"
    image = Image.open(BytesIO(base64.b64decode(data)))
    grey = image.resize((1, 1), Image.Resampling.BOX).convert("L").getpixel((0, 0))
    return f"{image.width} by {image.height} grey {grey}"


@contextmanager
def seeing_server() -> Iterator[SeeingServer]:
    state = SeeingServer()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            with state.lock:
                state.inside += 1
                state.busiest = max(state.busiest, state.inside)
            try:
                self._respond()
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True
            finally:
                with state.lock:
                    state.inside -= 1

        def _respond(self) -> None:
            call = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            state.keys.append(self.headers.get("Authorization", ""))
            act = Act(status=404) if self.path != "/v1/chat/completions" else state.answer(call)
            time.sleep(act.delay_s)
            if act.hangs_up:
                self.close_connection = True
                return
            message = {"role": "assistant", "content": act.text, "refusal": act.refusal}
            choice = {"index": 0, "message": message, "finish_reason": act.finish_reason}
            body = act.body if act.body is not None else json.dumps({"choices": [choice]}).encode()
            self.send_response(act.status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            for byte in body if act.trickle_s else ():
                self.wfile.write(bytes([byte]))
                time.sleep(act.trickle_s)
            if not act.trickle_s:
                self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: object, client_address: object) -> None:
            """A client that was told to wait too long has gone."""

    server = Server(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{server.server_port}/v1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        thread.join(10)
        server.server_close()
