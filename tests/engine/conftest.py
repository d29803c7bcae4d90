"""A database with the schema, and the test's own look into it."""

from collections.abc import Iterator

import pytest
from sqlalchemy import Engine

from tests.engine.node import make_schema


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    """The test's own connections to `database_url`, where the tables are."""
    made = make_schema(database_url)
    yield made
    made.dispose()


@pytest.fixture(autouse=True)
def _few_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hundreds of processes live and die here: each needs no more than one connection to read, and one to write."""
    monkeypatch.setattr("app.storage.group_commit.READERS", 1)
