"""Slow and hanging handlers: repeats are answered at once, and take nothing from anybody else."""

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy import create_engine
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.util import await_only

from holdfast import Hold, NotNow, Participant
from holdfast.fence import database
from holdfast.participant import running as limits
from holdfast.testing import FakeCoordinator
from tests.harness.coordinator_app import Received, until
from tests.harness.coordinator_app import running as coordinating
from tests.harness.participant_app import SeatRequest, Service, running

ASYNCHRONOUS = ["sqlite+aiosqlite", "postgresql+asyncpg", "mysql+asyncmy"]
asynchronous = pytest.mark.parametrize("kind", ASYNCHRONOUS)
servers = pytest.mark.parametrize("kind", ["postgresql+psycopg", "postgresql+asyncpg", "mariadb+pymysql"])
either_form = pytest.mark.parametrize("two_step", [False, True])
UNLIMITED_S = 300
THIRTEEN = {"quantity": 13}


class Gate:
    """The handler of one operation, or of each, that hangs for the seat request of 13 until it is opened."""

    def __init__(self, service: Service, operation: str | None = None) -> None:
        self._operation = operation
        self._asynchronous = isinstance(service.database, AsyncEngine)
        self._loop = asyncio.get_running_loop()
        self.arrived, self._opened, self._thread_opened = asyncio.Event(), asyncio.Event(), threading.Event()
        self.calls = 0
        service.behave.append(self.act)

    def act(self, operation: str, hold: Hold[SeatRequest]) -> Any:
        if hold.payload.quantity != 13 or self._operation not in (None, operation):
            return None
        self.calls += 1
        self._loop.call_soon_threadsafe(self.arrived.set)
        if self._asynchronous:
            return self._wait()
        assert self._thread_opened.wait(UNLIMITED_S)
        return {"done": True}

    async def _wait(self) -> Any:
        await self._opened.wait()
        return {"done": True}

    def open(self) -> None:
        self._opened.set()
        self._thread_opened.set()


@servers
@either_form
async def test_repeats_of_a_hanging_call_are_busy_at_once_and_take_no_connection(
    url: str, kind: str, two_step: bool
) -> None:
    async with (
        running(url, kind, two_step=two_step) as service,
        FakeCoordinator(service.participant) as coordinator,
    ):
        gate = Gate(service)
        stuck, other = coordinator.branch({"quantity": 13}), coordinator.branch({"quantity": 1})
        first = asyncio.create_task(stuck.try_())
        await gate.arrived.wait()
        held_by_the_first = service.connections_in_use
        repeats = await asyncio.gather(*(call() for call in [stuck.try_, stuck.confirm, stuck.cancel] * 10))
        assert {(answer.status, answer.problem) for answer in repeats} == {(503, "busy")}
        assert all(answer.retry_after_s is not None and answer.retry_after_s <= 1 for answer in repeats)
        assert service.connections_in_use == held_by_the_first == (0 if two_step else 1)
        assert (await other.try_()).ok
        gate.open()
        assert (await first).ok
        assert (await stuck.try_()).body == {"done": True}, "the repeat hears what the slow call came to"
        assert gate.calls == 1
        assert (await stuck.confirm()).ok


@pytest.mark.parametrize("operation", ["try", "confirm"])
@pytest.mark.parametrize("kind", ["sqlite", "postgresql+asyncpg", "mariadb+pymysql"])
async def test_a_handler_that_outlasts_the_coordinators_call_is_not_lost(
    url: str, kind: str, operation: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The coordinator stops listening and asks again; whoever authorised meanwhile is asked no second time."""
    monkeypatch.setattr(limits, "BUSY_AFTER_S", 0.0)
    impatient = coordinating(f"sqlite:///{tmp_path / 'coordinator.db'}", call_timeout_s=0.3)
    async with running(url, kind, two_step=True) as service, impatient as coordinator, served(service) as client:
        gate = Gate(service, operation)
        calls: list[asyncio.Task[httpx.Response]] = []

        async def serve(received: Received) -> httpx.Response:
            path = received.path.removeprefix("/seats")
            calls.append(asyncio.create_task(client.post(path, content=received.content, headers=received.headers)))
            return await asyncio.shield(calls[-1])  # a server goes on when its client has gone

        for path in ("/seats/try", "/seats/confirm", "/seats/cancel"):
            coordinator.participants.script(path, [serve])
        await coordinator.register("seats")
        begun = asyncio.create_task(coordinator.begin({"branches": [{"participant": "seats", "payload": THIRTEEN}]}))
        await gate.arrived.wait()

        async def has_heard_busy() -> bool:
            return any(call.done() and call.result().status_code == 503 for call in calls)

        await until(has_heard_busy)
        gate.open()
        transaction = (await begun).json()
        transaction = await coordinator.until_finished(transaction["id"])
        assert transaction["outcome"] == "confirmed"
        assert [each for each, _ in service.holds] == ["try", "confirm"]
        await asyncio.gather(*calls)


@asynccontextmanager
async def served(service: Service) -> AsyncIterator[httpx.AsyncClient]:
    app = FastAPI()
    app.include_router(service.participant.router)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://s", timeout=60) as client:
        yield client


@pytest.mark.parametrize("kind", ["sqlite", "postgresql+psycopg", "postgresql+asyncpg", "mariadb+pymysql"])
async def test_a_crashed_run_asks_to_come_back_soon_not_when_its_lease_ends(url: str, kind: str) -> None:
    async with running(url, kind, two_step=True) as service, FakeCoordinator(service.participant) as coordinator:
        branch = coordinator.branch({"quantity": 1})
        await branch.crash("try", at="handled")
        answer = await branch.try_()
        assert (answer.status, answer.problem, answer.retry_after_s) == (503, "busy", 1.0)


@asynchronous
@pytest.mark.parametrize("is_async", [True, False])
async def test_one_step_handlers_end_in_time(url: str, kind: str, is_async: bool) -> None:
    async with running(url, kind, handler_timeout_s=0.05) as service:
        participant = Participant("other", service.database, coordinator_url="http://c", handler_timeout_s=0.05)
        if is_async:

            @participant.on_try
            async def hang(hold: Hold[Any], session: Any) -> None:
                await asyncio.Event().wait()
        else:

            @participant.on_try
            def hang_(hold: Hold[Any], session: Any) -> None:
                await_only(asyncio.Event().wait())

        async with FakeCoordinator(participant) as coordinator:
            branch = coordinator.branch()
            answer = await branch.try_()
            assert answer.status in (500, 503)
            assert await branch.phase() is None
            assert service.connections_in_use == 0


@pytest.mark.parametrize("kind", ["sqlite"])
def test_what_cannot_stop_a_handler_refuses_the_argument(url: str, kind: str) -> None:
    engine = create_engine(url)
    with pytest.raises(ValueError, match="handler_timeout_s"):
        Participant("seats", engine, coordinator_url="http://c", handler_timeout_s=3)
    Participant("seats", engine, coordinator_url="http://c", handler_timeout_s=3, two_step=True)


@pytest.mark.parametrize("kind", ["sqlite", "postgresql+psycopg"])
async def test_slow_gateways_leave_the_services_threads_alone(
    url: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "HANDLER_THREADS_MAX", 2)
    async with running(url, kind, two_step=True) as service:
        gate = Gate(service)
        app = FastAPI()
        app.include_router(service.participant.router)

        @app.get("/healthz")
        def healthz() -> str:
            return "ok"

        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://s", timeout=60) as client:

            async def hang(n: int) -> int:
                message = {"transaction_id": f"t-{n}", "branch": "b", "payload": {"quantity": 13}}
                return (await client.post("/try", json=message)).status_code

            hanging = [asyncio.create_task(hang(n)) for n in range(60)]
            await gate.arrived.wait()
            assert (await client.get("/healthz")).status_code == 200
            assert await service.participant.reap() == 0, "nor does the reaper wait for them"
            assert gate.calls <= 2
            gate.open()
            assert await asyncio.gather(*hanging) == [200] * 60


@either_form
async def test_not_now_is_one_line_and_comes_back_when_it_says(
    url: str, kind: str, two_step: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async with (
        running(url, kind, two_step=two_step) as service,
        FakeCoordinator(service.participant, decision="cancel") as coordinator,
    ):

        def down(operation: str, hold: Hold[SeatRequest]) -> Any:
            raise NotNow("the gateway is down", retry_after_s=7)

        branch = coordinator.branch({"quantity": 1})
        service.behave.append(down)
        caplog.clear()
        answer = await branch.try_()
        assert (answer.status, answer.retry_after_s, answer.detail) == (503, 7, "the gateway is down")
        lines = [record for record in caplog.records if record.name == "holdfast"]
        assert len(lines) == 1
        assert lines[0].exc_info is None
        assert branch.transaction_id in lines[0].getMessage()
        service.behave.clear()
        assert (await branch.try_()).ok
        service.behave.append(down)
        assert (await branch.cancel()).retry_after_s == 7
        coordinator.pass_time(61)
        caplog.clear()
        assert await coordinator.reap() == 0
        assert all(record.exc_info is None for record in caplog.records)
        service.behave.clear()
        coordinator.pass_time(61)
        assert await coordinator.reap() == 1
        assert await branch.phase() == "cancelled"


def test_not_now_wants_seconds() -> None:
    for seconds in (-1, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="seconds"):
            NotNow(retry_after_s=seconds)
