"""How a service reads its configuration: once, from the environment, into a frozen object.

A variable that starts with a service's own prefix and that the service does not know is
refused by name: a misspelt limit must not silently become the default.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from platformdirs import user_cache_path
from pydantic import AliasChoices, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict, SettingsError

PREFIX = "JOING_"
# Addresses of services; every service may be told where the others are.
ADDRESSES = frozenset(
    {
        "JOING_EVALUATION_URL",
        "JOING_IMAGES_URL",
        "JOING_LLM_URL",
        "JOING_LLM_KEY",
        "JOING_STORYBOARD_URL",
        "JOING_VETTING_URL",
    }
)


class ConfigurationError(Exception):
    """The environment does not describe a service that can start. For the operator."""


def everywhere(name: str) -> Any:
    """The variable `JOING_<name>`, which means the same to every service."""
    return AliasChoices(PREFIX + name)


class ServiceSettings(BaseSettings):
    """What every service needs to know. Subclasses set their own prefix with `model_config`."""

    model_config = SettingsConfigDict(frozen=True, populate_by_name=True)

    api_keys: SecretStr = Field(
        SecretStr(""),
        validation_alias=everywhere("API_KEYS"),
        description="Accepted bearer keys, comma separated. Empty: only loopback may call.",
    )
    home: Path = Field(
        default_factory=lambda: user_cache_path("joing"),
        validation_alias=everywhere("HOME"),
        description="Folder for state that has no other home: the SQLite file, uploaded LoRAs.",
    )
    log_level: str = Field(
        "info",
        pattern="^(debug|info|warning|error)$",
        validation_alias=everywhere("LOG_LEVEL"),
    )
    log_format: str = Field(
        "json", pattern="^(json|text)$", validation_alias=everywhere("LOG_FORMAT")
    )
    otlp_endpoint: str | None = Field(
        None,
        validation_alias=AliasChoices("OTEL_EXPORTER_OTLP_ENDPOINT"),
        description="Where traces go (OTLP over HTTP). None: no traces are made.",
    )
    trace_text: bool = Field(
        False,
        validation_alias=everywhere("TRACE_TEXT"),
        description="Put proposals and model replies into traces. They may hold personal data.",
    )
    max_body_bytes: int = Field(
        262_144, ge=1_024, le=64 * 2**20, description="Bytes of a request body; more is a 413."
    )

    def keys(self) -> tuple[str, ...]:
        """Accepted keys in the order given; the first is what services use among themselves."""
        return tuple(k.strip() for k in self.api_keys.get_secret_value().split(",") if k.strip())

    @classmethod
    def from_environment(cls) -> Self:
        """Raises ConfigurationError with the variable's name and the fix."""
        refuse_unknown(cls, os.environ)
        try:
            return cls()
        except ValidationError as error:
            raise ConfigurationError(_explain(cls, error)) from None
        except SettingsError as error:  # a value that should be JSON; the message has the field
            fields = variables(cls).items()
            names = [name for name, field in fields if f'"{field}"' in str(error)]
            raise ConfigurationError(f"{', '.join(names)}: is not a JSON object") from None


class GraphSettings(ServiceSettings):
    """What every service needs to know that asks a language model and keeps what came of it."""

    llm_url: str | None = Field(
        None,
        validation_alias=everywhere("LLM_URL"),
        description="An OpenAI-compatible server; None: the llm service started beside this one.",
    )
    llm_key: SecretStr = Field(SecretStr(""), validation_alias=everywhere("LLM_KEY"))
    llm_model: str | None = Field(
        None, description="Name of the model to ask for; None: the first that the server lists."
    )
    database_url: str | None = Field(
        None,
        validation_alias=everywhere("DATABASE_URL"),
        repr=False,  # may hold a password
        description="postgresql://... for several replicas; None: a SQLite file in JOING_HOME.",
    )
    retry_after_s: int = Field(5, ge=1, le=600, description="What the ones turned away are told.")

    def sqlite_path(self) -> Path:
        return self.home / "joing.sqlite3"


def refuse_unknown(settings: type[ServiceSettings], environment: Mapping[str, str]) -> None:
    """Raises ConfigurationError when a variable under the service's prefix means nothing."""
    own = settings.model_config.get("env_prefix", "")
    known = variables(settings)
    for name in environment:
        if own and name.startswith(own) and name not in known and name not in ADDRESSES:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f" Did you mean {close[0]}?" if close else ""
            raise ConfigurationError(f"{name} is not a setting of this service.{hint}")


def variables(settings: type[ServiceSettings]) -> dict[str, str]:
    """Every environment variable that `settings` reads, and the field it sets."""
    own = settings.model_config.get("env_prefix", "")
    names: dict[str, str] = {}
    for field, info in settings.model_fields.items():
        alias = info.validation_alias
        choices = alias.choices if isinstance(alias, AliasChoices) else [own + field.upper()]
        names.update({str(choice): field for choice in choices})
    return names


def _explain(settings: type[ServiceSettings], error: ValidationError) -> str:
    by_field = {field: name for name, field in variables(settings).items()}
    lines = []
    for entry in error.errors(include_input=False, include_url=False):
        location = str(entry["loc"][0]) if entry["loc"] else "settings"
        lines.append(f"{by_field.get(location, location)}: {entry['msg']}")
    return "; ".join(lines)
