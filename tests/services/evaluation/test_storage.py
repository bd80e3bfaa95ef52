"""Where evaluations are kept: SQLite and PostgreSQL keep the same promises."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
from langgraph.checkpoint.base import BaseCheckpointSaver, empty_checkpoint
from sqlalchemy import text

from services.evaluation.adapters.database import SQLStore, metadata
from services.evaluation.app import create_app
from services.evaluation.schemas import (
    ContentStage,
    DeliberationStage,
    Evaluation,
    Feedback,
    Outcome,
    Step,
    Steps,
    Suggestion,
    VolumeStage,
)
from services.evaluation.settings import EvaluationSettings
from services.shared.language_model import Message, Usage
from services.shared.settings import ConfigurationError
from services.shared.storage import StorageUnavailable, open_storage
from tests.fakes.scripted_llm import ScriptedLLM, served_app
from tests.postgres import Postgres

TEXT = "한국어 ㅋㅋ 🎬👩‍👩‍👧 'quoted' \"twice\" \\ {brace} %s \x00 العربية \u2028"
# A refused connection is noticed at once; a silent one after the connect timeout of 10 s.
BOUND_S = 15.0

Storage = tuple[SQLStore, BaseCheckpointSaver[str]]


@asynccontextmanager
async def opened(database: Any) -> AsyncIterator[Storage]:
    async with open_storage(database.url, database.file, metadata, pool_size=2) as storage:
        yield SQLStore(storage.engine), storage.checkpointer


def an_evaluation() -> tuple[Evaluation, Steps]:
    now = datetime.now(UTC)
    evaluation = Evaluation(
        id=uuid4().hex,
        parent_id=uuid4().hex,
        created_at=now,
        verdict="review",
        decided_by="content",
        stages=[
            VolumeStage(outcome=Outcome.PASS, characters=3, distinct_ratio=0.1, sentences=1),
            ContentStage(outcome=Outcome.REVIEW, threshold=65, review_reasons=["timeout"]),
            DeliberationStage(outcome=Outcome.PASS, limit=2, confidence=1 / 3),
        ],
        feedback=Feedback(
            text=TEXT, suggestions=[Suggestion(about=TEXT, change=TEXT)], violations=[TEXT]
        ),
        summary=None,
        model=TEXT,
        prompt_version="2",
        usage=Usage(prompt_tokens=2**40, completion_tokens=1, cached_tokens=0),
        duration_ms=0.001,
    )
    step = Step(
        node="content",
        attempt=2,
        started_at=now,
        duration_ms=1.5,
        input={TEXT: [TEXT, None, 1.5]},
        output=None,
        messages=[Message(role="user", content=TEXT)],
        reply=TEXT,
        finish_reason="length",
        usage=Usage(),
        model=None,
        prompt="content@2",
        error=TEXT,
    )
    return evaluation, Steps(evaluation_id=evaluation.id, request_id="r", steps=[step, step])


class TestEveryDatabase:
    async def test_what_was_saved_comes_back_unchanged(self, database: Any) -> None:
        evaluation, steps = an_evaluation()
        async with opened(database) as (store, _):
            await store.save(evaluation, steps)
            assert await store.get(evaluation.id) == evaluation
            assert await store.steps(evaluation.id) == steps

    async def test_an_unknown_id_is_none(self, database: Any) -> None:
        async with opened(database) as (store, _):
            await store.save(*an_evaluation())
            for unknown in ("0" * 32, "", "%", "' OR 1=1 --"):
                assert await store.get(unknown) is None
                assert await store.steps(unknown) is None

    async def test_an_id_is_taken_once(self, database: Any) -> None:
        evaluation, steps = an_evaluation()
        other = evaluation.model_copy(update={"verdict": "pass"})
        async with opened(database) as (store, _):
            await store.save(evaluation, steps)
            with pytest.raises(StorageUnavailable):
                await store.save(other, steps)
            assert await store.get(evaluation.id) == evaluation

    async def test_rows_outlive_the_store(self, database: Any) -> None:
        evaluation, steps = an_evaluation()
        async with opened(database) as (store, _):
            await store.save(evaluation, steps)
        async with opened(database) as (store, _):
            assert await store.get(evaluation.id) == evaluation
            assert await store.steps(evaluation.id) == steps

    async def test_two_stores_see_each_others_rows(self, database: Any) -> None:
        async with opened(database) as (one, _), opened(database) as (two, _):
            for writer, reader in ((one, two), (two, one)):
                evaluation, steps = an_evaluation()
                await writer.save(evaluation, steps)
                assert await reader.get(evaluation.id) == evaluation

    async def test_replicas_that_start_together_make_the_tables_once(self, database: Any) -> None:
        async def start_and_save() -> str:
            evaluation, steps = an_evaluation()
            async with opened(database) as (store, _):
                await store.save(evaluation, steps)
            return evaluation.id

        ids = await asyncio.gather(*(start_and_save() for _ in range(8)))
        async with opened(database) as (store, _):
            assert all([await store.get(one) for one in ids])

    async def test_more_writers_than_connections_wait_for_each_other(self, database: Any) -> None:
        saved = [an_evaluation() for _ in range(20)]
        async with opened(database) as (store, _):
            await asyncio.gather(*(store.save(*one) for one in saved))
            found = await asyncio.gather(*(store.get(e.id) for e, _ in saved))
        assert found == [evaluation for evaluation, _ in saved]

    async def test_checkpoints_outlive_the_store(self, database: Any) -> None:
        config: Any = {"configurable": {"thread_id": "t", "checkpoint_ns": ""}}
        checkpoint = empty_checkpoint()
        async with opened(database) as (_, saver):
            await saver.aput(config, checkpoint, {"source": "input", "step": 1}, {})
        async with opened(database) as (_, saver):
            found = await saver.aget_tuple(config)
        assert found is not None
        assert found.checkpoint["id"] == checkpoint["id"]

    def test_an_evaluation_is_replayed_after_a_restart(
        self, database: Any, llm: ScriptedLLM, proposal: dict[str, Any]
    ) -> None:
        with service(database, llm) as client:
            parent = client.post("/v1/proposals/evaluate", json=proposal).json()
        llm.calls.clear()
        with service(database, llm) as client:
            assert client.get(f"/v1/evaluations/{parent['id']}").json() == parent
            answer = client.post(
                f"/v1/evaluations/{parent['id']}/replay", json={"from_stage": "deliberation"}
            )
            assert answer.status_code == 200, answer.text
            child = answer.json()
            assert client.get(f"/v1/evaluations/{child['id']}").json() == child
        assert (child["parent_id"], child["verdict"]) == (parent["id"], "pass")
        assert child["stages"][:2] == parent["stages"][:2]
        asked = [call for call in llm.calls if not call["request_id"].startswith("warming-")]
        names = [call["response_format"]["json_schema"]["name"] for call in asked]
        assert names == ["DeliberationAnswer", "SummaryAnswer"]


@contextmanager
def service(database: Any, llm: ScriptedLLM) -> Iterator[httpx.Client]:
    settings = EvaluationSettings(
        llm_url=llm.base_url, home=database.home, database_url=database.url, log_level="error"
    )
    with (
        served_app(create_app(settings)) as base_url,
        httpx.Client(base_url=base_url, timeout=60) as client,
    ):
        yield client


@pytest.fixture
def stopped(postgres: Postgres) -> Iterator[Postgres]:
    """The server, to be stopped by the test; it runs again afterwards."""
    yield postgres
    if postgres.process is None:
        postgres.start()


async def test_a_server_that_stops_is_unavailable_and_then_back(
    stopped: Postgres, tmp_path: Path
) -> None:
    evaluation, steps = an_evaluation()
    url = stopped.new_database()
    async with open_storage(url, tmp_path / "unused", metadata, pool_size=2) as storage:
        store, saver = SQLStore(storage.engine), storage.checkpointer
        await store.save(evaluation, steps)
        stopped.stop()
        began = time.monotonic()
        with pytest.raises(StorageUnavailable):
            await store.get(evaluation.id)
        with pytest.raises(StorageUnavailable):
            await store.save(*an_evaluation())
        assert time.monotonic() - began < BOUND_S
        with pytest.raises(StorageUnavailable):
            await saver.aget_tuple({"configurable": {"thread_id": "t", "checkpoint_ns": ""}})
        assert time.monotonic() - began < 2 * BOUND_S
        stopped.start()
        assert await store.get(evaluation.id) == evaluation


def test_a_caller_is_told_that_the_database_is_away(
    stopped: Postgres, tmp_path: Path, llm: ScriptedLLM, proposal: dict[str, Any]
) -> None:
    settings = EvaluationSettings(
        llm_url=llm.base_url, home=tmp_path, database_url=stopped.new_database(), log_level="error"
    )
    with (
        served_app(create_app(settings)) as base_url,
        httpx.Client(base_url=base_url, timeout=4 * BOUND_S) as client,
    ):
        parent = client.post("/v1/proposals/evaluate", json=proposal).json()
        stored = f"/v1/evaluations/{parent['id']}"
        stopped.stop()
        for answer in (
            client.post("/v1/proposals/evaluate", json=proposal),
            client.get(stored),
            client.get(f"{stored}/steps"),
            client.post(f"{stored}/replay", json={"from_stage": "writing"}),
        ):
            assert (answer.status_code, answer.json()["code"]) == (503, "storage_unavailable")
            assert int(answer.headers["Retry-After"]) >= 1
        stopped.start()
        assert client.get(stored).json() == parent
        assert client.post("/v1/proposals/evaluate", json=proposal).status_code == 200


async def test_tables_that_are_gone_are_unavailable(database: Any) -> None:
    config: Any = {"configurable": {"thread_id": "t", "checkpoint_ns": ""}}
    async with opened(database) as (store, saver):
        engine = store._engine
        async with engine.begin() as connection:
            for table in ("evaluations", "checkpoints", "writes", "checkpoint_writes"):
                await connection.execute(text(f"DROP TABLE IF EXISTS {table}"))
        for asked in (
            store.get("0" * 32),
            store.steps("0" * 32),
            store.save(*an_evaluation()),
            saver.aget_tuple(config),
            saver.aput(config, empty_checkpoint(), {"source": "input", "step": 1}, {}),
            saver.aput_writes(
                {"configurable": {**config["configurable"], "checkpoint_id": "c"}}, [("k", 1)], "t"
            ),
        ):
            with pytest.raises(StorageUnavailable):
                await asked


@pytest.mark.parametrize("url", ["mysql://host/db", "postgresql+asyncpg://host/db", "x"])
async def test_another_kind_of_database_is_refused(url: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="JOING_DATABASE_URL"):
        async with open_storage(url, tmp_path / "unused", metadata, pool_size=2):
            pass


@pytest.mark.parametrize("slashes", ["sqlite:///", "sqlite:////"])
async def test_a_sqlite_address_names_its_file(
    slashes: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three slashes and a relative path, or four and an absolute one, as SQLAlchemy has it."""
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "named.sqlite3"
    path = str(file).lstrip("/") if slashes.endswith("////") else file.name
    async with open_storage(slashes + path, tmp_path / "unused", metadata, pool_size=2):
        assert file.exists()
