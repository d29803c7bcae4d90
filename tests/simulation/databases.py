"""SQLite in memory: one database for the coordinator, one for each participant, emptied for each seed.

Engines are made once a process, because SQLAlchemy keeps its compiled statements with them.
"""

import sqlite3
from functools import cache
from typing import Any

from sqlalchemy import Engine, MetaData, create_engine, event
from sqlalchemy.pool import StaticPool

from app.storage.engines import _begin_sqlite
from app.storage.tables import metadata as coordinator_metadata
from holdfast.fence.rows import branches_table
from tests.harness import ledger

ACCOUNTS = 8


@cache
def coordinator_engine() -> Engine:
    """The database that all replicas share."""
    engine = create_engine("sqlite://", poolclass=StaticPool, connect_args={"check_same_thread": False})
    event.listen(engine, "connect", _ours)
    event.listen(engine, "begin", _begin_sqlite)
    with engine.execution_options(holdfast_writes=True).begin() as connection:
        coordinator_metadata.create_all(connection)
    return engine


@cache
def participant_engine(name: str) -> Engine:
    """The database of one participant: its ledger and its fence."""
    assert name
    engine = create_engine("sqlite://", poolclass=StaticPool, connect_args={"check_same_thread": False})
    event.listen(engine, "connect", _ours)
    event.listen(engine, "begin", _begin)
    ledger.metadata.create_all(engine)
    branches_table(MetaData()).create(engine)
    return engine


@cache
def raw(engine: Engine) -> sqlite3.Connection:
    """The one connection, for looking without SQLAlchemy."""
    pooled = engine.raw_connection()
    connection: Any = pooled.driver_connection
    return connection  # type: ignore[no-any-return]


def empty_coordinator() -> sqlite3.Connection:
    connection = raw(coordinator_engine())
    for table in coordinator_metadata.tables:
        connection.execute(f"DELETE FROM {table}")
    return connection


def empty_participant(name: str) -> sqlite3.Connection:
    connection = raw(participant_engine(name))
    for table in ("accounts", "effects", "holdfast_branches"):
        connection.execute(f"DELETE FROM {table}")
    connection.executemany(
        "INSERT INTO accounts (account, balance, held, incoming) VALUES (?, ?, 0, 0)",
        [(number, ledger.OPENING_BALANCE) for number in range(ACCOUNTS)],
    )
    return connection


def _ours(connection: Any, _record: Any) -> None:
    connection.isolation_level = None


def _begin(connection: Any) -> None:
    connection.exec_driver_sql("BEGIN")
