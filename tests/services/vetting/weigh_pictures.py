"""`python -m` this: fetches pictures from a mirror, one after another, and says what each cost.

Reads paths, one a line; writes for each a line of JSON: the outcome, CPU seconds and MiB of memory
beyond what it took to wait, of this process and of its decoder together. A decoder that ended took
no more than its own limit: it is not counted.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import resource
import sys
from pathlib import Path

import psutil

from services.vetting.adapters.thumbnails import ThumbnailFetcher
from services.vetting.pictures import PictureError
from tests.services.vetting.hostile_pictures import SAFE


async def main(base: str, warm_up: str, paths: list[str]) -> None:
    fetcher = ThumbnailFetcher(base_override=base, timeout_s=10.0)
    await fetcher.fetch([f"https://i.ytimg.com{warm_up}"])
    for path in paths:
        await weigh(fetcher, path)
        await fetcher.fetch([f"https://i.ytimg.com{warm_up}"])  # a new decoder, after a dead one
    await fetcher.aclose()


async def weigh(fetcher: ThumbnailFetcher, path: str) -> None:
    gc.collect()
    decoder = psutil.Process(fetcher._decoders.pids()[0])
    at_rest = {pid: forget_peak(pid) for pid in (os.getpid(), decoder.pid)}
    cpu_s = seconds(decoder)
    outcome = await outcome_of(fetcher, path)
    lives = fetcher._decoders.pids() == [decoder.pid]
    growth = {pid: peak(pid) - at_rest[pid] for pid in at_rest if lives or pid != decoder.pid}
    cost = {
        "outcome": outcome,
        "cpu_s": seconds(decoder if lives else None) - cpu_s,
        "memory_mib": sum(growth.values()),
    }
    sys.stdout.write(json.dumps(cost) + "\n")


async def outcome_of(fetcher: ThumbnailFetcher, path: str) -> str:
    try:
        await fetcher.fetch([f"https://i.ytimg.com{path}"])
    except PictureError as error:
        return error.reason
    return SAFE


def seconds(decoder: psutil.Process | None) -> float:
    """CPU seconds of this process, of decoders that ended, and of the one that lives."""
    total = 0.0
    for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN):
        used = resource.getrusage(who)
        total += used.ru_utime + used.ru_stime
    return total + (sum(decoder.cpu_times()[:2]) if decoder else 0.0)


def forget_peak(pid: int) -> float:
    """Lets the kernel measure the peak anew (Linux); MiB in use now."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")
    return peak(pid)


def peak(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], sys.stdin.read().split()))
