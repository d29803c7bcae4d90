"""The table `holdfast_branches` and every SQL statement of the SDK, as plain functions of a Session.

Responsible for conditional writes: a write names the version that it expects, and raises `Superseded` if another run
was first. Must not choose states (table.py does), commit, or make calls. Uses only SQL that SQLite, PostgreSQL, MySQL
and MariaDB share, except for the one statement that inserts if absent.
"""

from collections.abc import Collection, Sequence
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
from holdfast.fence.steps import FINISHED, State

TABLE_NAME: Final = "holdfast_branches"
ADDED: Final = ("validated", "coordinator_id")
"""The columns that tables made by versions before 0.2 don't have."""
TRANSACTION_ID_CHARS_MAX: Final = 64
BRANCH_CHARS_MAX: Final = 200
PARTICIPANT_CHARS_MAX: Final = 200
COORDINATOR_ID_CHARS_MAX: Final = 64
STATEMENTS_MAX: Final = 256
"""Size of the cache of built statements; a process needs a dozen for each table."""
DIALECTS: Final = frozenset({"sqlite", "postgresql", "mysql", "mariadb"})


class Superseded(Exception):
    """The row has changed since it was read: another run has moved it on."""


class Key(NamedTuple):
    """The primary key of a row."""

    participant: str
    transaction_id: str
    branch: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One row. Times are seconds since the epoch on the participant's own clock."""

    participant: str
    transaction_id: str
    branch: str
    state: State
    version: int = 1  # incremented by every transition; writes are conditional on it
    payload: str | None = None  # JSON
    payload_hash: str | None = None
    result: str | None = None  # JSON: what the first call returned, or how a pivot was refused
    acquisition: int = 1  # incremented when a late confirm re-acquires: a new idempotency key
    doubtful: bool = False  # a run lost its lease and may still be in progress somewhere
    busy_until: float | None = None  # end of the lease of the run in progress
    expires_at: float
    created_at: float
    held_at: float | None = None
    finished_at: float | None = None
    check_at: float | None = None  # when the reaper looks at this row
    checks: int = 0  # fruitless checks so far, for the back-off
    locked: bool = field(default=False, compare=False, repr=False)  # by this database transaction; no column
    validated: str | None = None  # the payload as validated by the first call, JSON; empty: equal to the payload
    coordinator_id: str | None = None  # whose call made the row, if it said so

    @property
    def key(self) -> Key:
        return Key(self.participant, self.transaction_id, self.branch)


def branches_table(metadata: MetaData) -> Table:
    """The table in `metadata`; participants that share the metadata share the table."""
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
        Column("validated", DOCUMENT),
        Column("coordinator_id", ExactString(COORDINATOR_ID_CHARS_MAX)),
        Index("ix_holdfast_branches_check", "participant", "check_at"),
        Index("ix_holdfast_branches_finished", "participant", "finished_at"),
    )


def without(table: Table, names: Collection[str]) -> Table:
    """The table without these columns, as it is before a migration."""
    columns = (Column(column.name, column.type, primary_key=column.primary_key) for column in table.columns)
    return Table(table.name, MetaData(), *(one for one in columns if one.name not in names), schema=table.schema)


def adding(table: Table, name: str, dialect: Dialect) -> TextClause:
    """The statement that adds one of the `ADDED` columns to a table that the SDK created itself."""
    kind = dialect.type_compiler_instance.process(table.c[name].type)
    return text(f"ALTER TABLE {dialect.identifier_preparer.format_table(table)} ADD COLUMN {name} {kind}")


def insert_if_absent(session: Session, table: Table, row: Row) -> bool:
    """Insert `row`; False if its key exists. Waits for a concurrent insert of the same key."""
    values = {column.name: getattr(row, column.name) for column in table.columns} | {"state": row.state.value}
    return _changed(session, inserting_if_absent(session.get_bind().dialect.name, table), values) == 1


@lru_cache(STATEMENTS_MAX)
def inserting_if_absent(dialect: str, table: Table) -> Insert:
    """The one statement whose syntax differs between databases."""
    match dialect:
        case "postgresql":
            return postgresql.insert(table).on_conflict_do_nothing()
        case "sqlite":
            return sqlite.insert(table).on_conflict_do_nothing()
        case "mysql" | "mariadb":
            return insert(table).prefix_with("IGNORE")
    raise ValueError(f"database: {dialect} is not supported")


def lock(session: Session, table: Table, key: Key) -> Row | None:
    """The row, locked until the end of the database transaction, or None.

    Locks with an update. As the first statement it makes SQLite take its write lock at once instead of failing to
    upgrade a read lock; other databases queue on the row. The update negates the version until the next `write`: so
    MySQL counts the row as changed whatever the driver's flags, and if anything rolls this transaction back, `write`
    finds the old version and raises Superseded.
    """
    row: Row | None
    if session.get_bind().dialect.update_returning:
        found = session.execute(_locking(table, returning=True), _by(key)).mappings().one_or_none()
        row = None if found is None else _row(found)
    else:
        row = read(session, table, key) if _changed(session, _locking(table), _by(key)) else None
    return None if row is None else replace(row, version=-row.version, locked=True)


def read(session: Session, table: Table, key: Key) -> Row | None:
    """The row as it stands, without a lock."""
    found = session.execute(_reading(table), _by(key)).mappings().one_or_none()
    return None if found is None else _row(found)


def write(session: Session, table: Table, row: Row, **changes: Any) -> Row:
    """Write `changes` and increment the version, if the row hasn't changed since it was read. Raises Superseded."""
    after = replace(row, version=abs(row.version) + 1, locked=False, **changes)
    written = changes | {"version": after.version, "state": after.state.value}
    seen = _as_seen(row) | {"seen_state": row.state.value}
    if _changed(session, _writing(table, tuple(sorted(written))), seen | _named_new(written)) != 1:
        raise Superseded
    return after


def remove(session: Session, table: Table, row: Row) -> None:
    """Remove the row, if it hasn't changed since it was read. Raises Superseded."""
    if _changed(session, _removing(table), _as_seen(row)) != 1:
        raise Superseded


def due(session: Session, table: Table, participant: str, *, now: float, limit: int) -> Sequence[Row]:
    """The rows that are due by `now`, the most overdue first."""
    values = {"key_participant": participant, "now": now, "limit": limit}
    return [_row(found) for found in session.execute(_finding_due(table), values).mappings()]


def claim(session: Session, table: Table, row: Row, *, now: float, until: float) -> bool:
    """Postpone a due row until `until`, so that no other replica looks at it; False if another one was first.

    Does not increment the version, so that a running handler keeps its lease.
    """
    values = _as_seen(row) | {"now": now, "new_check_at": until}
    return _changed(session, _claiming(table), values) == 1


def look_again(session: Session, table: Table, row: Row, *, at: float | None, checks: int) -> bool:
    """Schedule the next look at a row, or none (None), unless it has changed. Does not increment the version."""
    values = _as_seen(row) | {"new_check_at": at, "new_checks": checks}
    return _changed(session, _planning(table), values) == 1


def finished(session: Session, table: Table, participant: str, *, finished_before: float, limit: int) -> Sequence[Key]:
    """Up to `limit` rows that were finished before `finished_before` and have no look scheduled."""
    values = {"key_participant": participant, "finished_before": finished_before, "limit": limit}
    return [Key(*found) for found in session.execute(_finding_old(table), values)]


def purge(session: Session, table: Table, keys: Sequence[Key], *, finished_before: float) -> int:
    """Remove those of these rows that are still finished; returns how many were removed."""
    before = {"finished_before": finished_before}
    return sum(_changed(session, _purging(table), _by(key) | before) for key in keys)


# --- statements, built once per table, because building one takes several times as long as sending it -----------


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
    options = {"preserve_rowcount": True}  # some drivers don't report it for INSERT otherwise
    return cast("CursorResult[Any]", session.execute(statement, values, execution_options=options)).rowcount
