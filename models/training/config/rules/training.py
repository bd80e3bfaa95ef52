"""Rules about steps, rates and what else the training loop is told."""

import difflib
from collections.abc import Iterator

from models.training.config.documents import KeyPath
from models.training.config.findings import Hit, rule
from models.training.config.rules.structure import decimal
from models.training.config.view import PROCESS, View

TRAIN: KeyPath = (*PROCESS, "train")
SAVE: KeyPath = (*PROCESS, "save")

_OPTIMIZERS = (
    "adam adamw adam8 adamw8 adam8bit adamw8bit ademamix8bit lion lion8bit adagrad adafactor "
    "prodigy prodigy8bit dadaptation dadaptationadam dadaptationlion automagic automagic2 "
    "automagic3".split()
)
_FINDS_ITS_RATE = ("prodigy", "dadaptation")
_OWN_RATE_BELOW = 0.1  # AI-Toolkit takes 1.0 instead
_USUAL_RATE = (2e-5, 5e-4)
_SMALL_MODEL_RATE = (2e-5, 5e-3)  # the embedded one learns well at 2e-3
_SMALL_B = 1.0
_DEFAULT_WARMUP = 1000


@rule("noise-scheduler", "error")
def noise_scheduler(view: View) -> Iterator[Hit]:
    if view.process.model.family == "flux" and view.process.train.noise_scheduler != "flowmatch":
        yield Hit((*TRAIN, "noise_scheduler"), {"scheduler": view.process.train.noise_scheduler})


@rule("text-encoder-on-flux", "error")
def text_encoder_on_flux(view: View) -> Iterator[Hit]:
    if view.process.train.train_text_encoder:
        yield Hit((*TRAIN, "train_text_encoder"))


@rule("nothing-trained", "error")
def nothing_trained(view: View) -> Iterator[Hit]:
    if not view.process.train.train_unet:
        yield Hit((*TRAIN, "train_unet"))


@rule("optimizer-unknown", "error")
def optimizer_unknown(view: View) -> Iterator[Hit]:
    name = view.process.train.optimizer.lower()
    if name not in _OPTIMIZERS:
        close = difflib.get_close_matches(name, _OPTIMIZERS, n=1, cutoff=0.5)
        yield Hit((*TRAIN, "optimizer"), {"nearest": (close or ["adamw8bit"])[0]})


@rule("eight-bit-on-cpu", "error")
def eight_bit_on_cpu(view: View) -> Iterator[Hit]:
    is_8bit = view.process.train.optimizer.lower().endswith("8bit")
    if view.process.device.startswith("cpu") and is_8bit:
        yield Hit((*TRAIN, "optimizer"))


@rule("rate-replaced", "warning")
def rate_replaced(view: View) -> Iterator[Hit]:
    train = view.process.train
    if _finds_its_rate(view) and train.lr < _OWN_RATE_BELOW:
        yield Hit((*TRAIN, "lr"), {"optimizer": train.optimizer, "lr": decimal(train.lr)})


@rule("unusual-rate", "warning")
def unusual_rate(view: View) -> Iterator[Hit]:
    is_small = view.row is not None and view.row.parameters_b < _SMALL_B
    low, high = _SMALL_MODEL_RATE if is_small else _USUAL_RATE
    lr = view.process.train.lr
    if not _finds_its_rate(view) and not low <= lr <= high:
        usual = f"{decimal(low)} .. {decimal(high)}"
        yield Hit((*TRAIN, "lr"), {"lr": decimal(lr), "range": usual})


@rule("accumulation-twice", "error")
def accumulation_twice(view: View) -> Iterator[Hit]:
    train = view.process.train
    if train.gradient_accumulation > 1 and train.gradient_accumulation_steps != 1:
        yield Hit((*TRAIN, "gradient_accumulation_steps"))


@rule("accumulation-counts-batches", "warning")
def accumulation_counts_batches(view: View) -> Iterator[Hit]:
    train = view.process.train
    if train.gradient_accumulation == 1 and train.gradient_accumulation_steps > 1:
        updates = train.steps // train.gradient_accumulation_steps
        says = {"steps": train.steps, "updates": updates}
        yield Hit((*TRAIN, "gradient_accumulation_steps"), says)


@rule("timesteps-twice", "warning")
def timesteps_twice(view: View) -> Iterator[Hit]:
    train = view.process.train
    for name in ("linear_timesteps", "linear_timesteps2"):
        is_contradicted = view.is_written("train", "timestep_type") and (
            train.timestep_type not in ("linear", "weighted")
        )
        if getattr(train, name) and is_contradicted:
            yield Hit((*TRAIN, name), {"type": train.timestep_type})


@rule("denoising-range", "error")
def denoising_range(view: View) -> Iterator[Hit]:
    train = view.process.train
    if train.min_denoising_steps >= train.max_denoising_steps:
        says = {"low": train.min_denoising_steps, "high": train.max_denoising_steps}
        yield Hit((*TRAIN, "min_denoising_steps"), says)


@rule("warmup", "warning")
def warmup(view: View) -> Iterator[Hit]:
    train = view.process.train
    if train.lr_scheduler != "constant_with_warmup":
        return
    steps = train.lr_scheduler_params.get("num_warmup_steps", _DEFAULT_WARMUP)
    if isinstance(steps, int) and steps * 2 > train.steps:
        yield Hit((*TRAIN, "lr_scheduler"), {"warmup": steps, "steps": train.steps})


@rule("ema-window", "warning")
def ema_window(view: View) -> Iterator[Hit]:
    train = view.process.train
    window = round(1 / (1 - train.ema.ema_decay))
    if train.ema.use_ema and window * 2 > train.steps:
        says = {
            "window": window,
            "steps": train.steps,
            "decay": decimal(train.ema.ema_decay),
            "suggested": decimal(max(0.0, round(1 - 10 / train.steps, 4))),
        }
        yield Hit((*TRAIN, "ema_config", "ema_decay"), says)


@rule("guidance-loss", "error")
def guidance_loss(view: View) -> Iterator[Hit]:
    train = view.process.train
    bypasses = train.bypass_guidance_embedding or view.process.model.use_flux_cfg
    if bypasses and train.do_guidance_loss:
        yield Hit((*TRAIN, "do_guidance_loss"))


@rule("preservation-needs-trigger", "error")
def preservation_needs_trigger(view: View) -> Iterator[Hit]:
    if view.process.train.diff_output_preservation and view.process.trigger_word is None:
        yield Hit((*TRAIN, "diff_output_preservation"))


@rule("save-every", "warning")
def save_every(view: View) -> Iterator[Hit]:
    steps, every = view.process.train.steps, view.process.save.save_every
    if every >= steps:
        yield Hit(
            (*SAVE, "save_every"), {"steps": steps, "every": every, "eighth": max(1, steps // 8)}
        )


@rule("nothing-kept", "warning")
def nothing_kept(view: View) -> Iterator[Hit]:
    if view.process.save.max_step_saves_to_keep == 0:
        yield Hit((*SAVE, "max_step_saves_to_keep"))


@rule("hub-without-repository", "error")
def hub_without_repository(view: View) -> Iterator[Hit]:
    save = view.process.save
    if save.push_to_hub and (save.hf_repo_id is None or save.hf_repo_id.count("/") != 1):
        yield Hit((*SAVE, "push_to_hub" if save.hf_repo_id is None else "hf_repo_id"))


def _finds_its_rate(view: View) -> bool:
    return view.process.train.optimizer.lower().startswith(_FINDS_ITS_RATE)
