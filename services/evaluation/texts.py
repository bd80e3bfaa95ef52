"""What is said to a planner without a model: after the volume stage, and when a model fails."""

from __future__ import annotations

import tomllib
from pathlib import Path

from services.evaluation.schemas import (
    ContentStage,
    DeliberationStage,
    Feedback,
    Stage,
    Suggestion,
    VolumeStage,
)
from services.shared.proposals import Language

QUOTE_CHARACTERS = 60


class Texts:
    """The texts of one file, in both languages."""

    def __init__(self, path: Path | None = None) -> None:
        path = path or Path(__file__).with_name("texts.toml")
        self._by_language: dict[str, dict[str, str]] = tomllib.loads(path.read_text("utf-8"))

    def say(self, language: Language, key: str, **values: object) -> str:
        return self._by_language[language][key].format(**values)

    def volume_feedback(self, stage: VolumeStage, language: Language) -> Feedback:
        known = self._by_language[language]
        return Feedback(
            text=self.say(language, "volume_text"),
            suggestions=[
                Suggestion(
                    about=self.say(language, "volume_about"),
                    change=known.get(f"volume_{problem}", known["volume_other"]),
                )
                for problem in stage.problems or ["other"]
            ],
            violations=[],
        )

    def review_feedback(self, language: Language) -> Feedback:
        return Feedback(text=self.say(language, "review_text"), suggestions=[], violations=[])

    def plain_feedback(self, stages: list[Stage], language: Language) -> Feedback:
        """Feedback from the stages' own findings, for when the model that words it fails."""
        failed = [stage for stage in stages if stage.outcome == "fail"]
        suggestions = [s for stage in failed for s in self._suggestions(stage, language)]
        parts = [self.say(language, f"{stage.name}_text") for stage in failed]
        return Feedback(
            text=" ".join(parts),
            suggestions=suggestions,
            violations=self.violations(stages, language),
        )

    def _suggestions(self, stage: Stage, language: Language) -> list[Suggestion]:
        if isinstance(stage, ContentStage):
            return [
                Suggestion(about=self.say(language, r.criterion), change=r.reason)
                for r in stage.reasons
            ]
        if isinstance(stage, DeliberationStage):
            return [
                Suggestion(
                    about=self.say(language, e.criterion),
                    change=self.say(language, "deliberation_change", quote=_short(e.quote)),
                )
                for e in stage.evidence
                if e.level > stage.limit
            ]
        return []

    def violations(self, stages: list[Stage], language: Language) -> list[str]:
        """One line for every criterion over the limit, with its level and its passage."""
        return [
            self.say(
                language,
                "violation",
                criterion=self.say(language, e.criterion),
                level=e.level,
                quote=_short(e.quote),
            )
            for stage in stages
            if isinstance(stage, DeliberationStage) and stage.outcome == "fail"
            for e in stage.evidence
            if e.level > stage.limit
        ]

    def findings(self, stages: list[Stage], language: Language) -> list[str]:
        """What the model that words the feedback is told. Reasons and passages, never scores."""
        lines = self.violations(stages, language)
        for stage in stages:
            if isinstance(stage, ContentStage) and stage.outcome == "fail":
                lines += [
                    f"{self.say(language, r.criterion)}: {' '.join(r.reason.split())}"
                    for r in stage.reasons
                ]
        return lines


def _short(quote: str) -> str:
    return quote if len(quote) <= QUOTE_CHARACTERS else quote[: QUOTE_CHARACTERS - 1] + "…"
