"""From samples of the evaluation benchmark to its ratios. Pure.

Every ratio rests on samples of one run, taken in turn with those that it is measured against.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import median

from loadtests.benchmarks.report import Finding

RATIOS: dict[str, str] = {
    "overhead_ms_1": "<= 15",
    "overhead_pct_16": "<= 5",
    "throughput_32": ">= 0.90",
    "parallel_stages": "",
    "prefix_cache": "",
    "vs_original": "",
}
"""Every ratio that there is, and its target."""


@dataclass(frozen=True)
class Accounts:
    """Where the time of one evaluation at one client went, in seconds.

    Two runs of the same calls differ by more than our part of them, so that part is added up from
    differences within one run. What a bare client's calls take beyond vLLM's own account of them
    is vLLM's HTTP layer, and none of ours.
    """

    latency_s: float
    """As the client saw it."""
    asking_s: float
    """Of these, while at least one model call was under way."""
    calls: int
    calls_in_a_row: int
    transport_s: float
    """What the calls took in the evaluation service beyond vLLM's account, summed over calls."""
    replay_s: float
    """The same calls in the same pattern, by a bare client straight to vLLM."""
    bare_transport_s: float
    """What they took beyond vLLM's account, summed over calls."""
    tokens_agree: bool
    """True when both sides wrote equally many tokens in every call."""

    @property
    def overhead_s(self) -> float:
        """Around the calls, and within those that follow one another."""
        per_call_s = (self.transport_s - self.bare_transport_s) / self.calls
        return self.latency_s - self.asking_s + self.calls_in_a_row * per_call_s


@dataclass(frozen=True)
class Judged:
    """One proposal at one client, judged both ways, in seconds."""

    together_s: float
    in_order_s: float


@dataclass(frozen=True)
class Pair:
    """One of several evaluations at the same time, and its calls sent straight to vLLM."""

    system_s: float
    direct_s: float
    tokens_agree: bool


@dataclass(frozen=True)
class Block:
    """Evaluations done one after another by each of several clients; `seconds` of wall time."""

    evaluations: int
    seconds: float
    calls: int
    completion_tokens: int

    @property
    def per_minute(self) -> float:
        return 60 * self.evaluations / self.seconds

    @property
    def calls_per_minute(self) -> float:
        return 60 * self.calls / self.seconds


@dataclass
class Samples:
    """What was measured; a part that was not asked for stays empty. Blocks come in turn, so that
    the n-th of one list is compared with the n-th of the other."""

    accounts: list[Accounts] = field(default_factory=list)
    judged: list[Judged] = field(default_factory=list)
    pairs_16: list[Pair] = field(default_factory=list)
    ours_16: list[Block] = field(default_factory=list)
    original_16: list[Block] = field(default_factory=list)
    ours_32: list[Block] = field(default_factory=list)
    direct_32: list[Block] = field(default_factory=list)
    first_token_cached_s: list[float] = field(default_factory=list)
    first_token_uncached_s: list[float] = field(default_factory=list)


def findings(samples: Samples) -> dict[str, Finding]:
    """By ratio, in the order of RATIOS; only what was measured."""
    found: dict[str, Finding] = {}
    if samples.accounts:
        found["overhead_ms_1"] = _overhead_ms(samples.accounts)
        found["parallel_stages"] = _parallel_stages(samples.judged)
    if samples.pairs_16:
        found["overhead_pct_16"] = _overhead_pct(samples.pairs_16)
    if samples.ours_32:
        found["throughput_32"] = _throughput(samples.ours_32, samples.direct_32)
    if samples.first_token_cached_s:
        found["prefix_cache"] = _prefix_cache(samples)
    if samples.original_16:
        found["vs_original"] = _vs_original(samples.ours_16, samples.original_16)
    return {name: found[name] for name in RATIOS if name in found}


def _overhead_ms(accounts: list[Accounts]) -> Finding:
    replays = [a for a in accounts if a.tokens_agree] or accounts
    replayed_ms = median((a.latency_s - a.replay_s) * 1000 for a in replays)
    around_ms = median((a.latency_s - a.asking_s) * 1000 for a in accounts)
    return Finding(
        median(a.overhead_s * 1000 for a in accounts),
        f"{median(a.latency_s for a in accounts):.2f} s an evaluation, "
        f"{around_ms:.1f} ms of it around the calls",
        f"{median(a.replay_s for a in accounts):.2f} s straight to vLLM; "
        f"by difference {replayed_ms:.0f} ms",
        _agreeing(accounts),
    )


def _parallel_stages(judged: list[Judged]) -> Finding:
    together = median(j.together_s for j in judged)
    in_order = median(j.in_order_s for j in judged)
    return Finding(
        in_order / together,
        f"{together:.2f} s together",
        f"{in_order:.2f} s in order",
        str(len(judged)),
    )


def _overhead_pct(pairs: list[Pair]) -> Finding:
    agreed = [pair for pair in pairs if pair.tokens_agree] or pairs
    system, direct = sum(p.system_s for p in agreed), sum(p.direct_s for p in agreed)
    return Finding(
        100 * (system - direct) / system,
        f"{median(p.system_s for p in agreed):.2f} s an evaluation",
        f"{median(p.direct_s for p in agreed):.2f} s in vLLM",
        _agreeing(pairs),
    )


def _agreeing(samples: list[Accounts] | list[Pair]) -> str:
    return f"{sum(s.tokens_agree for s in samples)} of {len(samples)} with equal tokens"


def _throughput(ours: list[Block], direct: list[Block]) -> Finding:
    return Finding(
        median(a.per_minute / b.per_minute for a, b in zip(ours, direct, strict=True)),
        _rates(ours),
        _rates(direct),
        _blocks(ours),
    )


def _vs_original(ours: list[Block], original: list[Block]) -> Finding:
    """Rates of calls, not of evaluations: neither side gains by a call that it did not make."""
    both = zip(ours, original, strict=True)
    return Finding(
        median(a.calls_per_minute / b.calls_per_minute for a, b in both),
        _rates(ours),
        _rates(original),
        _blocks(ours),
    )


def _rates(blocks: list[Block]) -> str:
    evaluations = sum(block.evaluations for block in blocks)
    calls = sum(block.calls for block in blocks) / evaluations
    tokens = sum(block.completion_tokens for block in blocks) / evaluations
    per_minute = median(block.per_minute for block in blocks)
    return f"{per_minute:.1f} a minute ({calls:.1f} calls, {tokens:.0f} tokens each)"


def _blocks(blocks: list[Block]) -> str:
    return f"{len(blocks)} blocks of {blocks[0].evaluations}"


def _prefix_cache(samples: Samples) -> Finding:
    cached, uncached = samples.first_token_cached_s, samples.first_token_uncached_s
    return Finding(
        median(uncached) / median(cached),
        f"{median(cached) * 1000:.0f} ms to the first token, on",
        f"{median(uncached) * 1000:.0f} ms, off",
        str(min(len(cached), len(uncached))),
    )
