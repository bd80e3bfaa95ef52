"""The vLLM that this service owns: what to run, and whether it does what we rely on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import httpx

from models.errors import ModelsError
from models.llm.arguments import (
    Machine,
    ModelToServe,
    lora_in,
    resolve,
    this_machine,
    vllm_command,
    vllm_environment,
)
from services.llm.settings import LLMSettings
from services.llm.supervisor import CannotStart, Launch, NotAsAsked, Patience, Supervisor

# Two words that no model says by itself.
WORDS = ("zebra-7", "quartz-9")
PROBE_TIMEOUT_S = 120.0
FLAGS = ("--enable-request-id-headers", "--disable-uvicorn-access-log")


def supervised_vllm(settings: LLMSettings) -> Supervisor:
    """A vLLM for the configured model, not yet started. Needs no weights until it starts."""
    machine = this_machine()
    return Supervisor(
        lambda port: launch(settings, machine, port),
        check_choice,
        Patience(
            start_s=settings.start_timeout_s,
            silent_s=settings.unresponsive_s,
            restart_first_s=settings.restart_first_s,
            restart_last_s=settings.restart_last_s,
            drain_s=settings.drain_s,
        ),
    )


def launch(settings: LLMSettings, machine: Machine, port: int) -> Launch:
    """Raises CannotStart when there is no such model, or when its weights are not here."""
    try:
        model = with_loras(resolve(settings.model, settings.models_dir), settings.loras)
    except ModelsError as error:
        raise CannotStart(str(error)) from error
    if settings.context_tokens is not None:
        model = model.model_copy(update={"context": settings.context_tokens})
    command = vllm_command(
        model,
        machine=machine,
        port=port,
        max_concurrent=settings.max_concurrent,
        max_queued=settings.max_queued,
        shutdown_timeout_s=int(settings.drain_s),
        prefix_caching=settings.prefix_caching,
        extra=FLAGS,
    )
    variables = vllm_environment(model, machine=machine, kv_cache_gib=settings.kv_cache_gib)
    return Launch(command, variables)


def with_loras(model: ModelToServe, folders: Mapping[str, Path]) -> ModelToServe:
    """`model` with these LoRAs beside its own; one of the same name takes that one's place.

    Raises CannotStart for one that is named as the model, WeightsMissing for a folder without one.
    """
    if model.name in folders:
        raise CannotStart(f"JOING_LLM_LORAS: {model.name} is the model's own name; take another")
    own = [lora for lora in model.loras if lora.name not in folders]
    more = [lora_in(folder, name) for name, folder in folders.items()]
    return model.model_copy(update={"loras": (*own, *more)})


async def check_choice(base_url: str) -> None:
    """Raises NotAsAsked when a choice is not enforced: names of such options have changed between
    versions of vLLM, and an unknown one is ignored with a 200. Raises httpx.HTTPError when the
    server fails.
    """
    body = {
        "messages": [{"role": "user", "content": "Say hello."}],
        "max_tokens": 16,
        "structured_outputs": {"choice": list(WORDS)},
    }
    async with httpx.AsyncClient(
        base_url=base_url, timeout=PROBE_TIMEOUT_S, trust_env=False
    ) as client:
        answer = await client.post("/v1/chat/completions", json=body)
    if answer.is_client_error:
        raise NotAsAsked(f"it refuses a choice: {answer.text[:300]}")
    answer.raise_for_status()
    if (said := _said(answer)) not in WORDS:
        raise NotAsAsked(f"asked to choose one of {WORDS}, it said {said!r}")


def _said(answer: httpx.Response) -> object:
    try:
        return answer.json()["choices"][0]["message"]["content"]
    except (ValueError, LookupError, TypeError):
        return answer.text[:300]
