"""The database's clock, in seconds since the epoch: the one that all replicas share."""

from collections.abc import Callable
from typing import Any, Final

from sqlalchemy import Connection, Double, select
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import GenericFunction

from app.clock import Sample

POSTGRESQL_NOW: Final = "CAST(extract(epoch FROM clock_timestamp()) AS double precision)"
MYSQL_NOW: Final = "(TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(6)) / 1e6)"
"""Whatever time zone the session has: UNIX_TIMESTAMP is an hour off in one night of the year."""
SQLITE_NOW: Final = "((julianday('now') - 2440587.5) * 86400.0)"


class database_now(GenericFunction[float]):
    """The time as this statement runs, not that of the transaction's begin."""

    type = Double()
    inherit_cache = True


@compiles(database_now, "postgresql")
def _postgresql(_element: database_now, _compiler: SQLCompiler, **_: Any) -> str:
    return POSTGRESQL_NOW


@compiles(database_now, "mysql")
@compiles(database_now, "mariadb")
def _mysql(_element: database_now, _compiler: SQLCompiler, **_: Any) -> str:
    return MYSQL_NOW


@compiles(database_now, "sqlite")
def _sqlite(_element: database_now, _compiler: SQLCompiler, **_: Any) -> str:
    return SQLITE_NOW


_NOW: Final = select(database_now())


def ask(connection: Connection, elapsed: Callable[[], float]) -> Sample:
    """What the database's clock says; `elapsed` is the monotonic clock of this process."""
    asked_at = elapsed()
    time = float(connection.execute(_NOW).scalar_one())
    return Sample(time=time, asked_at=asked_at, answered_at=elapsed())
