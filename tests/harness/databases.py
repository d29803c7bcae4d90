"""Which databases a test runs on, and the coordinator's tables in them; the fixtures are in tests/conftest.py."""

from typing import Final

import pytest
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.pool import NullPool

from app.storage.engines import make_engine
from app.storage.tables import metadata

URL_FIXTURES: Final = {"sqlite": "sqlite_url", "postgresql": "postgres_url", "mariadb": "mariadb_url"}
"""The supported kinds, and the fixture that has an empty database of each."""

on_servers: Final = pytest.mark.parametrize("database_url", ["postgresql", "mariadb"], indirect=True)
"""Runs a test on the databases that have a server of their own."""


def engine_with_tables(database_url: str) -> Engine:
    """An engine of the test's own on an empty database, in which it creates the tables."""
    engine = make_engine(database_url)
    with engine.execution_options(holdfast_writes=True).begin() as connection:
        metadata.create_all(connection)
    return engine


def rows(url: str, statement: str) -> list[tuple[object, ...]]:
    """What a statement answers, on a connection of its own."""
    engine = create_engine(url, poolclass=NullPool)
    with engine.begin() as connection:
        result = connection.execute(text(statement))
        return [tuple(row) for row in result] if result.returns_rows else []
