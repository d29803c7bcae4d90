"""A database with the tables, of each supported kind."""

from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio
from sqlalchemy import Engine

from app.storage.engines import make_engine
from app.storage.group_commit import Journal
from app.storage.tables import metadata


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    """Connections of the test's own to a database with the tables."""
    made = make_engine(database_url)
    with made.execution_options(holdfast_writes=True).begin() as connection:
        metadata.create_all(connection)
    yield made
    made.dispose()


@pytest_asyncio.fixture
async def journal(engine: Engine, database_url: str) -> AsyncIterator[Journal]:
    """A journal on the same database."""
    made = Journal(database_url)
    yield made
    await made.close()
