"""What can go wrong with an image, by who should act.

FluxError
├── InvalidRequest       the caller: names the field and what would be right
│   ├── UnknownLora      no LoRA of that name is registered
│   └── DeadlineTooShort even an idle engine would need longer
├── LoraRefused          whoever brought the file: it would not load as what it says it is
├── LoraInUse            wait until the images that use it are drawn
├── Refused              the caller, later: carries `retry_after_s`
│   ├── QueueFull        as many jobs as are allowed are waiting
│   ├── DeadlineUnmeetable  the exact remaining work says that it would be late
│   ├── Draining         this engine is shutting down
│   └── EngineBroken     this engine failed too often: the operator restarts it
├── JobFailed            one image; its neighbours in the batch go on
│   ├── NotFinite        the model produced NaN or infinity
│   ├── OutOfMemory      not even alone does it fit
│   ├── LoraVanished     its LoRA could not be read any more when its turn came
│   ├── DeadlinePassed   it was admitted, and the engine then became slower than promised
│   ├── EngineStopped    the engine was shut down before the image was drawn
│   └── Unexplained      the engine failed on it; the reason is in the log
├── Cancelled            somebody called cancel
└── ModelUnusable        the operator: the folder is no Flux.1-layout pipeline that fits here
"""

from __future__ import annotations


class FluxError(Exception):
    """Base of everything that `models.flux` raises on purpose."""


class InvalidRequest(FluxError):
    """A request that no engine with this model could draw. `field` is the request's own name."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field} {message}")
        self.field = field
        self.message = message


class UnknownLora(InvalidRequest):
    """`lora` names nothing that is registered."""


class DeadlineTooShort(InvalidRequest):
    """`deadline_s` is below the time that the image needs when nothing else is drawn."""


class LoraRefused(FluxError):
    """A LoRA file that would load as nothing, in part, or as something else."""


class LoraInUse(FluxError):
    """Every slot of the bank is pinned, or the LoRA to be removed is."""


class Refused(FluxError):
    """Not now. `retry_after_s` is when another try makes sense; `reason` names it in metrics."""

    reason = "refused"

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class QueueFull(Refused):
    reason = "queue_full"


class DeadlineUnmeetable(Refused):
    reason = "deadline"


class Draining(Refused):
    reason = "draining"


class EngineBroken(Refused):
    reason = "broken"


class JobFailed(FluxError):
    """One image could not be drawn."""


class NotFinite(JobFailed):
    """NaN or infinity in this row's latents."""


class OutOfMemory(JobFailed):
    """It does not fit into memory even when drawn alone."""


class LoraVanished(JobFailed):
    """The file of an admitted request's LoRA is gone or broken."""


class DeadlinePassed(JobFailed):
    """Its deadline came before its last step."""


class EngineStopped(JobFailed):
    """The engine was shut down first."""


class Unexplained(JobFailed):
    """Something that nobody foresaw happened in this image's batch."""


class Cancelled(FluxError):
    """The job was cancelled before it was finished."""


class ModelUnusable(FluxError):
    """The folder does not hold what the engine can run."""
