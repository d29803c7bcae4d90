"""The SQL that deletes finished transactions with everything that belongs to them; retention.py says when.

Nothing else deletes transactions. Never deletes unfinished or hung ones, nor those that an operator resolved: a
participant may still ask about them, and would read "unknown" as cancel. No commit and no clock here.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from typing import Any, Final

from sqlalchemy import Connection, delete, select

from app.protocol.values import CallRecord, Transaction
from app.storage import memberships
from app.storage.calls import call_record
from app.storage.errors import StaleError
from app.storage.expressions import DOCUMENT_BYTES, within_read_limit
from app.storage.tables import calls, transactions
from app.storage.transactions import find_all

CALLS_AT_ONCE: Final = 500
"""Maximum number of calls held in memory during an export."""

Record = tuple[Transaction, Iterator[CallRecord]]
"""A finished transaction and all its calls, oldest first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Purge:
    """Which records to purge: among the next `limit` ids between `after_id` and `before_id`, those finished by
    `finished_by` that no operator resolved.

    Ids sort by time, so `before_id` excludes transactions that began later. `export` returns once it has made the
    records durable elsewhere; if it raises, nothing is deleted.
    """

    finished_by: float
    after_id: str
    before_id: str
    limit: int
    export: Callable[[Iterable[Record]], None] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Purged:
    """How many were purged, and the last id that was looked at; None if there was nothing left to look at."""

    count: int
    last_id: str | None


def purge(connection: Connection, items: Sequence[Purge]) -> list[Purged]:
    """Delete a batch of finished transactions, their calls and their memberships.

    Walks through the ids, which sort by time, from where the last batch ended. So rows that are kept are visited once
    and not by every batch, and finished rows need no index for this. Skips what another replica is purging.
    """
    return [_purge(connection, item) for item in items]


def _purge(connection: Connection, item: Purge) -> Purged:
    column = transactions.c
    window = select(column.id).where(column.id > item.after_id, column.id < item.before_id)
    looked_at = connection.execute(window.order_by(column.id).limit(item.limit)).scalars().all()
    if not looked_at:
        return Purged(count=0, last_id=None)
    old = select(DOCUMENT_BYTES, column.id).where(column.id.in_(looked_at), *_purgeable(item))
    rows = connection.execute(old.order_by(column.id).with_for_update(skip_locked=True)).all()
    if not rows:
        return Purged(count=0, last_id=looked_at[-1])
    readable = within_read_limit(rows)
    read = find_all(connection, [row.id for row in readable]).finish()
    if item.export is not None:
        item.export(_with_calls(connection, read))
    _delete(connection, item, read)
    return Purged(count=len(read), last_id=looked_at[-1] if len(readable) == len(rows) else readable[-1].id)


def _purgeable(item: Purge) -> list[Any]:
    column = transactions.c
    return [
        column.finished_at <= item.finished_by,
        column.wake_at.is_(None),
        column.hung_since.is_(None),
        column.resolved_at.is_(None),
    ]


def _delete(connection: Connection, item: Purge, purged: Sequence[Transaction]) -> None:
    ids = [transaction.id for transaction in purged]
    gone = connection.execute(delete(transactions).where(transactions.c.id.in_(ids), *_purgeable(item)))
    if gone.rowcount != len(ids):
        raise StaleError("another replica purges the same transactions")
    connection.execute(delete(calls).where(calls.c.transaction_id.in_(ids)))
    memberships.remove(connection, purged)


def _with_calls(connection: Connection, read: Sequence[Transaction]) -> Iterator[Record]:
    """Each transaction with its calls, which are read lazily because there may be very many."""
    query = select(calls).where(calls.c.transaction_id.in_([transaction.id for transaction in read]))
    rows = connection.execute(
        query.order_by(calls.c.transaction_id, calls.c.id), execution_options={"yield_per": CALLS_AT_ONCE}
    )
    groups = groupby(rows, attrgetter("transaction_id"))
    group = next(groups, None)
    for transaction in read:
        if group is not None and group[0] == transaction.id:
            yield transaction, map(call_record, group[1])
            group = next(groups, None)
        else:
            yield transaction, iter(())
