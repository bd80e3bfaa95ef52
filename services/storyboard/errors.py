"""What can go wrong on the way to a storyboard, beside a language model's errors
(services/shared/language_model.py) and a database's (services/shared/storage.py).

JobError
├── KeyReused          an idempotency key that stands for another request: 409
├── TooManyJobs        this caller has as many unfinished storyboards as are allowed: 429
├── StillRunning       finished things only: 409
└── LeaseLost          another worker has the job, or it was cancelled: whatever comes is too late
PaintingError
├── PainterBusy        images is full, starting or away: wait `retry_after_s`, try again
├── FrameFailed        this picture went wrong; another try may not
└── FrameRefused       images will never draw this request
ScreenUnavailable      the deliberation cannot be had now: wait, try again
JobFailed              the storyboard cannot be finished: state `failed` with `code`
CheckpointStale        the graph is to begin again from its first step
SheetError             the sheet cannot be set (sheet.py)
ArtifactMissing        a picture that should be there is not
"""

from __future__ import annotations


class JobError(Exception):
    """Base of what a JobStore may raise beside StorageUnavailable."""


class KeyReused(JobError):
    pass


class TooManyJobs(JobError):
    def __init__(self, limit: int) -> None:
        super().__init__(f"{limit} storyboards of this key are not finished")
        self.limit = limit


class StillRunning(JobError):
    pass


class LeaseLost(JobError):
    pass


class PaintingError(Exception):
    """Base of everything that a Painter may raise."""


class PainterBusy(PaintingError):
    def __init__(self, detail: str, retry_after_s: float) -> None:
        super().__init__(detail)
        self.retry_after_s = retry_after_s


class FrameFailed(PaintingError):
    pass


class FrameRefused(PaintingError):
    """`code` is the images service's own name for the reason."""

    def __init__(self, detail: str, code: str) -> None:
        super().__init__(detail)
        self.code = code


class ScreenUnavailable(Exception):
    def __init__(self, detail: str, retry_after_s: float) -> None:
        super().__init__(detail)
        self.retry_after_s = retry_after_s


class JobFailed(Exception):
    """`code` is stable; the message is for the planner, in the proposal's language."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class ArtifactMissing(Exception):
    pass


class CheckpointStale(Exception):
    """What the checkpoint says and what is recorded do not agree: begin at the first step."""


class SheetError(Exception):
    pass
