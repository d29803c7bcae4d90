"""The same service on every kind of database and engine."""

from collections.abc import AsyncIterator

import pytest

from holdfast.testing import FakeCoordinator
from tests.participant.service import KINDS, Service, running


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    """The driver; the test runs once for each."""
    kind: str = request.param
    return kind


@pytest.fixture
def url(kind: str, request: pytest.FixtureRequest) -> str:
    """An empty database for `kind`."""
    fixtures = {"sqlite": "sqlite_url", "postgresql": "postgres_url", "mysql": "mariadb_url", "mariadb": "mariadb_url"}
    url: str = request.getfixturevalue(fixtures[kind.partition("+")[0]])
    return url


@pytest.fixture
async def service(url: str, kind: str) -> AsyncIterator[Service]:
    """A one-step service that gives holds up alone after an hour."""
    async with running(url, kind, hold_max_s=3600) as service:
        yield service


@pytest.fixture
async def coordinator(service: Service) -> AsyncIterator[FakeCoordinator]:
    async with FakeCoordinator(service.participant) as coordinator:
        yield coordinator
