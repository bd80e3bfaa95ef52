"""The sentences that say why a verdict is what it is, from texts.toml, in both languages."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path

from services.shared.proposals import Language


class Texts:
    def __init__(self, path: Path | None = None) -> None:
        path = path or Path(__file__).with_name("texts.toml")
        self._by_language: dict[str, dict[str, dict[str, str]]] = tomllib.loads(
            path.read_text("utf-8")
        )

    def reason(self, language: Language, code: str, values: Mapping[str, object]) -> str:
        """The sentence of a rule (policy.RULES), with categories by their names."""
        known = self._by_language[language]

        def said(value: object) -> object:
            if isinstance(value, list):
                return ", ".join(str(said(item)) for item in value)
            return known["categories"].get(value, value) if isinstance(value, str) else value

        filled = {key: said(value) for key, value in values.items()}
        return known["reasons"][code].format(**filled)
