"""The whole system against its parts: `python -m loadtests.benchmarks.evaluation [--quick]`.

Starts what it measures (vLLM with the embedded model, every service) and stops it. Each ratio is
measured in one run against its alternative, in turn with it:

- overhead_ms_1: milliseconds that one evaluation takes beyond what vLLM needs for its calls.
- overhead_pct_16: the same at 16 clients, in per cent of the evaluations' time.
- throughput_32: evaluations a second at 32 clients / the same calls straight to vLLM.
- parallel_stages: latency when content and deliberation are judged in order / together.
- prefix_cache: time to the first token of the content prompt without / with prefix caching.
- vs_original: calls a minute at 16 clients, ours / the original design.

The embedded model's verdicts are chance, so thresholds are set such that they decide nothing:
every evaluation asks both judges once and then has feedback written.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import click
import httpx
import psutil
from rich.console import Console

from bentos.running import SYSTEM, Running, running, tail
from loadtests.benchmarks.machine import describe_machine
from loadtests.benchmarks.measuring import (
    FULL,
    QUICK,
    Bench,
    Effort,
    first_tokens,
    one_client,
    sixteen_clients,
    thirty_two_clients,
    unique_proposals,
    warm_up,
)
from loadtests.benchmarks.original_design import running_original_design
from loadtests.benchmarks.recorded_calls import BenchmarkFailed, Bodies, DirectModel, connected
from loadtests.benchmarks.report import last_line, table
from loadtests.benchmarks.summary import RATIOS, Samples, findings
from models.llm.arguments import VLLM_MODULE

MODEL = "smollm2-135m"
LLM_SERVICE = "services.llm.service:LLM"
EVALUATION_SERVICE = "services.evaluation.service:Evaluation"
ENVIRONMENT = {
    "JOING_LLM": MODEL,
    "JOING_LLM_CONTEXT_TOKENS": "8192",
    "JOING_LLM_KV_CACHE_GIB": "2",
    "JOING_LOG_LEVEL": "warning",
    # Content always fails, deliberation never does, and neither is borderline: three calls.
    "JOING_EVALUATION_CONTENT_THRESHOLD": "100",
    "JOING_EVALUATION_BORDERLINE_MARGIN": "0",
    "JOING_EVALUATION_DELIBERATION_LIMIT": "4",
    # A slow machine must not change what is measured.
    "JOING_EVALUATION_CALL_TIMEOUT_S": "900",
    "JOING_EVALUATION_DEADLINE_S": "900",
}
KEPT_VARIABLES = frozenset({"JOING_MODELS_DIR"})
TITLE = f"Evaluation, {MODEL}"
LIMIT_S = 3_600.0
CONNECTIONS = 96

Phase = Callable[[Bench, Samples], Awaitable[None]]
PHASES: dict[Phase, frozenset[str]] = {
    one_client: frozenset({"overhead_ms_1", "parallel_stages"}),
    sixteen_clients: frozenset({"overhead_pct_16", "vs_original"}),
    thirty_two_clients: frozenset({"throughput_32"}),
    first_tokens: frozenset({"prefix_cache"}),
}


@dataclass
class Started:
    """What runs, and the folder that holds its state."""

    home: Path
    services: list[Running] = field(default_factory=list)

    @contextmanager
    def service(self, target: str, **variables: str) -> Iterator[Running]:
        """`target` with a home of its own; two services must not share a database."""
        home = self.home / str(len(self.services))
        environment = {**ENVIRONMENT, "JOING_HOME": str(home), **variables}
        with running(target, environment=environment) as service:
            self.services.append(service)
            yield service

    def log_tails(self) -> str:
        return "\n".join(tail(service.log) for service in self.services if service.log.exists())


@asynccontextmanager
async def bench_for(phases: list[Phase], effort: Effort, started: Started) -> AsyncIterator[Bench]:
    """Everything that `phases` need, and nothing else: what idles still costs a small machine."""
    async with AsyncExitStack() as stack:

        async def client(base_url: str) -> httpx.AsyncClient:
            return await stack.enter_async_context(connected(base_url, CONNECTIONS))

        system = stack.enter_context(started.service(SYSTEM))
        direct = DirectModel(await client(vllm_url(system)), Bodies(MODEL))
        in_order = original = uncached = None
        if one_client in phases:
            service = stack.enter_context(
                started.service(
                    EVALUATION_SERVICE,
                    JOING_LLM_URL=system.base_url,
                    JOING_EVALUATION_JUDGING="in_order",
                )
            )
            in_order = await client(service.base_url)
        if sixteen_clients in phases:
            plain = stack.enter_context(running_original_design(vllm_url(system), MODEL))
            started.services.append(plain)
            original = await client(plain.base_url)
        if first_tokens in phases:
            llm = stack.enter_context(
                started.service(LLM_SERVICE, JOING_LLM_PREFIX_CACHING="false")
            )
            uncached = DirectModel(await client(vllm_url(llm)), Bodies(MODEL))
        try:
            yield Bench(
                system=await client(system.base_url),
                in_order=in_order,
                direct=direct,
                original=original,
                uncached=uncached,
                effort=effort,
                proposals=unique_proposals(),
            )
        except BaseException as error:
            error.add_note(started.log_tails())
            raise


def vllm_url(service: Running) -> str:
    """The address of the vLLM that `service` started, read from its processes' command lines: the
    llm service keeps it to itself. Raises BenchmarkFailed when there is none.
    """
    for process in psutil.Process(service.pid).children(recursive=True):
        try:
            command = process.cmdline()
        except psutil.Error:
            continue
        if VLLM_MODULE in command:
            return f"http://127.0.0.1:{command[command.index('--port') + 1]}"
    raise BenchmarkFailed(f"No process of {service.pid} runs {VLLM_MODULE}.")


async def measure(phases: list[Phase], effort: Effort, started: Started) -> Samples:
    """Raises BenchmarkFailed, StartError; TimeoutError after LIMIT_S."""
    samples = Samples()
    async with asyncio.timeout(LIMIT_S), bench_for(phases, effort, started) as bench:
        await warm_up(bench)
        for phase in phases:
            print(f"{phase.__name__} ...", file=sys.stderr, flush=True)
            await phase(bench, samples)
    return samples


@click.command()
@click.option("--quick", is_flag=True, help="Fewer repetitions: a look, not a figure to quote.")
@click.option("--only", type=click.Choice(list(RATIOS)), help="One ratio alone.")
def main(quick: bool, only: str | None) -> None:
    """Measure the whole system against its parts."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # So that what was started is stopped.
    for name in [n for n in os.environ if n.startswith("JOING_") and n not in KEPT_VARIABLES]:
        del os.environ[name]  # What is measured is configured here and nowhere else.
    phases = [phase for phase, ratios in PHASES.items() if only is None or only in ratios]
    with tempfile.TemporaryDirectory(prefix="joing-bench-") as folder:
        started = Started(Path(folder))
        samples = asyncio.run(measure(phases, QUICK if quick else FULL, started))
    found = findings(samples)
    if only is not None:
        found = {only: found[only]}
    Console().print(table(TITLE, RATIOS, found))
    print(last_line("evaluation", found, describe_machine()))


if __name__ == "__main__":
    main()
