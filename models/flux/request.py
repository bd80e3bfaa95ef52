"""What is asked for, and how far it has come. Pure: no torch, no clock, no I/O."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

from models.flux.errors import FluxError, InvalidRequest

MAX_SEED = 2**63 - 1
MAX_PROMPT_CHARACTERS = 4_000
MAX_PREVIEWS = 3
MAX_LORA_SCALE = 4.0
MAX_GUIDANCE = 30.0


@dataclass(frozen=True, slots=True)
class ImageRequest:
    """One image. `guidance` is None for a model without guidance, `lora` None for the base."""

    prompt: str
    width: int
    height: int
    """Pixels, multiples of what the model's VAE and patches come to."""
    steps: int
    seed: int
    guidance: float | None = None
    lora: str | None = None
    lora_scale: float = 1.0
    deadline_s: float | None = None
    """Seconds from admission within which the image is wanted; refused if that cannot be."""
    previews: int = 0
    """Unfinished pictures wanted on the way."""


@dataclass(frozen=True)
class RequestLimits:
    """What the loaded model can draw."""

    size_multiple: int
    """Pixels; width and height are multiples of it."""
    min_side_px: int
    max_pixels: int
    max_steps: int
    has_guidance: bool
    text_tokens: int
    """Of every row: prompts are padded to it."""

    def image_tokens(self, width: int, height: int) -> int:
        return (width // self.size_multiple) * (height // self.size_multiple)

    def check(self, request: ImageRequest) -> None:
        """Raises InvalidRequest, naming the first field that no engine could draw."""
        self._check_size(request)
        _check(1 <= request.steps <= self.max_steps, "steps", f"must be 1 to {self.max_steps}")
        _check(0 <= request.seed <= MAX_SEED, "seed", f"must be 0 to {MAX_SEED}")
        self._check_guidance(request.guidance)
        _check(
            bool(request.prompt.strip()) and len(request.prompt) <= MAX_PROMPT_CHARACTERS,
            "prompt",
            f"must have 1 to {MAX_PROMPT_CHARACTERS} characters",
        )
        _check(
            _is_within(request.lora_scale, -MAX_LORA_SCALE, MAX_LORA_SCALE),
            "lora_scale",
            f"must be between -{MAX_LORA_SCALE:g} and {MAX_LORA_SCALE:g}",
        )
        deadline_s = request.deadline_s
        _check(
            deadline_s is None or (math.isfinite(deadline_s) and deadline_s > 0),
            "deadline_s",
            "must be a number of seconds above 0",
        )
        _check(0 <= request.previews <= MAX_PREVIEWS, "previews", f"must be 0 to {MAX_PREVIEWS}")

    def _check_size(self, request: ImageRequest) -> None:
        for field, side in (("width", request.width), ("height", request.height)):
            _check(
                side >= self.min_side_px and side % self.size_multiple == 0,
                field,
                f"must be a multiple of {self.size_multiple}, {self.min_side_px} or more; "
                f"{side} is not",
            )
        pixels = request.width * request.height
        _check(
            pixels <= self.max_pixels,
            "width",
            f"times height may be {self.max_pixels} pixels at most; "
            f"{request.width}x{request.height} are {pixels}",
        )

    def _check_guidance(self, guidance: float | None) -> None:
        if not self.has_guidance:
            _check(guidance is None, "guidance", "is not known to this model; leave it out")
            return
        _check(
            guidance is not None and _is_within(guidance, 0.0, MAX_GUIDANCE),
            "guidance",
            f"must be a number from 0 to {MAX_GUIDANCE:g}",
        )


def _check(is_right: bool, field: str, message: str) -> None:
    if not is_right:
        raise InvalidRequest(field, message)


def _is_within(value: float, low: float, high: float) -> bool:
    return math.isfinite(value) and low <= value <= high


class JobState(StrEnum):
    """Every job is in exactly one of these."""

    WAITING = "waiting"
    RUNNING = "running"
    """In the batch, or drawn and about to be decoded."""
    PARKED = "parked"
    """Begun, and out of the batch for now; its latents are kept."""
    FINISHED = "finished"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_live(self) -> bool:
        return self in (JobState.WAITING, JobState.RUNNING, JobState.PARKED)


@dataclass(slots=True)
class Work:
    """What is left of one job, as the scheduler sees it. Copied for simulations."""

    order: int
    """Counts admissions; breaks ties, and names the job."""
    tokens: int
    """Of its row, image and text."""
    lora: str | None
    """Digest of its LoRA's file."""
    steps_left: int
    preview_at: frozenset[int] = frozenset()
    """Values of `steps_left` at which an unfinished picture is wanted."""
    is_encoded: bool = False
    is_preview_due: bool = False
    due_s: float = math.inf
    """On the scheduler's clock; earlier goes first."""
    deadline_at_s: float | None = None

    @property
    def is_drawn(self) -> bool:
        return self.steps_left == 0

    def advance(self, steps: int = 1) -> None:
        """That many steps are done. Never over a preview, which would be missed."""
        self.steps_left -= steps
        self.is_preview_due |= self.steps_left in self.preview_at

    def steps_to_event(self) -> int:
        """Steps until it is drawn or a preview is due."""
        ahead = [at for at in self.preview_at if at < self.steps_left]
        return self.steps_left - max(ahead, default=0)


@dataclass(slots=True, eq=False)
class Job:
    """One admitted request on its way. Only the scheduler changes `state`."""

    request: ImageRequest
    work: Work
    state: JobState = JobState.WAITING
    error: FluxError | None = None

    @property
    def id(self) -> int:
        return self.work.order


def preview_steps(steps: int, previews: int) -> frozenset[int]:
    """The values of `steps_left` that spread `previews` pictures evenly over `steps`."""
    wanted = {steps - round(steps * n / (previews + 1)) for n in range(1, previews + 1)}
    return frozenset(left for left in wanted if 0 < left < steps)
