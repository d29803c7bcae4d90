"""The participant of the README is what runs, and the SDK's reference names everything that there is."""

import asyncio
import inspect
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import pytest
from sqlalchemy import Engine, create_engine, text

import holdfast
from holdfast import Client, Participant
from holdfast.fence.steps import Refusal
from holdfast.testing import FakeCoordinator
from tests.harness.markdown import Page

REFERENCE = Page("docs/reference/sdk.md").text
(EXAMPLE,) = Page("README.md").code("python")


@pytest.fixture
def example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The example, as the module that a reader would save; its database beside it."""
    monkeypatch.chdir(tmp_path)
    module = ModuleType("main")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(compile(EXAMPLE.text, "README.md", "exec"), module.__dict__)
    with module.engine.begin() as connection:
        connection.execute(text("UPDATE shows SET free = 5"))
    yield module
    module.engine.dispose()


def shows(engine: Engine) -> tuple[int, int]:
    with engine.connect() as connection:
        free, sold = connection.execute(text("SELECT free, sold FROM shows")).one()
        return free, sold


async def test_the_example_holds_confirms_cancels_and_refuses(example: Any) -> None:
    async with FakeCoordinator(example.seats) as coordinator:
        first, second, third = (coordinator.branch({"show": "Faust", "quantity": 2}) for _ in range(3))
        answer = await first.try_()
        assert answer.body == {"reservation": f"{first.transaction_id}:seats"}
        assert (await second.try_()).ok
        assert (await third.try_()).detail == "sold out"
        assert shows(example.engine) == (1, 0)
        assert (await first.confirm()).ok
        assert (await second.cancel()).ok
        assert shows(example.engine) == (3, 2)


async def test_the_example_serves_over_http(example: Any) -> None:
    async with (
        example.app.router.lifespan_context(example.app),
        httpx.AsyncClient(transport=httpx.ASGITransport(example.app), base_url="http://seats") as http,
    ):
        body = {"transaction_id": "t", "branch": "seats", "payload": {"show": "Faust", "quantity": 1}, "hold_ttl_s": 9}
        assert (await http.post("/tcc/try", json=body)).status_code == 200
        assert (await http.post("/tcc/confirm", json=body)).json() == {"phase": "confirmed"}


def test_the_reference_names_everything() -> None:
    begin = (
        Participant.__init__,
        Client.__init__,
        Client.begin,
        Client.wait,
        FakeCoordinator.__init__,
        FakeCoordinator.branch,
    )
    for function in begin:
        for name in inspect.signature(function).parameters:
            assert name == "self" or name in REFERENCE, name
    steps = (holdfast.SagaStep, holdfast.Pivot, holdfast.Retryable, holdfast.Check)
    for owner in (Participant, *steps, Client, FakeCoordinator, holdfast.Hold, holdfast.Step):
        for name in vars(owner):
            assert name.startswith("_") or name in REFERENCE, f"{owner.__name__}.{name}"
    for name in holdfast.__all__:
        assert name in REFERENCE, name
    for refusal in Refusal:
        assert f"`{refusal.value}`" in REFERENCE


def test_holding_nothing_needs_no_loop(sqlite_url: str) -> None:
    """A participant is made and decorated at import, before any event loop runs."""
    with pytest.raises(RuntimeError):
        asyncio.get_running_loop()
    engine = create_engine(sqlite_url)
    assert Participant("seats", engine, coordinator_url="http://coordinator").router.routes
    engine.dispose()
