"""The only holder of a model: loads it, and runs what the scheduler said on it.

Knows rows and tensors; nothing of queues, deadlines or threads. All methods are for one thread.
Shape suffixes as in sampling.py.
"""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import TYPE_CHECKING

import torch

from models.flux import sampling
from models.flux.attention import RowAttention, RowPositions
from models.flux.config import EngineConfig, ModelSpec
from models.flux.costs import Costs, token_budget
from models.flux.errors import ModelUnusable, NotFinite, OutOfMemory
from models.flux.loading import choose_device, choose_dtype, load_pipeline, quantise_to_float8
from models.flux.lora import LoraBank
from models.flux.lora_files import LoraWeights, linear_shapes
from models.flux.memory import keep_freed_memory, memory_errors
from models.flux.request import ImageRequest, RequestLimits
from models.flux.text import TextEmbedding, TextEncoder

if TYPE_CHECKING:
    from PIL.Image import Image

TIMED_ROWS = (1, 2, 4, 8, 16, 32)
TIMINGS = 3  # of each; the shortest counts
GETS_WORSE = 1.25  # time per row, against the best so far: larger batches need no timing


@dataclass(slots=True, eq=False)
class Row:
    """One image under way. `latents_LC` is float32 on the model's device."""

    request: ImageRequest
    schedule: sampling.Schedule
    text: TextEmbedding
    rotation_SD: torch.Tensor
    latents_LC: torch.Tensor
    lora: LoraWeights | None
    step: int = 0
    estimate_LC: torch.Tensor | None = None
    """The picture as the last step foresaw it; kept only where previews are wanted."""


@dataclass(frozen=True, slots=True)
class _Batch:
    """What does not change while the same rows are drawn together."""

    rows: tuple[Row, ...]
    text_BTE: torch.Tensor
    pooled_BP: torch.Tensor
    rotation_BSD: torch.Tensor
    guidance_B: torch.Tensor | None


class Runner:
    """A loaded pipeline. Raises ModelUnusable when the folder is not one."""

    def __init__(self, spec: ModelSpec, config: EngineConfig) -> None:
        self.spec = spec
        self.device = choose_device(config.device)
        self.dtype = choose_dtype(config.dtype, self.device)
        if self.device.type == "cpu":
            keep_freed_memory()
            torch.set_num_threads(config.threads or len(os.sched_getaffinity(0)))
        pipeline = load_pipeline(spec, self.dtype, self.device)
        self._vae = pipeline.vae
        self._images = pipeline.image_processor
        self._scheduler = pipeline.scheduler
        self._max_rows = config.max_rows
        self._vae_scale = pipeline.vae_scale_factor
        self._text = TextEncoder(
            pipeline.text_encoder,
            pipeline.tokenizer,
            pipeline.text_encoder_2,
            pipeline.tokenizer_2,
            max_sequence_length=spec.max_sequence_length,
            cache_entries=config.text_cache_entries,
        )
        self._transformer = pipeline.transformer
        self._positions = RowPositions(self._transformer.pos_embed)
        self.linears = linear_shapes(self._transformer)
        self.limits = self._limits()
        self._schedule = lru_cache(maxsize=256)(self._new_schedule)
        self._rotation = lru_cache(maxsize=32)(self._new_rotation)
        self.bank = self._prepare(config)
        self._batch: _Batch | None = None

    def _prepare(self, config: EngineConfig) -> LoraBank:
        """Makes the stock transformer draw rows of different kinds."""
        transformer = self._transformer
        transformer.pos_embed = self._positions
        transformer.set_attn_processor(RowAttention())
        if config.attention_backend is not None:
            transformer.set_attention_backend(config.attention_backend)
        if config.float8:
            quantise_to_float8(transformer)
        bank = LoraBank(
            transformer,
            slots=config.lora_slots,
            max_rank=config.lora_max_rank,
            max_rows=config.max_rows,
            is_compiled=config.compile,
        )
        if config.compile:
            transformer.compile_repeated_blocks(backend=config.compile_backend, fullgraph=True)
        return bank

    def _limits(self) -> RequestLimits:
        multiple = 2 * self._vae_scale
        return RequestLimits(
            size_multiple=multiple,
            min_side_px=max(self.spec.min_side_px, multiple),
            max_pixels=self.spec.max_pixels,
            max_steps=self.spec.max_steps,
            has_guidance=bool(self._transformer.config.guidance_embeds),
            text_tokens=self.spec.max_sequence_length,
        )

    # --- one image's beginning and end ------------------------------------------------------------

    def is_encoded(self, prompt: str) -> bool:
        """True when `begin` will not have to encode it. Any thread may ask."""
        return self._text.has(prompt)

    def begin(
        self, requests: Sequence[ImageRequest], loras: Sequence[LoraWeights | None]
    ) -> list[Row]:
        """A row for each request, its prompt encoded. Raises OutOfMemory."""
        with memory_errors(), torch.inference_mode():
            texts = self._text.encode([request.prompt for request in requests])
            return [
                self._row(request, text, lora)
                for request, text, lora in zip(requests, texts, loras, strict=True)
            ]

    def _row(self, request: ImageRequest, text: TextEmbedding, lora: LoraWeights | None) -> Row:
        height, width = self._latent_size(request)
        channels = self._transformer.config.in_channels // 4
        return Row(
            request=request,
            schedule=self._schedule(request.steps, height * width // 4),
            text=text,
            rotation_SD=self._rotation(height, width),
            latents_LC=sampling.noise(request.seed, channels, height, width, self.dtype).to(
                self.device
            ),
            lora=lora,
        )

    def finish(self, row: Row) -> Image:
        """The picture. Raises NotFinite, OutOfMemory."""
        return self._decode(row.request, row.latents_LC)

    def preview(self, row: Row) -> Image:
        """The picture as the last step foresaw it. Raises NotFinite, OutOfMemory."""
        estimate = row.estimate_LC if row.estimate_LC is not None else row.latents_LC
        return self._decode(row.request, estimate)

    def _decode(self, request: ImageRequest, latents_LC: torch.Tensor) -> Image:
        with memory_errors(), torch.inference_mode():
            if not bool(torch.isfinite(latents_LC).all()):
                raise NotFinite("the model produced NaN or infinity for this image")
            latents = sampling.unpack(latents_LC[None], *self._latent_size(request))
            config = self._vae.config
            latents = latents.to(self._vae.dtype) / config.scaling_factor + config.shift_factor
            pixels = self._vae.decode(latents, return_dict=False)[0]
            image: Image = self._images.postprocess(pixels, output_type="pil")[0]
            return image

    # --- a step -----------------------------------------------------------------------------------

    def step(self, rows: Sequence[Row]) -> None:
        """One denoising step of every row, each from where it is. Rows have equally many tokens.

        Raises OutOfMemory, and then no row has changed; LoraInUse for more LoRAs than slots.
        """
        with memory_errors(), torch.inference_mode():
            batch = self._gather(tuple(rows))
            latents_BLC = torch.stack([row.latents_LC for row in rows])
            timestep_B11, sigma_B11, next_B11 = self._columns(
                [row.schedule.timesteps[row.step] for row in rows],
                [row.schedule.sigmas[row.step] for row in rows],
                [row.schedule.sigmas[row.step + 1] for row in rows],
            )
            velocity_BLC = self._velocity(batch, latents_BLC, timestep_B11.view(-1))
            # Python floats would round the difference once more than float32 does.
            delta_B11 = next_B11 - sigma_B11
            stepped_BLC = sampling.euler(latents_BLC, velocity_BLC, delta_B11)
            for at, row in enumerate(rows):
                if row.request.previews:
                    row.estimate_LC = latents_BLC[at] - sigma_B11[at] * velocity_BLC[at]
                row.latents_LC = stepped_BLC[at]
                row.step += 1

    def _velocity(
        self, batch: _Batch, latents_BLC: torch.Tensor, timestep_B: torch.Tensor
    ) -> torch.Tensor:
        self._positions.rotation_BSD = batch.rotation_BSD
        ids = torch.empty(0, 3, device=self.device)  # RowPositions has the real ones
        velocity: torch.Tensor = self._transformer(
            hidden_states=latents_BLC.to(self.dtype),
            timestep=timestep_B.to(self.dtype),
            guidance=batch.guidance_B,
            pooled_projections=batch.pooled_BP,
            encoder_hidden_states=batch.text_BTE,
            txt_ids=ids,
            img_ids=ids,
            return_dict=False,
        )[0]
        return velocity.float()

    def _gather(self, rows: tuple[Row, ...]) -> _Batch:
        """The tensors of these rows side by side; kept while the same rows go on."""
        if self._batch is not None and self._batch.rows == rows:
            return self._batch
        self._batch = None
        self.bank.pin([row.lora for row in rows if row.lora is not None])
        self.bank.select(
            [row.lora.digest if row.lora else None for row in rows],
            [row.request.lora_scale for row in rows],
        )
        guidance_B = None
        if self.limits.has_guidance:
            guidance_B = self._columns([float(row.request.guidance or 0.0) for row in rows]).view(
                -1
            )
        self._batch = _Batch(
            rows=rows,
            text_BTE=torch.stack([row.text.tokens_TE for row in rows]),
            pooled_BP=torch.stack([row.text.pooled_P for row in rows]),
            rotation_BSD=torch.stack([row.rotation_SD for row in rows]),
            guidance_B=guidance_B,
        )
        return self._batch

    def _columns(self, *columns: Sequence[float]) -> torch.Tensor:
        """float32 [columns, B, 1, 1] on the device, in one transfer."""
        values = torch.tensor(columns, dtype=torch.float32)[..., None, None]
        if self.device.type == "cuda":
            return values.pin_memory().to(self.device, non_blocking=True)
        return values

    def forget_batch(self) -> None:
        """Nothing is being drawn: lets go of the last batch's tensors, and of every pin."""
        self._batch = None
        self.bank.pin([])

    def free_memory(self) -> None:
        """After an OutOfMemory: what the allocator holds goes back."""
        self.forget_batch()
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    # --- what it costs ----------------------------------------------------------------------------

    def warm_up(self, width: int, height: int) -> None:
        """Makes the graphs of a compiled model: for one row, for a first crowd, for crowds of any
        number; each with LoRAs and without.
        """
        row = self._sample_row(width, height, steps=2)
        for count in range(1, min(3, self._max_rows) + 1):
            rows = [replace(row) for _ in range(count)]
            self.step(rows)
            self.bank.select_zeros(count)  # the batch stays gathered
            self.step(rows)
        self.forget_batch()

    def _sample_row(self, width: int, height: int, steps: int) -> Row:
        guidance = 0.0 if self.limits.has_guidance else None
        request = ImageRequest("calibration", width, height, steps, seed=0, guidance=guidance)
        return self.begin([request], [None])[0]

    def calibrate(
        self,
        width: int,
        height: int,
        *,
        max_rows: int,
        clock: Callable[[], float] = time.perf_counter,
    ) -> tuple[Costs, int]:
        """Times steps of growing batches at this size, encoding and decoding. Returns the costs and
        the token budget where batches stop paying.
        """
        row = self._sample_row(width, height, steps=1)
        encode_s = self._time(lambda: self._encode_anew(row.request), clock)
        tokens = len(row.rotation_SD)
        seconds = self._time_steps(row, max_rows, clock)
        decode_s = self._time(lambda: self.finish(row), clock)
        self.forget_batch()
        image_tokens = self.limits.image_tokens(width, height)
        curve = tuple((rows * tokens, s) for rows, s in seconds.items())
        return Costs(curve, encode_s, decode_s / image_tokens), token_budget(seconds, tokens)

    def _time_steps(self, row: Row, max_rows: int, clock: Callable[[], float]) -> dict[int, float]:
        seconds: dict[int, float] = {}
        for rows in (n for n in TIMED_ROWS if n <= max_rows):
            try:
                seconds[rows] = self._time(partial(self._step_copies, row, rows), clock)
            except OutOfMemory:
                self.free_memory()
                break
            if seconds[rows] / rows > GETS_WORSE * min(s / n for n, s in seconds.items()):
                break
        if not seconds:
            raise ModelUnusable(
                f"{self.spec.name} does not fit into memory, not even for one image"
            )
        return seconds

    def _step_copies(self, row: Row, count: int) -> None:
        self.step([replace(row, step=0) for _ in range(count)])

    def _encode_anew(self, request: ImageRequest) -> None:
        self._text.forget(request.prompt)
        self._text.encode([request.prompt])

    def _time(self, work: Callable[[], object], clock: Callable[[], float]) -> float:
        """Seconds of the quickest of a few runs, after one to warm up."""
        taken = []
        for _ in range(1 + TIMINGS):
            began = clock()
            work()
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            taken.append(clock() - began)
        return min(taken[1:])

    # --- shapes -----------------------------------------------------------------------------------

    def _latent_size(self, request: ImageRequest) -> tuple[int, int]:
        """Height and width of the VAE's picture."""
        return request.height // self._vae_scale, request.width // self._vae_scale

    def _new_schedule(self, steps: int, image_tokens: int) -> sampling.Schedule:
        return sampling.schedule(self._scheduler, steps, image_tokens)

    def _new_rotation(self, height: int, width: int) -> torch.Tensor:
        ids = sampling.position_ids(self.limits.text_tokens, height, width)
        return self._positions.rotation(ids.to(self.device))
