"""How well an embedded model judges: `python -m loadtests.benchmarks.judging [--limit N]`.

Labelled proposals that nothing was trained on go through the evaluation's own graph (prompts,
grammar, policy, second runs) up to the verdict, before the real llm service with vLLM. Ways:

- zero-shot: prompt version 1; few-shot: version 2, with examples;
- fine-tuned: version `judge`, asked of the model's LoRA (the catalog's, or --lora).

Every answer is appended to .run/judging as it comes, and what is there is not asked again: a run
that was broken off goes on. Answers of another LoRA or prompt are not taken for this one's.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import httpx
from langgraph.checkpoint.memory import InMemorySaver
from rich.console import Console

from bentos.running import ROOT, running
from loadtests.benchmarks.judging_scores import (
    OUTCOMES,
    TASKS,
    Judged,
    accuracy,
    balanced,
    calibration_error,
    confusion,
    majority,
    reliability,
    reviews,
)
from loadtests.benchmarks.machine import describe_machine
from loadtests.benchmarks.report import Finding, last_line, table
from models.catalog import DEFAULT_LLM, load_catalog
from services.evaluation import policy
from services.evaluation.examples import LabelledProposal, read_labelled
from services.evaluation.graph import RECURSION_LIMIT, build_graph
from services.evaluation.journal import Journal
from services.evaluation.judging import Interviewer
from services.evaluation.nodes import Plan, State, Work, passages_of, stages_of
from services.evaluation.prompts.library import FOLDER as PROMPTS
from services.evaluation.prompts.library import PromptLibrary
from services.evaluation.schemas import Outcome
from services.evaluation.settings import EvaluationSettings
from services.evaluation.texts import Texts
from services.evaluation.volume import VolumeMeter
from services.shared.openai_model import OpenAIModel

WAYS = {"zero-shot": "1", "few-shot": "2", "fine-tuned": "judge"}
"""Prompt version by way."""
LABELS = ROOT / "models/training/judge/proposals"
ANSWERS = ROOT / ".run/judging"
LLM_SERVICE = "services.llm.service:LLM"
KEPT_VARIABLES = frozenset({"JOING_MODELS_DIR"})
CALL_TIMEOUT_S = 600.0
AT_ONCE = 8
WRITERS = ["write_summary", "write_feedback"]


@dataclass(frozen=True)
class Way:
    """`model` is whom to ask; `identity` changes with whatever could change its answers."""

    name: str
    version: str
    model: str
    identity: str


@dataclass(frozen=True)
class Labelled:
    """A proposal with the stages that its labels amount to."""

    proposal: LabelledProposal
    settings: EvaluationSettings

    @property
    def stages(self) -> tuple[Any, Any]:
        one, settings = self.proposal, self.settings
        passages = passages_of(one.proposal())
        return (
            policy.content_stage(one.content_label, passages, settings.content_threshold),
            policy.deliberation_stage(
                one.deliberation_label, passages, settings.deliberation_limit
            ),
        )

    @property
    def stratum(self) -> tuple[str, str, str]:
        content, deliberation = self.stages
        return self.proposal.language, content.outcome, deliberation.outcome


def read_split(split: str, settings: EvaluationSettings) -> list[Labelled]:
    """Both languages, by id. Raises ProposalUnusable."""
    files = sorted(LABELS.glob(f"{split}.*.jsonl"))
    found = [Labelled(one, settings) for file in files for one in read_labelled(file)]
    return sorted(found, key=lambda one: one.proposal.id)


def stratified(labelled: Sequence[Labelled], limit: int) -> list[Labelled]:
    """`limit` of them, each stratum with its share; the same ones every time."""
    ordered = sorted(labelled, key=lambda one: (one.stratum, _digest(one.proposal.id.encode())))
    if limit >= len(ordered):
        return ordered
    return [ordered[i * len(ordered) // limit] for i in range(limit)]


def ways_of(model: str, lora: tuple[str, Path] | None, names: Sequence[str]) -> list[Way]:
    """Those of `names` that there are: without a LoRA, nothing is fine-tuned."""
    ways = []
    for name in names:
        version = WAYS[name]
        prompts = b"".join(file.read_bytes() for file in sorted((PROMPTS / version).iterdir()))
        if name != "fine-tuned":
            ways.append(Way(name, version, model, _digest(prompts)))
        elif lora is not None:
            weights = (lora[1] / "adapter_model.safetensors").read_bytes()
            ways.append(Way(name, version, lora[0], _digest(prompts + weights)))
    return ways


async def ask(
    way: Way, labelled: Sequence[Labelled], answers: Path, client: httpx.AsyncClient
) -> None:
    """Judges each and appends what came of it to `answers`. Raises ModelUnavailable."""
    interviewer = Interviewer(
        OpenAIModel(client, key="", model=way.model, timeout_s=CALL_TIMEOUT_S), PromptLibrary()
    )
    graph, meter, texts = build_graph(InMemorySaver()), VolumeMeter(), Texts()
    places = asyncio.Semaphore(AT_ONCE)

    async def judge(one: Labelled) -> None:
        settings = one.settings
        plan = Plan(
            model=way.model,
            prompt_version=way.version,
            content_threshold=settings.content_threshold,
            borderline_margin=settings.borderline_margin,
            deliberation_limit=settings.deliberation_limit,
            judging="together",
        )
        work = Work(
            interviewer=interviewer,
            meter=meter,
            thresholds=settings.volume_thresholds(),
            texts=texts,
            journal=Journal(one.proposal.id),
        )
        state = State(proposal=one.proposal.proposal().model_dump(mode="json"), plan=plan)
        async with places:
            found = await graph.ainvoke(
                state,
                {
                    "configurable": {"thread_id": one.proposal.id},
                    "recursion_limit": RECURSION_LIMIT,
                },
                context=work,
                interrupt_before=WRITERS,
            )
        line = {
            "id": one.proposal.id,
            "of": way.identity,
            "usage": work.journal.usage.model_dump(),
            **{key: found.get(key) for key in ("volume", "content", "deliberation", "verdict")},
        }
        with answers.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
        print(f"{way.name} {one.proposal.id}: {line['verdict']}", file=sys.stderr, flush=True)

    async with asyncio.TaskGroup() as group:
        for one in labelled:
            group.create_task(judge(one))


def answered(way: Way, answers: Path) -> dict[str, dict[str, Any]]:
    """By proposal, what is already there of this very way."""
    if not answers.exists():
        return {}
    lines = [json.loads(line) for line in answers.read_text("utf-8").splitlines()]
    return {line["id"]: line for line in lines if line["of"] == way.identity}


def compared(one: Labelled, line: dict[str, Any]) -> Judged:
    """What was told beside what the labels amount to, for the stages that ran."""
    content, deliberation = one.stages
    stages = stages_of({"volume": line["volume"], "plan": _plan(one.settings)})  # type: ignore[typeddict-item]
    label = {
        "content": content.outcome.value,
        "deliberation": deliberation.outcome.value,
        "grade": str(deliberation.grade),
        "verdict": policy.decide([stages[0], content, deliberation]).outcome.value,
    }
    if stages[0].outcome is Outcome.FAIL:
        return Judged(one.proposal.id, label, {"verdict": line["verdict"]}, None)
    grade = line["deliberation"]["grade"]
    told = {
        "content": line["content"]["outcome"],
        "deliberation": line["deliberation"]["outcome"],
        "grade": "review" if grade is None else str(grade),
        "verdict": line["verdict"],
    }
    return Judged(one.proposal.id, label, told, line["content"]["total"])


def _plan(settings: EvaluationSettings) -> dict[str, int]:
    return {
        "content_threshold": settings.content_threshold,
        "deliberation_limit": settings.deliberation_limit,
    }


def findings(way: str, judged: Sequence[Judged]) -> dict[str, Finding]:
    found = {
        f"{way}.{task}": Finding(
            accuracy(judged, task).value,
            f"{accuracy(judged, task)}, balanced {balanced(judged, task):.1%}",
            f"{majority(judged, task)}, always the commonest",
            str(accuracy(judged, task).number),
        )
        for task in TASKS
        if accuracy(judged, task).number
    }
    bins = sum(b is not None for b in reliability(judged))
    error = calibration_error(judged)
    number = str(sum(one.total is not None for one in judged))
    found[f"{way}.calibration_error"] = Finding(error, f"{error:.3f}", f"{bins} bins", number)
    return found


def told(way: str, judged: Sequence[Judged]) -> Iterator[str]:
    """Confusion and reliability, a line each."""
    for task in TASKS:
        for label, row in confusion(judged, task).items():
            counts = ", ".join(f"{row[outcome]} {outcome}" for outcome in (*OUTCOMES, *"01234")
                               if row[outcome])  # fmt: skip
            yield f"{way}: {task}: label {label}: {counts}"
        yield f"{way}: {task}: told review: {reviews(judged, task)}"
    for place, found in enumerate(reliability(judged)):
        if found is not None:
            yield (
                f"{way}: content points {10 * place}-{10 * place + 9}: {found.number} proposals, "
                f"mean {100 * found.points:.0f}, label passes {found.passes:.0%}"
            )


def measure(
    model: str, lora: tuple[str, Path] | None, ways: Sequence[Way], labelled: Sequence[Labelled]
) -> dict[str, list[Judged]]:
    """Asks what was not asked yet, then compares. Raises StartError, ModelUnavailable."""
    ANSWERS.mkdir(parents=True, exist_ok=True)
    files = {way.name: ANSWERS / f"{model}.{way.name}.jsonl" for way in ways}
    left = {way.name: unanswered(way, files[way.name], labelled) for way in ways}
    if any(left.values()):
        with _llm_service(model, lora) as base_url:
            for way in ways:
                asyncio.run(_ask_all(way, left[way.name], files[way.name], base_url))
    judged = {}
    for way in ways:
        there = answered(way, files[way.name])
        judged[way.name] = [compared(one, there[one.proposal.id]) for one in labelled]
    return judged


def unanswered(way: Way, answers: Path, labelled: Sequence[Labelled]) -> list[Labelled]:
    there = answered(way, answers)
    return [one for one in labelled if one.proposal.id not in there]


async def _ask_all(way: Way, labelled: Sequence[Labelled], answers: Path, base_url: str) -> None:
    async with httpx.AsyncClient(base_url=base_url, timeout=CALL_TIMEOUT_S) as client:
        await ask(way, labelled, answers, client)


@contextmanager
def _llm_service(model: str, lora: tuple[str, Path] | None) -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="joing-judging-") as home:
        environment = {
            "JOING_LLM": model,
            "JOING_HOME": home,
            "JOING_LLM_CONTEXT_TOKENS": "8192",
            "JOING_LLM_REQUEST_TIMEOUT_S": str(CALL_TIMEOUT_S),
            "JOING_LLM_LORAS": json.dumps({lora[0]: str(lora[1].absolute())} if lora else {}),
            "JOING_LOG_LEVEL": "warning",
        }
        with running(LLM_SERVICE, environment=environment) as service:
            yield service.base_url


def lora_of(model: str, given: Path | None) -> tuple[str, Path] | None:
    """The LoRA to measure: the one given, or the first that the catalog has for `model`."""
    if given is not None:
        return given.name, given
    rows = load_catalog().llm_loras_of(model)
    return (rows[0].name, rows[0].source.location) if rows else None


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


@click.command()
@click.option("--model", default=DEFAULT_LLM, show_default=True, help="An LLM of the catalog.")
@click.option("--lora", type=click.Path(path_type=Path), help="A LoRA of it, not in the catalog.")
@click.option("--way", "names", multiple=True, type=click.Choice(list(WAYS)), help="One or more.")
@click.option("--split", default="test", show_default=True)
@click.option("--limit", default=10_000, help="So many proposals, each stratum with its share.")
def main(model: str, lora: Path | None, names: tuple[str, ...], split: str, limit: int) -> None:
    """Measure how well an embedded model judges labelled proposals."""
    for name in [n for n in os.environ if n.startswith("JOING_") and n not in KEPT_VARIABLES]:
        del os.environ[name]  # What is measured is configured here and nowhere else.
    judge = lora_of(model, lora)
    ways = ways_of(model, judge, names or list(WAYS))
    labelled = stratified(read_split(split, EvaluationSettings()), limit)
    judged = measure(model, judge, ways, labelled)
    found: dict[str, Finding] = {}
    for way in ways:
        found |= findings(way.name, judged[way.name])
        print(*told(way.name, judged[way.name]), sep="\n")
    title = f"Judging, {model}, {len(labelled)} proposals of the {split} split"
    Console().print(table(title, dict.fromkeys(found, ""), found))
    print(last_line("judging", found, describe_machine()))


if __name__ == "__main__":
    main()
