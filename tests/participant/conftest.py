"""The same service on every kind of database and engine."""

from collections.abc import AsyncIterator

import pytest

from holdfast.testing import FakeCoordinator
from tests.harness.databases import URL_FIXTURES
from tests.harness.participant_app import KINDS, Service, running


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    """The driver; the test runs once for each."""
    kind: str = request.param
    return kind


@pytest.fixture
def url(kind: str, request: pytest.FixtureRequest) -> str:
    """An empty database for `kind`."""
    url: str = request.getfixturevalue(URL_FIXTURES[kind.partition("+")[0].replace("mysql", "mariadb")])
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
