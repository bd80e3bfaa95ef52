"""A plain version of the original design, to be measured against; nothing else uses it.

Written from a description of its behaviour: synchronous handlers in a thread pool, a new OpenAI
client for every call, one call after another (content, regulation, summary), the planner's text
at the head of the system prompt, JSON asked for in words and taken as it comes. The bounds on
tokens are those of the evaluation service, and so are the temperature and the seed.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import openai
from fastapi import FastAPI
from pydantic import BaseModel

from bentos.running import ROOT, Running, free_port, stop, wait_until_ready
from services.evaluation.prompts.library import PromptLibrary

URL_VARIABLE, MODEL_VARIABLE = "ORIGINAL_DESIGN_LLM_URL", "ORIGINAL_DESIGN_LLM_MODEL"
START_TIMEOUT_S, STOP_TIMEOUT_S, CALL_TIMEOUT_S = 60.0, 20.0, 900.0
PROMPT_VERSION = "2"

CONTENT = (
    "You review video plans. The plan is above. Give points for a clear message (0 to 30), a "
    "defined audience (0 to 30) and for how well title and content fit together (0 to 40), with "
    'one short reason. Return only JSON: {"message": int, "target": int, "relevance": int, '
    '"reason": str}'
)
REGULATION = (
    "You check video plans for age ratings. The plan is above. Give a level from 0 (all ages) to "
    "4 (restricted) for theme, sexuality, violence, horror, language, drugs and imitation. Return "
    'only JSON: {"theme": int, "sexuality": int, "violence": int, "horror": int, '
    '"language": int, "drugs": int, "imitation": int, "passes": bool}'
)
SUMMARY = (
    "You summarise video plans. The plan is above. Describe it in two or three sentences and give "
    'four to eight keywords. Return only JSON: {"text": str, "keywords": [str]}'
)


class Plan(BaseModel):
    title: str
    content: str


class Answered(BaseModel):
    """`completion_tokens` has one count a call, in the order of the calls."""

    replies: list[str]
    completion_tokens: list[int]


app = FastAPI()


@app.get("/readyz")
def readyz() -> dict[str, str]:
    return {"status": "ready"}


@app.post("/evaluate")
def evaluate(plan: Plan) -> Answered:
    """Every call, whatever the ones before it said: the length of the path is fixed."""
    asked = [("content", CONTENT), ("deliberation", REGULATION), ("summary", SUMMARY)]
    answers = [_ask(plan, instructions, _max_tokens[name]) for name, instructions in asked]
    return Answered(
        replies=[reply for reply, _ in answers],
        completion_tokens=[tokens for _, tokens in answers],
    )


_library = PromptLibrary()
_max_tokens = {
    name: _library.get(PROMPT_VERSION, name).head.max_tokens
    for name in ("content", "deliberation", "summary")
}


def _ask(plan: Plan, instructions: str, max_tokens: int) -> tuple[str, int]:
    client = openai.OpenAI(
        base_url=f"{os.environ[URL_VARIABLE]}/v1", api_key="none", timeout=CALL_TIMEOUT_S
    )
    completion = client.chat.completions.create(
        model=os.environ[MODEL_VARIABLE],
        messages=[
            {"role": "system", "content": f"{plan.title}\n{plan.content}\n\n{instructions}"},
            {"role": "user", "content": "Answer now."},
        ],
        max_tokens=max_tokens,
        temperature=0.0,
        seed=1,
    )
    usage = completion.usage
    return completion.choices[0].message.content or "", usage.completion_tokens if usage else 0


@contextmanager
def running_original_design(llm_url: str, model: str) -> Iterator[Running]:
    """It behind uvicorn, on loopback, talking to the model server at `llm_url`."""
    port = free_port()
    base_url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "uvicorn", f"{__name__}:app", "--host", "127.0.0.1"]
    with tempfile.TemporaryDirectory(prefix="joing-") as folder:
        log = Path(folder) / "log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*command, "--port", str(port)],
                env={**os.environ, URL_VARIABLE: llm_url, MODEL_VARIABLE: model},
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            wait_until_ready(base_url, process, log, START_TIMEOUT_S)
            yield Running(base_url, process.pid, log, model)
        finally:
            stop(process, STOP_TIMEOUT_S)
