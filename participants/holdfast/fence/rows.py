"""The table `holdfast_branches` and every SQL statement of the SDK, as plain functions of a Session.

Responsible for conditional writes: a write names the version that it expects, and `Superseded` says that
somebody else was there first. Must not choose states (that is table.py), commit, or call anybody. The SQL stays
within what SQLite, PostgreSQL, MySQL and MariaDB share, but for the one statement that inserts if absent.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, Final, NamedTuple, cast

from sqlalchemy import (
    Boolean,
    Column,
    CursorResult,
    Delete,
    Dialect,
    Double,
    Executable,
    Index,
    Insert,
    Integer,
    MetaData,
    Select,
    String,
    Table,
    TextClause,
    Update,
    and_,
    bindparam,
    delete,
    insert,
    select,
    text,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session
from sqlalchemy.sql.elements import ColumnElement

from holdfast.columns import DOCUMENT, ExactString
from holdfast.fence.table import FINISHED, State

TABLE_NAME: Final = "holdfast_branches"
VALIDATED: Final = "validated"
"""The column that tables made by versions before 0.2 don't have."""
TRANSACTION_ID_CHARS_MAX: Final = 64
BRANCH_CHARS_MAX: Final = 200
PARTICIPANT_CHARS_MAX: Final = 200
STATEMENTS_MAX: Final = 256
"""Built statements that are remembered: a dozen for each table that a process uses."""
DIALECTS: Final = frozenset({"sqlite", "postgresql", "mysql", "mariadb"})


class Superseded(Exception):
    """The row is no longer as it was seen: another run has moved it."""


class Key(NamedTuple):
    """What a row is found by."""

    participant: str
    transaction_id: str
    branch: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One row. Times are seconds since the epoch by the participant's own clock."""

    participant: str
    transaction_id: str
    branch: str
    state: State
    version: int = 1  # rises with every transition; writes are conditional on it
    payload: str | None = None  # JSON
    payload_hash: str | None = None
    result: str | None = None  # JSON
    acquisition: int = 1  # rises when a late confirm acquires again: a new idempotency key
    doubtful: bool = False  # a run lost its lease and may still be under way somewhere
    busy_until: float | None = None  # the lease of the run under way
    expires_at: float
    created_at: float
    held_at: float | None = None
    finished_at: float | None = None
    check_at: float | None = None  # when the reaper looks at this row
    checks: int = 0  # how often it looked in vain: its back-off
    locked: bool = field(default=False, compare=False, repr=False)  # by this database transaction; no column
    validated: str | None = None  # what Try's annotation made of the payload, JSON; empty: the payload itself

    @property
    def key(self) -> Key:
        return Key(self.participant, self.transaction_id, self.branch)


def branches_table(metadata: MetaData) -> Table:
    """The table in `metadata`, defined there once however many participants share it."""
    name = TABLE_NAME if metadata.schema is None else f"{metadata.schema}.{TABLE_NAME}"
    if name in metadata.tables:
        return metadata.tables[name]
    return Table(
        TABLE_NAME,
        metadata,
        Column("participant", ExactString(PARTICIPANT_CHARS_MAX), primary_key=True),
        Column("transaction_id", ExactString(TRANSACTION_ID_CHARS_MAX), primary_key=True),
        Column("branch", ExactString(BRANCH_CHARS_MAX), primary_key=True),
        Column("state", String(16), nullable=False),
        Column("version", Integer, nullable=False),
        Column("payload", DOCUMENT),
        Column("payload_hash", String(64)),
        Column("result", DOCUMENT),
        Column("acquisition", Integer, nullable=False),
        Column("doubtful", Boolean, nullable=False),
        Column("busy_until", Double),
        Column("expires_at", Double, nullable=False),
        Column("created_at", Double, nullable=False),
        Column("held_at", Double),
        Column("finished_at", Double),
        Column("check_at", Double),
        Column("checks", Integer, nullable=False),
        Column(VALIDATED, DOCUMENT),
        Index("ix_holdfast_branches_check", "participant", "check_at"),
        Index("ix_holdfast_branches_finished", "participant", "finished_at"),
    )


def without_validated(table: Table) -> Table:
    """The table as versions before 0.2 made it: one that has not been migrated yet."""
    columns = (Column(column.name, column.type, primary_key=column.primary_key) for column in table.columns)
    return Table(table.name, MetaData(), *(one for one in columns if one.name != VALIDATED), schema=table.schema)


def adding_validated(table: Table, dialect: Dialect) -> TextClause:
    """The statement that migrates a table that the SDK has made itself."""
    name, kind = dialect.identifier_preparer.format_table(table), dialect.type_compiler_instance.process(DOCUMENT)
    return text(f"ALTER TABLE {name} ADD COLUMN {VALIDATED} {kind}")


def insert_if_absent(session: Session, table: Table, row: Row) -> bool:
    """Insert `row`; False when its key is there. Waits for a concurrent insert of the same key."""
    values = {column.name: getattr(row, column.name) for column in table.columns} | {"state": row.state.value}
    return _changed(session, inserting_if_absent(session.get_bind().dialect.name, table), values) == 1


@lru_cache(STATEMENTS_MAX)
def inserting_if_absent(dialect: str, table: Table) -> Insert:
    """The one statement that each database spells in its own way."""
    match dialect:
        case "postgresql":
            return postgresql.insert(table).on_conflict_do_nothing()
        case "sqlite":
            return sqlite.insert(table).on_conflict_do_nothing()
        case "mysql" | "mariadb":
            return insert(table).prefix_with("IGNORE")
    raise ValueError(f"holdfast does not know how to insert if absent on {dialect}")


def lock(session: Session, table: Table, key: Key) -> Row | None:
    """The row, locked until the end of the database transaction; None when there is none.

    Locks by an update: it is the first statement, so SQLite takes its write lock at once instead of failing to
    upgrade a read lock, and the others queue on the row. Until it is written the locked row has its version negated:
    so MySQL counts the update whatever its driver's flags, and when something undoes this transaction, `write`
    meets the version from before and raises Superseded.
    """
    row: Row | None
    if session.get_bind().dialect.update_returning:
        found = session.execute(_locking(table, returning=True), _by(key)).mappings().one_or_none()
        row = None if found is None else _row(found)
    else:
        row = read(session, table, key) if _changed(session, _locking(table), _by(key)) else None
    return None if row is None else replace(row, version=-row.version, locked=True)


def read(session: Session, table: Table, key: Key) -> Row | None:
    """The row as it is, not locked."""
    found = session.execute(_reading(table), _by(key)).mappings().one_or_none()
    return None if found is None else _row(found)


def write(session: Session, table: Table, row: Row, **changes: Any) -> Row:
    """Write `changes` to a row that is still as it was seen; its version rises. Raises Superseded."""
    after = replace(row, version=abs(row.version) + 1, locked=False, **changes)
    written = changes | {"version": after.version, "state": after.state.value}
    seen = _as_seen(row) | {"seen_state": row.state.value}
    if _changed(session, _writing(table, tuple(sorted(written))), seen | _named_new(written)) != 1:
        raise Superseded
    return after


def remove(session: Session, table: Table, row: Row) -> None:
    """Remove a row that is still as it was seen. Raises Superseded."""
    if _changed(session, _removing(table), _as_seen(row)) != 1:
        raise Superseded


def due(session: Session, table: Table, participant: str, *, now: float, limit: int) -> Sequence[Row]:
    """The rows to look at by now, the longest overdue first."""
    values = {"key_participant": participant, "now": now, "limit": limit}
    return [_row(found) for found in session.execute(_finding_due(table), values).mappings()]


def claim(session: Session, table: Table, row: Row, *, now: float, until: float) -> bool:
    """Make a due row not due until `until`, so that no other replica looks at it; False when one was quicker.

    Does not raise the version: a handler that is running keeps its place.
    """
    values = _as_seen(row) | {"now": now, "new_check_at": until}
    return _changed(session, _claiming(table), values) == 1


def look_again(session: Session, table: Table, row: Row, *, at: float | None, checks: int) -> bool:
    """Look at a row at another time, or never (None), unless it has moved. Does not raise the version."""
    values = _as_seen(row) | {"new_check_at": at, "new_checks": checks}
    return _changed(session, _planning(table), values) == 1


def finished(session: Session, table: Table, participant: str, *, finished_before: float, limit: int) -> Sequence[Key]:
    """Up to `limit` rows that were finished before then and that nobody looks at any more."""
    values = {"key_participant": participant, "finished_before": finished_before, "limit": limit}
    return [Key(*found) for found in session.execute(_finding_old(table), values)]


def purge(session: Session, table: Table, keys: Sequence[Key], *, finished_before: float) -> int:
    """Remove these rows, each by its own identity, if they are still finished; returns how many were."""
    before = {"finished_before": finished_before}
    return sum(_changed(session, _purging(table), _by(key) | before) for key in keys)


# --- the statements, built once for each table: building one takes several times as long as sending it -----------


@lru_cache(STATEMENTS_MAX)
def _locking(table: Table, *, returning: bool = False) -> Executable:
    locking = update(table).where(_is(table)).values(version=-table.c.version)
    return locking.returning(table) if returning else locking


@lru_cache(STATEMENTS_MAX)
def _reading(table: Table) -> Select[Any]:
    return select(table).where(_is(table))


@lru_cache(STATEMENTS_MAX)
def _writing(table: Table, names: tuple[str, ...]) -> Update:
    return update(table).where(_is_as_seen(table), table.c.state == bindparam("seen_state")).values(_new(names))


@lru_cache(STATEMENTS_MAX)
def _removing(table: Table) -> Delete:
    return delete(table).where(_is_as_seen(table))


@lru_cache(STATEMENTS_MAX)
def _finding_due(table: Table) -> Select[Any]:
    is_due = and_(table.c.participant == bindparam("key_participant"), table.c.check_at <= bindparam("now"))
    return select(table).where(is_due).order_by(table.c.check_at).limit(bindparam("limit", type_=Integer()))


@lru_cache(STATEMENTS_MAX)
def _claiming(table: Table) -> Update:
    is_due = and_(_is_as_seen(table), table.c.check_at <= bindparam("now"))
    return update(table).where(is_due).values(_new(("check_at",)))


@lru_cache(STATEMENTS_MAX)
def _planning(table: Table) -> Update:
    return update(table).where(_is_as_seen(table)).values(_new(("check_at", "checks")))


@lru_cache(STATEMENTS_MAX)
def _finding_old(table: Table) -> Select[Any]:
    keys = select(table.c.participant, table.c.transaction_id, table.c.branch)
    is_old = and_(table.c.participant == bindparam("key_participant"), _old(table))
    return keys.where(is_old).order_by(table.c.finished_at).limit(bindparam("limit", type_=Integer()))


@lru_cache(STATEMENTS_MAX)
def _purging(table: Table) -> Delete:
    return delete(table).where(_is(table), _old(table))


def _old(table: Table) -> ColumnElement[bool]:
    return and_(
        table.c.finished_at < bindparam("finished_before"),
        table.c.check_at.is_(None),
        table.c.state.in_(sorted(state.value for state in FINISHED)),
    )


def _is(table: Table) -> ColumnElement[bool]:
    return and_(
        table.c.participant == bindparam("key_participant"),
        table.c.transaction_id == bindparam("key_transaction_id"),
        table.c.branch == bindparam("key_branch"),
    )


def _is_as_seen(table: Table) -> ColumnElement[bool]:
    return and_(_is(table), table.c.version == bindparam("seen_version"))


def _new(names: Sequence[str]) -> dict[str, Any]:
    return {name: bindparam(f"new_{name}") for name in names}


def _named_new(values: dict[str, Any]) -> dict[str, Any]:
    return {f"new_{name}": value for name, value in values.items()}


def _by(key: Key) -> dict[str, Any]:
    return {"key_participant": key.participant, "key_transaction_id": key.transaction_id, "key_branch": key.branch}


def _as_seen(row: Row) -> dict[str, Any]:
    return _by(row.key) | {"seen_version": -row.version if row.locked else row.version}


def _row(found: Any) -> Row:
    return Row(**{**found, "state": State(found["state"])})


def _changed(session: Session, statement: Executable, values: dict[str, Any]) -> int:
    options = {"preserve_rowcount": True}  # or some drivers won't say it of an INSERT
    return cast("CursorResult[Any]", session.execute(statement, values, execution_options=options)).rowcount
