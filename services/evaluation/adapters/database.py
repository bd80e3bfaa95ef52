"""Evaluations and their steps in SQL.

The wire documents are stored as JSON beside the columns that are searched by.
"""

from __future__ import annotations

import asyncio

from sqlalchemy import JSON, Column, DateTime, MetaData, String, Table, insert, select
from sqlalchemy.ext.asyncio import AsyncEngine

from services.evaluation.schemas import Evaluation, Steps
from services.shared.storage import as_unavailable

ANSWER_TIMEOUT_S = 20.0

metadata = MetaData()
evaluations = Table(
    "evaluations",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("parent_id", String(32), nullable=True, index=True),
    Column("created_at", DateTime(timezone=True), nullable=False, index=True),
    Column("verdict", String(8), nullable=False),
    Column("document", JSON, nullable=False),
    Column("steps", JSON, nullable=False),
)


class SQLStore:
    """An EvaluationStore on any database that SQLAlchemy speaks to asynchronously."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def save(self, evaluation: Evaluation, steps: Steps) -> None:
        row = {
            "id": evaluation.id,
            "parent_id": evaluation.parent_id,
            "created_at": evaluation.created_at,
            "verdict": evaluation.verdict,
            "document": evaluation.model_dump(mode="json"),
            "steps": steps.model_dump(mode="json"),
        }
        with as_unavailable("The evaluation could not be stored."):
            async with self._engine.begin() as connection:
                await connection.execute(insert(evaluations).values(row))

    async def get(self, evaluation_id: str) -> Evaluation | None:
        document = await self._column("document", evaluation_id)
        return None if document is None else Evaluation.model_validate(document)

    async def steps(self, evaluation_id: str) -> Steps | None:
        document = await self._column("steps", evaluation_id)
        return None if document is None else Steps.model_validate(document)

    async def _column(self, name: str, evaluation_id: str) -> object | None:
        query = select(evaluations.c[name]).where(evaluations.c.id == evaluation_id)
        with as_unavailable("The database cannot be read."):
            async with asyncio.timeout(ANSWER_TIMEOUT_S), self._engine.connect() as connection:
                found: object | None = (await connection.execute(query)).scalar_one_or_none()
        return found
