"""The routes of the evaluation service, and the wiring of what they use.

Turns what the use case raises into problems (services/shared/errors.py); nothing else in this
service knows of HTTP.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

import structlog
from fastapi import Depends, FastAPI, Path, Request
from fastapi.sse import EventSourceResponse, ServerSentEvent

from services.evaluation.adapters.database import SQLStore, metadata
from services.evaluation.errors import UnknownPrompt
from services.evaluation.evaluator import Busy, Evaluator, NothingToReplay
from services.evaluation.graph import build_graph
from services.evaluation.judging import Interviewer
from services.evaluation.ports import EvaluationStore
from services.evaluation.prompts.library import PromptLibrary
from services.evaluation.schemas import Deliberation, Evaluation, Replay, Steps, Summary
from services.evaluation.settings import EvaluationSettings
from services.evaluation.volume import VolumeMeter
from services.evaluation.warming import PROMPTS, Warming
from services.shared.errors import (
    DeadlineExceeded,
    FieldError,
    NotFound,
    Unavailable,
    Unprocessable,
)
from services.shared.language_model import ModelError, ModelRefused, ModelTimedOut, ModelUnavailable
from services.shared.openai_model import OpenAIModel
from services.shared.peers import find_peer
from services.shared.proposals import Proposal
from services.shared.storage import StorageUnavailable, open_storage
from services.shared.streaming import sse
from services.shared.telemetry import configure_logs, configure_traces, send_last_spans
from services.shared.web import create_web_app, current_request_id, until_hang_up

T = TypeVar("T")
log = structlog.get_logger()
DESCRIPTION = "Evaluates video proposals: volume, content, deliberation; a summary or feedback."
EvaluationId = Annotated[str, Path(pattern="^[0-9a-f]{32}$", description="32 hex digits.")]


def create_app(settings: EvaluationSettings) -> FastAPI:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        configure_logs("evaluation", settings)
        async with wired(settings) as wiring:
            app.state.wiring = wiring
            warming = asyncio.create_task(wiring.warming.run())
            yield
            warming.cancel()
        await send_last_spans()

    app = create_web_app("evaluation", settings, description=DESCRIPTION, lifespan=lifespan)
    app.state.settings = settings
    configure_traces("evaluation", settings, app)
    add_routes(app)
    return app


@dataclass(frozen=True)
class Wiring:
    """What the routes use."""

    evaluator: Evaluator
    store: EvaluationStore
    warming: Warming


@asynccontextmanager
async def wired(settings: EvaluationSettings) -> AsyncIterator[Wiring]:
    """Everything that the routes use, open; closed in reverse order."""
    async with AsyncExitStack() as stack:
        key = settings.llm_key.get_secret_value() or next(iter(settings.keys()), "")
        client = find_peer("llm", settings.llm_url, key).client(
            timeout_s=settings.call_timeout_s, max_connections=4 * settings.max_concurrent
        )
        await stack.enter_async_context(client)
        storage = await stack.enter_async_context(
            open_storage(
                settings.database_url,
                settings.sqlite_path(),
                metadata,
                pool_size=min(settings.max_concurrent, 16),
            )
        )
        store = SQLStore(storage.engine)
        model = OpenAIModel(
            client, key=key, model=settings.llm_model, timeout_s=settings.call_timeout_s
        )
        library = PromptLibrary()
        for prompt in PROMPTS:
            library.get(settings.version_for(prompt), prompt)
        interviewer = Interviewer(model, library)
        evaluator = Evaluator(
            settings,
            graph=build_graph(storage.checkpointer),
            interviewer=interviewer,
            meter=VolumeMeter(),
            store=store,
        )
        warming = Warming(interviewer, settings)
        yield Wiring(evaluator, store, warming)


def _evaluator(request: Request) -> Evaluator:
    wiring: Wiring = request.app.state.wiring
    return wiring.evaluator


def _store(request: Request) -> EvaluationStore:
    wiring: Wiring = request.app.state.wiring
    return wiring.store


TheEvaluator = Annotated[Evaluator, Depends(_evaluator)]
TheStore = Annotated[EvaluationStore, Depends(_store)]


def is_ready(app: FastAPI) -> bool:
    """True once the service can evaluate: wired, and the model has answered."""
    wiring: Wiring | None = getattr(app.state, "wiring", None)
    return wiring is not None and wiring.warming.is_done


def add_routes(app: FastAPI) -> None:
    @app.post("/v1/proposals/evaluate", tags=["proposals"])
    async def evaluate(proposal: Proposal, request: Request, evaluator: TheEvaluator) -> Evaluation:
        """Evaluate one proposal and wait for the result."""
        with as_problems(request):
            return await until_hang_up(request, evaluator.evaluate(proposal, current_request_id()))

    @app.post(
        "/v1/proposals/evaluate/stream", tags=["proposals"], response_class=EventSourceResponse
    )
    async def evaluate_stream(
        proposal: Proposal, request: Request, evaluator: TheEvaluator
    ) -> AsyncIterator[ServerSentEvent]:
        """The same as events: `stage`, `token`, then `result` or `error`."""
        async for event in sse(
            evaluator.stream(proposal, current_request_id()), _wire_event, as_problems(request)
        ):
            yield event

    @app.post("/v1/proposals/summarize", tags=["proposals"])
    async def summarize(proposal: Proposal, request: Request, evaluator: TheEvaluator) -> Summary:
        """Summarise a proposal without judging it."""
        with as_problems(request):
            return await until_hang_up(request, evaluator.summarize(proposal, current_request_id()))

    @app.post("/v1/proposals/deliberate", tags=["proposals"])
    async def deliberate(
        proposal: Proposal, request: Request, evaluator: TheEvaluator
    ) -> Deliberation:
        """Which age rating would this text get? For text that is not a whole proposal, such as a
        scene: nothing but the seven criteria is judged, and nothing is stored.
        """
        with as_problems(request):
            return await until_hang_up(
                request, evaluator.deliberate(proposal, current_request_id())
            )

    @app.get("/v1/evaluations/{evaluation_id}", tags=["evaluations"])
    async def get_evaluation(
        evaluation_id: EvaluationId, request: Request, store: TheStore
    ) -> Evaluation:
        """A stored evaluation."""
        with as_problems(request):
            return _found(await store.get(evaluation_id), evaluation_id)

    @app.get("/v1/evaluations/{evaluation_id}/steps", tags=["evaluations"])
    async def get_steps(evaluation_id: EvaluationId, request: Request, store: TheStore) -> Steps:
        """Every step of the graph: what was sent to the model, what came back, and at what cost."""
        with as_problems(request):
            return _found(await store.steps(evaluation_id), evaluation_id)

    @app.post("/v1/evaluations/{evaluation_id}/replay", tags=["evaluations"])
    async def replay(
        evaluation_id: EvaluationId, body: Replay, request: Request, evaluator: TheEvaluator,
        store: TheStore,
    ) -> Evaluation:  # fmt: skip
        """Run an evaluation again from a stage, with another model, prompt version or threshold."""
        with as_problems(request):
            _found(await store.get(evaluation_id), evaluation_id)
            return await until_hang_up(
                request, evaluator.replay(evaluation_id, body, current_request_id())
            )


def _found(thing: T | None, evaluation_id: str) -> T:
    if thing is None:
        raise NotFound(f"There is no evaluation {evaluation_id}.", code="evaluation_not_found")
    return thing


def _wire_event(event: dict[str, Any]) -> ServerSentEvent:
    name = event["event"]
    if name == "result":
        return ServerSentEvent(event=name, raw_data=event["evaluation"].model_dump_json())
    rest = {key: value for key, value in event.items() if key != "event"}
    return ServerSentEvent(event=name, raw_data=json.dumps(rest, ensure_ascii=False))


@contextmanager
def as_problems(request: Request) -> Iterator[None]:
    """What the use case raises, as what the caller is told."""
    settings: EvaluationSettings = request.app.state.settings
    later = settings.retry_after_s
    try:
        yield
    except Busy:
        raise Unavailable(
            f"{settings.max_concurrent} evaluations are running; come back later.",
            retry_after_s=later,
            code="busy",
        ) from None
    except ModelUnavailable as error:
        log.warning("model unavailable", reason=str(error), exc_info=error.__cause__)
        raise Unavailable(
            "The language model is not available.",
            retry_after_s=error.retry_after_s or later,
            code="model_unavailable",
        ) from None
    except StorageUnavailable as error:
        log.error("storage unavailable", exc_info=error.__cause__)
        raise Unavailable(
            "The database is not available.", retry_after_s=later, code="storage_unavailable"
        ) from None
    except (TimeoutError, ModelTimedOut):
        raise DeadlineExceeded(
            f"It took longer than {settings.deadline_s:g} s and was stopped."
        ) from None
    except ModelRefused as error:
        raise Unprocessable(
            "The language model does not take this request.", code="model_refused",
            errors=[FieldError(field="content", message=f"refused: {error.code}")],
        ) from None  # fmt: skip
    except UnknownPrompt as error:
        raise _unknown("prompt_version", str(error)) from None
    except NothingToReplay as error:
        raise _unknown("from_stage", str(error)) from None
    except ModelError as error:
        log.warning("model answer does not count", reason=str(error))
        raise Unavailable(
            "The language model gave no usable answer.", retry_after_s=later, code="no_answer"
        ) from None


def _unknown(field: str, message: str) -> Unprocessable:
    return Unprocessable(message, errors=[FieldError(field=field, message=message)])
