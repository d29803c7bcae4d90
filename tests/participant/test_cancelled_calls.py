"""A call whose task is cancelled, as a server does it when it shuts down: nothing is kept, the task ends cancelled."""

import asyncio
import itertools
import sqlite3
import threading
from contextlib import closing
from typing import Any

import aiosqlite
import pytest
from sqlalchemy import Engine
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import Session
from sqlalchemy.util import await_only

from holdfast import Hold, Participant, Refused
from holdfast.testing import FakeCoordinator
from tests.harness.participant_app import EFFECTS, SeatRequest, Service, running

asynchronous = pytest.mark.parametrize("kind", ["sqlite+aiosqlite", "postgresql+asyncpg", "mysql+asyncmy"])
synchronous = pytest.mark.parametrize("kind", ["sqlite", "postgresql+psycopg", "mariadb+pymysql"])
loses_connection = pytest.mark.parametrize("loses_connection", [False, True], ids=["", "connection lost"])
UNLIMITED_S = 300


def lose_next_rollback(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next rollback fails, as it does when the connection is gone."""
    engine = service.database.sync_engine if isinstance(service.database, AsyncEngine) else service.database
    dialect = engine.dialect
    error = dialect.loaded_dbapi.OperationalError

    def fail_once(_: Any) -> None:
        monkeypatch.undo()
        raise error("server closed the connection unexpectedly")

    monkeypatch.setattr(dialect, "do_rollback", fail_once)


class Hanging:
    """A participant whose first Try writes and then hangs on the event loop."""

    def __init__(self, database: Engine | AsyncEngine, form: str) -> None:
        self.inside = asyncio.Event()
        self.participant = Participant(
            "hanging", database, coordinator_url="http://coordinator", two_step=form == "two-step"
        )
        self.participant.on_try(self._def if form == "def" else self._async_def)

    async def _async_def(self, hold: Hold[Any], session: Any) -> None:
        await session.execute(EFFECTS.insert().values(transaction_id=hold.transaction_id, operation="try"))
        await self._hang_once()

    def _def(self, hold: Hold[Any], session: Any) -> None:
        session.execute(EFFECTS.insert().values(transaction_id=hold.transaction_id, operation="try"))
        await_only(self._hang_once())

    async def _hang_once(self) -> None:
        if not self.inside.is_set():
            self.inside.set()
            await asyncio.Event().wait()


@asynchronous
@loses_connection
@pytest.mark.parametrize("form", ["async def", "def", "two-step"])
async def test_a_cancelled_call_ends_cancelled_and_the_next_one_works(
    service: Service, form: str, loses_connection: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    hanging = Hanging(service.database, form)
    async with FakeCoordinator(hanging.participant) as coordinator:
        branch = coordinator.branch()
        call = asyncio.create_task(branch.try_())
        await hanging.inside.wait()
        if loses_connection:
            lose_next_rollback(service, monkeypatch)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert await branch.phase() == ("trying" if form == "two-step" else None)
        assert not await service.effects()
        assert (await branch.try_()).ok, "at once: nobody's lease or lock is in the way"
        assert await service.effects() == {"try": 1}


@pytest.mark.parametrize("kind", ["sqlite+aiosqlite"])
@pytest.mark.parametrize("two_step", [False, True])
async def test_a_call_that_is_cancelled_in_a_statement_keeps_no_lock(
    url: str, kind: str, two_step: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At each of its statements, which the connection's thread has run by then. SQLite has one lock for all writers."""
    async with (
        running(url, kind, two_step=two_step) as service,
        FakeCoordinator(service.participant, decision="cancel") as coordinator,
    ):
        execute: Any = aiosqlite.Connection._execute
        cancelled, left = [], -1

        async def cancelled_in_one(self: aiosqlite.Connection, *arguments: Any, **named: Any) -> Any:
            nonlocal left
            left -= 1
            if left == 0:
                asyncio.current_task().cancel()  # type: ignore[union-attr]
            return await execute(self, *arguments, **named)

        monkeypatch.setattr(aiosqlite.Connection, "_execute", cancelled_in_one)
        for statement in itertools.count(1):
            left = 0
            branch = coordinator.branch({"quantity": 1})
            assert (await branch.try_()).ok
            left = statement
            call = asyncio.create_task(branch.cancel())
            await asyncio.wait([call])
            if left > 0:  # it has fewer
                left = 0
                break
            cancelled.append(call)  # keeps its exception, as services do that log or collect what failed
            with closing(sqlite3.connect(str(service.database.url.database), timeout=0)) as other:
                other.execute("BEGIN EXCLUSIVE")
        assert len(cancelled) > 5
        assert all(call.cancelled() for call in cancelled)


@synchronous
async def test_a_cancelled_call_leaves_its_thread_to_end_the_work(url: str, kind: str) -> None:
    """A thread can't be cancelled. What it comes to counts, and is what the repeat hears."""
    arrived, opened = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def hang_once(operation: str, hold: Hold[SeatRequest]) -> Any:
        if not arrived.is_set():
            loop.call_soon_threadsafe(arrived.set)
            assert opened.wait(UNLIMITED_S)
        return {"seat": 7}

    async with running(url, kind) as service, FakeCoordinator(service.participant) as coordinator:
        service.behave.append(hang_once)
        branch = coordinator.branch({"quantity": 1})
        call = asyncio.create_task(branch.try_())
        await arrived.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        opened.set()
        assert (await branch.try_()).body == {"seat": 7}
        assert await service.effects() == {"try": 1}
        assert len(service.holds) == 1


@pytest.mark.parametrize("two_step", [False, True])
async def test_a_refusal_is_answered_though_the_rollback_fails(
    service: Service, two_step: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    participant = Participant("full", service.database, coordinator_url="http://coordinator", two_step=two_step)
    is_full = True

    def refuse() -> None:
        if is_full:
            lose_next_rollback(service, monkeypatch)
            raise Refused("sold out")

    def written(hold: Hold[Any]) -> Any:
        return EFFECTS.insert().values(transaction_id=hold.transaction_id, operation="try")

    async def a_try(hold: Hold[Any], session: AsyncSession) -> None:
        await session.execute(written(hold))
        refuse()

    def a_def_try(hold: Hold[Any], session: Session) -> None:
        session.execute(written(hold))
        refuse()

    participant.on_try(a_try if isinstance(service.database, AsyncEngine) else a_def_try)
    async with FakeCoordinator(participant) as coordinator:
        branch = coordinator.branch()
        answer = await branch.try_()
        assert (answer.status, answer.problem, answer.detail) == (409, "refused", "sold out")
        assert await branch.phase() is None
        is_full = False
        assert (await branch.try_()).ok
        assert await service.effects() == {"try": 1}
