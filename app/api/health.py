"""/healthz, /readyz and /metrics: for whatever looks after the process."""

import asyncio
from typing import Final

from fastapi import APIRouter
from fastapi.responses import PlainTextResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from sqlalchemy import Connection

from app.api.dependencies import PartsOf
from app.api.problems import Problem, responses
from app.api.rendering import json_response
from app.api.schemas import StatusBody
from app.storage import queries, transactions
from app.storage.errors import DatabaseError
from app.storage.migrations import MIGRATE_COMMAND, schema_is_current

WRITE_MAX_S: Final = 5.0
"""A write that takes longer means that this process is not ready."""

router = APIRouter(tags=["health"])


@router.get("/healthz", response_model=StatusBody)
async def healthz() -> Response:
    """The process is alive."""
    return json_response({"status": "alive"})


@router.get("/readyz", response_model=StatusBody, responses=responses("schema-outdated", "unavailable"))
async def readyz(parts: PartsOf) -> Response:
    """The database can be reached and has the schema that this version needs."""
    try:
        current = await parts.journal.read(schema_is_current)
        async with asyncio.timeout(WRITE_MAX_S):
            await parts.journal.write(transactions.ping, None)
    except TimeoutError as error:
        raise Problem("unavailable", "Writes to the database don't get through.") from error
    except DatabaseError as error:
        raise Problem("unavailable") from error
    if not current:
        raise Problem("schema-outdated", f"Run: {MIGRATE_COMMAND}")
    return json_response({"status": "ready"})


@router.get(
    "/metrics",
    response_class=PlainTextResponse,
    responses={200: {"content": {"text/plain": {}}}, **responses("unavailable")},
)
async def metrics(parts: PartsOf) -> Response:
    """Counters, in Prometheus' text format."""
    unfinished, hung = await parts.journal.read(_counts)
    parts.metrics.unfinished.set(unfinished)
    parts.metrics.hung.set(hung)
    parts.metrics.running.set(parts.coordinator.running)
    return Response(generate_latest(parts.metrics.registry), media_type=CONTENT_TYPE_LATEST)


def _counts(connection: Connection) -> tuple[int, int]:
    return queries.count_unfinished(connection), queries.count_hung(connection)
