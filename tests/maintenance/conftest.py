"""A database with participants in its registry."""

import pytest
from sqlalchemy import Engine

from tests.harness.replica import register_participants


@pytest.fixture
def engine(engine: Engine) -> Engine:
    """As tests/conftest.py makes it, with the three participants registered."""
    register_participants(engine)
    return engine
