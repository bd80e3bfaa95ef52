"""Reads Korean and English text in pictures, in processes that can be killed (reading.py).

Knows how long a picture may take and what a failure is called; reading itself happens elsewhere.
"""

from __future__ import annotations

import json

from services.vetting.adapters import reading
from services.vetting.adapters.workers import (
    WorkerDied,
    WorkerLacks,
    Workers,
    WorkersBusy,
    WorkerTimedOut,
)
from services.vetting.pictures import (
    Box,
    OcrBusy,
    OcrFailed,
    OcrTimedOut,
    OcrUnavailable,
    Picture,
    ReadText,
)


class ThumbnailReader:
    """A TextReader with `workers` processes of about 0.4 GB each, started at the first picture.

    A picture takes about 0.7 s of one core. After `timeout_s` its process is killed, and the next
    picture gets a new one. At most `max_waiting` pictures wait, each for at most `wait_s`. Of a
    picture, the 40 largest lines are read. A line that was found and read badly comes with a low
    confidence: it is for the caller to say that it could not be read.
    """

    def __init__(
        self,
        *,
        workers: int = 1,
        timeout_s: float = 10.0,
        max_waiting: int = 200,
        wait_s: float = 120.0,
        module: str = reading.__name__,
    ) -> None:
        """Raises OcrUnavailable, with how to install what is missing."""
        if module == reading.__name__ and (lacks := reading.lacking()):
            raise OcrUnavailable(lacks)
        self._timeout_s = timeout_s
        self._workers = Workers(module, count=workers, max_waiting=max_waiting, wait_s=wait_s)

    async def read(self, picture: Picture) -> list[ReadText]:
        """From the largest line to the smallest. Raises TextReadError.

        Cancelled, the process that reads is killed.
        """
        try:
            answer = await self._workers.ask(picture.data, timeout_s=self._timeout_s)
            return [_text(found) for found in json.loads(answer)]
        except WorkersBusy as error:
            raise OcrBusy(str(error)) from None
        except WorkerLacks as error:
            raise OcrUnavailable(str(error)) from None
        except WorkerTimedOut as error:
            raise OcrTimedOut(str(error)) from None
        except WorkerDied as error:
            raise OcrFailed(str(error)) from None
        except (ValueError, KeyError, TypeError) as error:
            raise OcrFailed(f"the reader answered {type(error).__name__}: {error}") from None

    async def start(self) -> None:
        """Loads one process ahead of the first picture: seconds. Raises TextReadError."""
        try:
            await self._workers.start()
        except WorkerLacks as error:
            raise OcrUnavailable(str(error)) from None
        except (WorkerDied, WorkersBusy, WorkerTimedOut) as error:
            raise OcrFailed(str(error)) from None

    def pids(self) -> list[int]:
        """Of the reading processes that live now."""
        return self._workers.pids()

    async def aclose(self) -> None:
        await self._workers.aclose()


def _text(found: dict[str, object]) -> ReadText:
    x, y, width, height = (float(share) for share in found["box"])  # type: ignore[attr-defined]
    confidence = min(1.0, max(0.0, float(found["confidence"])))  # type: ignore[arg-type]
    return ReadText(str(found["text"]), Box(x, y, width, height), confidence)
