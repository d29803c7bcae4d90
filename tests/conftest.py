"""Fixtures for every test: databases of the kinds that Holdfast supports.

The PostgreSQL and MariaDB servers are real and start with the first test that asks for them; each test gets a fresh,
empty database. `engine` creates the coordinator's tables in it.

What Hypothesis draws is bounded, and the same every time: a run of the tests is no lottery, and no slow machine makes
one fail. `make fuzz` is one: it draws anew, and more.
"""

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import pytest
from hypothesis import HealthCheck, settings
from sqlalchemy import Engine

from tests.harness import sqlite_connections
from tests.harness.budget import TIMES
from tests.harness.database_server import DatabaseServer
from tests.harness.databases import URL_FIXTURES, engine_with_tables
from tests.harness.mariadb import MariadbServer, why_no_mariadb
from tests.harness.postgres import PostgresServer
from tests.harness.search_share import MARIADB_EVERY, is_in_share

settings.register_profile(
    "holdfast",
    max_examples=150 * TIMES,
    deadline=None,
    derandomize=TIMES == 1,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
    print_blob=True,
)
settings.load_profile("holdfast")
sqlite_connections.track()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With MARIADB_EVERY=3 only a third of the tests that run on several databases run on MariaDB, too."""
    left_out = [item for item in items if "[mariadb" in item.name and not is_in_share(item.nodeid, MARIADB_EVERY)]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in set(left_out)]


@pytest.fixture(autouse=True)
def connections_are_closed(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fails when a connection to an SQLite database was collected unclosed; says which test opened it."""
    with sqlite_connections.opened_by(request.node.nodeid):
        yield
    assert sqlite_connections.abandoned() == []


@pytest.fixture(scope="session", autouse=True)
def no_connection_is_abandoned() -> Iterator[None]:
    """The same for what is collected last."""
    yield
    gc.collect()
    assert sqlite_connections.abandoned() == []


@pytest.fixture
def tmp_path(tmp_path: Path) -> Iterator[Path]:
    """A folder of the test's own, in which no SQLite database is still open at the end."""
    yield tmp_path
    assert sqlite_connections.left_open(tmp_path) == []


@pytest.fixture(scope="session")
def _postgres_session() -> Iterator[PostgresServer]:
    with PostgresServer() as server:
        yield server


@pytest.fixture(scope="session")
def _mariadb_session() -> Iterator[MariadbServer]:
    if missing := why_no_mariadb():
        pytest.skip(missing)
    with MariadbServer() as server:
        yield server


@pytest.fixture
def postgres_server(_postgres_session: PostgresServer) -> PostgresServer:
    """The running server, for tests that stop or restart it; one that was left stopped is started again."""
    return started(_postgres_session)


@pytest.fixture
def mariadb_server(_mariadb_session: MariadbServer) -> MariadbServer:
    """The running server, for tests that stop or restart it; one that was left stopped is started again."""
    return started(_mariadb_session)


@pytest.fixture
def postgres_url(postgres_server: PostgresServer) -> Iterator[str]:
    """The URL of an empty PostgreSQL database of the test's own: `postgresql+psycopg://...`."""
    yield from an_empty_database(postgres_server)


@pytest.fixture
def mariadb_url(mariadb_server: MariadbServer) -> Iterator[str]:
    """The URL of an empty MariaDB database of the test's own: `mysql+pymysql://...`."""
    yield from an_empty_database(mariadb_server)


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    """The URL of an SQLite file of the test's own, which does not exist yet."""
    return f"sqlite:///{tmp_path / 'holdfast.db'}"


@pytest.fixture(params=URL_FIXTURES)
def database_url(request: pytest.FixtureRequest) -> str:
    """An empty database of each supported kind; the test runs once for each."""
    url: str = request.getfixturevalue(URL_FIXTURES[request.param])
    return url


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    """The test's own connections to `database_url`, where the coordinator's tables are."""
    engine = engine_with_tables(database_url)
    yield engine
    engine.dispose()


@pytest.fixture
def database_server(database_url: str, request: pytest.FixtureRequest) -> DatabaseServer:
    """The server behind `database_url`, to be killed and started again."""
    kind = "mariadb" if database_url.startswith("mysql") else "postgres"
    server: DatabaseServer = request.getfixturevalue(f"{kind}_server")
    return server


@pytest.fixture
def ordinary_url(database_url: str, database_server: DatabaseServer) -> str:
    """As `database_url`, for a user who can't write where the server only reads."""
    return database_server.ordinary_url(database_url)


ServerT = TypeVar("ServerT", bound=DatabaseServer)


def started(server: ServerT) -> ServerT:
    if not server.running:
        server.start()
    return server


def an_empty_database(server: DatabaseServer) -> Iterator[str]:
    """Its URL, until it is dropped."""
    url = server.create_database()
    yield url
    started(server).drop_database(url)
