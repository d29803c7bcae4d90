"""A database with the schema, and the test's own look into it."""

from collections.abc import Iterator

import pytest
from sqlalchemy import Engine

from tests.coordinator.node import make_schema


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    """The test's own connections to `database_url`, where the tables are."""
    made = make_schema(database_url)
    yield made
    made.dispose()
