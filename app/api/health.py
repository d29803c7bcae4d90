"""/healthz, /readyz and /metrics, for whatever supervises the process."""

import asyncio
import secrets
from typing import Final

from fastapi import APIRouter
from fastapi.responses import PlainTextResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from sqlalchemy import Connection

from app.api import examples
from app.api.dependencies import PartsOf
from app.api.problems import Problem, responses
from app.api.rendering import json_response
from app.api.schemas import StatusBody
from app.storage import queries
from app.storage.errors import DatabaseError
from app.storage.migrations import schema_fault
from app.storage.probe import probe

WRITE_MAX_S: Final = 5.0
"""If a write takes longer than this, the process is not ready."""

router = APIRouter(tags=["health"])


@router.get(
    "/healthz",
    summary="Check that the process is alive",
    response_model=StatusBody,
    responses={200: examples.answer("The process answers", examples.ALIVE)},
)
async def healthz() -> Response:
    """For a liveness probe. It doesn't touch the database, so a database that is down restarts nothing."""
    return json_response({"status": "alive"})


@router.get(
    "/readyz",
    summary="Check that requests can be served",
    response_model=StatusBody,
    responses={
        200: examples.answer("The coordinator is ready", examples.READY),
        **responses("schema-outdated", "unavailable"),
    },
)
async def readyz(parts: PartsOf) -> Response:
    """For a readiness probe: the database answers, accepts writes, and has the schema that this version needs."""
    try:
        fault = await parts.journal.read(schema_fault)
        async with asyncio.timeout(WRITE_MAX_S):
            await parts.journal.write(probe, f"probe-{secrets.token_hex(8)}")
    except TimeoutError as error:
        raise Problem(
            "unavailable",
            f"A write to the database took longer than {WRITE_MAX_S:g} s. Look for locks, a full disk or overload.",
        ) from error
    except DatabaseError as error:
        raise Problem("unavailable") from error
    if fault:
        raise Problem("schema-outdated", fault)
    return json_response({"status": "ready"})


@router.get(
    "/metrics",
    summary="Get Prometheus metrics",
    response_class=PlainTextResponse,
    responses={
        200: {
            "description": "The metrics of this process, and of the database",
            "content": {"text/plain": {"examples": examples.named(examples.METRICS)}},
        },
        **responses("unavailable"),
    },
)
async def metrics(parts: PartsOf) -> Response:
    """Metrics in Prometheus' text format. docs/reference/metrics.md describes each of them, and what to alert on."""
    unfinished, hung = await parts.journal.read(_counts)
    parts.metrics.unfinished.set(unfinished)
    parts.metrics.hung.set(hung)
    parts.metrics.running.set(len(parts.coordinator.runs))
    return Response(generate_latest(parts.metrics.registry), media_type=CONTENT_TYPE_LATEST)


def _counts(connection: Connection) -> tuple[int, int]:
    return queries.count_unfinished(connection), queries.count_hung(connection)
