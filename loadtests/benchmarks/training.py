"""Steps per second and memory: our trainer against diffusers' example script for Flux LoRAs.

The script is no part of this repository: `examples/dreambooth/train_dreambooth_lora_flux.py` of
github.com/huggingface/diffusers, Apache-2.0. The figures in docs/log.md are of the version that
asks for diffusers 0.37.0.dev0 or newer, as the fork ChrisColeTech/diffusers has it at commit
725959a41dab (SHA-256 with Unix line ends b4dc152073babaf6). It imports torchvision, which we do not
need: install one that fits torch, or put it in a folder and name that in PYTHONPATH.

Both train the same layers (the script's own choice: attention and feed-forward) of the embedded
model at the same rank, on the same square pictures under one caption, with the same batch, AdamW,
float32, latents encoded before the first step, on the CPU with as many threads. Each side is a
process of its own which stops after some steps and waits: they take turns, only one works at a
time, and start-up, the first steps, and the first step of every turn are not counted. A step is the
time from one `optimizer.step()` to the next, told by torch's own hook in both. Turns are short and
ratios are taken round by round, so that a noisy machine is noisy for both; the processor's time of
a step stands beside the clock's. Memory is the peak of the resident set, from the process's start
to its last counted step.

What is changed of the script, before its `main` runs as it is:

- its two tokenizer classes are AutoTokenizer: the embedded model's are neither CLIP's nor T5's;
- prompts are cut at the model's 32 tokens and not at 77, which its CLIP has no positions for;
- "script, texts kept": the function that encodes prompts remembers what it returned. As it stands
  the script encodes the one caption again at every step, which our trainer does not. This makes the
  comparison harder for us, and is the one that has a target.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib import util
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median, quantiles
from types import ModuleType
from typing import Any

import click
from PIL import Image, ImageOps
from rich.console import Console

from loadtests.benchmarks.machine import describe_machine
from loadtests.benchmarks.report import Finding, last_line, table
from models.catalog import load_catalog
from models.sketch.styles import STYLES, draw_set
from models.weights import default_root, locate_image

STYLE = "ink"
CAPTION = f"{STYLES[STYLE]} black and white color illustration, a woman walking in a park"
PICTURES = 64
SIDE_PX = 144
"""81 image tokens; the embedded model draws 84."""
BATCH = 4
RANK = 16
LEARNING_RATE = 1e-4
LAYERS = (
    "attn.to_k",
    "attn.to_q",
    "attn.to_v",
    "attn.to_out.0",
    "attn.add_k_proj",
    "attn.add_q_proj",
    "attn.add_v_proj",
    "attn.to_add_out",
    "ff.net.0.proj",
    "ff.net.2",
    "ff_context.net.0.proj",
    "ff_context.net.2",
)
"""What the script trains when it is not told otherwise."""
ENDLESS = 1_000_000
"""Steps that both are asked for; the benchmark ends them."""
WARM_UP = 5
START_S, TURN_S, END_S = 300.0, 300.0, 10.0
OURS, KEPT, STOCK = "ours", "script, texts kept", "script as it is"


@dataclass(frozen=True)
class Effort:
    """How often everything is done."""

    rounds: int
    steps: int


@dataclass(frozen=True)
class Case:
    """What both sides do alike."""

    threads: int
    checkpointing: bool

    @property
    def name(self) -> str:
        return f"threads_{self.threads}" + ("_checkpointing" if self.checkpointing else "")


@dataclass(frozen=True)
class Measured:
    """One side of one case."""

    seconds: list[float]
    """Of one step, a mean for every turn."""
    cpu_seconds: list[float]
    """The same, of all threads of the process."""
    peak_mib: float

    def __str__(self) -> str:
        return f"{1 / median(self.seconds):.2f} steps/s, {self.peak_mib:.0f} MiB"


class Pacer:
    """Torch's hook after each optimiser step, in the process that trains: waits for its turns."""

    def __init__(self, parent: Connection) -> None:
        self._parent = parent
        self._left = WARM_UP
        self._began: tuple[float, float] | None = None
        self._steps = 0

    def __call__(self, optimizer: Any, *_: Any) -> None:
        now = time.perf_counter(), time.process_time()
        if self._began is None and self._steps:
            self._began, self._left = now, self._steps
            return
        self._left -= 1
        if self._left:
            return
        if self._began is None:
            self._parent.send(_trained(optimizer))
        else:
            taken = [(n - b) / self._steps for n, b in zip(now, self._began, strict=True)]
            self._parent.send(tuple(taken))
        self._wait()

    def _wait(self) -> None:
        """For the number of steps of the next turn; 0 ends the process."""
        self._began, self._steps = None, self._parent.recv()
        if not self._steps:
            self._parent.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10)
            raise SystemExit


def _trained(optimizer: Any) -> int:
    """Numbers that are trained."""
    return sum(p.numel() for group in optimizer.param_groups for p in group["params"])


def train_ours(config: Path) -> None:
    from models.training.flux.cli import command

    command([str(config)], standalone_mode=False)


def train_script(script: Path, arguments: Sequence[str], keep_texts: bool) -> None:
    spec = util.spec_from_file_location("diffusers_example", script)
    if spec is None or spec.loader is None:
        raise click.ClickException(f"{script} is no Python file")
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    _fit_to_sketch(module)
    if keep_texts:
        _keep_texts(module)
    module.args = module.parse_args(list(arguments))
    module.main(module.args)


def _fit_to_sketch(module: ModuleType) -> None:
    from transformers import AutoTokenizer

    class CutAtModelsLength:
        @staticmethod
        def from_pretrained(*args: Any, **options: Any) -> Callable[..., Any]:
            tokenizer = AutoTokenizer.from_pretrained(*args, **options)

            def tokens(prompt: Any, *, max_length: int, **how: Any) -> Any:
                return tokenizer(
                    prompt, max_length=min(max_length, tokenizer.model_max_length), **how
                )

            return tokens

    module.CLIPTokenizer = module.T5TokenizerFast = CutAtModelsLength


def _keep_texts(module: ModuleType) -> None:
    encode, known = module.encode_prompt, {}

    def kept(encoders: Any, tokenizers: Any, prompt: Any, length: int) -> Any:
        key = prompt if isinstance(prompt, str) else tuple(prompt)
        if key not in known:
            known[key] = encode(encoders, tokenizers, prompt, length)
        return known[key]

    module.encode_prompt = kept


def _train(parent: Connection, log: Path, train: Callable[..., None], args: Sequence[Any]) -> None:
    """A side's process."""
    with log.open("w") as opened:
        os.dup2(opened.fileno(), 1)
        os.dup2(opened.fileno(), 2)
    from torch.optim.optimizer import register_optimizer_step_post_hook

    register_optimizer_step_post_hook(Pacer(parent))
    train(*args)


class Side:
    """One trainer in its process, at rest between its turns."""

    def __init__(self, name: str, log: Path, train: Callable[..., None], *args: Any) -> None:
        self._name, self._log = name, log
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_train, args=(theirs, log, train, args), daemon=True)
        self._process.start()
        theirs.close()
        self._seconds: list[float] = []
        self._cpu_seconds: list[float] = []
        self._has_ended = False

    def ready(self) -> int:
        """Waits until the first steps are done; tells how many numbers it trains."""
        trained: int = self._answer(START_S)
        return trained

    def turn(self, steps: int) -> None:
        self._pipe.send(steps)
        seconds, cpu_seconds = self._answer(TURN_S)
        self._seconds.append(seconds)
        self._cpu_seconds.append(cpu_seconds)

    def end(self) -> Measured:
        self._pipe.send(0)
        peak_mib: float = self._answer(TURN_S)
        self._has_ended = True
        return Measured(self._seconds, self._cpu_seconds, peak_mib)

    def _answer(self, within_s: float) -> Any:
        """Raises ClickException when the process ends or says nothing for so long."""
        try:
            if self._pipe.poll(within_s):
                return self._pipe.recv()
            what = f"said nothing for {within_s:.0f} s"
        except EOFError:
            what = "ended"
        tail = "\n".join(self._log.read_text("utf-8", "replace").splitlines()[-15:])
        raise click.ClickException(f"{self._name} {what}; its last lines:\n{tail}")

    def stop(self) -> None:
        """Lets a process that was told to end clean up, for `END_S` at most."""
        if self._has_ended:
            self._process.join(END_S)
        self._process.kill()
        self._process.join()


class Bench:
    """The pictures, the base model, and the script."""

    def __init__(self, script: Path, folder: Path) -> None:
        row = load_catalog().image("sketch")
        base = locate_image(row, default_root())
        if base is None:
            raise click.ClickException("run `python -m models pull sketch` first")
        self._script, self._base, self._folder = script.resolve(), base, folder
        self._max_sequence_length = row.max_sequence_length
        self._pictures = folder / "pictures"
        _square_pictures(folder / "panels", self._pictures)

    def measure(self, case: Case, effort: Effort) -> dict[str, Measured]:
        """Every side's figures, all of them having taken turns."""
        with self._sides(case) as sides:
            trained = {name: side.ready() for name, side in sides.items()}
            if len(set(trained.values())) > 1:
                raise click.ClickException(f"the sides do not train the same: {trained}")
            order = list(sides.values())
            for number in range(effort.rounds):
                _say(f"{case.name}: round {number + 1} of {effort.rounds}")
                for side in order if number % 2 else reversed(order):
                    side.turn(effort.steps)
            print(file=sys.stderr)
            return {name: side.end() for name, side in sides.items()}

    @contextmanager
    def _sides(self, case: Case) -> Iterator[dict[str, Side]]:
        """Started one after the other, and none of them alive afterwards."""
        folder = self._folder / case.name
        folder.mkdir()
        config = folder / "ours.json"
        config.write_text(json.dumps(self._config(case, folder)), "utf-8")
        arguments = self._arguments(case, folder)
        with ExitStack() as stack, _environment(case.threads):
            sides = {
                OURS: Side(OURS, folder / "ours.log", train_ours, config),
                KEPT: Side(
                    KEPT, folder / "kept.log", train_script, self._script, arguments("kept"), True
                ),
                STOCK: Side(
                    STOCK, folder / "stock.log", train_script, self._script, arguments("it"), False
                ),
            }
            for side in sides.values():
                stack.callback(side.stop)
            yield sides

    def _config(self, case: Case, folder: Path) -> dict[str, Any]:
        """For our trainer; JSON is YAML."""
        process = {
            "type": "sd_trainer",
            "training_folder": str(folder),
            "device": "cpu",
            "training_seed": 1,
            "network": {
                "type": "lora",
                "linear": RANK,
                "linear_alpha": RANK,
                "network_kwargs": {"only_if_contains": [f".{layer}" for layer in LAYERS]},
            },
            "save": {"dtype": "float32", "save_every": ENDLESS},
            "datasets": [
                {
                    "folder_path": str(self._pictures),
                    "default_caption": CAPTION,
                    "resolution": SIDE_PX,
                    "bucket_tolerance": 16,
                    "cache_latents": True,
                }
            ],
            "train": {
                "batch_size": BATCH,
                "steps": ENDLESS,
                "gradient_checkpointing": case.checkpointing,
                "noise_scheduler": "flowmatch",
                "optimizer": "adamw",
                "lr": LEARNING_RATE,
                "dtype": "fp32",
                "disable_sampling": True,
                "cache_text_embeddings": True,
            },
            "model": {"name_or_path": str(self._base), "is_flux": True},
        }
        process["model"]["model_kwargs"] = {"max_sequence_length": self._max_sequence_length}
        return {"job": "extension", "config": {"name": "ours", "process": [process]}}

    def _arguments(self, case: Case, folder: Path) -> Callable[[str], list[str]]:
        """The script's, for an output folder of that name."""
        options = {
            "pretrained_model_name_or_path": self._base,
            "instance_data_dir": self._pictures,
            "instance_prompt": CAPTION,
            "max_sequence_length": self._max_sequence_length,
            "resolution": SIDE_PX,
            "rank": RANK,
            "lora_alpha": RANK,
            "train_batch_size": BATCH,
            "max_train_steps": ENDLESS,
            "checkpointing_steps": ENDLESS,
            "learning_rate": LEARNING_RATE,
            "lr_warmup_steps": 0,
            "optimizer": "AdamW",
            "mixed_precision": "no",
            "weighting_scheme": "logit_normal",
            "seed": 1,
        }
        flags = ["--center_crop", "--cache_latents"]
        if case.checkpointing:
            flags.append("--gradient_checkpointing")
        said = [f"--{name}={value}" for name, value in options.items()]
        return lambda name: [*said, *flags, f"--output_dir={folder / name}"]


def _square_pictures(panels: Path, squares: Path) -> None:
    """The script opens every file of its folder as a picture, and trains squares alone."""
    draw_set(STYLE, panels, PICTURES)
    squares.mkdir()
    for picture in sorted(panels.glob("*.png")):
        with Image.open(picture) as opened:
            ImageOps.fit(opened.convert("RGB"), (SIDE_PX, SIDE_PX)).save(squares / picture.name)


@contextmanager
def _environment(threads: int) -> Iterator[None]:
    """What the processes that are started meanwhile inherit."""
    wanted = {
        "OMP_NUM_THREADS": str(threads),
        "CUDA_VISIBLE_DEVICES": "",
        "ACCELERATE_USE_CPU": "true",
        "HF_HUB_OFFLINE": "1",
    }
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def findings(case: Case, found: dict[str, Measured]) -> dict[str, Finding]:
    """Speed against both forms of the script, then processor time and memory."""
    ours, kept, stock = found[OURS], found[KEPT], found[STOCK]
    return {
        case.name: _speed(ours, kept, KEPT),
        f"{case.name}_vs_stock": _speed(ours, stock, STOCK),
        f"{case.name}_cpu": Finding(
            median(_ratios(ours.cpu_seconds, kept.cpu_seconds)),
            f"{1000 * median(ours.cpu_seconds):.0f} ms of processor a step",
            f"{1000 * median(kept.cpu_seconds):.0f} ms, {KEPT}",
            f"{len(ours.cpu_seconds)} rounds",
        ),
        f"{case.name}_memory": Finding(
            ours.peak_mib / stock.peak_mib,
            f"{ours.peak_mib:.0f} MiB",
            f"{stock.peak_mib:.0f} MiB, {STOCK}",
            "1 peak",
        ),
    }


def _speed(ours: Measured, theirs: Measured, name: str) -> Finding:
    ratios = sorted(_ratios(ours.seconds, theirs.seconds))
    low, _, high = quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
    spread = f"{len(ratios)} rounds, middle half {low:.2f} to {high:.2f}"
    return Finding(median(ratios), str(ours), f"{theirs}, {name}", spread)


def _ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """Above 1 where ours takes less."""
    return [b / a for a, b in zip(ours, theirs, strict=True)]


def target(name: str) -> str:
    return "none" if name.endswith(("_memory", "_cpu")) else ">= 1"


def _say(what: str) -> None:
    print(what, file=sys.stderr, end="\r", flush=True)


@click.command()
@click.option(
    "--script",
    required=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="diffusers' train_dreambooth_lora_flux.py.",
)
@click.option("--rounds", type=click.IntRange(1), default=24, show_default=True)
@click.option("--steps", type=click.IntRange(1), default=5, show_default=True, help="Of one turn.")
@click.option("--threads", type=click.IntRange(1), multiple=True, default=(1, 2), show_default=True)
@click.option("--quick", is_flag=True, help="3 rounds of 3 steps: a look, not figures to quote.")
def main(script: Path, rounds: int, steps: int, threads: tuple[int, ...], quick: bool) -> None:
    """Measure our trainer against diffusers' example script, on the CPU."""
    effort = Effort(rounds=3, steps=3) if quick else Effort(rounds, steps)
    cases = [Case(n, checkpointing) for n in threads for checkpointing in (False, True)]
    found: dict[str, Finding] = {}
    with tempfile.TemporaryDirectory(prefix="joing-bench-") as folder:
        bench = Bench(script, Path(folder))
        for case in cases:
            found |= findings(case, bench.measure(case, effort))
    title = f"Training, sketch, rank {RANK}, batch {BATCH}, {SIDE_PX}x{SIDE_PX}"
    Console().print(table(title, {name: target(name) for name in found}, found))
    print(last_line("training", found, describe_machine()))


if __name__ == "__main__":
    main()
