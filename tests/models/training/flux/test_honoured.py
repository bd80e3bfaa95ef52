"""Every key is done or refused by name; what is done has its effect."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from models.training.config.reading import read_config
from models.training.config.schema import Dataset, Model, Network, Process, Save, Train
from models.training.errors import ConfigRefused
from models.training.flux.adapter import adapted_layers
from models.training.flux.honoured import require_honoured
from tests.models.training.flux.conftest import WriteConfig, curve, prepared, train


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"model.quantize": True}, "model.quantize is true, and only false"),
        ({"model.is_flux": False}, "model.is_flux"),
        ({"model.model_kwargs": {"shift": 3}}, "model.model_kwargs.shift"),
        ({"network.type": "lokr"}, "network.type is 'lokr'"),
        ({"network.linear_alpha": 16}, "network.linear_alpha is 16"),
        ({"network.conv": 4}, "network.conv is 4"),
        ({"save.push_to_hub": True}, "save.push_to_hub"),
        ({"datasets.is_reg": True}, "datasets.is_reg"),
        ({"datasets.random_crop": True}, "datasets.random_crop"),
        ({"datasets.shuffle_tokens": True}, "cache_text_embeddings cannot foresee"),
        ({"train.noise_scheduler": "ddpm"}, "train.noise_scheduler is ddpm; there are: flowmatch"),
        ({"train.timestep_type": "weighted"}, "train.timestep_type is weighted"),
        ({"train.timestep_type": "sigmoid", "train.linear_timesteps": True}, "linear_timesteps"),
        ({"train.optimizer": "prodigy"}, "train.optimizer is prodigy"),
        ({"train.lr_scheduler": "step"}, "train.lr_scheduler is step"),
        ({"train.lr_scheduler_params": {"gamma": 1}}, "train.lr_scheduler_params.gamma"),
        ({"train.lr_scheduler": "constant_with_warmup"}, "num_warmup_steps"),
        ({"train.train_text_encoder": True}, "train.train_text_encoder"),
        ({"train.gradient_accumulation_steps": 4}, "train.gradient_accumulation_steps"),
        ({"train.unet_lr": 0.5}, "train.unet_lr"),
        ({"train.ema_config": {"use_ema": True, "use_feedback": True}}, "ema_config.use_feedback"),
        ({"logging.use_wandb": True}, "logging.use_wandb"),
    ],
    ids=str,
)
def test_what_is_not_done_is_refused_by_name(
    write_config: WriteConfig, changes: dict[str, object], named: str
) -> None:
    with pytest.raises(ConfigRefused, match=re.escape(named)):
        require_honoured(read_config(write_config(**changes)))


@pytest.mark.parametrize(
    ("sample", "named"),
    [
        ({"sampler": "ddpm", "prompts": ["a"]}, "sample.sampler is ddpm"),
        ({"sampler": "flowmatch", "prompts": ["a --w 64"]}, "flags in prompts"),
        ({"sampler": "flowmatch", "prompts": ["a"], "neg": "b"}, "no negative prompts"),
    ],
    ids=str,
)
def test_samples_that_cannot_be_drawn_are_refused_unless_sampling_is_off(
    write_config: WriteConfig, sample: dict[str, object], named: str
) -> None:
    require_honoured(read_config(write_config(sample=sample)))
    with pytest.raises(ConfigRefused, match=re.escape(named)):
        require_honoured(
            read_config(write_config(sample=sample, **{"train.disable_sampling": False}))
        )


def test_a_refusal_names_every_key_at_once(write_config: WriteConfig) -> None:
    config = write_config(**{"model.quantize": True, "save.push_to_hub": True})
    with pytest.raises(ConfigRefused, match=r"model\.quantize.*push_to_hub|push_to_hub.*quantize"):
        require_honoured(read_config(config))


def test_the_table_of_keys_names_keys_that_there_are() -> None:
    from models.training.flux.honoured import _HONOURED

    sections = {
        "process": Process,
        "network": Network,
        "save": Save,
        "datasets": Dataset,
        "train": Train,
        "model": Model,
    }
    for name, section in sections.items():
        assert set(_HONOURED[name].split()) <= set(section.model_fields), name


LINEARS = (
    "x_embedder",
    "transformer_blocks.0.attn.to_q",
    "transformer_blocks.0.norm1.linear",
    "single_transformer_blocks.3.proj_out",
    "proj_out",
)


@pytest.mark.parametrize(
    ("kwargs", "expected"),
    [
        ({}, LINEARS[1:4]),
        ({"only_if_contains": ("attn.",)}, LINEARS[1:2]),
        ({"only_if_contains": ("transformer.single_transformer_blocks.3.proj",)}, LINEARS[3:4]),
        ({"ignore_if_contains": ("norm1", "single")}, LINEARS[1:2]),
    ],
    ids=str,
)
def test_layers_are_chosen_as_ai_toolkit_chooses_them(
    kwargs: dict[str, tuple[str, ...]], expected: tuple[str, ...]
) -> None:
    network = Network.model_validate({"network_kwargs": kwargs})
    assert adapted_layers(LINEARS, network) == list(expected)


def test_chosen_layers_alone_are_in_the_file(write_config: WriteConfig) -> None:
    lora = train(
        write_config(
            **{"network.network_kwargs": {"only_if_contains": ["attn.to_q"]}, "train.steps": 1}
        )
    ).lora
    names = {name.removesuffix(".weight").rsplit(".", 1)[0] for name in load_file(lora)}
    assert names == {
        f"transformer.{kind}transformer_blocks.{block}.attn.to_q"
        for kind in ("", "single_")
        for block in (0, 1)
    }


def test_what_is_saved_is_the_average(write_config: WriteConfig) -> None:
    plain = load_file(train(write_config("plain")).lora)
    config = write_config("averaged", **{"train.ema_config": {"use_ema": True, "ema_decay": 0.9}})
    averaged = load_file(train(config).lora)
    name = next(name for name in plain if "lora_B" in name)
    assert 0 < averaged[name].norm() < plain[name].norm()


@pytest.mark.parametrize("dtype", ["float16", "bf16", "fp32"])
def test_the_file_is_in_the_dtype_that_is_asked(write_config: WriteConfig, dtype: str) -> None:
    lora = train(write_config(**{"save.dtype": dtype, "train.steps": 1})).lora
    wanted = {"float16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}[dtype]
    assert {weight.dtype for weight in load_file(lora).values()} == {wanted}


def test_bf16_trains_on_a_cpu_with_whole_weights(write_config: WriteConfig) -> None:
    config = write_config(**{"train.dtype": "bf16", "train.steps": 3})
    ready = prepared(config)
    assert ready.pipeline.transformer.dtype == torch.bfloat16
    assert {weight.dtype for weight in ready.trainer.adapter.parameters} == {torch.float32}
    lora = train(config).lora
    exact = curve(train(write_config("exact", **{"train.steps": 3})).lora.parent)
    for one, other in zip(curve(lora.parent), exact, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=0.05)


SAMPLES = {
    "sampler": "flowmatch",
    "sample_every": 2,
    "width": 64,
    "height": 48,
    "seed": 3,
    "walk_seed": True,
    "sample_steps": 2,
    "prompts": ["[trigger] a street", "[trigger] a street"],
}


def test_pictures_are_drawn_on_schedule_and_disturb_nothing(write_config: WriteConfig) -> None:
    drawn = {"train.disable_sampling": False, "sample": SAMPLES, "train.steps": 3}
    lora = train(write_config("drawn", **drawn)).lora
    names = sorted(file.name for file in (lora.parent / "samples").iterdir())
    assert names == [f"{step:09d}_{n}.png" for step in (0, 2, 3) for n in (0, 1)]
    first, second = (Image.open(lora.parent / "samples" / name) for name in names[:2])
    assert first.size == (64, 48)
    assert first.tobytes() != second.tobytes()  # walk_seed
    undrawn = load_file(train(write_config("undrawn", **{"train.steps": 3})).lora)
    assert all(torch.equal(value, undrawn[key]) for key, value in load_file(lora).items())


def test_an_assistant_helps_while_training_and_neither_when_drawing_nor_in_the_file(
    write_config: WriteConfig, tmp_path: Path
) -> None:
    """With it the loss of the first step is another; the first picture is not."""
    source = load_file(train(write_config("source", **{"train.steps": 1})).lora)
    assistant = tmp_path / "assistant.safetensors"
    generator = torch.Generator().manual_seed(1)
    save_file({k: torch.randn(v.shape, generator=generator) for k, v in source.items()}, assistant)
    common = {"train.disable_sampling": False, "sample": SAMPLES, "train.steps": 1}
    alone = train(write_config("alone", **common)).lora
    helped = train(
        write_config("helped", **common, **{"model.assistant_lora_path": str(assistant)})
    ).lora
    first_losses = [curve(lora.parent)[0]["loss"] for lora in (alone, helped)]
    assert abs(first_losses[0] - first_losses[1]) > 1e-3
    first, second = (lora.parent / "samples" / "000000000_0.png" for lora in (alone, helped))
    assert first.read_bytes() == second.read_bytes()
    assert load_file(helped).keys() == load_file(alone).keys()


def test_a_model_without_guidance_is_trained_too(write_config: WriteConfig, tmp_path: Path) -> None:
    from tests.models.flux.tiny import tiny_pipeline

    schnell = tiny_pipeline(tmp_path / "schnell", guided=False)
    assert train(write_config(**{"model.name_or_path": str(schnell), "train.steps": 1})).lora


def test_the_curve_is_in_tensorboard_too(write_config: WriteConfig) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    lora = train(write_config()).lora
    events = EventAccumulator(str(lora.parent / "tensorboard"))
    events.Reload()
    names = {"loss", "lr", "grad_norm", "steps_per_s", "memory_gib"}
    assert {f"train/{name}" for name in names} == set(events.Tags()["scalars"])
    seen = [(event.step, event.value) for event in events.Scalars("train/loss")]
    assert seen == [(it["step"], pytest.approx(it["loss"])) for it in curve(lora.parent)]
