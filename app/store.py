"""Every SQL statement, as plain functions of a connection: one function, one intent.

The writing ones take all the items that wait (journal.py) and answer each; every UPDATE names the version that it
expects. No commit, no clock and no transition of the protocol here. Runs as it is on SQLite, PostgreSQL,
MySQL and MariaDB.
"""

import logging
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import accumulate
from typing import Any, Final

from sqlalchemy import (
    ColumnElement,
    Connection,
    Integer,
    Row,
    Select,
    Table,
    and_,
    bindparam,
    delete,
    exists,
    func,
    insert,
    select,
    text,
    union_all,
    update,
)
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import GenericFunction

from app.bulk import insert_all, update_all
from app.journal import Instead, Outrun
from app.models import (
    CallRecord,
    CallRow,
    HungBranchRow,
    ParticipantRow,
    RegisteredParticipant,
    TransactionParticipantRow,
    TransactionRow,
    UnreadableRowError,
    changing_columns,
    definition_of,
    transaction_of,
)
from app.transaction import Transaction
from holdfast.wire import Answer, Decision, Operation

log = logging.getLogger(__name__)

READ_BYTES_MAX: Final = 8 * 1024 * 1024
"""Documents that are read at once: a page ends early when its own come to more, whatever its limit."""


def _table(model: type) -> Table:
    table: Table = model.__table__  # type: ignore[attr-defined]
    return table


class octet_length(GenericFunction[int]):
    """How many bytes a text takes."""

    type = Integer()
    inherit_cache = True


@compiles(octet_length, "sqlite")
def _octet_length_sqlite(element: octet_length, compiler: SQLCompiler, **options: Any) -> str:
    """SQLite has the function since 3.43 only."""
    return f"length(CAST({compiler.process(element.clauses, **options)} AS BLOB))"


transactions = _table(TransactionRow)
transaction_participants = _table(TransactionParticipantRow)
hung_branches = _table(HungBranchRow)
calls = _table(CallRow)
participants = _table(ParticipantRow)


NOTICES: Final = "holdfast_changed"
"""The channel of what replicas tell each other (PostgreSQL)."""


class StaleError(Exception):
    """Somebody else has written this transaction since it was read: whoever gets this must stop."""


class SomeStaleError(StaleError, Instead):
    """Some of these are stale; which, is found out by looking."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NewRecord:
    """A transaction to record, with the client's idempotency key and the hash of what it asked for, if any."""

    transaction: Transaction
    idempotency_key: str | None = None
    request_hash: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """What there is under an idempotency key now; `created` says whether this very record made it."""

    transaction_id: str
    request_hash: str | None
    created: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Save:
    """A step to save: what was last known to be stored, what is to be, and the calls made since."""

    before: Transaction
    after: Transaction
    calls: tuple[CallRecord, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """Which unfinished transactions to take over: those due by then, at the most so many, or one by its id.

    `due_by` None means whenever they are due; `hung` restricts them to those that hang, or to those that don't.
    """

    due_by: float | None
    lease_until: float
    limit: int = 1
    transaction_id: str | None = None
    hung: bool | None = None


# --- writes: what the protocol needs -----------------------------------------------------------------------------


def record(connection: Connection, items: Sequence[NewRecord]) -> list[Recorded]:
    """Insert new transactions, but for those whose idempotency key is there already."""
    present = _recorded_under(connection, [item.idempotency_key for item in items if item.idempotency_key])
    answers: list[Recorded] = []
    new: list[NewRecord] = []
    for item in items:
        recorded = present.get(item.idempotency_key) if item.idempotency_key else None
        if recorded is None:
            new.append(item)
            mine = Recorded(transaction_id=item.transaction.id, request_hash=item.request_hash, created=True)
            answers.append(mine)
            if item.idempotency_key:
                present[item.idempotency_key] = Recorded(
                    transaction_id=mine.transaction_id, request_hash=mine.request_hash, created=False
                )
        else:
            answers.append(recorded)
    insert_all(connection, transactions, [_new_row(item) for item in new])
    insert_all(connection, transaction_participants, memberships(item.transaction for item in new))
    return answers


def memberships(of: Iterable[Transaction]) -> list[dict[str, str]]:
    """The rows that say which registered participants these transactions have."""
    return [
        {"participant": participant, "transaction_id": it.id}
        for it in of
        for participant in sorted({b.participant for b in it.branches if b.participant})
    ]


def save(connection: Connection, items: Sequence[Save]) -> list[Transaction]:
    """Write steps of transactions, each only if it is still at the version it was read at.

    Returns them with their new versions. Raises StaleError when one is not; of several it is then looked which.
    """
    try:
        return _save(connection, items)
    except StaleError as error:
        if len(items) == 1:
            raise
        raise SomeStaleError(save_the_fresh, str(error)) from error


def save_the_fresh(connection: Connection, items: Sequence[Save]) -> list[Transaction | StaleError]:
    """As `save`, but a stale one has a StaleError for its answer, and the others are saved.

    Where a replica loses many transactions at once, each batch has some that are stale. To commit the others one by
    one took longer than their leases, so they were lost as well, and so on without end.
    """
    ids = sorted(it.after.id for it in items)
    look = select(transactions.c.id, transactions.c.version).where(transactions.c.id.in_(ids))
    found = connection.execute(look.order_by(transactions.c.id).with_for_update())
    versions = {row.id: row.version for row in found}
    fresh = [it for it in items if versions.get(it.after.id) == it.after.version]
    saved = {(it.id, it.version): it for it in (_save(connection, fresh) if fresh else ())}
    return [saved.get((it.after.id, it.after.version + 1)) or StaleError(it.after.id) for it in items]


def add_calls(connection: Connection, items: Sequence[tuple[CallRecord, ...]]) -> list[None]:
    """Add calls to the history that ended after their transaction was last saved by whoever made them."""
    insert_all(connection, calls, [_call_row(call) for calls_made in items for call in calls_made])
    return [None] * len(items)


def ping(connection: Connection, items: Sequence[None]) -> list[bool]:
    """Whether writes get through: answers True, once the transactions table could be read by the writer."""
    connection.execute(select(transactions.c.id).limit(1)).first()
    return [True] * len(items)


def claim(connection: Connection, items: Sequence[Claim]) -> list[list[Transaction]]:
    """Take over unfinished transactions: bump the version, which stops whoever had them, and take the lease.

    A row that can't be read is leased like the others, but not answered: it stays, and is logged at each try.
    """
    return [_claim(connection, item) for item in items]


def release_leases(connection: Connection, items: Sequence[float]) -> list[int]:
    """Make everything unfinished due at once, at the time given in seconds since the epoch; answers how many."""
    return [
        sum(
            connection.execute(
                update(transactions).where(kind, transactions.c.wake_at > now).values(wake_at=now)
            ).rowcount
            for kind in _UNFINISHED
        )
        for now in items
    ]


def announce(connection: Connection, items: Sequence[str]) -> list[None]:
    """Send notices to whoever listens, at the commit; only where `try_to_listen` has succeeded."""
    connection.execute(
        select(func.pg_notify(bindparam("channel"), bindparam("text"))),
        [{"channel": NOTICES, "text": item} for item in items],
    )
    return [None] * len(items)


DOCUMENT_BYTES = octet_length(transactions.c.definition) + octet_length(transactions.c.state)
HANGS = transactions.c.hung_since.is_not(None)
_IS_UNDER_WAY = and_(transactions.c.wake_at.is_not(None), transactions.c.hung_since.is_(None))
_UNFINISHED = (_IS_UNDER_WAY, HANGS)
"""All that is not finished, in two kinds, of which each has an index of its own: what hangs stands in nobody's way."""

# What is asked often is built once: building a statement costs more than sending it.
_ONE: Final = select(transactions).where(transactions.c.id == bindparam("id"))
_DECISION: Final = select(transactions.c.decision, transactions.c.deadline).where(transactions.c.id == bindparam("id"))
_RECORDED: Final = select(transactions.c.idempotency_key, transactions.c.id, transactions.c.request_hash).where(
    transactions.c.idempotency_key.in_(bindparam("keys", expanding=True))
)
_NEXT_WAKE_AT: Final = select(
    func.min(
        union_all(*(select(func.min(transactions.c.wake_at).label("at")).where(kind) for kind in _UNFINISHED))
        .subquery()
        .c.at
    )
)
_PARTICIPANTS: Final = select(participants).order_by(participants.c.name)


def _save(connection: Connection, items: Sequence[Save]) -> list[Transaction]:
    rows = [
        {"expected_id": it.after.id, "expected_version": it.after.version, "version": it.after.version + 1}
        | changing_columns(it.after)
        for it in items
    ]
    if update_all(connection, transactions, rows) != len(rows):
        raise StaleError(", ".join(it.after.id for it in items))
    _save_hung_branches(connection, items)
    insert_all(connection, calls, [_call_row(call) for it in items for call in it.calls])
    return [replace(it.after, version=it.after.version + 1) for it in items]


def _recorded_under(connection: Connection, keys: list[str]) -> dict[str, Recorded]:
    if not keys:
        return {}
    rows = connection.execute(_RECORDED, {"keys": keys})
    return {key: Recorded(transaction_id=id_, request_hash=hash_, created=False) for key, id_, hash_ in rows}


def _new_row(item: NewRecord) -> dict[str, Any]:
    transaction = item.transaction
    return changing_columns(transaction) | {
        "id": transaction.id,
        "version": transaction.version,
        "name": transaction.name,
        "reference": transaction.reference,
        "try_order": transaction.try_order.value,
        "idempotency_key": item.idempotency_key,
        "request_hash": item.request_hash,
        "created_at": transaction.created_at,
        "deadline": transaction.deadline,
        "definition": definition_of(transaction),
    }


def _save_hung_branches(connection: Connection, items: Sequence[Save]) -> None:
    """Hung branches have rows of their own; they change seldom, so nothing is written when they don't."""
    changed = [it for it in items if _hung_rows(it.before) != _hung_rows(it.after)]
    if not changed:
        return
    ids = [it.after.id for it in changed]
    connection.execute(delete(hung_branches).where(hung_branches.c.transaction_id.in_(ids)))
    insert_all(connection, hung_branches, [row for it in changed for row in _hung_rows(it.after)])


def _hung_rows(transaction: Transaction) -> list[dict[str, Any]]:
    return [
        {"transaction_id": transaction.id, "branch": b.name, "participant": b.participant, "reason": b.hung_reason}
        for b in transaction.branches
        if b.hung_reason
    ]


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


def _claim(connection: Connection, item: Claim) -> list[Transaction]:
    values = {"due_by": item.due_by, "id": item.transaction_id}
    given = {name: value for name, value in values.items() if value is not None}
    claimable = _claimable(tuple(given), item.hung)
    rows = connection.execute(claimable, given | {"limit": item.limit}).mappings().all()
    if not rows:
        return []
    lease = [
        {
            "expected_id": row["id"],
            "expected_version": row["version"],
            "version": row["version"] + 1,
            "wake_at": item.lease_until,
        }
        for row in rows
    ]
    if update_all(connection, transactions, lease) != len(rows):  # not locked after all: TiDB's SKIP LOCKED is no lock
        raise Outrun
    return _readable(dict(row) | {"version": row["version"] + 1, "wake_at": item.lease_until} for row in rows)


@cache
def _claimable(given: tuple[str, ...], hung: bool | None) -> Select[Any]:
    due = transactions.c.wake_at
    claimable = select(transactions).where(due <= bindparam("due_by") if "due_by" in given else due.is_not(None))
    if "id" in given:
        claimable = claimable.where(transactions.c.id == bindparam("id"))
    if hung is not None:
        claimable = claimable.where(HANGS if hung else _IS_UNDER_WAY)
    claimable = claimable.order_by(due).limit(bindparam("limit", type_=Integer()))
    return claimable.with_for_update(skip_locked=True)


def _readable(rows: Iterable[Mapping[Any, Any]]) -> list[Transaction]:
    """The transactions of these rows, but for those that can't be read: one odd row must not keep the others."""
    read: list[Transaction] = []
    for row in rows:
        try:
            read.append(transaction_of(row))
        except UnreadableRowError as error:
            log.error("event=row_unreadable error=%s", error)
    return read


# --- reads -------------------------------------------------------------------------------------------------------


def find(connection: Connection, transaction_id: str) -> Transaction | None:
    """The transaction of this id, as it is stored. Raises UnreadableRowError."""
    row = connection.execute(_ONE, {"id": transaction_id}).mappings().first()
    return None if row is None else transaction_of(row)


def find_all(connection: Connection, ids: Sequence[str], *conditions: ColumnElement[bool]) -> list[Transaction]:
    """The transactions of these ids of which the conditions hold, in this order, but for those that can't be read."""
    if not ids:
        return []
    query = select(transactions).where(transactions.c.id.in_(ids), *conditions)
    rows = {row["id"]: row for row in connection.execute(query).mappings()}
    return _readable(rows[id_] for id_ in ids if id_ in rows)


def fitting(rows: Sequence[Row[Any]]) -> Sequence[Row[Any]]:
    """The first of `rows` whose documents together fit into READ_BYTES_MAX; DOCUMENT_BYTES come first in each.

    The first row always fits.
    """
    totals = list(accumulate(row[0] for row in rows))
    return rows[: max(1, bisect_right(totals, READ_BYTES_MAX))]


def is_key_taken(connection: Connection, idempotency_key: str) -> bool:
    """Whether a transaction has this idempotency key."""
    return bool(_recorded_under(connection, [idempotency_key]))


def find_decision(connection: Connection, transaction_id: str) -> tuple[Decision, float] | None:
    """The durable decision of a transaction, and its deadline in seconds since the epoch."""
    row = connection.execute(_DECISION, {"id": transaction_id}).first()
    return None if row is None else (Decision(row[0]), row[1])


def list_calls(connection: Connection, transaction_id: str, limit: int, after_id: int) -> list[tuple[int, CallRecord]]:
    """The calls of a transaction, oldest first, from `after_id` on (exclusive), each with its id."""
    query = select(calls).where(calls.c.transaction_id == transaction_id, calls.c.id > after_id)
    return [(row.id, call_record(row)) for row in connection.execute(query.order_by(calls.c.id).limit(limit))]


def next_wake_at(connection: Connection) -> float | None:
    """When the first unfinished transaction is due."""
    wake_at: float | None = connection.execute(_NEXT_WAKE_AT).scalar_one()
    return wake_at


def count_unfinished(connection: Connection) -> int:
    """How many transactions are not finished."""
    return sum(connection.execute(select(func.count()).where(kind)).scalar_one() for kind in _UNFINISHED)


def count_hung(connection: Connection) -> int:
    """How many transactions are hung."""
    return connection.execute(select(func.count()).where(HANGS)).scalar_one()


def call_record(row: Row[Any]) -> CallRecord:
    """The call that a row of `calls` stands for."""
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


def try_to_listen(connection: Connection) -> None:
    """Listen for notices and stop at once. Raises sqlalchemy.exc.DBAPIError where the database has no such thing."""
    listen(connection)
    connection.execute(text("UNLISTEN *"))


def listen(connection: Connection) -> None:
    """Have this connection receive notices."""
    connection.execute(text(f"LISTEN {NOTICES}"))


# --- the registry ------------------------------------------------------------------------------------------------


def list_participants(connection: Connection) -> list[RegisteredParticipant]:
    """Every registered participant, by name."""
    return [RegisteredParticipant(**dict(row)) for row in connection.execute(_PARTICIPANTS).mappings()]


def put_participants(connection: Connection, items: Sequence[RegisteredParticipant]) -> list[bool]:
    """Register each participant or replace its entry; answers whether it is new."""
    return [_put_participant(connection, item) for item in items]


def delete_participants(connection: Connection, items: Sequence[str]) -> list[bool | None]:
    """Remove participants by name: True when done, False when unfinished transactions need it, None when unknown."""
    return [_delete_participant(connection, name) for name in items]


def _put_participant(connection: Connection, item: RegisteredParticipant) -> bool:
    values = {
        "base_url": item.base_url,
        "call_timeout_s": item.call_timeout_s,
        "concurrency_max": item.concurrency_max,
    }
    found = connection.execute(update(participants).where(participants.c.name == item.name).values(**values))
    if found.rowcount:
        return False
    connection.execute(insert(participants).values(name=item.name, **values))
    return True


def _delete_participant(connection: Connection, name: str) -> bool | None:
    if connection.execute(select(participants.c.name).where(participants.c.name == name)).first() is None:
        return None
    member = transaction_participants.c
    needs = exists().where(member.participant == name, member.transaction_id == transactions.c.id)
    for kind in _UNFINISHED:
        if connection.execute(select(transactions.c.id).where(kind, needs).limit(1)).first() is not None:
            return False
    return connection.execute(delete(participants).where(participants.c.name == name)).rowcount == 1
