"""A journal on a database with the tables, of each supported kind."""

from collections.abc import AsyncIterator

import pytest_asyncio
from sqlalchemy import Engine

from app.storage.group_commit import Journal


@pytest_asyncio.fixture
async def journal(engine: Engine, database_url: str) -> AsyncIterator[Journal]:
    """A journal on the same database."""
    made = Journal(database_url)
    yield made
    await made.close()
