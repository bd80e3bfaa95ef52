"""`config new`, `config check` and `config explain`, from the command line."""

import sys
from collections.abc import Iterator
from pathlib import Path

import click

from models.training.config import rules as _rules  # noqa: F401  (registers the rules)
from models.training.config.documents import load_document
from models.training.config.estimates import Estimate, estimate
from models.training.config.findings import Finding, errors, findings
from models.training.config.keys import ELSEWHERE, KEYS, Key, Language, find, nearest
from models.training.config.templates import (
    DEFAULT_FOLDER,
    DEFAULT_NAME,
    Choices,
    facts,
    new_config,
)
from models.training.config.view import View
from models.training.errors import ConfigRefused

language_option = click.option(
    "--lang", "language", type=click.Choice(["ko", "en"]), default="en", show_default=True
)

_WORDS: dict[Language, dict[str, str]] = {
    "en": {
        "error": "error",
        "warning": "warning",
        "unreadable": "error: {why}",
        "counts": "Errors: {errors}, warnings: {warnings}",
        "memory": "Estimated memory: {total:.2g} GiB (base {base:.2g}, text encoders and VAE "
        "{encoders:.2g}, LoRA {lora:.2g}, activations {activations:.2g}, rest {runtime:.2g})",
        "time": "Estimated time: {steps} steps of {step} TFLOP, sample pictures {samples} TFLOP; "
        "{times}",
        "estimate": "Estimates are counted, not measured; see models/training/config/estimates.py",
        "assumed": "The base is no row of the catalog: estimated as FLUX.1",
        "licence": "Licence of the base, which the LoRA inherits: {licence}",
        "unknown": "There is no key {wanted}. Nearest: {nearest}",
        "elsewhere": "{wanted} is for other models and does nothing for a Flux LoRA.",
        "several": "{wanted} is several keys: {names}",
        "inside": "Holds: {names}",
    },
    "ko": {
        "error": "오류",
        "warning": "경고",
        "unreadable": "오류: 파일을 읽을 수 없습니다. {why}",
        "counts": "오류 {errors}개, 경고 {warnings}개",
        "memory": "예상 메모리: {total:.2g} GiB(기본 모델 {base:.2g}, 텍스트 인코더와 VAE "
        "{encoders:.2g}, LoRA {lora:.2g}, 중간 결과 {activations:.2g}, 그 밖 {runtime:.2g})",
        "time": "예상 시간: {step} TFLOP짜리 스텝 {steps}번, 샘플 그림 {samples} TFLOP; {times}",
        "estimate": "위 수치는 재지 않고 계산한 추정입니다. 계산 방법: "
        "models/training/config/estimates.py",
        "assumed": "카탈로그에 없는 모델이라 FLUX.1로 보고 계산했습니다",
        "licence": "LoRA가 물려받는 기본 모델의 라이선스: {licence}",
        "unknown": "{wanted} 키는 없습니다. 비슷한 키: {nearest}",
        "elsewhere": "{wanted} 키는 다른 모델에 쓰는 것이어서 Flux LoRA에는 효과가 없습니다.",
        "several": "{wanted} 이름의 키가 여럿입니다: {names}",
        "inside": "들어 있는 키: {names}",
    },
}


@click.group()
def command() -> None:
    """AI-Toolkit configurations for Flux LoRAs, in Korean and English."""


@command.command()
@language_option
@click.option(
    "--model", default="flux.1-dev", show_default=True, help="Catalog row, hub id, folder."
)
@click.option("--name", default=DEFAULT_NAME, show_default=True, help="Of the run and its files.")
@click.option("--trigger", default=None, help="The made-up word that calls the style.")
@click.option("--data", "folder", default=DEFAULT_FOLDER, show_default=True, help="The pictures.")
def new(language: Language, model: str, name: str, trigger: str | None, folder: str) -> None:
    """Print a complete configuration, every key explained."""
    choices = Choices(model=model, name=name, trigger=trigger, folder=folder)
    click.echo(new_config(choices, language), nl=False)


@command.command()
@language_option
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
def check(language: Language, file: Path) -> None:
    """Say what is wrong with FILE, line by line, and what it will take. Exit code 1 for errors."""
    try:
        view = View(load_document(file))
    except ConfigRefused as refused:
        click.echo(_WORDS[language]["unreadable"].format(why=refused))
        sys.exit(1)
    found = findings(view, language)
    for line in _report(view, found, file, language):
        click.echo(line)
    sys.exit(1 if any(errors(found)) else 0)


@command.command()
@language_option
@click.argument("key")
def explain(language: Language, key: str) -> None:
    """Say what KEY does: `train.lr`, or `lr` where that is enough."""
    found = find(key)
    words = _WORDS[language]
    if not found:
        raise click.ClickException(_unknown(key, words))
    if len(found) > 1:
        names = ", ".join(one.name for one in found)
        click.echo(words["several"].format(wanted=key, names=names))
    for one in found:
        for line in _explained(one, language):
            click.echo(line)


def _unknown(wanted: str, words: dict[str, str]) -> str:
    if any(wanted.rsplit(".", 1)[-1] in names for names in ELSEWHERE.values()):
        return words["elsewhere"].format(wanted=wanted)
    sections = [one.name for one in KEYS.values() if one.kind.startswith("section")]
    near = ", ".join([one.name for one in nearest(wanted)[:3]] or sections)
    return words["unknown"].format(wanted=wanted, nearest=near)


def _explained(key: Key, language: Language) -> Iterator[str]:
    yield key.name
    yield f"  {key.does[language]}"
    if said := facts(key, language):
        yield f"  {said}"
    yield f"  {key.first[language]}"
    inside = [one.leaf for one in KEYS.values() if one.section == key.name]
    if inside:
        yield "  " + _WORDS[language]["inside"].format(names=", ".join(inside))


def _report(view: View, found: list[Finding], file: Path, language: Language) -> Iterator[str]:
    words = _WORDS[language]
    for one in found:
        where = f"{file}:{one.line}:{one.column}"
        value = f": {one.value}" if one.value else ""
        yield f"{where}: {words[one.severity]} [{one.rule}] {one.key}{value}"
        yield f"    {one.problem}"
        yield f"    {one.fix}"
    error_count = len(list(errors(found)))
    yield words["counts"].format(errors=error_count, warnings=len(found) - error_count)
    if view.has_meaning:
        yield from _estimated(estimate(view), language)


def _estimated(guess: Estimate, language: Language) -> Iterator[str]:
    words, memory, work = _WORDS[language], guess.memory, guess.work
    yield words["memory"].format(
        total=memory.total,
        base=memory.base,
        encoders=memory.encoders,
        lora=memory.lora,
        activations=memory.activations,
        runtime=memory.runtime,
    )
    times = ", ".join(
        f"{device} {_duration(low, language)} ~ {_duration(high, language)}"
        for device, (low, high) in guess.seconds.items()
    )
    yield words["time"].format(
        steps=work.steps, step=_figures(work.step), samples=_figures(work.samples), times=times
    )
    yield words["estimate"]
    if guess.is_flux_1_assumed:
        yield words["assumed"]
    if guess.licence:
        yield words["licence"].format(licence=guess.licence)


def _figures(number: float) -> str:
    """Three figures below 1000, whole above."""
    return f"{number:.3g}" if number < 1000 else f"{number:,.0f}"


def _duration(seconds: float, language: Language) -> str:
    """Two figures of the unit that fits."""
    units = (("h", "시간", 3600), ("min", "분", 60), ("s", "초", 1))
    for english, korean, size in units:
        if seconds >= size or size == 1:
            count = f"{seconds / size:.2g}" if seconds / size < 100 else f"{seconds / size:.0f}"
            return f"{count}{korean}" if language == "ko" else f"{count} {english}"
    raise AssertionError("the last unit takes everything")
