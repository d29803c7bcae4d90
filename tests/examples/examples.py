"""An example service, as a test runs it: started, with a client of it, and with a coordinator that the test plays."""

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from types import ModuleType
from typing import Any

import httpx

from holdfast.testing import FakeCoordinator

Load = Callable[..., ModuleType]
"""The fixture `load`: executes an example, with these environment variables."""


@asynccontextmanager
async def running(module: ModuleType) -> AsyncIterator[httpx.AsyncClient]:
    """The service, started; a client of it."""
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(module.lifespan(module.app))
        transport = httpx.ASGITransport(module.app)
        yield await stack.enter_async_context(httpx.AsyncClient(transport=transport, base_url="http://example"))


@asynccontextmanager
async def coordinated(module: ModuleType, name: str) -> AsyncIterator[tuple[FakeCoordinator, "Balances"]]:
    """The service, started, with a coordinator that the test plays; and a way to read its balances."""
    async with running(module) as client, FakeCoordinator(getattr(module, name)) as coordinator:
        yield coordinator, Balances(client)


class Balances:
    """What `GET /balances` of a service says."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client

    async def of(self, table: str, name: str) -> dict[str, Any]:
        """The row of `table` whose first column is `name`, without it."""
        rows = (await self._client.get("/balances")).json()[table]
        row: dict[str, Any] = next(row for row in rows if next(iter(row.values())) == name)
        return dict(list(row.items())[1:])

    async def states(self) -> list[str]:
        """The states of the open holds."""
        return [hold["state"] for hold in (await self._client.get("/balances")).json()["holds"]]
