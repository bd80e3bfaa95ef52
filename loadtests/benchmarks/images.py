"""Images a minute and how long one waits: the engine against FluxPipeline and PEFT, in one run.

Everything that is compared takes turns, so that a noisy machine is noisy for both. Prompts are
new in every repetition: nothing is served from the text cache that the pipeline has not got.
"""

from __future__ import annotations

import random
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from statistics import mean, median

import click
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file

from loadtests.benchmarks.machine import describe_machine
from loadtests.benchmarks.report import Finding, last_line, table
from loadtests.benchmarks.stock_flux import StockFlux
from models.catalog import ImageRow, load_catalog
from models.flux.config import EngineConfig, ModelSpec
from models.flux.engine import Engine, open_engine
from models.flux.request import ImageRequest
from models.weights import default_root, locate_image, locate_lora

RATIOS = {
    "vs_pipeline": ">= 2.5",
    "vs_static": "> 1",
    "latency_vs_fcfs": ">= 2",
    "lora_mix_slowdown": "<= 1.3",
    "mix_vs_peft": ">= 1",
}
TOGETHER = 16
STEPS = 28
SHORT_STEPS, LONG_STEPS, SHARE_OF_SHORT = 8, 40, 0.75
LOAD = 0.85  # of what first-come-first-served can do
WAIT_S = 600.0
PLACES = ("a kitchen", "an office", "a street", "a park", "a beach", "a forest", "a stage")
DOINGS = ("walking", "running", "standing", "sitting", "waving", "pointing", "reading")


@dataclass(frozen=True)
class Effort:
    """How often everything is done."""

    repetitions: int
    arrivals: int
    seeds: int
    steps_timed: int


FULL = Effort(repetitions=5, arrivals=48, seeds=3, steps_timed=60)
QUICK = Effort(repetitions=2, arrivals=24, seeds=1, steps_timed=20)


class Bench:
    """The engine and the stock pipeline on the same weights."""

    def __init__(self, row: ImageRow, loras: dict[str, Path], effort: Effort) -> None:
        folder = locate_image(row, default_root())
        if folder is None:
            raise click.ClickException(f"run `python -m models pull {row.name}` first")
        self.row = row
        self.effort = effort
        self.loras = loras
        spec = ModelSpec(row.name, folder, max_sequence_length=row.max_sequence_length)
        self.engine: Engine = open_engine(
            spec,
            EngineConfig(device="cpu", lora_max_rank=16, patience=6.0),
            width=row.width,
            height=row.height,
        )
        for name, file in loras.items():
            self.engine.library.add(name, file)
        self.engine.start()
        self.stock = StockFlux(
            folder,
            loras,
            max_sequence_length=row.max_sequence_length,
            dtype=self.engine.runner.dtype,
        )
        self._seeds = count(1)

    def requests(
        self, number: int, *, steps: int = STEPS, loras: bool = True
    ) -> list[ImageRequest]:
        """New prompts and seeds; the styles in turn, the base among them."""
        styles: list[str | None] = [None, *list(self.loras)[:3]] if loras else [None]
        return [
            self._request(next(self._seeds), steps, styles[n % len(styles)]) for n in range(number)
        ]

    def _request(self, seed: int, steps: int, lora: str | None) -> ImageRequest:
        dice = random.Random(seed)
        prompt = (
            f"black and white color illustration, {dice.choice(('man', 'woman', 'boy', 'girl'))} "
            f"{dice.choice(DOINGS)} in {dice.choice(PLACES)}, take {seed}"
        )
        return ImageRequest(
            prompt,
            self.row.width,
            self.row.height,
            steps=steps,
            seed=seed,
            guidance=self.row.guidance,
            lora=lora,
        )

    def draw(self, wanted: list[ImageRequest]) -> float:
        """Seconds until all of them, asked for at once, are there."""
        began = time.perf_counter()
        for ticket in self.engine.submit(wanted):
            ticket.image.result(WAIT_S)
        return time.perf_counter() - began

    def serve(self, arrivals: list[tuple[float, ImageRequest]]) -> list[float]:
        """Latency of each from its arrival, all of them waited for at the same time."""
        latencies: list[float] = []
        began = time.perf_counter()
        tickets = []
        for arrival_s, request in arrivals:
            time.sleep(max(0.0, arrival_s - (time.perf_counter() - began)))
            (ticket,) = self.engine.submit([request])
            ticket.image.add_done_callback(
                lambda _, at=arrival_s: latencies.append(time.perf_counter() - began - at)
            )
            tickets.append(ticket)
        for ticket in tickets:
            ticket.image.result(WAIT_S)
        return latencies


def throughput(bench: Bench) -> dict[str, Finding]:
    """Sixteen images at once, over the base and three LoRAs."""
    ours, single, static = [], [], []
    for _ in _repeat("16 images at once", bench.effort.repetitions):
        single.append(bench.stock.one_at_a_time(bench.requests(TOGETHER))[-1])
        static.append(bench.stock.in_static_batches(bench.requests(TOGETHER)))
        ours.append(bench.draw(bench.requests(TOGETHER)))
    rounds = f"{len(ours)} rounds of {TOGETHER}"
    return {
        "vs_pipeline": Finding(
            median(a / b for a, b in zip(single, ours, strict=True)),
            _per_minute(ours),
            f"{_per_minute(single)}, one at a time",
            rounds,
        ),
        "vs_static": Finding(
            median(a / b for a, b in zip(static, ours, strict=True)),
            _per_minute(ours),
            f"{_per_minute(static)}, a batch for each LoRA",
            rounds,
        ),
    }


def latency(bench: Bench) -> dict[str, Finding]:
    """Poisson arrivals of short and long images, the same for both."""
    service_s = _service_s(bench)
    ours, theirs = [], []
    for seed in _repeat("Poisson arrivals", bench.effort.seeds):
        arrivals = _poisson(bench, seed, rate=LOAD / service_s)
        theirs.append(mean(bench.stock.first_come_first_served(arrivals)))
        ours.append(mean(bench.serve(arrivals)))
    return {
        "latency_vs_fcfs": Finding(
            median(a / b for a, b in zip(theirs, ours, strict=True)),
            f"{median(ours):.2f} s mean latency",
            f"{median(theirs):.2f} s, first come first served at load {LOAD:g}",
            f"{len(ours)} schedules of {bench.effort.arrivals}",
        )
    }


def _service_s(bench: Bench) -> float:
    """Mean seconds of an image of the mix when the pipeline draws it alone."""
    bench.stock.one_at_a_time(bench.requests(2, steps=SHORT_STEPS))
    short_s = bench.stock.one_at_a_time(bench.requests(4, steps=SHORT_STEPS))[-1] / 4
    long_s = bench.stock.one_at_a_time(bench.requests(2, steps=LONG_STEPS))[-1] / 2
    return SHARE_OF_SHORT * short_s + (1 - SHARE_OF_SHORT) * long_s


def _poisson(bench: Bench, seed: int, rate: float) -> list[tuple[float, ImageRequest]]:
    dice = random.Random(seed)
    clock, arrivals = 0.0, []
    for request in bench.requests(bench.effort.arrivals):
        clock += dice.expovariate(rate)
        steps = SHORT_STEPS if dice.random() < SHARE_OF_SHORT else LONG_STEPS
        arrivals.append((clock, replace(request, steps=steps)))
    return arrivals


def mixing(bench: Bench) -> dict[str, Finding]:
    """One step of four rows: four LoRAs, no LoRA, and four adapters by PEFT."""
    runner, library = bench.engine.runner, bench.engine.library
    plain = bench.requests(4, steps=bench.effort.steps_timed + 1, loras=False)
    mixed = [replace(r, lora=name) for r, name in zip(plain, bench.loras, strict=True)]
    rows = {
        "none": runner.begin(plain, [None] * 4),
        "ours": runner.begin(mixed, [library.weights(library.find(n)) for n in bench.loras]),
    }
    taken: dict[str, list[float]] = {"none": [], "ours": [], "peft": []}
    for _ in _repeat("steps of four LoRAs", bench.effort.steps_timed):
        for kind, drawn in rows.items():
            for row in drawn:
                row.step = 0
            runner.step(drawn)  # gathers the batch: composing is not what is timed
            began = time.perf_counter()
            runner.step(drawn)
            taken[kind].append(time.perf_counter() - began)
        taken["peft"].append(bench.stock.mixed_step(rows["ours"]))
    runner.forget_batch()
    ms = {kind: f"{1000 * median(seconds):.1f} ms" for kind, seconds in taken.items()}
    steps = f"{bench.effort.steps_timed} steps"
    ours, none, peft = (median(taken[kind]) for kind in ("ours", "none", "peft"))
    return {
        "lora_mix_slowdown": Finding(ours / none, ms["ours"], f"{ms['none']} without LoRA", steps),
        "mix_vs_peft": Finding(peft / ours, ms["ours"], f"{ms['peft']} by PEFT", steps),
    }


def _repeat(what: str, times: int) -> Iterator[int]:
    for n in range(times):
        print(f"{what}: {n + 1} of {times}", file=sys.stderr, end="\r", flush=True)
        yield n
    print(file=sys.stderr)


def _per_minute(seconds: list[float]) -> str:
    return f"{60 * TOGETHER / median(seconds):.1f} images a minute"


def shipped_loras(row: ImageRow, spare: Path) -> dict[str, Path]:
    """The styles of `row`, and a fourth: the first at half strength, as a file of its own."""
    found = {
        lora.name: locate_lora(lora, default_root()) for lora in load_catalog().loras_of(row.name)
    }
    files = {name: file for name, file in found.items() if file is not None}
    if not files:
        raise click.ClickException(f"there are no LoRAs of {row.name}")
    tensors = load_file(next(iter(files.values())))
    halved = {k: v / 2 if "lora_B" in k else v for k, v in tensors.items()}
    save_file(halved, spare / "faint.safetensors")
    return {**dict(list(files.items())[:3]), "faint": spare / "faint.safetensors"}


@click.command()
@click.option("--quick", is_flag=True, help="Fewer repetitions: a look, not figures to quote.")
@click.option("--model", default="sketch", show_default=True, help="An image row of the catalog.")
def main(quick: bool, model: str) -> None:
    """Measure the image engine against the stock pipeline."""
    row = load_catalog().image(model)
    with tempfile.TemporaryDirectory(prefix="joing-bench-") as folder:
        bench = Bench(row, shipped_loras(row, Path(folder)), QUICK if quick else FULL)
        bench.draw(bench.requests(4))
        bench.stock.one_at_a_time(bench.requests(2))
        found = {**throughput(bench), **latency(bench)}
        bench.engine.stop()
        found |= mixing(bench)
    threads = torch.get_num_threads()
    Console().print(table(f"Images, {row.name}, {threads} threads", RATIOS, found))
    print(last_line("images", found, describe_machine()))


if __name__ == "__main__":
    main()
