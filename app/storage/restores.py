"""The statements on `restores`: from which backups the database was restored. No clock here."""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, insert, select

from app.storage.tables import restores


@dataclass(frozen=True, slots=True, kw_only=True)
class Restore:
    """A restored backup, and a start of the coordinator on it; times are seconds since the epoch."""

    restored_from: float
    started_at: float


def note_restores(connection: Connection, items: Sequence[Restore]) -> list[float]:
    """Note each restore, unless it is known; returns when the coordinator first started on it.

    Raises an error of the database if two processes note the same one for the first time.
    """
    return [_note(connection, item) for item in items]


def _note(connection: Connection, item: Restore) -> float:
    known = select(restores.c.first_start).where(restores.c.restored_from == item.restored_from)
    first_start: float | None = connection.execute(known).scalar_one_or_none()
    if first_start is not None:
        return first_start
    connection.execute(insert(restores).values(restored_from=item.restored_from, first_start=item.started_at))
    return item.started_at
