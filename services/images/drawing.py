"""A request of the images API on its way through the engine: as images asked for, as pictures.

Knows nothing of HTTP: raises what the engine raises.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from models.flux.engine import Engine, Event, Listener, Progress, Ticket
from models.flux.errors import InvalidRequest
from models.flux.request import ImageRequest
from services.images.memory import Begun
from services.images.model import ChosenModel
from services.images.pictures import SOFTWARE, encoded
from services.images.schemas import (
    Base,
    DrawnImage,
    ImageGeneration,
    ImagesAnswer,
    InputTokens,
    OutputFormat,
    Usage,
)

if TYPE_CHECKING:
    from PIL.Image import Image

CHANCE_SEEDS = 2**32
"""Seeds that we choose are below it, so that every JSON reader keeps all of their digits."""


@dataclass(frozen=True)
class Wanted:
    """One call, with everything that it left out."""

    requests: tuple[ImageRequest, ...]
    form: OutputFormat
    quality: int | None

    @property
    def size(self) -> str:
        return f"{self.requests[0].width}x{self.requests[0].height}"


class Drawer:
    """Asks one engine for pictures of one model."""

    def __init__(self, engine: Engine, model: ChosenModel) -> None:
        self.engine = engine
        self._model = model
        self._limits = engine.runner.limits

    def base(self) -> Base:
        """What the model says of itself."""
        return Base(
            name=self._model.spec.name,
            trigger=self._model.trigger,
            width=self._model.width,
            height=self._model.height,
            size_multiple=self._limits.size_multiple,
            min_side_px=self._limits.min_side_px,
            max_pixels=self._limits.max_pixels,
            vocabulary=self._model.vocabulary,
        )

    def wanted(self, body: ImageGeneration) -> Wanted:
        """Raises InvalidRequest for what no single image shows."""
        lora = None if body.model in (None, self._model.spec.name) else body.model
        _require(lora is not None or body.lora_scale is None, "lora_scale", "is for a LoRA")
        is_stream = bool(body.stream)
        _require(not is_stream or body.n in (None, 1), "n", "must be 1 in a stream")
        _require(is_stream or not body.partial_images, "partial_images", "needs stream: true")
        return Wanted(
            self._requests(body, lora),
            form=body.output_format or "png",
            quality=body.output_compression,
        )

    def _requests(self, body: ImageGeneration, lora: str | None) -> tuple[ImageRequest, ...]:
        width, height = body.sides() or (self._model.width, self._model.height)
        first = secrets.randbelow(CHANCE_SEEDS) if body.seed is None else body.seed
        usual = self._model.guidance if self._limits.has_guidance else None
        return tuple(
            ImageRequest(
                prompt=body.prompt,
                width=width,
                height=height,
                steps=self._model.steps if body.steps is None else body.steps,
                seed=seed,
                guidance=usual if body.guidance is None else body.guidance,
                lora=lora,
                lora_scale=1.0 if body.lora_scale is None else body.lora_scale,
                deadline_s=body.deadline_s,
                previews=body.partial_images or 0,
            )
            for seed in range(first, first + (body.n or 1))
        )

    async def draw(self, wanted: Wanted) -> list[DrawnImage]:
        """All of them, or what went wrong first. Cancelled, it frees their places at once."""
        async with self.admitted(wanted) as tickets:
            return await asyncio.gather(*(self.finished(wanted, ticket) for ticket in tickets))

    def begin(self, wanted: Wanted) -> Begun:
        """`draw` for several who wait. Raises InvalidRequest, Refused."""
        tickets = self.engine.submit(wanted.requests)

        async def answer() -> bytes:
            try:
                drawn = await asyncio.gather(*(self.finished(wanted, one) for one in tickets))
            finally:
                self._give_up(tickets)
            return self.answer(wanted, drawn)

        return Begun(answer(), give_up=lambda: self._give_up(tickets))

    def answer(self, wanted: Wanted, drawn: Sequence[DrawnImage]) -> bytes:
        """The wire form."""
        answer = ImagesAnswer(
            created=int(time.time()),
            data=list(drawn),
            output_format=wanted.form,
            size=wanted.size,
            usage=self.usage(wanted),
        )
        return answer.model_dump_json().encode()

    @asynccontextmanager
    async def admitted(
        self, wanted: Wanted, listener: Listener | None = None
    ) -> AsyncIterator[Sequence[Ticket]]:
        """Tickets, of which none is live after. Raises InvalidRequest, Refused."""
        tickets = self.engine.submit(wanted.requests, listener)
        try:
            yield tickets
        finally:
            self._give_up(tickets)

    def _give_up(self, tickets: Sequence[Ticket]) -> bool:
        """Frees the places of what is not finished. False when all of it is.

        The engine may be delivering a picture at this moment, in its own thread. The future says
        which came first: one that can be cancelled gets no picture any more, and whoever waits for
        it a CancelledError.
        """
        unfinished = [ticket for ticket in tickets if ticket.image.cancel()]
        self.engine.cancel(unfinished)
        return bool(unfinished)

    def finished(self, wanted: Wanted, ticket: Ticket) -> Awaitable[DrawnImage]:
        """The picture of a ticket that was just admitted. Raises JobFailed, Cancelled."""
        return self._finished(wanted, ticket, time.monotonic())

    async def _finished(self, wanted: Wanted, ticket: Ticket, began_s: float) -> DrawnImage:
        image = await asyncio.wrap_future(ticket.image)
        file = await self.file(wanted, image, self._written_into(wanted, ticket))
        asked = ticket.request
        return DrawnImage(
            b64_json=file,
            seed=asked.seed,
            lora=asked.lora,
            steps=asked.steps,
            guidance=asked.guidance,
            eta_s=round(ticket.eta_s, 3),
            duration_ms=round((time.monotonic() - began_s) * 1_000, 1),
        )

    async def file(self, wanted: Wanted, image: Image, text: dict[str, str] | None = None) -> str:
        return await asyncio.to_thread(encoded, image, wanted.form, wanted.quality, text)

    def _written_into(self, wanted: Wanted, ticket: Ticket) -> dict[str, str]:
        """What a PNG says of itself: enough to draw it again."""
        asked = ticket.request
        told = {
            "prompt": asked.prompt,
            "model": self._model.spec.name,
            "lora": asked.lora,
            "lora_digest": ticket.lora.digest if ticket.lora else None,
            "lora_scale": None if asked.lora is None else asked.lora_scale,
            "seed": asked.seed,
            "steps": asked.steps,
            "guidance": asked.guidance,
            "size": wanted.size,
            "Software": SOFTWARE,
        }
        return {key: str(value) for key, value in told.items() if value is not None}

    def usage(self, wanted: Wanted) -> Usage:
        """In tokens of the transformer: padded text, and patches of latents."""
        first = wanted.requests[0]
        text = self._limits.text_tokens
        image = self._limits.image_tokens(first.width, first.height) * len(wanted.requests)
        return Usage(
            input_tokens=text,
            input_tokens_details=InputTokens(text_tokens=text),
            output_tokens=image,
            total_tokens=text + image,
        )


class Previews:
    """Hands an engine's previews over to an event loop, in order, and then None."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._images: asyncio.Queue[Image | None] = asyncio.Queue()

    def __call__(self, event: Event) -> None:
        if event.kind is Progress.PREVIEW:
            self._loop.call_soon_threadsafe(self._images.put_nowait, event.image)

    def end(self) -> None:
        self._images.put_nowait(None)

    @property
    def are_left(self) -> bool:
        return not self._images.empty()

    async def next(self) -> Image | None:
        """The next one; None when the finished picture is there, or has failed."""
        return await self._images.get()


def _require(is_right: bool, field: str, message: str) -> None:
    if not is_right:
        raise InvalidRequest(field, message)
