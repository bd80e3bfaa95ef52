"""For every rule a change to a sound configuration that it finds, and one that it lets pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

Edits = tuple[tuple[str, str], ...]
"""What stands in the file, once, and what takes its place."""


@dataclass(frozen=True)
class Room:
    """What a case may prepare: where runs go, and a folder of its own for pictures."""

    output: Path
    folder: Path

    def run(self, name: str, *files: str) -> None:
        (self.output / name).mkdir(parents=True, exist_ok=True)
        for file in files:
            (self.output / name / file).touch()

    def picture(self, name: str, size: tuple[int, int] = (1152, 960), caption: str = "") -> None:
        Image.new("L", size).save(self.folder / f"{name}.png")
        if caption:
            (self.folder / f"{name}.txt").write_text(caption, encoding="utf-8")


Prepare = Callable[[Room], None]


@dataclass(frozen=True)
class Case:
    """One rule. `own_folder` points the configuration at the room's own folder."""

    rule: str
    bad: Edits
    good: Edits
    prepare_bad: Prepare | None = None
    prepare_good: Prepare | None = None
    own_folder: bool = False
    base: str = "sound"
    suffix: str = ".yaml"


def added(after: str, *lines: str) -> tuple[str, str]:
    """New lines below the one that ends in `after`, as deep as they are written."""
    return after, "\n".join([after, *lines])


DROPOUT = "caption_dropout_rate: 0.05"
LR = "lr: 0.0001"
STEPS = "steps: 2000\n"
TRIGGER = 'trigger_word: "jo1nk"'
DEV = '"black-forest-labs/FLUX.1-dev"'
LAST_PROMPT = '- "two boys running in a park"'
PROMPTS = f'- "[trigger] a woman pointing in an office, medium shot"\n          {LAST_PROMPT}'
DATASET_2 = "        - folder_path: /nowhere/at/all\n"
SKETCH: Edits = ((DEV, "sketch"), ("width: 1024", "width: 192"), ("height: 1024", "height: 112"))


def in_dataset(line: str) -> tuple[str, str]:
    return added(DROPOUT, f"          {line}")


def in_train(line: str) -> tuple[str, str]:
    return added(LR, f"        {line}")


def in_model(line: str) -> tuple[str, str]:
    return added("is_flux: true", f"        {line}")


def in_network(line: str) -> tuple[str, str]:
    return added("type: lora", f"        {line}")


def in_save(line: str) -> tuple[str, str]:
    return added("save_every: 250", f"        {line}")


def in_sample(line: str) -> tuple[str, str]:
    return added("sampler: flowmatch", f"        {line}")


def prompt(text: str) -> tuple[str, str]:
    return LAST_PROMPT, f'- "{text}"'


def second_dataset(line: str) -> tuple[str, str]:
    return "      train:\n", f"{DATASET_2}          {line}\n      train:\n"


def second_process(folder: str) -> tuple[str, str]:
    """A whole other run below the first."""
    return (
        "meta:\n",
        f"    - {{type: sd_trainer, training_folder: {folder}, network: {{linear: 4}}, "
        "datasets: [{folder_path: /nowhere}], "
        "model: {name_or_path: sketch, is_flux: true}}\nmeta:\n",
    )


def few(room: Room, size: tuple[int, int], caption: str = "jo1nk a dog") -> None:
    for number in range(20):
        room.picture(f"{number}", size, caption)


def one_picture(room: Room) -> None:
    room.picture("only", caption="jo1nk a dog")


CASES: tuple[Case, ...] = (
    Case(
        "env-unset",
        (('name: "ink-storyboard"', 'name: "${JOING_TEST_UNSET}"'),),
        (('name: "ink-storyboard"', 'name: "${JOING_TEST_SET}"'),),
    ),
    Case("duplicate-key", (in_train("steps: 1999"),), (in_train("max_grad_norm: 1.0"),)),
    Case(
        "date-value",
        (("version: '1.0'", "made: 2026-11-24"),),
        (("version: '1.0'", "made: '2026-11-24'"),),
    ),
    Case("plain-yaml-number", ((LR, "lr: 1e-4"),), ((LR, "lr: 1.0e-4"),)),
    Case("unknown-key", (in_train("learning_rate: 0.001"),), (in_train("unet_lr: 0.0001"),)),
    Case("misplaced-key", (in_train("save_every: 100"),), (in_save("dtype: float16"),)),
    Case("not-for-flux", (in_model("is_xl: false"),), (in_model("low_vram: false"),)),
    Case("missing-key", ((f"name_or_path: {DEV}\n        ", ""),), (("\n        type: lora", ""),)),
    Case(
        "number-as-text",
        ((LR, 'lr: "0.0001"'),),
        (("linear: 16", "linear: 8"), ("linear_alpha: 16", "linear_alpha: 8")),
    ),
    Case(
        "boolean-as-text",
        (("is_flux: true", 'is_flux: "true"'),),
        (("is_flux: true", "is_flux: yes"),),
    ),
    Case(
        "wrong-type", (("batch_size: 1", "batch_size: [1]"),), (("batch_size: 1", "batch_size: 2"),)
    ),
    Case(
        "out-of-range",
        ((DROPOUT, "caption_dropout_rate: 5"),),
        ((DROPOUT, "caption_dropout_rate: 0.3"),),
    ),
    Case(
        "unknown-choice", (("dtype: bf16", "dtype: bf17"),), (("dtype: bf16", "dtype: bfloat16"),)
    ),
    Case(
        "unusual-value",
        (("linear: 16", "linear: 512"), ("linear_alpha: 16", "linear_alpha: 512")),
        (("linear: 16", "linear: 128"), ("linear_alpha: 16", "linear_alpha: 128")),
    ),
    Case("several-processes", (second_process("elsewhere"),), (in_save("dtype: fp16"),)),
    Case("network-type", (("type: lora", "type: lokr"),), (("type: lora", "type: 'lora'"),)),
    Case("rank-twice", (in_network("rank: 8"),), (in_network("rank: 16"),)),
    Case(
        "alpha-not-honoured",
        (("linear_alpha: 16", "linear_alpha: 8"),),
        (("linear_alpha: 16", "alpha: 16"),),
    ),
    Case("conv-on-flux", (in_network("conv: 8"),), (in_network("conv: null"),)),
    Case("not-flux", (("        is_flux: true\n", ""),), (("is_flux: true", "arch: flux"),)),
    Case("unknown-model", ((DEV, "flux-dev"),), ((DEV, "flux.1-dev"),)),
    Case(
        "schnell-without-adapter",
        (("        assistant_lora_path: ostris/FLUX.1-schnell-training-adapter\n", ""),),
        (("FLUX.1-schnell-training-adapter", "flux-schnell-other-adapter"),),
        base="sound_schnell",
    ),
    Case(
        "adapter-without-schnell",
        (in_model("assistant_lora_path: ostris/FLUX.1-schnell-training-adapter"),),
        (in_model("assistant_lora_path: someone/another-adapter"),),
    ),
    Case("model-dtype-overwritten", (in_model("dtype: fp16"),), (in_model("dtype: bfloat16"),)),
    Case(
        "half-precision", (("dtype: bf16", "dtype: fp16"),), (("dtype: bf16", "dtype: bfloat16"),)
    ),
    Case(
        "full-precision",
        (("        dtype: bf16\n", ""),),
        (("        dtype: bf16\n", ""), *SKETCH),
    ),
    Case(
        "quantize-type", (in_model("qtype: float7"),), (in_model("qtype: uint3|x/y.safetensors"),)
    ),
    Case(
        "lora-missing",
        (in_model("lora_path: /nowhere/a.safetensors"),),
        (in_model("lora_path: someone/a-lora"),),
    ),
    Case(
        "noise-scheduler",
        (
            ("noise_scheduler: flowmatch", "noise_scheduler: ddpm"),
            ("sampler: flowmatch", "sampler: ddpm"),
        ),
        (("noise_scheduler: flowmatch", 'noise_scheduler: "flowmatch"'),),
    ),
    Case(
        "text-encoder-on-flux",
        (("train_text_encoder: false", "train_text_encoder: true"),),
        (("        train_text_encoder: false\n", ""),),
    ),
    Case("nothing-trained", (in_train("train_unet: false"),), (in_train("train_unet: true"),)),
    Case("optimizer-unknown", (("adamw8bit", "adamw16bit"),), (("adamw8bit", "AdamW8bit"),)),
    Case(
        "eight-bit-on-cpu",
        (("device: cuda:0", "device: cpu"),),
        (("device: cuda:0", "device: cpu"), ("adamw8bit", "adamw")),
    ),
    Case("rate-replaced", (("adamw8bit", "prodigy"),), (("adamw8bit", "prodigy"), (LR, "lr: 1.0"))),
    Case("unusual-rate", ((LR, "lr: 0.01"),), ((LR, "lr: 0.0004"),)),
    Case(
        "accumulation-twice",
        (in_train("gradient_accumulation: 2\n        gradient_accumulation_steps: 2"),),
        (in_train("gradient_accumulation: 2\n        gradient_accumulation_steps: 1"),),
    ),
    Case(
        "accumulation-counts-batches",
        (in_train("gradient_accumulation_steps: 4"),),
        (in_train("gradient_accumulation: 4"),),
    ),
    Case(
        "timesteps-twice",
        (in_train("linear_timesteps: true\n        timestep_type: flux_shift"),),
        (in_train("linear_timesteps: true"),),
    ),
    Case(
        "denoising-range",
        (in_train("min_denoising_steps: 999"),),
        (in_train("min_denoising_steps: 500"),),
    ),
    Case(
        "warmup",
        (in_train("lr_scheduler: constant_with_warmup"), (STEPS, "steps: 1500\n")),
        (
            in_train(
                "lr_scheduler: constant_with_warmup\n"
                "        lr_scheduler_params: {num_warmup_steps: 100}"
            ),
        ),
    ),
    Case(
        "ema-window",
        (("ema_decay: 0.99", "ema_decay: 0.9995"),),
        (("ema_decay: 0.99", "ema_decay: 0.999"),),
    ),
    Case(
        "guidance-loss",
        (in_train("do_guidance_loss: true\n        bypass_guidance_embedding: true"),),
        (in_train("do_guidance_loss: true"),),
    ),
    Case(
        "preservation-needs-trigger",
        (
            in_train("diff_output_preservation: true"),
            (TRIGGER, "training_seed: 1"),
            ("[trigger] a woman", "a woman"),
        ),
        (in_train("diff_output_preservation: true"),),
    ),
    Case(
        "save-every",
        (("save_every: 250", "save_every: 2000"),),
        (("save_every: 250", "save_every: 1999"),),
    ),
    Case(
        "nothing-kept",
        (("max_step_saves_to_keep: 4", "max_step_saves_to_keep: 0"),),
        (("max_step_saves_to_keep: 4", "max_step_saves_to_keep: 1"),),
    ),
    Case(
        "hub-without-repository",
        (("push_to_hub: false", "push_to_hub: true"),),
        (("push_to_hub: false", "push_to_hub: true\n        hf_repo_id: someone/ink"),),
    ),
    Case(
        "no-folder",
        (("- folder_path: ", "- mask_path: "),),
        (("- folder_path: ", "- dataset_path: "),),
    ),
    Case(
        "folder-missing",
        (("- folder_path: ", "- folder_path: /nowhere/at/all #"),),
        (("- folder_path: ", "- dataset_path: /nowhere/captions.json #"),),
    ),
    Case("folder-without-pictures", (), (), None, one_picture, own_folder=True),
    Case(
        "captions-missing",
        (),
        (),
        lambda room: room.picture("a"),
        lambda room: room.picture("a", caption="jo1nk a dog"),
        own_folder=True,
    ),
    Case(
        "resolution-unfilled",
        (),
        (("[ 512, 768, 1024 ]", "[ 512, 768 ]"),),
        lambda room: few(room, (768, 768)),
        lambda room: few(room, (768, 768)),
        own_folder=True,
    ),
    Case(
        "resolution-twice",
        (("[ 512, 768, 1024 ]", "[ 512, 768, 512 ]"),),
        (("[ 512, 768, 1024 ]", "512"),),
    ),
    Case(
        "steps-against-pictures",
        (
            (STEPS, "steps: 100\n"),
            ("save_every: 250", "save_every: 20"),
            ("sample_every: 250", "sample_every: 50"),
        ),
        ((STEPS, "steps: 400\n"),),
    ),
    Case("only-regularisation", (in_dataset("is_reg: true"),), (second_dataset("is_reg: true"),)),
    Case("buckets-mixed", (second_dataset("buckets: false"),), (second_dataset("buckets: true"),)),
    Case(
        "cached-latents-do-not-change",
        (in_dataset("random_crop: true"),),
        (in_dataset("flip_x: true"),),
    ),
    Case(
        "cached-captions-do-not-change",
        (in_train("cache_text_embeddings: true"),),
        (in_train("cache_text_embeddings: true"), (DROPOUT, "caption_dropout_rate: 0")),
    ),
    Case(
        "text-cached-in-part",
        (second_dataset("cache_text_embeddings: true"),),
        (second_dataset("cache_text_embeddings: false"),),
    ),
    Case(
        "text-cached-with-trigger",
        (in_dataset("cache_text_embeddings: true"),),
        (in_dataset("cache_text_embeddings: true"), (TRIGGER, "training_seed: 1")),
    ),
    Case(
        "text-cached-with-preservation",
        (in_dataset("cache_text_embeddings: true"), in_train("diff_output_preservation: true")),
        (in_train("diff_output_preservation: true"),),
    ),
    Case(
        "keep-without-shuffle",
        (in_dataset("keep_tokens: 1"),),
        (in_dataset("keep_tokens: 1\n          shuffle_tokens: true"),),
    ),
    Case(
        "sampler-mismatch",
        (("sampler: flowmatch", "sampler: ddpm"),),
        (("sampler: flowmatch", "sampler: ddpm"), in_train("disable_sampling: true")),
    ),
    Case(
        "no-prompts",
        ((f"prompts:\n          {PROMPTS}", "prompts: []"),),
        ((f"prompts:\n          {PROMPTS}", "samples: [{prompt: '[trigger] a dog'}]"),),
    ),
    Case(
        "sample-every",
        (("sample_every: 250", "sample_every: 2001"),),
        (("sample_every: 250", "sample_every: 2000"),),
    ),
    Case("prompt-cut", (prompt("a dog -- and its friend"),), (prompt("a dog --w 512"),)),
    Case("prompt-flags", (prompt("a dog --w 512 --h 512"),), (prompt("a black-and-white dog"),)),
    Case("prompt-not-english", (prompt("공원에서 뛰는 두 소년"),), (prompt("a café in Seoul"),)),
    Case(
        "prompt-unknown-words",
        (*SKETCH, prompt("two unicorns running in a park")),
        (*SKETCH, prompt("two women running in a park")),
    ),
    Case("negative-prompt", (in_sample("neg: ugly hands"),), (in_sample('neg: ""'),)),
    Case("sample-size", (("width: 1024", "width: 1000"),), (("width: 1024", "width: 1008"),)),
    Case(
        "sample-size-of-model", (("width: 1024", "width: 240"),), (("width: 1024", "width: 256"),)
    ),
    Case(
        "schnell-guidance",
        (("guidance_scale: 1", "guidance_scale: 3.5"),),
        (("guidance_scale: 1", "guidance_scale: 1.0"),),
        base="sound_schnell",
    ),
    Case(
        "schnell-steps",
        (("sample_steps: 4", "sample_steps: 20"),),
        (("sample_steps: 4", "sample_steps: 1"),),
        base="sound_schnell",
    ),
    Case(
        "few-sample-steps",
        (("sample_steps: 20", "sample_steps: 4"),),
        (("sample_steps: 20", "sample_steps: 12"),),
    ),
    Case(
        "unusual-guidance",
        (("guidance_scale: 4", "guidance_scale: 30"),),
        (("guidance_scale: 4", "guidance_scale: 2.5"),),
    ),
    Case(
        "name-characters", (("ink-storyboard", "ink/storyboard"),), (("ink-storyboard", "잉크 1"),)
    ),
    Case(
        "run-already-there",
        (),
        (),
        lambda room: room.run("ink-storyboard", "ink-storyboard_000000250.safetensors"),
        lambda room: room.run("ink-storyboard", "config.yaml"),
    ),
    Case(
        "name-prefix",
        (),
        (),
        lambda room: room.run("ink-storyboard_2"),
        lambda room: room.run("ink-storyboard-2"),
    ),
    Case(
        "name-case",
        (),
        (),
        lambda room: room.run("Ink-Storyboard"),
        lambda room: room.run("ink-storyboards"),
    ),
    Case("processes-collide", (second_process("OUTPUT"),), (second_process("elsewhere"),)),
    Case(
        "trigger-common-word",
        ((TRIGGER, "trigger_word: Storyboard"),),
        ((TRIGGER, "trigger_word: st0ryb0ard"),),
    ),
    Case(
        "trigger-inside-words",
        ((TRIGGER, "trigger_word: board"),),
        ((TRIGGER, "trigger_word: b0ard"),),
    ),
    Case("trigger-short", ((TRIGGER, "trigger_word: jo1"),), ((TRIGGER, "trigger_word: jo1x"),)),
    Case(
        "trigger-spaces",
        ((TRIGGER, "trigger_word: 'jo1nk '"),),
        ((TRIGGER, "trigger_word: 'jo1nk style'"),),
    ),
    Case(
        "trigger-flags", ((TRIGGER, "trigger_word: jo--1nk"),), ((TRIGGER, "trigger_word: jo-1nk"),)
    ),
    Case(
        "trigger-unknown-word",
        SKETCH,
        (*SKETCH, (TRIGGER, "trigger_word: ink style")),
    ),
    Case(
        "trigger-placeholder",
        ((TRIGGER, "training_seed: 1"),),
        ((TRIGGER, "training_seed: 1"), ("[trigger] a woman", "a woman")),
    ),
    Case(
        "trigger-never-drawn",
        (("[trigger] a woman", "a woman"),),
        (("[trigger] a woman", "jo1nk, a woman"),),
    ),
)
