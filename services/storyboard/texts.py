"""The service's own sentences, by code and language."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from services.shared.proposals import Language
from services.storyboard.errors import JobFailed
from services.storyboard.schemas import Note


@dataclass(frozen=True)
class Texts:
    language: Language

    def say(self, code: str, **values: object) -> str:
        """The sentence that `code` stands for."""
        return _all()[self.language][code].format(**values)

    def note(self, code: str, n: int | None = None, **values: object) -> Note:
        return Note(n=n, code=code, message=self.say(code, n=n, **values))

    def failure(self, code: str, **values: object) -> JobFailed:
        return JobFailed(code, self.say(code, **values))


@cache
def _all() -> dict[str, dict[str, str]]:
    return tomllib.loads(Path(__file__).with_suffix(".toml").read_text("utf-8"))
