"""A database with participants in its registry; and processes that need few connections."""

import pytest
from sqlalchemy import Engine

from tests.harness.replica import register_participants


@pytest.fixture
def engine(engine: Engine) -> Engine:
    """As tests/conftest.py makes it, with the three participants registered."""
    register_participants(engine)
    return engine


@pytest.fixture(autouse=True)
def _few_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hundreds of processes live and die here: each needs no more than one connection to read, and one to write."""
    monkeypatch.setattr("app.storage.group_commit.READERS", 1)
