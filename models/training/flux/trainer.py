"""One step of training: batches in, a loss out, the LoRA's weights a little better.

Everything random is drawn from (seed, step, place in the step), on the CPU: the same on every
device, in every division into batches, and after every interruption.

Shapes: B pictures of a batch, L image tokens, C latent channels packed 2x2, T text tokens.
"""

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, cast

import torch
from accelerate import Accelerator
from torch import Tensor

from models.flux.sampling import pack, position_ids
from models.flux.text import TextEmbedding
from models.training.config.schema import Train
from models.training.errors import TrainingDiverged
from models.training.flux.adapter import Adapter
from models.training.flux.captions import caption_of
from models.training.flux.ema import Average
from models.training.flux.metrics import StepReport
from models.training.flux.optimizers import learning_rate, make_optimizer
from models.training.flux.order import Order
from models.training.flux.pictures import Item, Latents, token_weights
from models.training.flux.state import State
from models.training.flux.timesteps import (
    TimestepType,
    bell,
    loss_per_picture,
    noised,
    preferred,
    quantile_of,
)

GUIDANCE = 1.0
"""Fed to a guidance embedding: there the distilled model equals the undistilled one, for which
alone the flow-matching target holds. AI-Toolkit feeds the same."""
Encode = Callable[[Sequence[str]], list[TextEmbedding]]


@dataclass(frozen=True)
class Lesson:
    """One picture in one step: what, under which caption, at which place of the step."""

    item: int
    caption: str
    place: int


class Trainer:
    """Holds the weights and the optimiser; `step(n)` may be called for consecutive n only."""

    def __init__(
        self,
        train: Train,
        accelerator: Accelerator,
        transformer: Any,
        adapter: Adapter,
        *,
        items: Sequence[Item],
        latents: Latents,
        encode: Encode,
        scheduler: Any,
        seed: int,
    ) -> None:
        """`scheduler` is the pipeline's own; of it, only the configuration is read."""
        self._train, self._accelerator, self._transformer = train, accelerator, transformer
        self.adapter = adapter
        self._items, self._latents, self._encode = items, latents, encode
        self._scheduler, self._seed = dict(scheduler.config), seed
        self.order = Order([item.bucket for item in items], train.batch_size, seed)
        self._optimizer = accelerator.prepare(make_optimizer(train, adapter.parameters))
        self.average = Average(adapter.weights, train.ema.ema_decay) if train.ema.use_ema else None

    @property
    def _timestep_type(self) -> TimestepType:
        if self._train.linear_timesteps or self._train.linear_timesteps2:
            return "linear"
        return cast(TimestepType, self._train.timestep_type.removeprefix("flux_"))

    @property
    def best_weights(self) -> dict[str, Tensor]:
        """What is saved and drawn with: the average where it is on."""
        return self.average.values if self.average else self.adapter.weights

    @property
    def device(self) -> torch.device:
        device: torch.device = self._accelerator.device
        return device

    def epoch(self, step: int) -> int:
        """Whole epochs after `step` steps."""
        return step * self._train.gradient_accumulation // self.order.batches_per_epoch

    def step(self, number: int) -> StepReport:
        """Step `number`, counted from 0. Raises TrainingDiverged, with the weights unchanged."""
        batches = self._lessons(number)
        pictures = sum(map(len, batches))
        loss = torch.zeros((), device=self.device)
        for batch in batches:
            torch.manual_seed(_seed_of("dropout", self._seed, number, batch[0].place))
            part = self._loss(batch, number) * (len(batch) / pictures)
            self._accelerator.backward(part)
            loss += part.detach()
        lr = learning_rate(self._train, number)
        return StepReport(number + 1, *self._descend(number, loss.item(), lr))

    def _lessons(self, number: int) -> list[list[Lesson]]:
        """The step's batches. A place counts through all of them."""
        first = number * self._train.gradient_accumulation
        batches = [self.order.batch(first + i) for i in range(self._train.gradient_accumulation)]
        lessons: list[list[Lesson]] = []
        place = 0
        for batch in batches:
            lessons.append([])
            for item in batch:
                lessons[-1].append(Lesson(item, self._caption(item, number, place), place))
                place += 1
        return lessons

    def _caption(self, item: int, number: int, place: int) -> str:
        rng = Random(f"caption/{self._seed}/{number}/{place}")  # noqa: S311  (data, no secret)
        return caption_of(self._items[item].example.caption, self._items[item].rules, rng)

    def _loss(self, batch: Sequence[Lesson], number: int) -> Tensor:
        """The batch's mean."""
        bcHW = torch.stack([self._latents.of(lesson.item) for lesson in batch])
        height, width = bcHW.shape[-2:]
        latents_BLC = pack(bcHW)
        noise_BLC, uniform_B = self._random(batch, number, latents_BLC)
        train = self._train
        quantile = quantile_of(self._timestep_type, self._scheduler, latents_BLC.shape[1])
        sigma_B = quantile(preferred(uniform_B, train.content_or_style))
        input_BLC, target_BLC = noised(latents_BLC, noise_BLC, sigma_B)
        weights_BL = torch.stack(
            [token_weights(self._items[it.item], width // 2, height // 2) for it in batch]
        )
        if train.linear_timesteps or train.linear_timesteps2:
            of_time_B = bell(sigma_B, flat_below_half=train.linear_timesteps2)
            weights_BL = weights_BL * of_time_B[:, None]
        drawn_BLC = self._velocity(input_BLC, sigma_B, batch, (height, width))
        loss_B = loss_per_picture(
            drawn_BLC,
            target_BLC.to(self.device),
            weights_BL.to(self.device),
            squared=train.loss_type == "mse",
        )
        return loss_B.mean()

    def _random(
        self, batch: Sequence[Lesson], number: int, like_BLC: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Noise [B, L, C] and uniform numbers [B], each picture's from its own place."""
        noise, uniform = [], []
        for lesson in batch:
            seed = _seed_of("noise", self._seed, number, lesson.place)
            source = torch.Generator().manual_seed(seed)
            uniform.append(torch.rand((), generator=source))
            noise.append(torch.randn(like_BLC.shape[1:], generator=source))
        return torch.stack(noise), torch.stack(uniform)

    def _velocity(
        self, input_BLC: Tensor, sigma_B: Tensor, batch: Sequence[Lesson], size: tuple[int, int]
    ) -> Tensor:
        """What the transformer says; `size` is latent pixels, height and width."""
        dtype = self._transformer.dtype
        texts = self._encode([lesson.caption for lesson in batch])
        tokens_BTE = torch.stack([text.tokens_TE for text in texts]).to(self.device, dtype)
        pooled_BP = torch.stack([text.pooled_P for text in texts]).to(self.device, dtype)
        ids = position_ids(tokens_BTE.shape[1], *size).to(self.device)
        guidance_B = torch.full_like(sigma_B, GUIDANCE).to(self.device)
        with self._accelerator.autocast():
            drawn_BLC: Tensor = self._transformer(
                hidden_states=input_BLC.to(self.device, dtype),
                timestep=sigma_B.to(self.device),
                guidance=guidance_B if self._transformer.config.guidance_embeds else None,
                pooled_projections=pooled_BP,
                encoder_hidden_states=tokens_BTE,
                txt_ids=ids[: tokens_BTE.shape[1]],
                img_ids=ids[tokens_BTE.shape[1] :],
                return_dict=False,
            )[0]
        return drawn_BLC

    def _descend(self, number: int, loss: float, lr: float) -> tuple[float, float, float]:
        """Clip, step, average: (loss, lr, gradient's norm)."""
        if not math.isfinite(loss):
            raise TrainingDiverged(self._diverged(number, "the loss"))
        norm = self._accelerator.clip_grad_norm_(
            self.adapter.parameters, self._train.max_grad_norm or math.inf
        )
        if not math.isfinite(norm) and self._accelerator.scaler is None:
            raise TrainingDiverged(self._diverged(number, "the gradient"))
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        self._optimizer.step()
        self._optimizer.zero_grad()
        if self.average:
            self.average.update(self.adapter.weights, number + 1)
        return loss, lr, float(norm)

    def _diverged(self, number: int, what: str) -> str:
        return (
            f"{what} is no number at step {number + 1}: lower train.lr (now {self._train.lr:g}) "
            "under another config.name; what was saved before is intact"
        )

    def state(self, step: int, identity: dict[str, str]) -> State:
        """After `step` steps. Raises TrainingDiverged where a weight is no number."""
        if not all(weight.isfinite().all() for weight in self.adapter.parameters):
            raise TrainingDiverged(self._diverged(step - 1, "a weight"))
        scaler = self._accelerator.scaler
        return State(
            step=step,
            identity=identity,
            lora=self.adapter.weights,
            optimizer=self._optimizer.state_dict(),
            average=self.average.values if self.average else None,
            scaler=scaler.state_dict() if scaler else None,
        )

    def restore(self, state: State) -> None:
        self.adapter.load(state.lora)
        self._optimizer.load_state_dict(state.optimizer)
        if self.average and state.average:
            self.average.load(state.average)
        if self._accelerator.scaler and state.scaler:
            self._accelerator.scaler.load_state_dict(state.scaler)


def _seed_of(purpose: str, *numbers: int) -> int:
    """Independent for every purpose and all numbers."""
    named = "/".join((purpose, *map(str, numbers)))
    return int.from_bytes(hashlib.sha256(named.encode()).digest()[:7])
