"""The statements that purge finished transactions; retention.py says when, and in which order.

Each is short, however many calls a transaction has. Only the holder of a lease deletes. Nothing else deletes
transactions. Never deletes unfinished or hung ones, nor those that an operator resolved: a participant may still ask
about them, and would read "unknown" as cancel. No commit and no clock here.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import ColumnElement, Connection, Row, delete, func, select

from app.protocol.values import CallRecord, Transaction
from app.storage import branches, commands
from app.storage.bulk import insert_all
from app.storage.calls import call_record
from app.storage.deferred import Deferred
from app.storage.errors import StaleError
from app.storage.expressions import DOCUMENT_BYTES, octet_length, within_read_limit
from app.storage.leases import Lease, check_lease
from app.storage.tables import calls, leftover_calls, transactions
from app.storage.transactions import find_all

CALLS_MAX: Final = 2_000
"""Maximum number of calls read or deleted at once."""
LEFTOVERS_MAX: Final = 200
"""Maximum number of transactions whose leftover calls are deleted at once."""
CALL_BYTES: Final = func.coalesce(octet_length(calls.c.error), 0) + func.coalesce(octet_length(calls.c.response), 0)
"""The size of a call's texts."""

Record = tuple[Transaction, Iterator[CallRecord]]
"""A finished transaction and all its calls, oldest first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Transactions to purge together, and the last id that was looked at for them.

    Their documents fit into READ_BYTES_MAX, and so do their calls, of which there are at most CALLS_MAX; only a single
    transaction may have more.
    """

    transactions: Sequence[Transaction]
    last_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Deletion:
    """Delete these transactions, if they are still finished by `finished_by` and the lease is still held."""

    ids: Sequence[str]
    finished_by: float
    lease: Lease


# --- reads -----------------------------------------------------------------------------------------------------------


def list_ids(connection: Connection, after_id: str, before_id: str, limit: int) -> Sequence[str]:
    """The next ids of transactions, whatever their state. They sort by time, so that finished rows need no index."""
    column = transactions.c
    window = select(column.id).where(column.id > after_id, column.id < before_id)
    return connection.execute(window.order_by(column.id).limit(limit)).scalars().all()


def find_batch(connection: Connection, ids: Sequence[str], finished_by: float) -> Deferred[Batch]:
    """The first of these transactions that can be purged together; those that can't be read are left out."""
    old = select(DOCUMENT_BYTES, transactions.c.id).where(transactions.c.id.in_(ids), *_purgeable(finished_by))
    rows = connection.execute(old.order_by(transactions.c.id)).all()
    chosen = [row.id for row in within_read_limit(rows)] if rows else []
    while len(chosen) > 1 and not _have_few_calls(connection, chosen):
        chosen = chosen[: len(chosen) // 2]
    found, last_id = find_all(connection, chosen), ids[-1] if len(chosen) == len(rows) else chosen[-1]
    return Deferred(lambda: Batch(transactions=found.finish(), last_id=last_id))


def find_few_calls(connection: Connection, ids: Sequence[str]) -> Mapping[str, list[CallRecord]] | None:
    """All calls of these transactions, oldest first; None if they are too many to be read at once."""
    if not _have_few_calls(connection, ids):
        return None
    found: dict[str, list[CallRecord]] = defaultdict(list)
    rows = connection.execute(select(calls).where(calls.c.transaction_id.in_(ids))).all()
    for row in sorted(rows, key=lambda row: row.id):
        found[row.transaction_id].append(call_record(row))
    return found


def page_calls(connection: Connection, transaction_id: str, after_id: int) -> tuple[list[CallRecord], int | None]:
    """The next calls of a transaction after `after_id`, oldest first, and the id to continue after; None at the end."""
    last_id, is_end = _chunk(connection, transaction_id, after_id, CALLS_MAX)
    chunk = select(calls).where(calls.c.transaction_id == transaction_id, calls.c.id > after_id, calls.c.id <= last_id)
    rows = connection.execute(chunk.order_by(calls.c.id))
    return [call_record(row) for row in rows], None if is_end else last_id


# --- writes ----------------------------------------------------------------------------------------------------------


def delete_finished(connection: Connection, items: Sequence[Deletion]) -> list[bool]:
    """Delete finished transactions and their branches, with their calls if these are few.

    Otherwise the calls are recorded as left over, and the result is True. Raises StaleError if any of the transactions
    isn't there any more as it was.
    """
    return [_delete(connection, item) for item in items]


def delete_leftover_calls(connection: Connection, items: Sequence[Lease]) -> list[bool]:
    """Delete some calls whose transactions are gone; returns whether there may be more. Raises LeaseLostError."""
    return [_delete_leftovers(connection, item) for item in items]


# --- helpers ---------------------------------------------------------------------------------------------------------


def _purgeable(finished_by: float) -> list[ColumnElement[bool]]:
    column = transactions.c
    return [
        column.finished_at <= finished_by,
        column.wake_at.is_(None),
        column.hung_since.is_(None),
        column.resolved_at.is_(None),
    ]


def _delete(connection: Connection, item: Deletion) -> bool:
    check_lease(connection, item.lease)
    ids = item.ids
    gone = connection.execute(delete(transactions).where(transactions.c.id.in_(ids), *_purgeable(item.finished_by)))
    if gone.rowcount != len(ids):
        raise StaleError("transactions that were about to be purged have changed")
    branches.remove(connection, ids)
    commands.remove(connection, ids)
    if _have_few_calls(connection, ids):
        connection.execute(delete(calls).where(calls.c.transaction_id.in_(ids)))
        return False
    insert_all(connection, leftover_calls, [{"transaction_id": id_} for id_ in ids])
    return True


def _delete_leftovers(connection: Connection, lease: Lease) -> bool:
    check_lease(connection, lease)
    column = leftover_calls.c.transaction_id
    ids = connection.execute(select(column).order_by(column).limit(LEFTOVERS_MAX)).scalars().all()
    room, emptied = CALLS_MAX, []
    for id_ in ids:
        last_id, is_end = _chunk(connection, id_, 0, room)
        chunk = delete(calls).where(calls.c.transaction_id == id_, calls.c.id <= last_id)
        room -= connection.execute(chunk).rowcount
        emptied += [id_] if is_end else []
        if not is_end or room <= 0:
            break
    connection.execute(delete(leftover_calls).where(column.in_(emptied)))
    return len(emptied) < len(ids) or len(ids) == LEFTOVERS_MAX


def _have_few_calls(connection: Connection, ids: Sequence[str]) -> bool:
    """Whether all calls of these transactions can be read or deleted at once."""
    some = select(CALL_BYTES, calls.c.id).where(calls.c.transaction_id.in_(ids)).limit(CALLS_MAX + 1)
    rows = connection.execute(some).all()
    return len(rows) <= CALLS_MAX and _fits(rows)


def _fits(rows: Sequence[Row[Any]]) -> bool:
    return not rows or len(within_read_limit(rows)) == len(rows)


def _chunk(connection: Connection, transaction_id: str, after_id: int, calls_max: int) -> tuple[int, bool]:
    """The last of the next calls that can be read or deleted at once, and whether it is the last of all."""
    sizes = select(CALL_BYTES, calls.c.id).where(calls.c.transaction_id == transaction_id, calls.c.id > after_id)
    rows = connection.execute(sizes.order_by(calls.c.id).limit(calls_max + 1)).all()
    if not rows:
        return after_id, True
    chunk = within_read_limit(rows[:calls_max])
    return chunk[-1].id, len(chunk) == len(rows)
