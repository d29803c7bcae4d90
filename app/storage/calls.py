"""The statements on `calls`, the history of calls to participants."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Row, select

from app.protocol.values import CallRecord
from app.storage.bulk import insert_all
from app.storage.tables import calls
from holdfast.wire import Answer, Operation


def add_calls(connection: Connection, items: Sequence[tuple[CallRecord, ...]]) -> list[None]:
    """Add calls to the history that finished after the process that made them last saved the transaction."""
    insert_calls(connection, [call for calls_made in items for call in calls_made])
    return [None] * len(items)


def insert_calls(connection: Connection, made: Sequence[CallRecord]) -> None:
    """Insert the rows of these calls, as part of another write."""
    insert_all(connection, calls, [_call_row(call) for call in made])


def list_calls(connection: Connection, transaction_id: str, limit: int, after_id: int) -> list[tuple[int, CallRecord]]:
    """The calls of a transaction after `after_id`, oldest first, each with its id."""
    query = select(calls).where(calls.c.transaction_id == transaction_id, calls.c.id > after_id)
    return [(row.id, call_record(row)) for row in connection.execute(query.order_by(calls.c.id).limit(limit))]


def call_record(row: Row[Any]) -> CallRecord:
    """The call that a row of `calls` represents."""
    return CallRecord(
        transaction_id=row.transaction_id,
        branch=row.branch,
        operation=Operation(row.operation),
        attempt=row.attempt,
        started_at=row.started_at,
        duration_ms=row.duration_ms,
        answer=Answer(row.answer),
        http_status=row.http_status,
        error=row.error,
        response=row.response,
    )


def _call_row(call: CallRecord) -> dict[str, Any]:
    return {
        "transaction_id": call.transaction_id,
        "branch": call.branch,
        "operation": call.operation.value,
        "attempt": call.attempt,
        "started_at": call.started_at,
        "duration_ms": call.duration_ms,
        "answer": call.answer.value,
        "http_status": call.http_status,
        "error": call.error,
        "response": call.response,
    }
