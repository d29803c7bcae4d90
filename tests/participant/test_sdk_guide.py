"""The guide's code is what runs: examples are taken out of docs/sdk.md, and its tables are held against the code."""

import ast
import asyncio
import inspect
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import pytest
from sqlalchemy import Engine, create_engine, text

from holdfast import Client, Participant
from holdfast.fence.table import Refusal
from holdfast.testing import FakeCoordinator

GUIDE = (Path(__file__).parents[2] / "docs" / "sdk.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL)
(CREATE_SHOWS,) = re.findall(r"CREATE TABLE shows .*\)(?=;)", GUIDE)


@pytest.fixture
def example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The first example, as the module that a reader would save; its database beside it."""
    monkeypatch.chdir(tmp_path)
    module = ModuleType("main")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(compile(EXAMPLES[0], "docs/sdk.md", "exec"), module.__dict__)
    with module.engine.begin() as connection:
        connection.execute(text(CREATE_SHOWS))
        connection.execute(text("INSERT INTO shows VALUES ('Faust', 5, 0)"))
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


async def test_the_example_of_a_test_passes(example: Any) -> None:
    (source,) = [code for code in EXAMPLES if "FakeCoordinator" in code]
    names: dict[str, Any] = {}
    exec(source, names)
    await names["test_a_lapsed_hold_is_released"]()
    assert shows(example.engine) == (5, 0)


def test_every_example_is_python() -> None:
    assert len(EXAMPLES) == 5
    for code in EXAMPLES:
        compile(code, "docs/sdk.md", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


def test_the_guide_names_every_argument_and_refusal() -> None:
    for function in (Participant.__init__, Client.__init__, Client.begin):
        for name in inspect.signature(function).parameters:
            assert name == "self" or name in GUIDE, name
    for refusal in Refusal:
        assert f"`{refusal.value}`" in GUIDE


def test_holding_nothing_needs_no_loop(sqlite_url: str) -> None:
    """A participant is made and decorated at import, before any event loop runs."""
    with pytest.raises(RuntimeError):
        asyncio.get_running_loop()
    engine = create_engine(sqlite_url)
    assert Participant("seats", engine, coordinator_url="http://coordinator").router.routes
    engine.dispose()
