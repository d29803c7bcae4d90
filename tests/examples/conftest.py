"""Fixtures for the example services: each test gets a fresh copy of the module, on a database of its own."""

import importlib.util
import itertools
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import pytest

from holdfast.testing import FakeCoordinator
from tests.support.repository import ROOT

Load = Callable[..., ModuleType]


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Load]:
    """Executes an example as if a process of its own had imported it, with these environment variables."""
    copies = itertools.count(1)
    loaded: list[str] = []

    def load_one(name: str, **environment: str) -> ModuleType:
        for variable, value in {"DATA_DIR": str(tmp_path), **environment}.items():
            monkeypatch.setenv(variable, value)
        spec = importlib.util.spec_from_file_location(
            f"example_{name}_{next(copies)}", ROOT / f"participants/examples/{name}.py"
        )
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        loaded.append(module.__name__)
        sys.modules[module.__name__] = module
        spec.loader.exec_module(module)
        return module

    yield load_one
    for name in loaded:
        del sys.modules[name]


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
