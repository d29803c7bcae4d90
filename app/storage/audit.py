"""The statements on `audit`, the record of who did what. Rows are inserted, and deleted after their retention only."""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import ColumnElement, Connection, delete, insert, select

from app.protocol.messages import Asker
from app.protocol.transaction_id import ENTROPY_BYTES, earliest_id, new_id
from app.storage.tables import audit

DONE: Final = "done"
DENIED: Final = "denied"
DELETED_MAX: Final = 1_000
"""Maximum number of rows that one statement deletes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditEntry:
    """Something that somebody did, or wasn't allowed to.

    `at` is in seconds since the epoch. `before` and `after` are JSON texts of what was changed, as the API shows it.
    `outcome` is `done` or `denied`.
    """

    at: float
    asker: Asker
    action: str
    target: str
    reason: str | None = None
    outcome: str = DONE
    before: str | None = None
    after: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredEntry:
    """An entry with its id; ids sort by time."""

    id: str
    entry: AuditEntry


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditFilter:
    """Which entries to list; every member that isn't None must match. Times are seconds since the epoch."""

    actor: str | None = None
    action: str | None = None
    target: str | None = None
    outcome: str | None = None
    since: float | None = None
    until: float | None = None


def insert_entries(connection: Connection, entries: Iterable[AuditEntry]) -> None:
    """Add entries, as part of the write that they tell of."""
    rows = [_row(entry) for entry in entries]
    if rows:
        connection.execute(insert(audit), rows)


def add_entries(connection: Connection, items: Sequence[AuditEntry]) -> list[None]:
    """Add entries that tell of nothing that is written."""
    insert_entries(connection, items)
    return [None] * len(items)


def list_entries(connection: Connection, wanted: AuditFilter, limit: int, before_id: str | None) -> list[StoredEntry]:
    """Entries before `before_id`, newest first."""
    query = select(audit).where(*_conditions(wanted)).order_by(audit.c.id.desc()).limit(limit)
    if before_id is not None:
        query = query.where(audit.c.id < before_id)
    return [_stored(row) for row in connection.execute(query)]


def delete_older(connection: Connection, items: Sequence[float]) -> list[bool]:
    """Delete entries from before this time, in seconds since the epoch; returns whether there may be more."""
    return [_delete_older(connection, at) for at in items]


def _delete_older(connection: Connection, at: float) -> bool:
    old = select(audit.c.id).where(audit.c.id < earliest_id(at)).order_by(audit.c.id).limit(DELETED_MAX)
    ids = list(connection.execute(old).scalars())
    if ids:
        connection.execute(delete(audit).where(audit.c.id.in_(ids)))
    return len(ids) == DELETED_MAX


def _conditions(wanted: AuditFilter) -> Iterator[ColumnElement[bool]]:
    for column in ("actor", "action", "target", "outcome"):
        value = getattr(wanted, column)
        if value is not None:
            yield audit.c[column] == value
    if wanted.since is not None:
        yield audit.c.id >= earliest_id(wanted.since)
    if wanted.until is not None:
        yield audit.c.id < earliest_id(wanted.until)


def _row(entry: AuditEntry) -> dict[str, Any]:
    return {
        "id": new_id(entry.at, os.urandom(ENTROPY_BYTES)),
        "at": entry.at,
        "actor": entry.asker.actor,
        "role": entry.asker.role,
        "address": entry.asker.address,
        "action": entry.action,
        "target": entry.target,
        "reason": entry.reason,
        "outcome": entry.outcome,
        "before": entry.before,
        "after": entry.after,
    }


def _stored(row: Any) -> StoredEntry:
    entry = AuditEntry(
        at=row.at,
        asker=Asker(actor=row.actor, role=row.role, address=row.address),
        action=row.action,
        target=row.target,
        reason=row.reason,
        outcome=row.outcome,
        before=row.before,
        after=row.after,
    )
    return StoredEntry(id=row.id, entry=entry)
