"""What servers say of themselves (/metrics) and what they use, once a second while a load runs.

A server that does not answer leaves a gap, which is a finding, not an error. Processor time is
that of a service's processes as the kernel counts it; of a process that ends between two looks the
last second is lost. GPU time is nvidia-smi's utilisation, which counts a GPU as busy while any
kernel runs on it, times the time between looks.
"""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

import httpx
import psutil
from prometheus_client.parser import text_string_to_metric_families

from loadtests.faults.processes import NotFound, Service
from loadtests.report.series import Recording, Sample

EVERY_S = 1.0
TIMEOUT_S = 2.0
MAX_METRICS_BYTES = 4 * 2**20
CPU, MEMORY, FILES = "cpu_seconds", "memory_bytes", "open_files"
GPU, GPU_MEMORY = "gpu_busy_seconds", "gpu_memory_bytes"
SMI = "nvidia-smi"
SMI_QUERY = ("--query-gpu=index,utilization.gpu,memory.used", "--format=csv,noheader,nounits")
# Of every Python process; they say little and take room.
SKIPPED = ("python_gc_", "python_info")


@dataclass
class Usage:
    """Processes of one service, and those that they start, over its lifetime."""

    name: str
    service: Service
    _spent: dict[tuple[int, float], float] = field(default_factory=dict)
    _base: dict[tuple[int, float], float] = field(default_factory=dict)
    _began: float = field(default_factory=time.time)

    def samples(self) -> Iterator[Sample]:
        """Processor time since the first call; nothing but that while the service is away."""
        memory = files = seen = 0
        for process in self._processes():
            with suppress(psutil.Error), process.oneshot():
                self._note(process)
                memory += process.memory_info().rss
                files += process.num_fds()
                seen += 1
        spent = sum(self._spent[key] - self._base[key] for key in self._spent)
        yield Sample(self.name, CPU, "counter", spent)
        if seen:
            yield Sample(self.name, MEMORY, "gauge", memory)
            yield Sample(self.name, FILES, "gauge", files)

    def _note(self, process: psutil.Process) -> None:
        key, times = (process.pid, process.create_time()), process.cpu_times()
        self._spent[key] = times.user + times.system
        self._base.setdefault(key, 0.0 if key[1] > self._began else self._spent[key])

    def _processes(self) -> list[psutil.Process]:
        try:
            roots = self.service.processes()
        except NotFound:
            return []
        found = {process.pid: process for process in roots}
        for root in roots:
            with suppress(psutil.Error):
                found |= {child.pid: child for child in root.children(recursive=True)}
        return list(found.values())


@dataclass
class Gpus:
    """What nvidia-smi says; nothing where there is none."""

    program: str | None = field(default_factory=lambda: shutil.which(SMI))
    _busy: dict[str, float] = field(default_factory=dict)
    _last: float | None = None

    async def samples(self) -> list[Sample]:
        if self.program is None:
            return []
        text, now = await self._ask(), time.monotonic()
        passed_s = 0.0 if self._last is None else now - self._last
        self._last = now
        samples = []
        for index, busy, memory in rows_of(text):
            self._busy[index] = self._busy.get(index, 0.0) + busy * passed_s
            samples.append(Sample("gpu", GPU, "counter", self._busy[index], index))
            samples.append(Sample("gpu", GPU_MEMORY, "gauge", memory, index))
        return samples

    async def _ask(self) -> str:
        assert self.program is not None
        process = await asyncio.create_subprocess_exec(
            self.program,
            *SMI_QUERY,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
        try:
            output, _ = await asyncio.wait_for(process.communicate(), TIMEOUT_S)
        except TimeoutError:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()
            return ""
        return output.decode("utf-8", "replace")


def rows_of(text: str) -> Iterator[tuple[str, float, float]]:
    """Index, share busy and bytes used of each GPU; one that says "[N/A]" is left out."""
    for line in text.splitlines():
        parts = [part.strip() for part in line.split(",")]
        with suppress(ValueError):
            index, percent, mebibytes = parts
            yield index, float(percent) / 100, float(mebibytes) * 2**20


@dataclass
class Watch:
    """`metrics` are addresses of /metrics by the name of the service; `usages` their processes."""

    metrics: Mapping[str, str]
    usages: Iterable[Usage] = ()
    gpus: Gpus = field(default_factory=Gpus)
    recording: Recording = field(default_factory=Recording)

    async def run(self, until: asyncio.Event) -> Recording:
        """Looks at once and then every second, until told; what takes longer leaves seconds out."""
        async with httpx.AsyncClient(timeout=TIMEOUT_S) as client:
            started, looks = time.monotonic(), 0
            while not until.is_set():
                self.recording.add(time.time(), await self._look(client))
                looks = max(looks + 1, int((time.monotonic() - started) / EVERY_S))
                with suppress(TimeoutError):
                    wait_s = max(0.0, started + looks * EVERY_S - time.monotonic())
                    await asyncio.wait_for(until.wait(), wait_s)
            self.recording.add(time.time(), await self._look(client))
        return self.recording

    async def _look(self, client: httpx.AsyncClient) -> list[Sample]:
        scrapes = [scraped(client, name, url) for name, url in self.metrics.items()]
        usage = asyncio.to_thread(lambda: [s for one in self.usages for s in one.samples()])
        found = await asyncio.gather(*scrapes, usage, self.gpus.samples())
        return [sample for samples in found for sample in samples]


async def scraped(client: httpx.AsyncClient, source: str, url: str) -> list[Sample]:
    """Nothing where the server does not answer as it should, or with more than is bearable."""
    try:
        async with asyncio.timeout(TIMEOUT_S), client.stream("GET", url) as answer:
            body = b""
            async for chunk in answer.aiter_bytes():
                body += chunk
                if len(body) > MAX_METRICS_BYTES:
                    return []
        return list(samples_of(source, body.decode("utf-8"))) if answer.is_success else []
    except (httpx.HTTPError, TimeoutError, ValueError):
        return []


def samples_of(source: str, text: str) -> Iterator[Sample]:
    """Counters and gauges, and a histogram's count and sum; no buckets. Raises ValueError."""
    for family in text_string_to_metric_families(text):
        if family.name.startswith(SKIPPED):
            continue
        for sample in family.samples:
            if sample.name.endswith(("_bucket", "_created")) or "quantile" in sample.labels:
                continue
            grows = family.type == "counter" or sample.name.endswith(("_total", "_sum", "_count"))
            labels = ",".join(f"{key}={value}" for key, value in sorted(sample.labels.items()))
            kind = "counter" if grows else "gauge"
            yield Sample(source, sample.name, kind, sample.value, labels)  # type: ignore[arg-type]
