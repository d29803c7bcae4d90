"""One cluster for all tests; each test gets an empty database, and all nodes at its start."""

from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio

from app.storage.group_commit import Journal
from app.storage.migrations import migrate
from tests.harness.galera import GaleraCluster, why_no_galera


@pytest.fixture(scope="session")
def _cluster_session() -> Iterator[GaleraCluster]:
    if missing := why_no_galera():
        pytest.skip(missing)
    with GaleraCluster() as cluster:
        yield cluster


@pytest.fixture
def cluster(_cluster_session: GaleraCluster) -> GaleraCluster:
    """The cluster, whole: a node that a test killed has joined again."""
    for number, node in enumerate(_cluster_session.nodes):
        if not node.running:
            _cluster_session.rejoin(number)
    return _cluster_session


@pytest.fixture
def urls(cluster: GaleraCluster) -> list[str]:
    """The URLs of one database with the tables, one for each node."""
    made = cluster.create_database()
    migrate(made[0])
    return made


@pytest_asyncio.fixture
async def journals(urls: list[str]) -> AsyncIterator[list[Journal]]:
    """A journal at each node."""
    made = [Journal(url) for url in urls]
    yield made
    for journal in made:
        await journal.close()
