"""Fixtures for every test: databases of the kinds that Holdfast supports.

The PostgreSQL server is real and starts with the first test that asks for it; each test gets a fresh,
empty database. Nothing here knows of tables: schemas are made by migrations or by the test.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.postgres import PostgresServer


@pytest.fixture(scope="session")
def _postgres_session() -> Iterator[PostgresServer]:
    with PostgresServer() as server:
        yield server


@pytest.fixture
def postgres_server(_postgres_session: PostgresServer) -> PostgresServer:
    """The running server, for tests that stop or restart it; one that was left stopped is started again."""
    if not _postgres_session.running:
        _postgres_session.start()
    return _postgres_session


@pytest.fixture
def postgres_url(postgres_server: PostgresServer) -> Iterator[str]:
    """The URL of an empty PostgreSQL database of the test's own: `postgresql+psycopg://...`."""
    url = postgres_server.create_database()
    yield url
    if not postgres_server.running:
        postgres_server.start()
    postgres_server.drop_database(url)


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    """The URL of an SQLite file of the test's own, which does not exist yet."""
    return f"sqlite:///{tmp_path / 'holdfast.db'}"


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest) -> str:
    """An empty database of each supported kind; the test runs once for each."""
    url: str = request.getfixturevalue("sqlite_url" if request.param == "sqlite" else "postgres_url")
    return url
