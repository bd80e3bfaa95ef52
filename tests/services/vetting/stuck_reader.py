"""A reading process with the faults that the real one would need luck to show, by their names."""

from __future__ import annotations

import json
import os
import signal
import time

from services.vetting.adapters.workers import serve

LINE = {"text": "hello", "confidence": 0.5, "box": [0.1, 0.2, 0.3, 0.4]}


def answer(request: bytes) -> bytes:
    match request.decode():
        case "sleep":
            time.sleep(3600)
        case "spin":
            while True:
                pass
        case "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        case "exit":
            os._exit(3)
        case "garbage":
            return b"\xff\xfe no JSON"
        case "nonsense":
            return b'[{"text": "a"}, 7]'
        case "huge":
            os.write(1, b"\xff\xff\xff\xff")  # what a library prints does not get into a frame
        case "environment":
            return json.dumps([LINE | {"text": " ".join(sorted(os.environ))}]).encode()
    return json.dumps([LINE]).encode()


if __name__ == "__main__":
    serve(answer)
