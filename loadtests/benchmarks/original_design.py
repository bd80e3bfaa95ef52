"""A plain version of the original design, to be measured against; nothing else uses it.

Written from a description of its behaviour: synchronous handlers in a thread pool, a new OpenAI
client for every call, one call after another (content, regulation, summary), the planner's text
at the head of the system prompt, before the same instructions and examples as the evaluation
service's, so that no prefix is shared; no grammar.

Without a grammar the embedded model stops after four words or repeats itself up to the bound, and
a comparison would be one of chance. So each call writes exactly as many tokens as the evaluation
service's call for the same proposal did.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache

import openai
from fastapi import FastAPI
from pydantic import BaseModel

from bentos.running import Running, answering
from services.evaluation.prompts.library import PromptLibrary
from services.evaluation.settings import EvaluationSettings
from services.shared.peers import free_port

URL_VARIABLE, MODEL_VARIABLE = "ORIGINAL_DESIGN_LLM_URL", "ORIGINAL_DESIGN_LLM_MODEL"
START_TIMEOUT_S, STOP_TIMEOUT_S, CALL_TIMEOUT_S = 60.0, 20.0, 900.0

PROMPTS = {"content": "content", "deliberation": "deliberation", "writing": "summary"}


class Plan(BaseModel):
    title: str
    content: str
    tokens: dict[str, int]
    """By call, how many tokens to write; the keys are of PROMPTS."""


app = FastAPI()


@app.get("/readyz")
def readyz() -> dict[str, str]:
    return {"status": "ready"}


@app.post("/evaluate")
def evaluate(plan: Plan) -> dict[str, int]:
    """By call, how many tokens were written. Every call is made, whatever the ones before said."""
    return {name: _ask(plan, instructions(name), tokens) for name, tokens in plan.tokens.items()}


@cache
def instructions(call: str) -> str:
    """The evaluation service's own instructions and examples for `call`, as one text: the same
    work is asked for, only behind the planner's text, where no prefix is shared.
    """
    prompt = PromptLibrary().get(EvaluationSettings().prompt_version, PROMPTS[call])
    return "\n".join(message.content for message in prompt.prefix)


def _ask(plan: Plan, told: str, tokens: int) -> int:
    client = openai.OpenAI(
        base_url=f"{os.environ[URL_VARIABLE]}/v1", api_key="none", timeout=CALL_TIMEOUT_S
    )
    completion = client.chat.completions.create(
        model=os.environ[MODEL_VARIABLE],
        messages=[
            {"role": "system", "content": f"{plan.title}\n{plan.content}\n\n{told}"},
            {"role": "user", "content": "Answer now."},
        ],
        max_tokens=tokens,
        temperature=0.0,
        seed=1,
        extra_body={"ignore_eos": True},
    )
    return completion.usage.completion_tokens if completion.usage else 0


@contextmanager
def running_original_design(llm_url: str, model: str) -> Iterator[Running]:
    """It behind uvicorn, on loopback, talking to the model server at `llm_url`."""
    port = free_port()
    base_url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "uvicorn", f"{__name__}:app", "--host", "127.0.0.1"]
    environment = {**os.environ, URL_VARIABLE: llm_url, MODEL_VARIABLE: model}
    argv = [*command, "--port", str(port)]
    with answering(argv, environment, base_url, START_TIMEOUT_S, STOP_TIMEOUT_S) as server:
        yield replace(server, model=model)
