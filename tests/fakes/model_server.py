"""A process that stands for vLLM before the supervisor: /health, /v1/chat/completions, faults.

    python model_server.py PORT [--ill] [--stubborn] [--chatty] [--free-spirited]

POST /die ends it at once; POST /fall-ill makes /health answer 503; POST /hang stops answering.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

parser = argparse.ArgumentParser()
parser.add_argument("port", type=int)
parser.add_argument("--ill", action="store_true", help="/health never answers 200")
parser.add_argument("--stubborn", action="store_true", help="ignores SIGTERM, and so does a child")
parser.add_argument("--chatty", action="store_true", help="a line over any limit, then a last one")
parser.add_argument("--free-spirited", action="store_true", help="a choice is not enforced")
options = parser.parse_args()
is_ill = options.ill
hangs = False


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        while hangs:
            time.sleep(0.1)
        self.answer(503 if is_ill else 200, {"pid": os.getpid()})

    def do_POST(self) -> None:
        global is_ill, hangs
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        if self.path == "/die":
            os._exit(3)
        if self.path == "/fall-ill":
            is_ill = True
        if self.path == "/hang":
            hangs = True
        if self.path == "/v1/chat/completions":
            choice = json.loads(body)["structured_outputs"]["choice"][0]
            said = "hello" if options.free_spirited else choice
            self.answer(200, {"choices": [{"message": {"content": said}}]})
            return
        self.answer(200, {})

    def answer(self, status: int, content: object) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


if options.chatty:
    sys.stdout.write("x" * 1_000_000 + "\n" + "the last word\n")
    sys.stdout.flush()
    sys.exit(7)
if options.stubborn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
ThreadingHTTPServer(("127.0.0.1", options.port), Handler).serve_forever()
