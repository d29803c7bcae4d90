"""The schema version: migrates a database, and checks whether it is current.

The migrations themselves are in alembic/. Runs before the journal is opened. Nothing else changes the schema.
"""

from pathlib import Path
from typing import Final

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

from app.storage.engines import make_engine
from app.storage.errors import translating

ONE_AT_A_TIME: Final = {
    "postgresql": "SELECT pg_advisory_lock(727565)",
    "mysql": "SELECT GET_LOCK(CONCAT('holdfast-migrate-', MD5(DATABASE())), 86400)",
}
"""Waits until no other process migrates this database; the connection holds the lock. SQLite has one writer anyway."""
MIGRATE_COMMAND: Final = "python -m app migrate"
_ROOT = Path(__file__).parents[2]


def migrate(database_url: str) -> None:
    """Upgrade the database to the newest schema. Raises DatabaseError."""
    engine = make_engine(database_url, patient=True)
    try:
        with translating(), engine.execution_options(holdfast_writes=True).begin() as connection:
            if engine.dialect.name in ONE_AT_A_TIME:
                connection.exec_driver_sql(ONE_AT_A_TIME[engine.dialect.name])
            config = _config()
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
    finally:
        engine.dispose()


def schema_is_current(connection: Connection) -> bool:
    """Whether the database has the schema that this version needs."""
    head = ScriptDirectory.from_config(_config()).get_current_head()
    return MigrationContext.configure(connection).get_current_revision() == head


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(_ROOT / "alembic").replace("%", "%%"))
    return config
