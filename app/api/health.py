"""/healthz, /readyz and /metrics, for whatever supervises the process."""

import asyncio
import math

from fastapi import APIRouter
from fastapi.responses import PlainTextResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from sqlalchemy import Connection

from app.api import examples
from app.api.access import GuardedRoute, allows
from app.api.dependencies import PartsOf
from app.api.problems import Problem, responses
from app.api.readiness import ANSWER_MAX_S
from app.api.rendering import json_response
from app.api.schemas import StatusBody
from app.auth.roles import READERS, Role
from app.storage import queries
from app.storage.errors import DatabaseError

router = APIRouter(tags=["health"], route_class=GuardedRoute)


@router.get(
    "/healthz",
    summary="Check that the process is alive",
    openapi_extra=allows(),
    response_model=StatusBody,
    responses={200: examples.answer("The process answers", examples.ALIVE)},
)
async def healthz() -> Response:
    """For a liveness probe. It doesn't touch the database, so a database that is down restarts nothing."""
    return json_response({"status": "alive"})


@router.get(
    "/readyz",
    summary="Check that requests can be served",
    openapi_extra=allows(),
    response_model=StatusBody,
    responses={
        200: examples.answer("The coordinator is ready", examples.READY),
        **responses("schema-outdated", "unavailable"),
    },
)
async def readyz(parts: PartsOf) -> Response:
    """For a readiness probe: the database answers, accepts writes, and has the schema that this version needs.

    The answer may be a second old.
    """
    if fault := await parts.readiness.fault():
        raise Problem(*fault)
    return json_response({"status": "ready"})


@router.get(
    "/metrics",
    summary="Get Prometheus metrics",
    openapi_extra=allows(*READERS, Role.METRICS),
    response_class=PlainTextResponse,
    responses={
        200: {
            "description": "The metrics of this process, and of the database",
            "content": {"text/plain": {"examples": examples.named(examples.METRICS)}},
        },
    },
)
async def metrics(parts: PartsOf) -> Response:
    """Metrics in Prometheus' text format. docs/reference/metrics.md describes each of them, and what to alert on.

    Without the database `holdfast_database_up` is 0, and what only the database knows is NaN.
    """
    try:
        async with asyncio.timeout(ANSWER_MAX_S):
            unfinished, hung = await parts.journal.read(_counts)
        parts.metrics.database_up.set(1)
    except (DatabaseError, TimeoutError):
        unfinished = hung = math.nan
        parts.metrics.database_up.set(0)
    parts.metrics.unfinished.set(unfinished)
    parts.metrics.hung.set(hung)
    parts.metrics.running.set(len(parts.coordinator.runs))
    return Response(generate_latest(parts.metrics.registry), media_type=CONTENT_TYPE_LATEST)


def _counts(connection: Connection) -> tuple[float, float]:
    return queries.count_unfinished(connection), queries.count_hung(connection)
