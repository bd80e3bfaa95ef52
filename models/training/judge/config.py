"""The training file of a judge: TOML, every key known, every default here.

Paths are as the command sees them: relative to the folder that it runs in.
"""

import tomllib
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from models.catalog import Name
from models.training.errors import ConfigRefused


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class LoraTable(_Table):
    """[lora]: the default adapts every linear of every block."""

    rank: Annotated[int, Field(ge=1, le=256)] = 16
    alpha: Annotated[float, Field(gt=0)] = 32.0
    """The LoRA's part is scaled by alpha / rank."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    targets: Annotated[tuple[str, ...], Field(min_length=1)] = (
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "gate_proj",
        "up_proj",
        "down_proj",
    )
    """Ends of module names; as Llama and Qwen name them."""
    last_layers: Annotated[int, Field(ge=1)] | None = None
    """Only so many blocks, from the end: the backward pass stops at the first. None: all."""


class TrainingTable(_Table):
    """[training]."""

    epochs: Annotated[float, Field(gt=0)] = 3.0
    chats_per_step: Annotated[int, Field(ge=1)] = 16
    """What one step of the optimizer learns from."""
    batch_tokens: Annotated[int, Field(ge=64)] = 4096
    """Padded tokens that go through the model together; a step is as many such batches as it
    needs, and their gradients add up."""
    max_tokens: Annotated[int, Field(ge=32)] = 2048
    """A chat that is longer is refused: a cut one would teach half an answer."""
    lr: Annotated[float, Field(gt=0)] = 3e-4
    schedule: Literal["constant", "cosine"] = "cosine"
    warmup_steps: Annotated[int, Field(ge=0)] = 5
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    number_weight: Annotated[float, Field(gt=0)] = 1.0
    """How much more than another token a number of the answer counts: verdicts rest on numbers."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the base and the arithmetic; the LoRA is always trained in float32."""
    seed: int = 1


class SaveTable(_Table):
    """[save]."""

    every_steps: Annotated[int, Field(ge=1)] = 20
    evaluate_every_steps: Annotated[int, Field(ge=1)] = 20
    keep: Annotated[int, Field(ge=0)] = 2
    """Adapters of earlier steps that stay beside the last; the oldest go first."""


class JudgeConfig(_Table):
    name: Name
    """Of the LoRA: what clients will ask for."""
    base: str
    """A row of the catalog that was pulled, or a folder with a model."""
    licence: str | None = None
    """Of a base that is no row; a row knows its own, which the LoRA inherits."""
    train: Annotated[tuple[Path, ...], Field(min_length=1)]
    """Files of chats: {"messages": [...], "answer": "..."} a line; other keys are left alone."""
    development: tuple[Path, ...] = ()
    """The same; the loss on it is told, and nothing is learnt from it."""
    folder: Path
    """Where the run's own folder, named after the LoRA, is made."""
    lora: LoraTable = LoraTable()
    training: TrainingTable = TrainingTable()
    save: SaveTable = SaveTable()

    @property
    def home(self) -> Path:
        return self.folder / self.name


def read_config(file: Path) -> JudgeConfig:
    """Raises ConfigRefused naming the file and the key."""
    try:
        return JudgeConfig.model_validate(tomllib.loads(file.read_text("utf-8")))
    except ValidationError as error:
        fault = error.errors(include_url=False, include_input=False)[0]
        key = ".".join(map(str, fault["loc"]))
        raise ConfigRefused(f"{file.name}: {key}: {fault['msg']}") from error
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise ConfigRefused(f"{file.name}: {error}") from error
