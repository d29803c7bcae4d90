"""Keeps a handler inside its local transaction, so that its changes are committed with the SDK's row or not at all.

Stops commits before they happen, and notices a rollback by the database before the SDK commits. Deals with connections
and transactions only; must not know rows, states or handlers.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from sqlalchemy import Connection, Engine, event
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session, SessionTransaction

_OPTION: Final = "holdfast_guard"
_SAVEPOINT: Final = "holdfast"
_AUTOCOMMIT: Final = (
    "the engine is in AUTOCOMMIT mode, but holdfast commits a handler's changes together with the hold; "
    "give the participant an engine without AUTOCOMMIT"
)
_COMMITS: Final = "a handler must not commit: holdfast commits its changes together with the hold"
_ROLLS_BACK: Final = "a handler must not roll back: raise Refused or another exception instead"
_MYSQL: Final = ("mysql", "mariadb")

_BLANK: Final = r"(?:\s|/\*.*?\*/|--[^\n]*(?:\n|$))*"
_ENDS: Final = re.compile(
    rf"{_BLANK}(?:commit|end|abort|rollback(?!\s+(?:work\s+|transaction\s+)?to\b)|begin|start\s+transaction"
    rf"|prepare\s+transaction|set\s+(?:session\s+|@@)?autocommit|xa)\b",
    re.IGNORECASE | re.DOTALL,
)
_COMMITS_IMPLICITLY: Final = re.compile(
    rf"{_BLANK}(?:(?:create|drop)(?!\s+temporary\b)|alter|rename|truncate|grant|revoke|lock|unlock)\b",
    re.IGNORECASE | re.DOTALL,
)
"""Statements for which MySQL and MariaDB commit the transaction implicitly."""
_CREATES: Final = re.compile(rf"{_BLANK}create\b", re.IGNORECASE | re.DOTALL)
"""Its body may have semicolons and END in it."""
_QUOTED: Final = r""""(?:[^"]|"")*"|`[^`]*`|/\*.*?\*/|--[^\n]*"""
_OPAQUE: Final = re.compile(
    rf"e'(?:[^'\\]|\\.|'')*'|'(?:[^']|'')*'|\$(\w*)\$.*?\$\1\$|{_QUOTED}", re.IGNORECASE | re.DOTALL
)
_OPAQUE_ON_MYSQL: Final = re.compile(rf"'(?:[^'\\]|\\.|'')*'|{_QUOTED}", re.DOTALL)
"""Literals, quoted names and comments, in which a semicolon ends no statement."""
_SETS_SAVEPOINT: Final = re.compile(rf"{_BLANK}savepoint\b", re.IGNORECASE | re.DOTALL)


class Undone(Exception):
    """The database rolled the transaction back while a handler ran, and the handler carried on regardless."""

    def __init__(self) -> None:
        super().__init__(
            "the database rolled the transaction back, but the handler carried on: don't catch the database's errors"
        )


class _Guard:
    """Watches one run of a handler. `open_already`: in a transaction that the handler must not roll back either."""

    __slots__ = ("active", "broken", "open_already", "undone", "was_open")

    def __init__(self, *, open_already: bool) -> None:
        self.open_already = open_already
        self.active = True
        self.broken: str | None = None
        self.undone = False
        self.was_open = False  # SQLite: whether a transaction was open before the current statement


def refuse_autocommit(engine: Engine) -> None:
    """Raise ValueError if `engine` commits each statement by itself."""
    options = (engine.get_execution_options().get("isolation_level"), _level_on_connect(engine))
    if any(str(level).replace(" ", "").upper() == "AUTOCOMMIT" for level in options):
        raise ValueError(_AUTOCOMMIT)


def watch(engine: Engine) -> None:
    """Install the guard on `engine`. Sessions that aren't guarded only pay for a look at their options."""
    listeners: dict[str, Any] = {
        "commit": _on_commit,
        "rollback": _on_rollback,
        "savepoint": _on_savepoint,
        "before_cursor_execute": _on_statement,
        "handle_error": _on_error,
    }
    for name, listener in listeners.items():
        if not event.contains(engine, name, listener):
            event.listen(engine, name, listener)


def require_transaction(connection: Connection) -> None:
    """Raise RuntimeError if the connection commits each statement by itself, for whatever reason."""
    on_sqlite = connection.dialect.name == "sqlite"
    if _sqlite_commits_each(connection) if on_sqlite else _driver_commits_each(connection):
        raise RuntimeError(_AUTOCOMMIT)


@contextmanager
def transaction_kept(session: Session, *, open_already: bool) -> Iterator[None]:
    """Ensure that a handler's changes are committed together with the SDK's own row, or not at all.

    Any form of commit raises at once. The end of the block raises if the handler swallowed that error, if it rolled
    back a transaction that was `open_already`, or (Undone) if the database rolled it back. Savepoints are allowed.
    """
    guard = _Guard(open_already=open_already)

    def begun(_: Session, transaction: SessionTransaction, connection: Connection) -> None:
        connection.execution_options(**{_OPTION: guard})
        if not transaction.nested:
            require_transaction(connection)
            if not open_already and connection.dialect.name in _MYSQL:
                connection.exec_driver_sql(f"SAVEPOINT {_SAVEPOINT}")

    began = session.get_transaction()
    if open_already:
        session.connection().execution_options(**{_OPTION: guard})
    elif began is not None:  # the second handler of a re-acquiring confirm continues the first one's transaction
        begun(session, began, session.connection())
    event.listen(session, "after_begin", begun)
    try:
        yield
        _check(guard, session, began)
    finally:
        event.remove(session, "after_begin", begun)
        guard.active = False


def _check(guard: _Guard, session: Session, began: SessionTransaction | None) -> None:
    """Raise if the transaction is no longer the one in which the handler started."""
    if guard.undone:
        raise Undone
    if guard.broken is not None:
        raise RuntimeError(guard.broken)
    if guard.open_already:
        if session.get_transaction() is not began:
            raise RuntimeError(_ROLLS_BACK)
        return  # the row's version shows a rollback by the database
    if session.in_transaction() and session.get_bind().dialect.name in _MYSQL:
        while (nested := session.get_nested_transaction()) is not None:
            nested.commit()
        try:
            session.connection().exec_driver_sql(f"RELEASE SAVEPOINT {_SAVEPOINT}")
        except DBAPIError as error:  # the savepoint is gone, and so is its transaction
            raise Undone from error


def _guarding(connection: Connection | None) -> _Guard | None:
    guard: _Guard | None = None if connection is None else connection.get_execution_options().get(_OPTION)
    return guard if guard is not None and guard.active else None


def _on_commit(connection: Connection) -> None:
    if (guard := _guarding(connection)) is not None:
        guard.broken = _COMMITS
        connection.dialect.do_rollback(connection.connection)  # at once: SQLAlchemy considers it committed
        raise RuntimeError(_COMMITS)


def _on_rollback(connection: Connection) -> None:
    guard = _guarding(connection)
    if guard is not None and guard.open_already and guard.broken is None:
        guard.broken = _ROLLS_BACK


def _on_savepoint(connection: Connection, name: str | None) -> None:
    if _guarding(connection) is not None:
        _begin_on_sqlite(connection)


def _on_statement(connection: Connection, cursor: Any, statement: str, *_: Any) -> None:
    guard = _guarding(connection)
    if guard is None:
        return
    dialect = connection.dialect.name
    for one in _statements(statement, dialect):
        if _ENDS.match(one) or (dialect in _MYSQL and _COMMITS_IMPLICITLY.match(one)):
            guard.broken = _COMMITS
            raise RuntimeError(_COMMITS)
    if dialect == "sqlite":
        if _SETS_SAVEPOINT.match(statement):
            _begin_on_sqlite(connection)
        guard.was_open = _sqlite_is_open(connection)


def _statements(text: str, dialect: str) -> list[str]:
    """The statements in `text`: some drivers send several at once."""
    if ";" not in text or _CREATES.match(text):
        return [text]
    return (_OPAQUE_ON_MYSQL if dialect in _MYSQL else _OPAQUE).sub(" ", text).split(";")


def _on_error(context: ExceptionContext) -> None:
    """SQLite can roll back the whole transaction itself (full disk, ON CONFLICT ROLLBACK); then none is open."""
    connection = context.connection
    guard = _guarding(connection)
    if guard is not None and connection is not None and connection.dialect.name == "sqlite":
        guard.undone = guard.undone or (guard.was_open and not _sqlite_is_open(connection))


def _begin_on_sqlite(connection: Connection) -> None:
    """The driver only begins before INSERT, UPDATE and DELETE, and releasing an outermost savepoint would commit."""
    if connection.dialect.name == "sqlite" and not _sqlite_is_open(connection):
        cursor = connection.connection.cursor()
        cursor.execute("BEGIN")
        cursor.close()


def _driver_commits_each(connection: Connection) -> bool:
    adapted = connection.connection.dbapi_connection
    assert adapted is not None
    try:
        return bool(connection.dialect.detect_autocommit_setting(adapted))
    except (NotImplementedError, AttributeError):  # SQLAlchemy before 2.0.43, or a driver that it can't ask
        ask = getattr(connection.connection.driver_connection, "get_autocommit", None)
        return bool(ask()) if ask is not None else getattr(adapted, "autocommit", None) is True


def _sqlite_is_open(connection: Connection) -> bool:
    return bool(getattr(connection.connection.driver_connection, "in_transaction", True))


def _sqlite_commits_each(connection: Connection) -> bool:
    """Whether the driver is in autocommit mode and no listener of the engine has sent BEGIN."""
    driver = connection.connection.driver_connection
    return (getattr(driver, "isolation_level", "") is None or _pep249_autocommit(driver)) and not _sqlite_is_open(
        connection
    )


def _pep249_autocommit(driver: Any) -> bool:
    """sqlite3's `autocommit=True` of Python 3.12; aiosqlite hides its connection."""
    return getattr(getattr(driver, "_conn", driver), "autocommit", None) is True


def _level_on_connect(engine: Engine) -> Any:
    return getattr(engine.dialect, "_on_connect_isolation_level", None)
