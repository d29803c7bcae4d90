"""Reads for the API: lists, pages, totals and counts. Read only.

A page costs the same at any position and with any filters, because it looks at a limited number of rows and reads a
limited number of bytes. If that doesn't fill the page it ends early, and the next page continues from there.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import ColumnElement, Connection, Row, Select, and_, bindparam, exists, func, select, text, true, tuple_

from app.protocol.values import Outcome, Phase, Transaction
from app.storage.deferred import Deferred
from app.storage.expressions import DOCUMENT_BYTES, IS_HUNG, UNFINISHED, within_read_limit
from app.storage.tables import branches, hung_branches, transactions
from app.storage.transactions import find_all
from holdfast.wire import Decision

CANDIDATES_MAX: Final = 2_000
"""Maximum number of rows that a page with several filters looks at; it ends early rather than search millions."""
IS_NOT_CONFIRMED: Final = text("transactions.phase <> 'confirmed'")
"""Worded as in the condition of ix_transactions_phase_id, so that the database recognises that the index applies."""
IS_MIXED: Final = and_(transactions.c.is_mixed == true(), transactions.c.is_mixed.is_not(None))
"""The second condition is that of ix_transactions_is_mixed_id, and the first lets every database read it in order."""
_DECISION: Final = select(transactions.c.decision, transactions.c.deadline, transactions.c.finished_at).where(
    transactions.c.id == bindparam("id")
)
_LOCKED_DECISION: Final = _DECISION.with_for_update()
_BRANCH: Final = select(branches.c.participant).where(
    branches.c.transaction_id == bindparam("id"),
    branches.c.name.in_([bindparam("name"), ""]),  # a migration gives no name to what it can't read: it may be any
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """Which transactions a list shows; every member that isn't None must match."""

    phase: str | None = None
    outcome: str | None = None
    name: str | None = None
    reference: str | None = None
    participant: str | None = None
    hung: bool | None = None
    owner: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class HungFilter:
    """Which hung transactions a list shows; `hung_before` in seconds since the epoch."""

    participant: str | None = None
    name: str | None = None
    hung_before: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """The transactions of a page, and the key after which the next page begins; None on the last page.

    A page may be short or empty without being the last: see expressions.READ_BYTES_MAX and CANDIDATES_MAX.
    """

    transactions: list[Transaction]
    next_after: tuple[Any, ...] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class HungTotal:
    """The number of hung branches of a participant with one reason; `participant` is None for inline endpoints."""

    participant: str | None
    reason: str
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredDecision:
    """What is durable of a decision. `deadline` is in seconds since the epoch; `finished`: no call will follow.

    `participant` is that of the branch that was named, if it has one.
    """

    decision: Decision
    deadline: float
    finished: bool
    participant: str | None = None


def list_newest(connection: Connection, wanted: Filter, limit: int, before_id: str | None) -> Deferred[Page]:
    """Transactions before `before_id`, newest first; ids sort by time."""
    candidates, others = _candidates(wanted)
    id_ = candidates.selected_columns.id
    newest = (candidates if before_id is None else candidates.where(id_ < before_id)).order_by(id_.desc())
    among = newest.limit(CANDIDATES_MAX if others else limit + 1).subquery()
    keys = select(DOCUMENT_BYTES, transactions.c.id).join(among, among.c.id == transactions.c.id)
    found, next_after = _page(connection, keys.where(*others).order_by(among.c.id.desc()), limit, _changing(wanted))
    if others and next_after is None:  # there may be more beyond the candidates
        last = connection.execute(newest.offset(CANDIDATES_MAX - 1).limit(1)).first()
        next_after = last and tuple(last)
    return Deferred(lambda: Page(transactions=found.finish(), next_after=next_after))


def list_hung(
    connection: Connection, wanted: HungFilter, limit: int, after: tuple[float, str] | None
) -> Deferred[Page]:
    """Hung transactions after `after` (hung since, id), oldest first."""
    since, id_ = transactions.c.hung_since, transactions.c.id
    conditions = [IS_HUNG, *_hung_conditions(wanted)]
    keys = select(DOCUMENT_BYTES, since, id_).where(*conditions).order_by(since, id_)
    if after is not None:  # redundant, but MySQL can only use the first for its index
        keys = keys.where(since >= after[0], tuple_(since, id_) > tuple_(*after))
    found, next_after = _page(connection, keys, limit, conditions)
    return Deferred(lambda: Page(transactions=found.finish(), next_after=next_after))


def total_hung(connection: Connection, wanted: HungFilter) -> list[HungTotal]:
    """The number of hung branches by participant and reason."""
    columns = (hung_branches.c.participant, hung_branches.c.reason)
    query: Select[Any] = select(*columns, func.count()).group_by(*columns).order_by(*columns)
    if wanted.participant is not None:
        query = query.where(hung_branches.c.participant == wanted.participant)
    if wanted.name is not None or wanted.hung_before is not None:
        query = query.join(transactions, transactions.c.id == hung_branches.c.transaction_id)
        query = query.where(*_hung_conditions(HungFilter(name=wanted.name, hung_before=wanted.hung_before)))
    return [HungTotal(participant=p, reason=reason, count=count) for p, reason, count in connection.execute(query)]


def find_decision(connection: Connection, transaction_id: str, branch: str | None = None) -> StoredDecision | None:
    """The durable decision of a transaction, for one of its branches if named; None if there is no such transaction.

    Once it is decided, a branch that it doesn't have is cancelled: whatever sent its Try, nothing will confirm it.
    """
    return _decision(connection, _DECISION, transaction_id, branch)


def find_decisions_for_sure(
    connection: Connection, items: Sequence[tuple[str, str | None]]
) -> list[StoredDecision | None]:
    """As `find_decision`, and as a write: a server that can only read, and may lag behind, refuses to lock a row."""
    return [_decision(connection, _LOCKED_DECISION, *item) for item in items]


def count_unfinished(connection: Connection) -> int:
    """How many transactions are not finished."""
    return sum(connection.execute(select(func.count()).where(kind)).scalar_one() for kind in UNFINISHED)


def count_hung(connection: Connection) -> int:
    """How many transactions are hung."""
    return connection.execute(select(func.count()).where(IS_HUNG)).scalar_one()


def _decision(
    connection: Connection, query: Select[Any], transaction_id: str, branch: str | None
) -> StoredDecision | None:
    row = connection.execute(query, {"id": transaction_id}).first()
    if row is None:
        return None
    decision = Decision(row.decision)
    found = None if branch is None else _branch(connection, transaction_id, branch)
    if decision is Decision.CONFIRM and branch is not None and found is None:
        decision = Decision.CANCEL
    return StoredDecision(
        decision=decision,
        deadline=row.deadline,
        finished=row.finished_at is not None,
        participant=None if found is None else found.participant,
    )


def _branch(connection: Connection, transaction_id: str, name: str) -> Row[Any] | None:
    """The transaction's branch of this name, which may be any text: PostgreSQL refuses NUL."""
    values = {"id": transaction_id, "name": name}
    return None if "\0" in name else connection.execute(_BRANCH, values).first()


def _page(
    connection: Connection, keys: Select[Any], limit: int, conditions: Sequence[ColumnElement[bool]]
) -> tuple[Deferred[list[Transaction]], tuple[Any, ...] | None]:
    """A page of the rows that `keys` selects: DOCUMENT_BYTES, then the sort key, which ends with the id.

    Leaves out rows that no longer meet the conditions, and rows that can't be read.
    """
    rows = connection.execute(keys.limit(limit + 1)).all()
    here = within_read_limit(rows[:limit])
    found = find_all(connection, [row[-1] for row in here], *conditions)
    return found, tuple(here[-1][1:]) if len(here) < len(rows) else None


def _candidates(wanted: Filter) -> tuple[Select[Any], list[ColumnElement[bool]]]:
    """The ids that match the most selective filter, read from an index in order, and the remaining conditions.

    This isn't left to the database, which can't estimate how many rows match several filters at once. Conditions that
    match nearly all rows have no index and are among the remaining ones.
    """
    column, branch = transactions.c, branches.c
    phases = {wanted.phase, None if wanted.outcome == Outcome.MIXED else wanted.outcome} - {None}
    rare_phases = [and_(column.phase == phase, IS_NOT_CONFIRMED) for phase in phases if phase != Phase.CONFIRMED]
    has_participant = exists().where(branch.participant == wanted.participant, branch.transaction_id == column.id)
    in_order = (
        (wanted.reference is not None, column.reference == wanted.reference),
        (wanted.outcome == Outcome.MIXED, IS_MIXED),
        (wanted.hung is True, IS_HUNG),
        *((True, condition) for condition in rare_phases),
        (wanted.participant is not None, has_participant),
        (wanted.name is not None, column.name == wanted.name),
        (wanted.owner is not None, column.owner == wanted.owner),
    )
    first, *others = [condition for is_wanted, condition in in_order if is_wanted] or [true()]
    others += [column.phase == Phase.CONFIRMED.value] if Phase.CONFIRMED in phases else []
    others += [column.is_mixed.is_(None)] if wanted.outcome in (Outcome.CONFIRMED, Outcome.CANCELLED) else []
    others += [column.hung_since.is_(None)] if wanted.hung is False else []
    if first is has_participant:
        ids = select(branch.transaction_id.label("id")).distinct()  # it may have several branches
        return ids.where(branch.participant == wanted.participant), others
    return select(column.id).where(first), others


def _changing(wanted: Filter) -> list[ColumnElement[bool]]:
    """The conditions that a transaction may have stopped meeting since it was found."""
    column = transactions.c
    conditions = [] if wanted.phase is None else [column.phase == wanted.phase]
    if wanted.hung is not None:
        conditions.append(IS_HUNG if wanted.hung else column.hung_since.is_(None))
    return conditions


def _hung_conditions(wanted: HungFilter) -> list[ColumnElement[bool]]:
    conditions: list[ColumnElement[bool]] = []
    if wanted.name is not None:
        conditions.append(transactions.c.name == wanted.name)
    if wanted.hung_before is not None:
        conditions.append(transactions.c.hung_since <= wanted.hung_before)
    if wanted.participant is not None:
        branch = hung_branches.c
        conditions.append(
            exists().where(branch.transaction_id == transactions.c.id, branch.participant == wanted.participant)
        )
    return conditions
