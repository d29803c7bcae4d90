"""The errors of storage. No other package sees those of SQLAlchemy or of a driver.

`translated` is applied once, where a read or write leaves this package. No SQL here.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

from sqlalchemy.exc import DBAPIError, IntegrityError, InterfaceError, OperationalError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

_READ_ONLY_STATE: Final = "25006"
"""The SQLSTATE of a write on a PostgreSQL standby or a demoted primary, and of MySQL's read-only transactions."""
_READ_ONLY_CODES: Final = frozenset({1290, 1836, 1874})
"""MySQL's errors of a write where `read_only`, or InnoDB's own read-only mode, is set."""


class DatabaseError(Exception):
    """A read or write failed; `__cause__` is SQLAlchemy's error."""

    @property
    def kind(self) -> str:
        """The class name of the underlying error, which tells what happened without quoting statements or values."""
        return type(self.__cause__ or self).__name__


class DatabaseUnavailableError(DatabaseError):
    """The database is unreachable, overloaded or locked. A write may or may not be durable; a retry may succeed."""


class DuplicateKeyError(DatabaseError):
    """A concurrent write has taken the same unique key. Nothing was written."""


class JournalClosedError(DatabaseUnavailableError):
    """The journal was closed before this read or write."""


class StaleError(Exception):
    """Another process has written this transaction since it was read. The caller must stop working on it."""


class LateError(Exception):
    """This write was not made, because it could not be made in time. It never can be any more.

    `reached` is the time by the database's clock, if it is the database that refused.
    """

    def __init__(self, reached: float | None = None) -> None:
        super().__init__() if reached is None else super().__init__(f"the database's clock says {reached:.3f}")
        self.reached = reached


class UnreadableRowError(Exception):
    """This version can't read a row of `transactions`. The message starts with the row's id."""


class ConcurrentWriteError(Exception):
    """Raised by a write function when a concurrent write won; the batch is retried."""


class RetryWithError(Exception):
    """Raised by a write function to have the batch retried with `function`, which is slower but safer."""

    def __init__(self, function: Callable[..., Sequence[Any]], message: str) -> None:
        super().__init__(message)
        self.function = function
        self.raised_by: Callable[..., Sequence[Any]] | None = None
        """The write function that raised this; set by the journal."""


def translated(error: BaseException) -> BaseException:
    """The error that other packages see. Errors that don't come from the database are returned unchanged."""
    meaning: DatabaseError
    match error:
        case IntegrityError():
            meaning = DuplicateKeyError(_message(error))
        case OperationalError() | InterfaceError() | PoolTimeoutError():
            meaning = DatabaseUnavailableError(_message(error))
        case DBAPIError() if error.connection_invalidated:  # whatever the driver calls it: 25P03 is an InternalError
            meaning = DatabaseUnavailableError(_message(error))
        case SQLAlchemyError():
            meaning = DatabaseError(_message(error))
        case _:
            return error
    meaning.__cause__ = error
    return meaning


def is_read_only(error: BaseException) -> bool:
    """Whether a driver's error says that the server, or this connection to it, only reads."""
    code = error.args[0] if error.args else None
    return getattr(error, "sqlstate", None) == _READ_ONLY_STATE or code in _READ_ONLY_CODES


@contextmanager
def translating() -> Iterator[None]:
    """Translate the errors of the database."""
    try:
        yield
    except SQLAlchemyError as error:
        raise translated(error) from error


def _message(error: SQLAlchemyError) -> str:
    """The driver's message: SQLAlchemy's own quotes the statement and its values."""
    words = error.orig if isinstance(error, DBAPIError) else error
    return f"{type(error).__name__}: {words}"
