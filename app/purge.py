"""The SQL that deletes finished transactions, with all that belongs to them; retention.py says when.

Nothing else deletes transactions. What is unfinished or hung is never deleted, nor what a person resolved: its
participant may still ask, and unknown would be read as cancel. No commit and no clock here.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from typing import Any, Final

from sqlalchemy import Connection, delete, select

from app import store
from app.models import CallRecord
from app.store import calls, transaction_participants, transactions
from app.transaction import Transaction

CALLS_AT_ONCE: Final = 500
"""Calls that are held in memory while they are exported."""

Record = tuple[Transaction, Iterator[CallRecord]]
"""A finished transaction and all its calls, oldest first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Purge:
    """Which records to purge: of `limit` transactions behind `after_id`, those finished by then that nobody resolved.

    None that began later is looked at: ids below `before_id` were made before. `export` has made the records
    durable somewhere else when it returns; when it raises, nothing is deleted.
    """

    finished_by: float
    after_id: str
    before_id: str
    limit: int
    export: Callable[[Iterable[Record]], None] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Purged:
    """How many were purged, and up to which id all has been looked at; None when nothing was left to look at."""

    count: int
    last_id: str | None


def purge(connection: Connection, items: Sequence[Purge]) -> list[Purged]:
    """Delete a batch of finished transactions, their calls and their memberships.

    Works in the order of ids, which is that of time, from where the last batch ended: what is kept is walked over once
    and not at every batch, and no finished row needs an index for this. What another replica is purging is left to it.
    """
    return [_purge(connection, item) for item in items]


def _purge(connection: Connection, item: Purge) -> Purged:
    column = transactions.c
    window = select(column.id).where(column.id > item.after_id, column.id < item.before_id)
    looked_at = connection.execute(window.order_by(column.id).limit(item.limit)).scalars().all()
    if not looked_at:
        return Purged(count=0, last_id=None)
    old = select(store.DOCUMENT_BYTES, column.id).where(column.id.in_(looked_at), *_purgeable(item))
    rows = connection.execute(old.order_by(column.id).with_for_update(skip_locked=True)).all()
    if not rows:
        return Purged(count=0, last_id=looked_at[-1])
    fitting = store.fitting(rows)
    read = store.find_all(connection, [row.id for row in fitting])
    if item.export is not None:
        item.export(_with_calls(connection, read))
    _delete(connection, item, read)
    return Purged(count=len(read), last_id=looked_at[-1] if len(fitting) == len(rows) else fitting[-1].id)


def _purgeable(item: Purge) -> list[Any]:
    column = transactions.c
    return [
        column.finished_at <= item.finished_by,
        column.wake_at.is_(None),
        column.hung_since.is_(None),
        column.resolved_at.is_(None),
    ]


def _delete(connection: Connection, item: Purge, purged: Sequence[Transaction]) -> None:
    ids = [it.id for it in purged]
    gone = connection.execute(delete(transactions).where(transactions.c.id.in_(ids), *_purgeable(item)))
    if gone.rowcount != len(ids):
        raise store.StaleError("somebody else purges the same transactions")
    connection.execute(delete(calls).where(calls.c.transaction_id.in_(ids)))
    of_participant: dict[str, list[str]] = {}
    for row in store.memberships(purged):
        of_participant.setdefault(row["participant"], []).append(row["transaction_id"])
    member = transaction_participants.c
    for participant, its_ids in of_participant.items():
        connection.execute(
            delete(transaction_participants).where(
                member.participant == participant, member.transaction_id.in_(its_ids)
            )
        )


def _with_calls(connection: Connection, read: Sequence[Transaction]) -> Iterator[Record]:
    """Each with its calls, which are read as they are asked for: there may be very many."""
    query = select(calls).where(calls.c.transaction_id.in_([it.id for it in read]))
    rows = connection.execute(
        query.order_by(calls.c.transaction_id, calls.c.id), execution_options={"yield_per": CALLS_AT_ONCE}
    )
    groups = groupby(rows, attrgetter("transaction_id"))
    group = next(groups, None)
    for it in read:
        if group is not None and group[0] == it.id:
            yield it, map(store.call_record, group[1])
            group = next(groups, None)
        else:
            yield it, iter(())
