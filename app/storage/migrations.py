"""The schema version: migrates a database, and checks whether this version may run on it.

An upgrade has two steps. After `migrate` processes of the version before go on, and can be restarted, beside those of
the new one. After `finish` only the new version may run, and it may write what the version before can't read. The
database keeps the oldest revision that may run (`compatibility`); revisions are numbers in the order of their age. A
new database, and SQLite, which has one process, are finished at once.

The migrations themselves are in alembic/. Runs before the journal is opened. Nothing else changes the schema.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Final

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, select, update

from app.storage.engines import make_engine
from app.storage.errors import translating
from app.storage.tables import compatibility

ONE_AT_A_TIME: Final = {
    "postgresql": "SELECT pg_advisory_lock(727565)",
    "mysql": "SELECT GET_LOCK(CONCAT('holdfast-migrate-', MD5(DATABASE())), 86400)",
}
"""Waits until no other process migrates this database; the connection holds the lock. SQLite has one writer anyway."""
MIGRATE_COMMAND: Final = "python -m app migrate"
FINISH_COMMAND: Final = "python -m app migrate --finish"
_ROOT = Path(__file__).parents[2]


class NotMigratedError(Exception):
    """The database can't be migrated, or its upgrade can't be finished; the message says why."""


def migrate(database_url: str) -> bool:
    """Upgrade the database to the schema of this version; returns whether the upgrade is finished.

    Does nothing if a newer version has migrated it. Raises NotMigratedError if this version can't run on it any more,
    and DatabaseError.
    """
    with _migrating(database_url) as connection:
        revision = _revision(connection)
        if revision is not None and revision > _head():
            if fault := schema_fault(connection):
                raise NotMigratedError(fault)
            return True
        if revision != _head():
            _upgrade(connection)
        if revision is None or _is_sqlite(connection):
            _finish(connection)
        return _compatible_from(connection) == _head()


def finish(database_url: str) -> None:
    """Finish the upgrade: from now on versions before this one can't run. Raises NotMigratedError, DatabaseError."""
    with _migrating(database_url) as connection:
        if fault := schema_fault(connection):
            raise NotMigratedError(fault)
        if _revision(connection) != _head():
            raise NotMigratedError("A newer version has migrated the database; finish the upgrade with that version.")
        _finish(connection)


def schema_fault(connection: Connection) -> str | None:
    """Why this version can't run on the database, and what to do; None if it can."""
    head, revision = _head(), _revision(connection)
    if revision is None or revision < head:
        return f"The database needs a migration. Run: {MIGRATE_COMMAND}"
    if revision > head and _compatible_from(connection) > head:
        return "A newer version has upgraded the database, and that upgrade is finished. Run that version."
    return None


def is_finished(connection: Connection) -> bool:
    """Whether the upgrade to this version is finished: no process of the version before runs."""
    return _compatible_from(connection) >= _head()


@contextmanager
def _migrating(database_url: str) -> Iterator[Connection]:
    """A connection, while no other process migrates; what is done at the end is committed.

    On a server each migration commits by itself; on SQLite all of them are one database transaction.
    """
    engine = make_engine(database_url, patient=True)
    try:
        with translating(), engine.execution_options(holdfast_writes=True).connect() as connection:
            if _is_sqlite(connection):
                connection.begin()
            else:
                connection.exec_driver_sql(ONE_AT_A_TIME[engine.dialect.name])
                connection.commit()
            yield connection
            connection.commit()
    finally:
        engine.dispose()


def _upgrade(connection: Connection) -> None:
    config = _config()
    config.attributes["connection"] = connection
    if not _is_sqlite(connection):
        connection.commit()  # in an open database transaction Alembic would make all migrations one
    command.upgrade(config, "head")


def _is_sqlite(connection: Connection) -> bool:
    return connection.dialect.name == "sqlite"


def _finish(connection: Connection) -> None:
    connection.execute(update(compatibility).values(compatible_from=_head()))


def _compatible_from(connection: Connection) -> str:
    return str(connection.execute(select(compatibility.c.compatible_from)).scalar_one())


def _revision(connection: Connection) -> str | None:
    return MigrationContext.configure(connection).get_current_revision()


@cache
def _head() -> str:
    """The newest revision of this code; to find it all migrations are read."""
    head = ScriptDirectory.from_config(_config()).get_current_head()
    assert head is not None, "there are migrations"
    return head


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(_ROOT / "alembic").replace("%", "%%"))
    return config
