"""The statements that the engine needs: record, save, claim and find whole transactions.

Each function is one intent. Those that write take all waiting items (group_commit.py) and return a result for each.
Every UPDATE names the version that it expects. No commits, no clock and no transitions here. The same code runs on
SQLite, PostgreSQL, MySQL and MariaDB.
"""

import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Final

from sqlalchemy import ColumnElement, Connection, Integer, Row, Select, bindparam, func, select, union_all, update

from app.protocol.values import CallRecord, Transaction
from app.storage import branches, hung_branches
from app.storage.audit import AuditEntry, insert_entries
from app.storage.bulk import UNTIL, insert_all, update_all
from app.storage.calls import insert_calls
from app.storage.commands import Asked, Heard, find_waiting, write_outcomes
from app.storage.database_clock import database_now
from app.storage.deferred import Deferred
from app.storage.errors import ConcurrentWriteError, LateError, RetryWithError, StaleError, UnreadableRowError
from app.storage.expressions import (
    DOCUMENT_BYTES,
    IS_HUNG,
    IS_READABLE,
    IS_UNDER_WAY,
    READ_BYTES_MAX,
    UNFINISHED,
    within_read_limit,
)
from app.storage.mapping import branch_rows, changing_columns, format_of, payload_of, transaction_of
from app.storage.participants import keep_registered
from app.storage.tables import transactions
from holdfast.json_text import JsonText

log = logging.getLogger(__name__)


class SomeStaleError(StaleError, RetryWithError):
    """At least one save of a batch is stale or late. The batch is retried with the function that finds out which."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NewRecord:
    """A transaction to record, with the client's idempotency key and the hash of its request, if any.

    `participants` must be registered at the moment of its commit, or nothing is recorded.
    """

    transaction: Transaction
    idempotency_key: str | None = None
    request_hash: str | None = None
    participants: frozenset[str] = frozenset()

    @property
    def size_bytes(self) -> int:
        return self.transaction.document_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """The transaction recorded under an idempotency key; `created` says whether this item created it."""

    transaction_id: str
    request_hash: str | None
    created: bool
    owner: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NotRegistered:
    """Nothing was recorded, because this participant isn't registered any more."""

    participant: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Save:
    """A step to save: the state last stored, the new state, the calls made in between, the commands heard, and what
    the record says of them.

    It isn't saved, and raises LateError, if `is_late` says so right before COMMIT. Once late it must stay late. Nor is
    it if the database's clock says `until` by then: the process may have stood still, and its clock with it.
    """

    before: Transaction
    after: Transaction
    calls: tuple[CallRecord, ...] = ()
    heard: tuple[Heard, ...] = ()
    audited: tuple[AuditEntry, ...] = ()
    is_late: Callable[[], bool] | None = None
    until: float | None = None

    @property
    def size_bytes(self) -> int:
        return self.after.result_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """Which unfinished transactions to take over: up to `limit` that are due by `due_by`, or one by its id and version.

    Those in a format that this version doesn't know are left to others. If `due_by` is None, it doesn't matter when
    they are due. `hung` selects only hung ones, or only the others. Their documents have at most `bytes_max` bytes
    together, unless the first one is larger. No payload is read.
    """

    due_by: float | None
    lease_until: float
    limit: int = 1
    bytes_max: int = READ_BYTES_MAX
    transaction_id: str | None = None
    version: int | None = None
    hung: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Claimed:
    """A transaction that a claim has taken, and its version since."""

    id: str
    version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """A transaction that a claim has taken, as it stands, and the commands that wait for its owner, oldest first."""

    transaction: Transaction
    commands: Sequence[Asked]


@dataclass(frozen=True, slots=True, kw_only=True)
class News:
    """What the owner of a transaction should know: the stored version, None if it is gone, and waiting commands."""

    version: int | None
    commands: Sequence[Asked]


# Frequent statements are built once, because building one costs more than sending it.
_ONE: Final = select(transactions).where(transactions.c.id == bindparam("id"))
_VERSION: Final = select(transactions.c.version).where(transactions.c.id == bindparam("id"))
_RECORDED: Final = select(
    transactions.c.idempotency_key, transactions.c.id, transactions.c.request_hash, transactions.c.owner
).where(transactions.c.idempotency_key.in_(bindparam("keys", expanding=True)))
_NEXT_WAKE_AT: Final = select(
    func.min(
        union_all(
            *(select(func.min(transactions.c.wake_at).label("at")).where(kind, IS_READABLE) for kind in UNFINISHED)
        )
        .subquery()
        .c.at
    )
)


# --- writes ----------------------------------------------------------------------------------------------------------


def record(connection: Connection, items: Sequence[NewRecord]) -> list[Recorded | NotRegistered]:
    """Insert new transactions, except those whose idempotency key is already recorded or whose participant is gone."""
    registered = keep_registered(connection, frozenset().union(*(item.participants for item in items)))
    present = _recorded_under(connection, [item.idempotency_key for item in items if item.idempotency_key])
    answers: list[Recorded | NotRegistered] = []
    new: list[NewRecord] = []
    for item in items:
        recorded = present.get(item.idempotency_key) if item.idempotency_key else None
        if recorded is None and (gone := item.participants - registered):
            answers.append(NotRegistered(participant=min(gone)))
        elif recorded is None:
            new.append(item)
            mine = Recorded(transaction_id=item.transaction.id, request_hash=item.request_hash, created=True)
            answers.append(mine)
            if item.idempotency_key:
                present[item.idempotency_key] = replace(mine, created=False, owner=item.transaction.owner)
        else:
            answers.append(recorded)
    rows = [(item, branch_rows(item.transaction)) for item in new]
    insert_all(connection, transactions, [_new_row(item, of_branches) for item, of_branches in rows])
    branches.insert(connection, [row for _, of_branches in rows for row in of_branches])
    return answers


def save(connection: Connection, items: Sequence[Save]) -> list[Transaction]:
    """Write steps of transactions, each only if the row still has the version that was read.

    Returns them with their new versions. Raises SomeStaleError if one is stale or late, and WithdrawnError if a command
    that a step carries out was withdrawn.
    """
    try:
        return _save(connection, items)
    except StaleError as error:  # even if it is the only one: the batch has other writes
        raise SomeStaleError(save_all_but_stale, str(error)) from error


def save_all_but_stale(connection: Connection, items: Sequence[Save]) -> list[Transaction | StaleError | LateError]:
    """As `save`, but the result of a stale save is a StaleError, of a late one a LateError, and the others are saved.

    When a replica loses many transactions at once, every batch has some stale ones. Committing the rest one by one
    would take longer than their leases, so that they would be lost as well, and so on without end.
    """
    ids = sorted(item.after.id for item in items)
    look = select(transactions.c.id, transactions.c.version, database_now().label("now"))
    found = connection.execute(look.where(transactions.c.id.in_(ids)).order_by(transactions.c.id).with_for_update())
    rows = {row.id: (row.version, float(row.now)) for row in found}
    refused = [_why_not(item, *rows.get(item.after.id, (None, -math.inf))) for item in items]
    fresh = [replace(item, until=None) for item, why in zip(items, refused, strict=True) if why is None]
    saved = iter(_save(connection, fresh) if fresh else ())
    return [next(saved) if why is None else why for why in refused]


def _why_not(item: Save, version: int | None, now: float) -> StaleError | LateError | None:
    if version != item.after.version:
        return StaleError(item.after.id)
    return LateError(now) if item.until is not None and now >= item.until else None


def claim(connection: Connection, items: Sequence[Claim]) -> list[list[Claimed]]:
    """Take over unfinished transactions: take the lease and increment the version, which stops the previous owner.

    `find_claimed` reads them afterwards, so that the writer isn't held up.
    """
    return [_claim(connection, item) for item in items]


def release_leases(connection: Connection, items: Sequence[float]) -> list[int]:
    """Make all unfinished transactions due at this time (seconds since the epoch); returns how many were changed."""
    return [
        sum(
            connection.execute(
                update(transactions).where(kind, transactions.c.wake_at > now).values(wake_at=now)
            ).rowcount
            for kind in UNFINISHED
        )
        for now in items
    ]


# --- reads -----------------------------------------------------------------------------------------------------------


def find(connection: Connection, transaction_id: str) -> Deferred[Transaction | None]:
    """The stored transaction with this id, or None. Raises UnreadableRowError when it is parsed."""
    row = connection.execute(_ONE, {"id": transaction_id}).mappings().first()
    of_branches = branches.find(connection, [transaction_id] if row else [])[transaction_id]
    return Deferred(lambda: None if row is None or _is_purged(row, of_branches) else transaction_of(row, of_branches))


def find_news(connection: Connection, transaction_id: str) -> News:
    """The version of a transaction, which tells whether whoever knows it still owns it, and its waiting commands."""
    row = connection.execute(_VERSION, {"id": transaction_id}).first()
    waiting = find_waiting(connection, [transaction_id])[transaction_id]
    return News(version=None if row is None else row.version, commands=waiting)


def find_all(
    connection: Connection, ids: Sequence[str], *conditions: ColumnElement[bool]
) -> Deferred[list[Transaction]]:
    """The transactions with these ids that meet the conditions, in this order, except those that can't be read."""
    if not ids:
        return Deferred(list)
    query = select(transactions).where(transactions.c.id.in_(ids), *conditions)
    rows = {row["id"]: row for row in connection.execute(query).mappings()}
    of_branches = branches.find(connection, list(rows))
    return Deferred(lambda: _readable((rows[id_], of_branches[id_]) for id_ in ids if id_ in rows))


def find_claimed(connection: Connection, claimed: Sequence[Claimed]) -> Deferred[list[Taken]]:
    """What a claim has taken, except what another replica has taken since, and what can't be read.

    A row that can't be read keeps its lease, and is logged at each claim.
    """
    versions = {each.id: each.version for each in claimed}
    found = find_all(connection, list(versions))
    waiting = find_waiting(connection, list(versions))
    return Deferred(
        lambda: [
            Taken(transaction=each, commands=waiting[each.id])
            for each in found.finish()
            if each.version == versions[each.id]
        ]
    )


def judge_payloads(
    connection: Connection, transaction_id: str, judge: Callable[[Sequence[JsonText]], bool]
) -> Deferred[bool]:
    """What `judge` says about the payloads of this transaction; False if it doesn't exist any more."""
    rows = branches.find(connection, [transaction_id])[transaction_id]
    return Deferred(lambda: bool(rows) and judge([payload_of(row.definition) for row in rows]))


def is_key_taken(connection: Connection, idempotency_key: str) -> bool:
    """Whether a transaction has this idempotency key."""
    return bool(_recorded_under(connection, [idempotency_key]))


def next_wake_at(connection: Connection) -> float | None:
    """When the next unfinished transaction is due."""
    wake_at: float | None = connection.execute(_NEXT_WAKE_AT).scalar_one()
    return wake_at


# --- helpers ---------------------------------------------------------------------------------------------------------


def _save(connection: Connection, items: Sequence[Save]) -> list[Transaction]:
    rows = [
        {"expected_id": item.after.id, "expected_version": item.after.version, "version": item.after.version + 1}
        | changing_columns(item.after)
        for item in items
    ]
    if any(item.until is not None for item in items):
        rows = [row | {UNTIL: item.until} for row, item in zip(rows, items, strict=True)]
    if update_all(connection, transactions, rows) != len(rows):
        raise StaleError(", ".join(item.after.id for item in items))
    hung_branches.replace_changed(connection, [(item.before, item.after) for item in items])
    insert_calls(connection, [call for item in items for call in item.calls])
    write_outcomes(connection, [heard for item in items for heard in item.heard])
    insert_entries(connection, [entry for item in items for entry in item.audited])
    return [replace(item.after, version=item.after.version + 1) for item in items]


def _recorded_under(connection: Connection, keys: list[str]) -> dict[str, Recorded]:
    if not keys:
        return {}
    rows = connection.execute(_RECORDED, {"keys": keys})
    return {
        key: Recorded(transaction_id=id_, request_hash=hash_, created=False, owner=owner)
        for key, id_, hash_, owner in rows
    }


def _new_row(item: NewRecord, of_branches: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    transaction = item.transaction
    return changing_columns(transaction) | {
        "id": transaction.id,
        "version": transaction.version,
        "format": format_of(transaction),
        "name": transaction.name,
        "reference": transaction.reference,
        "try_order": transaction.try_order.value,
        "undo": transaction.undo.value,
        "idempotency_key": item.idempotency_key,
        "request_hash": item.request_hash,
        "created_at": transaction.created_at,
        "deadline": transaction.deadline,
        "traceparent": transaction.traceparent,
        "owner": transaction.owner,
        "definition_bytes": sum(len(row["definition"].encode()) for row in of_branches),
    }


def _claim(connection: Connection, item: Claim) -> list[Claimed]:
    values = {"due_by": item.due_by, "id": item.transaction_id, "version": item.version}
    given = {name: value for name, value in values.items() if value is not None}
    claimable = _claimable(tuple(given), item.hung)
    rows = within_read_limit(connection.execute(claimable, given | {"limit": item.limit}).all(), item.bytes_max)
    if not rows:
        return []
    lease = [
        {
            "expected_id": row.id,
            "expected_version": row.version,
            "version": row.version + 1,
            "wake_at": item.lease_until,
        }
        for row in rows
    ]
    if update_all(connection, transactions, lease) != len(
        rows
    ):  # not locked after all: on TiDB, SKIP LOCKED takes no lock
        raise ConcurrentWriteError
    return [Claimed(id=row.id, version=row.version + 1) for row in rows]


@cache
def _claimable(given: tuple[str, ...], hung: bool | None) -> Select[Any]:
    due = transactions.c.wake_at
    sizes = select(DOCUMENT_BYTES, transactions.c.id, transactions.c.version)
    claimable = sizes.where(IS_READABLE, due <= bindparam("due_by") if "due_by" in given else due.is_not(None))
    if "id" in given:
        claimable = claimable.where(transactions.c.id == bindparam("id"))
    if "version" in given:
        claimable = claimable.where(transactions.c.version == bindparam("version"))
    if hung is not None:
        claimable = claimable.where(IS_HUNG if hung else IS_UNDER_WAY)
    claimable = claimable.order_by(due).limit(bindparam("limit", type_=Integer()))
    return claimable.with_for_update(skip_locked=True)


def _is_purged(row: Mapping[Any, Any], of_branches: Sequence[Row[Any]]) -> bool:
    """Whether the transaction was purged after its row had been read and before those of its branches."""
    return not of_branches and row["wake_at"] is None


def _readable(rows: Iterable[tuple[Mapping[Any, Any], Sequence[Row[Any]]]]) -> list[Transaction]:
    """The transactions of these rows, except unreadable ones: one bad row must not block the others."""
    read: list[Transaction] = []
    for row, of_branches in rows:
        if _is_purged(row, of_branches):
            continue
        try:
            read.append(transaction_of(row, of_branches))
        except UnreadableRowError as error:
            log.error(
                "event=row_unreadable error=%s Was it written by a newer version? It is tried again later.", error
            )
    return read
