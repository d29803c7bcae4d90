"""What can go wrong in storage, in its own words: no other room knows the errors of SQLAlchemy or of a driver.

`translated` is applied once, where a read or a write leaves this package. No SQL here.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from sqlalchemy.exc import DBAPIError, IntegrityError, InterfaceError, OperationalError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError


class DatabaseError(Exception):
    """A read or a write failed in the database; `__cause__` is the error of SQLAlchemy."""

    @property
    def kind(self) -> str:
        """The name of the underlying error's class: it says what happened without quoting statements or values."""
        return type(self.__cause__ or self).__name__


class DatabaseUnavailableError(DatabaseError):
    """The database is out of reach, overloaded or locked, and later it may work. A write may be durable or not."""


class DuplicateKeyError(DatabaseError):
    """A unique key was taken, by a write that was committed at the same moment. Nothing was written."""


class JournalClosedError(DatabaseUnavailableError):
    """The journal was closed before this read or write was done."""


class StaleError(Exception):
    """Somebody else has written this transaction since it was read: whoever gets this must stop."""


class UnreadableRowError(Exception):
    """This version can't read a row of `transactions`; the message begins with the row's id."""


class ConcurrentWriteError(Exception):
    """Raised by a write function when a concurrent write won; the batch is retried."""


class RetryWithError(Exception):
    """Raised by a write function: undo the batch, and write these items with `function`, which is slower but surer."""

    def __init__(self, function: Callable[..., Sequence[Any]], message: str) -> None:
        super().__init__(message)
        self.function = function
        self.raised_by: Callable[..., Sequence[Any]] | None = None
        """The write function that raised this; the journal sets it, because it made the call."""


def translated(error: BaseException) -> BaseException:
    """The error that other rooms see; anything that is not the database's comes back as it is."""
    meaning: DatabaseError
    match error:
        case IntegrityError():
            meaning = DuplicateKeyError(_message(error))
        case OperationalError() | InterfaceError() | PoolTimeoutError():
            meaning = DatabaseUnavailableError(_message(error))
        case SQLAlchemyError():
            meaning = DatabaseError(_message(error))
        case _:
            return error
    meaning.__cause__ = error
    return meaning


@contextmanager
def translating() -> Iterator[None]:
    """Raise errors of the database in the words of this module."""
    try:
        yield
    except SQLAlchemyError as error:
        raise translated(error) from error


def _message(error: SQLAlchemyError) -> str:
    """In the driver's words: SQLAlchemy's own text quotes the statement and its values."""
    words = error.orig if isinstance(error, DBAPIError) else error
    return f"{type(error).__name__}: {words}"
