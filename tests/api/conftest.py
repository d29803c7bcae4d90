"""The running service, with two participants registered."""

from collections.abc import AsyncIterator

import pytest

from tests.harness.coordinator_app import Service, running


@pytest.fixture
async def service(sqlite_url: str) -> AsyncIterator[Service]:
    async with running(sqlite_url) as service:
        await service.register("inventory", "payment")
        yield service
