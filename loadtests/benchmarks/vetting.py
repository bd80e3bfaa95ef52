"""Channels vetted a minute, eight at a time against one after another, and what a channel costs.

Starts the vetting service and its language model: an embedded one behind the llm service or, with
--scripted, a reader that knows the answers and gives each after the same time, so that what is left
is the service's own. YouTube is tests/youtube over HTTP, served by this process. The sides take
turns, and no channel is vetted twice.

`python -m loadtests.benchmarks.vetting [--quick] [--scripted] [--llm ROW]`
`python -m loadtests.benchmarks.vetting --labels [N]`: the verdicts of N labelled channels beside
what their files expect. Where nothing can see pictures none may pass, so the verdict that the same
evidence would give with JOING_VETTING_TEXT_ONLY is told too ("by words").
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import count, cycle, islice, zip_longest
from pathlib import Path
from statistics import fmean, median
from typing import Any

import click
import httpx
import psutil
from rich.console import Console
from rich.table import Table
from starlette.requests import Request

from bentos.running import Running, running, tail
from loadtests.benchmarks.machine import describe_machine
from loadtests.benchmarks.recorded_calls import BenchmarkFailed, connected
from loadtests.benchmarks.report import Finding, last_line, table
from models.catalog import DEFAULT_LLM
from tests.fakes.scripted_llm import Act, served
from tests.fakes.scripted_vetter import ScriptedVetter
from tests.youtube import pictures
from tests.youtube.described import Channels, DescribedChannel, DescribedVideo
from tests.youtube.server import KEY, serve_youtube

QUICK_LLM = "smollm2-135m"
SCRIPTED, SCRIPTED_S = "scripted", 0.5
VETTING, LLM = "services.vetting.service:Vetting", "services.llm.service:LLM"
PICTURES = "https://i.ytimg.com"  # where YouTube says they are
CLIENTS = 8
LIMIT_S = 3_600.0
KEPT_VARIABLES = frozenset({"JOING_MODELS_DIR"})
# A slow machine must not change what is measured.
PATIENCE = {
    "JOING_LLM_REQUEST_TIMEOUT_S": "900",
    "JOING_VETTING_CALL_TIMEOUT_S": "900",
    "JOING_VETTING_DEADLINE_S": "1800",
    "JOING_VETTING_OCR_TIMEOUT_S": "60",
    "JOING_VETTING_THUMBNAIL_TIMEOUT_S": "30",
    "JOING_VETTING_YOUTUBE_DEADLINE_S": "120",
    "JOING_VETTING_YOUTUBE_TIMEOUT_S": "60",
}
RATIOS = {"channels_per_minute": "over 1", "reply_tokens_per_minute": ""}
SPENT = ("quota_units", "youtube_bytes", "thumbnail_bytes")
TOKENS = ("prompt_tokens", "cached_tokens", "completion_tokens")
DEPENDENCIES = ("youtube", "thumbnails", "ocr", "vision", "llm", "database")
# A model may fail, small ones do; where one of these does, less was done than is measured.
UNFAILING = ("youtube", "thumbnails", "ocr", "database")
COUNTER = re.compile(
    r'^joing_vetting_(calls|failed_calls|call_seconds|spent)_total\{\w+="(\w+)"\} (\S+)$', re.M
)
# Processes that the vetting service starts, by the module that they run.
WORKERS = {
    "services.vetting.adapters.reading": "ocr",
    "services.vetting.adapters.decoding": "decoding",
}
# Kinds of channels that are judged by their words; the others test pictures, YouTube's own data
# and faults.
IN_WORDS = ("harmless", "words", "injected", "borderline")
OTHERWISE = ("both", "pictures", "signals", "gaps", "faults")


@dataclass(frozen=True)
class Effort:
    """At most `channels` of one side in one round, none of them begun after `block_s`; `videos` of
    each. What is begun is finished.
    """

    rounds: int
    channels: int
    videos: int
    block_s: float


QUICK, FULL = Effort(1, 8, 4, 90.0), Effort(2, 16, 12, 400.0)

Account = Mapping[tuple[str, str], float]
"""The vetting service's counters by (what, label), and ("processor_seconds", part). Seconds of
calls hold what each waited for its turn, and those of calls at the same time add up.
"""


@dataclass(frozen=True)
class Vetted:
    """One channel by one client; seconds as the client saw them."""

    channel: DescribedChannel
    answer: Mapping[str, Any]
    seconds: float

    @property
    def tokens(self) -> int:
        usage = self.answer["usage"]
        return int(usage["prompt_tokens"] + usage["completion_tokens"])

    @property
    def verdict(self) -> str:
        return str(self.answer["verdict"])

    @property
    def verdict_by_words(self) -> str:
        """Of the same evidence, where the operator lets a channel pass whose pictures went unseen:
        that rule falls away, and the others decide as they did.
        """
        codes = [reason["code"] for reason in self.answer["reasons"]]
        return "pass" if codes == ["no_vision_model"] else self.verdict


@dataclass(frozen=True)
class Block:
    """Channels of one side in one round; `seconds` from the first request to the last answer."""

    vetted: Sequence[Vetted]
    seconds: float
    spent: Account

    @property
    def per_minute(self) -> float:
        return 60 * len(self.vetted) / self.seconds

    @property
    def written_per_minute(self) -> float:
        """Tokens of replies."""
        written = sum(int(v.answer["usage"]["completion_tokens"]) for v in self.vetted)
        return 60.0 * written / self.seconds


@dataclass(frozen=True)
class Sides:
    """The n-th block of one side is compared with the n-th of the other."""

    together: list[Block]
    alone: list[Block]


@dataclass(frozen=True)
class Score:
    """Verdicts beside those expected. `passed` names channels that passed and must not."""

    right: int
    to_review: int
    to_fail: int
    passed: tuple[str, ...]

    @classmethod
    def of(cls, verdicts: Sequence[tuple[DescribedChannel, str]]) -> Score:
        wrong = [(c, verdict) for c, verdict in verdicts if verdict != c.expected.verdict]
        return cls(
            len(verdicts) - len(wrong),
            sum(verdict == "review" for _, verdict in wrong),
            sum(verdict == "fail" for _, verdict in wrong),
            tuple(c.name for c, verdict in wrong if verdict == "pass"),
        )


@dataclass(frozen=True)
class Bench:
    """`services` by the part of the processor's time that is theirs."""

    client: httpx.AsyncClient
    services: Mapping[str, Running]

    async def vet(self, channel: DescribedChannel) -> Vetted:
        """Raises BenchmarkFailed for what is no verdict."""
        began = time.perf_counter()
        answer = await self.client.post(
            "/v1/creators/vet",
            json={"channel": channel.id},
            headers={"X-Request-Id": channel.name},
        )
        seconds = time.perf_counter() - began
        if answer.status_code != 200:
            raise BenchmarkFailed(f"{channel.name}: {answer.status_code} {answer.text}")
        return Vetted(channel, answer.json(), seconds)

    async def account(self) -> dict[tuple[str, str], float]:
        """All since the services started."""
        text = (await self.client.get("/metrics")).text
        counted = {(what, label): float(value) for what, label, value in COUNTER.findall(text)}
        if not counted:
            raise BenchmarkFailed("/metrics has no joing_vetting_calls_total.")
        used = processor_seconds(self.services)
        return counted | {("processor_seconds", part): s for part, s in used.items()}

    async def block(
        self, channels: Sequence[DescribedChannel], clients: int, block_s: float
    ) -> Block:
        """`channels` by so many clients; each takes the next one when it has its answer, until
        `block_s` are over.
        """
        for channel in channels:
            draw(channel)
        waiting, vetted = iter(channels), list[Vetted]()

        async def client() -> None:
            for channel in waiting:
                vetted.append(await self.vet(channel))
                if time.perf_counter() - began > block_s:
                    return

        before, began = await self.account(), time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for _ in range(clients):
                group.create_task(client())
        seconds, after = time.perf_counter() - began, await self.account()
        spent = {key: after[key] - before.get(key, 0.0) for key in after}
        refuse_failures(spent)
        return Block(vetted, seconds, spent)


def refuse_failures(spent: Account) -> None:
    """Raises BenchmarkFailed where less was done than a figure would say."""
    if failed := [name for name in UNFAILING if spent["failed_calls", name]]:
        raise BenchmarkFailed(f"Calls failed to {', '.join(failed)}: no figure comes of that.")


def draw(channel: DescribedChannel) -> None:
    """What the service asks for first of each video: to draw it is no work of the service."""
    for video in channel.videos:
        pictures.jpeg(video.file.picture, "maxres")


def processor_seconds(services: Mapping[str, Running]) -> dict[str, float]:
    """Of every process that lives, by part."""
    used = dict.fromkeys((*services, *WORKERS.values()), 0.0)
    for name, service in services.items():
        root = psutil.Process(service.pid)
        for process in (root, *root.children(recursive=True)):
            try:
                command, times = process.cmdline(), process.cpu_times()
            except psutil.NoSuchProcess:
                continue
            part = next((p for module, p in WORKERS.items() if module in command), name)
            used[part] += times.user + times.system
    return used


def in_turn(channels: Channels, kinds: Sequence[str]) -> list[DescribedChannel]:
    """One of each kind, then the next of each."""
    columns = [[c for c in channels.values() if c.file.kind == kind] for kind in kinds]
    return [c for row in zip_longest(*columns) for c in row if c is not None]


def with_verdicts(channels: Channels) -> list[DescribedChannel]:
    """Those that a vetting comes to a verdict about, the ones judged by words first."""
    ordered = in_turn(channels, IN_WORDS) + in_turn(channels, OTHERWISE)
    return [channel for channel in ordered if channel.expected.verdict is not None]


def fresh_blocks(
    described: Channels, channels: int, videos: int
) -> Iterator[list[DescribedChannel]]:
    """Channels that nobody saw, without end; every block is like the others. Channels, titles and
    pictures begin with a number, so that no prefix cache knows a prompt's last turn.
    """
    sources = in_turn(described, IN_WORDS)
    numbers = count(1)
    while True:
        shown = cycle([video for channel in sources for video in channel.visible])
        yield [
            _fresh_channel(next(numbers), source, list(islice(shown, videos)))
            for source in islice(cycle(sources), channels)
        ]


def _fresh_channel(
    serial: int, like: DescribedChannel, videos: Sequence[DescribedVideo]
) -> DescribedChannel:
    made = [_fresh_video(serial, n, video) for n, video in enumerate(videos)]
    about = like.file.channel
    title = {"title": f"{serial:04d} {about.title}"}
    return replace(
        like,
        name=f"{like.name}-{serial:04d}",
        id=f"UC{serial:022d}",
        file=like.file.model_copy(update={"channel": about.model_copy(update=title)}),
        videos=tuple(sorted(made, key=lambda video: video.published_at, reverse=True)),
    )


def _fresh_video(serial: int, n: int, like: DescribedVideo) -> DescribedVideo:
    mark, picture = f"{serial:04d}-{n:02d}", like.file.picture
    drawn = picture.model_copy(update={"text": f"{mark}\n{picture.text}".rstrip()})
    update = {"title": f"{mark} {like.file.title}", "picture": drawn}
    return replace(like, id=f"{serial:05d}{n:06d}", file=like.file.model_copy(update=update))


@dataclass
class SteadyVetter(ScriptedVetter):
    """Every answer takes SCRIPTED_S, however many are asked for."""

    def act_for(self, body: dict[str, Any]) -> Act:
        return replace(super().act_for(body), delay_s=SCRIPTED_S)

    async def _wait(self, request: Request, seconds: float) -> None:
        """Without asking meanwhile whether the caller is still there: that costs processor time."""
        await asyncio.sleep(seconds)


@contextmanager
def model_server(
    row: str, channels: Channels, home: Path
) -> Iterator[tuple[str, dict[str, Running]]]:
    """The address of the model `row`, and the service that runs it, which SCRIPTED has not."""
    if row == SCRIPTED:
        with served(SteadyVetter(channels=channels)) as scripted:
            yield scripted.base_url, {}
        return
    with running(LLM, environment={**PATIENCE, "JOING_HOME": str(home), "JOING_LLM": row}) as llm:
        yield llm.base_url, {"llm": llm}


@contextmanager
def bench_for(row: str, channels: Channels, ocr_workers: int) -> Iterator[Bench]:
    """The vetting service in front of the model `row` and of a YouTube that has `channels`."""
    with (
        tempfile.TemporaryDirectory(prefix="joing-bench-") as folder,
        serve_youtube(channels, picture_base_url=PICTURES) as youtube,
        model_server(row, channels, Path(folder) / "llm") as (llm_url, models),
    ):
        environment = {
            **PATIENCE,
            "JOING_HOME": str(Path(folder) / "vetting"),
            "JOING_LLM_URL": llm_url,
            "JOING_LOG_LEVEL": "warning",
            "JOING_VETTING_OCR_WORKERS": str(ocr_workers),
            "JOING_VETTING_PICTURES_URL": youtube.base_url,
            # No row of the catalog that is embedded can see; the scripted model can.
            "JOING_VETTING_VISION": "true" if row == SCRIPTED else "false",
            "JOING_VETTING_YOUTUBE_URL": youtube.base_url,
            "JOING_YOUTUBE_KEY": KEY,
        }
        with running(VETTING, environment=environment) as vetting:
            services = {"service": vetting, **models}
            try:
                yield Bench(connected(vetting.base_url, CLIENTS), services)
            except BaseException as error:
                error.add_note("\n".join(tail(service.log) for service in services.values()))
                raise


async def compare(
    bench: Bench, blocks: Iterator[Sequence[DescribedChannel]], effort: Effort
) -> Sides:
    """Rounds of both sides, behind one channel that does not count; who begins changes. Raises
    BenchmarkFailed; TimeoutError after LIMIT_S.
    """
    sides = Sides([], [])
    async with asyncio.timeout(LIMIT_S), bench.client:
        await bench.block(next(blocks)[:1], 1, effort.block_s)
        for number in range(effort.rounds):
            turns = [(sides.alone, 1), (sides.together, CLIENTS)]
            for done, clients in turns if number % 2 == 0 else reversed(turns):
                block = await bench.block(next(blocks), clients, effort.block_s)
                vetted = f"{len(block.vetted)} channels in {block.seconds:.0f} s"
                tell(f"round {number + 1}, clients {clients}: {vetted}")
                done.append(block)
    return sides


async def judge(bench: Bench, channels: Sequence[DescribedChannel], limit_s: float) -> list[Vetted]:
    """One after another, none of them begun after `limit_s`. Raises BenchmarkFailed."""
    judged, began = list[Vetted](), time.perf_counter()
    async with bench.client:
        for channel in channels:
            if judged and time.perf_counter() - began > limit_s:
                break
            judged.append(await bench.vet(channel))
            got, expected = judged[-1], channel.expected.verdict
            tell(f"{channel.name}: {got.verdict}, expected {expected}; {got.seconds:.0f} s")
    return judged


def tell(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


def ratios(sides: Sides, *, is_scripted: bool) -> dict[str, Finding]:
    """Medians over rounds. The length of what a scripted model writes means nothing."""
    pairs = list(zip(sides.together, sides.alone, strict=True))
    repetitions = "; ".join(f"{len(a.vetted)} and {len(b.vetted)} channels" for a, b in pairs)
    channels = Finding(
        median(ours.per_minute / alone.per_minute for ours, alone in pairs),
        _rate(sides.together),
        _rate(sides.alone),
        repetitions,
    )
    if is_scripted:
        return {"channels_per_minute": channels}
    written = Finding(
        median(ours.written_per_minute / alone.written_per_minute for ours, alone in pairs),
        f"{median(b.written_per_minute for b in sides.together):.0f} a minute",
        f"{median(b.written_per_minute for b in sides.alone):.0f} a minute",
        repetitions,
    )
    return {"channels_per_minute": channels, "reply_tokens_per_minute": written}


def _rate(blocks: Sequence[Block]) -> str:
    seconds = median(v.seconds for block in blocks for v in block.vetted)
    return f"{median(b.per_minute for b in blocks):.2f} a minute, {seconds:.1f} s each"


def costs(blocks: Sequence[Block], *, is_scripted: bool) -> dict[str, float]:
    """Of one channel, by name. A dependency's share is of the seconds of all calls."""
    vetted = [v for block in blocks for v in block.vetted]
    keys = sorted({key for block in blocks for key in block.spent})
    mean = {key: sum(b.spent.get(key, 0.0) for b in blocks) / len(vetted) for key in keys}
    whole_s = sum(mean["call_seconds", name] for name in DEPENDENCIES)
    found = {what: mean["spent", what] for what in SPENT}
    for key in () if is_scripted else TOKENS:
        found[key] = fmean(v.answer["usage"][key] for v in vetted)
    for name in DEPENDENCIES:
        if mean["calls", name] > 0:
            found[f"share_{name}"] = mean["call_seconds", name] / whole_s
            found[f"seconds_{name}"] = mean["call_seconds", name]
            found[f"calls_{name}"] = mean["calls", name]
            found[f"failed_{name}"] = mean["failed_calls", name]
    parts = [part for what, part in keys if what == "processor_seconds"]
    return found | {f"processor_s_{part}": mean["processor_seconds", part] for part in parts}


def cost_table(together: Mapping[str, float], alone: Mapping[str, float]) -> Table:
    """Rows of zeros are left out."""
    shown = Table("a channel", f"{CLIENTS} at a time", "one after another")
    for name in alone:
        if together[name] + alone[name] > 0:
            shown.add_row(name, f"{together[name]:,.3f}", f"{alone[name]:,.3f}")
    return shown


def score_table(title: str, judged: Sequence[Vetted]) -> Table:
    """`unseen` is why something was not looked at, be it the model or the pictures."""
    columns = ("channel", "expected", "verdict", "by words", "reasons", "unseen", "tokens", "s")
    shown = Table(*columns, title=title)
    for v in judged:
        reasons = " ".join(reason["code"] for reason in v.answer["reasons"])
        told = (v.channel.name, str(v.channel.expected.verdict), v.verdict, v.verdict_by_words)
        unseen = " ".join(sorted({u["why"] for u in v.answer["coverage"]["not_looked_at"]}))
        shown.add_row(*told, reasons, unseen, f"{v.tokens:,}", f"{v.seconds:.1f}")
    return shown


def scores(judged: Sequence[Vetted]) -> dict[str, float]:
    """Numbers of channels, then means of a channel."""
    told = Score.of([(v.channel, v.verdict) for v in judged])
    by_words = Score.of([(v.channel, v.verdict_by_words) for v in judged])
    found: dict[str, float] = {"channels": len(judged)}
    for prefix, score in (("", told), ("by_words_", by_words)):
        found |= {
            f"{prefix}right": score.right,
            f"{prefix}to_review": score.to_review,
            f"{prefix}to_fail": score.to_fail,
            f"{prefix}to_pass": len(score.passed),
        }
    found["tokens"] = fmean(v.tokens for v in judged)
    found["seconds"] = fmean(v.seconds for v in judged)
    return found


def measure(row: str, effort: Effort, ocr_workers: int) -> None:
    """Print what was compared and what a channel cost, then one line of JSON, whose costs are
    those of one after another.
    """
    made = fresh_blocks(Channels.load(), effort.channels, effort.videos)
    blocks = list(islice(made, 1 + 2 * effort.rounds))
    channels = Channels({channel.name: channel for block in blocks for channel in block})
    with bench_for(row, channels, ocr_workers) as bench:
        sides = asyncio.run(compare(bench, iter(blocks), effort))
    is_scripted = row == SCRIPTED
    found = ratios(sides, is_scripted=is_scripted)
    alone = costs(sides.alone, is_scripted=is_scripted)
    together = costs(sides.together, is_scripted=is_scripted)
    title = f"Vetting ({_told(row)}, {effort.videos} videos a channel, OCR by {ocr_workers})"
    Console().print(table(title, RATIOS, found), cost_table(together, alone))
    numbers = found | _plain({**alone, "ocr_workers": ocr_workers})
    print(last_line(_name("vetting", row), numbers, describe_machine()))


def label(row: str, channels: int, ocr_workers: int, limit_s: float) -> None:
    """Print verdicts beside what was expected, then one line of JSON."""
    described = Channels.load()
    asked = with_verdicts(described)[: channels or None]
    with bench_for(row, described, ocr_workers) as bench:
        judged = asyncio.run(judge(bench, asked, limit_s))
    found = scores(judged)
    console = Console()
    console.print(score_table(f"Labelled channels ({_told(row)})", judged))
    for name, value in found.items():
        console.print(f"{name}: {value:,.4g}")
    print(last_line(_name("vetting_labels", row), _plain(found), describe_machine()))


def _plain(numbers: Mapping[str, float]) -> dict[str, Finding]:
    return {name: Finding(value, "", "", "") for name, value in numbers.items()}


def _told(row: str) -> str:
    return f"{row}, {SCRIPTED_S:g} s a call" if row == SCRIPTED else row


def _name(bench: str, row: str) -> str:
    """Scripted figures have a name of their own: they are never to stand beside real ones."""
    return f"{bench}_{SCRIPTED}" if row == SCRIPTED else bench


@click.command()
@click.option("--quick", is_flag=True, help=f"Fewer and smaller channels, by {QUICK_LLM}.")
@click.option("--scripted", is_flag=True, help="A model that knows the answers.")
@click.option("--llm", "row", help=f"A row of the catalog; {DEFAULT_LLM} where not --quick.")
@click.option("--labels", type=int, is_flag=False, flag_value=0, help="Verdicts of N or all.")
@click.option("--ocr-workers", default=1, help="Processes that read thumbnails.")
@click.option("--minutes", default=60.0, help="Of --labels: begins no channel after these.")
def main(
    *,
    quick: bool,
    scripted: bool,
    row: str | None,
    labels: int | None,
    ocr_workers: int,
    minutes: float,
) -> None:
    """Vet channels with everything real but YouTube."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # So that what was started is stopped.
    for name in [n for n in os.environ if n.startswith("JOING_") and n not in KEPT_VARIABLES]:
        del os.environ[name]  # What is measured is configured here and nowhere else.
    if scripted and row is not None:
        raise click.UsageError("--scripted has no model of the catalog: leave out --llm.")
    chosen = SCRIPTED if scripted else row or (QUICK_LLM if quick else DEFAULT_LLM)
    if labels is None:
        measure(chosen, QUICK if quick else FULL, ocr_workers)
    else:
        label(chosen, labels, ocr_workers, 60 * minutes)


if __name__ == "__main__":
    main()
