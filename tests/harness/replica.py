"""One coordinator process, as far as a test can see it: everything but the sockets.

A gate lies before and after everything that the outside can see: each write to the database and each call. There a
process can be killed or frozen. A killed one is never scheduled again: whatever it still tries ends at the gate.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any, Final, Self

import httpx
from sqlalchemy import Engine

from app.engine.coordinator import Begin
from app.engine.notifications import POLL_S
from app.main import assemble, caller_of, inbox_of, recovery_of
from app.protocol.messages import Command
from app.protocol.values import Branch, Transaction
from app.settings import Settings
from app.storage import participants, transactions
from app.storage.group_commit import Journal
from app.storage.migrations import _head
from app.storage.participants import RegisteredParticipant
from app.storage.tables import compatibility
from holdfast.json_text import text_of
from tests.harness.databases import engine_with_tables
from tests.harness.network import Network
from tests.harness.virtual_time import VirtualLoop, in_thread, now

CALL_TIMEOUT_S: Final = 2.0
BRANCHES: Final = ("flight", "hotel", "car")
STEPS: Final = ("order", "goods", "charge", "mail", "parcel")
"""Further participants, of other kinds than TCC."""


class Gate:
    """Where a process is frozen, at the nth point that it passes, or killed or frozen when the test says so."""

    def __init__(self, *, freeze_at: int | None = None) -> None:
        self.points: list[str] = []
        self.died = asyncio.Event()
        self.froze = asyncio.Event()
        self.kill_at: int | None = None
        """It dies at the nth point that it passes."""
        self._freeze_at = freeze_at
        self._open = asyncio.Event()
        self._open.set()

    async def passed(self, point: str) -> None:
        await self.usable()
        self.points.append(point)
        if len(self.points) == self._freeze_at:
            self.freeze()
        if len(self.points) == self.kill_at:
            self.kill()
        await self.usable()

    async def usable(self) -> None:
        if self.died.is_set():
            await asyncio.get_running_loop().create_future()
        await self._open.wait()

    @property
    def is_closed(self) -> bool:
        return self.died.is_set() or not self._open.is_set()

    def kill(self) -> None:
        self.died.set()

    def freeze(self) -> None:
        self._open.clear()
        self.froze.set()

    def thaw(self) -> None:
        self._open.set()


class GatedJournal(Journal):
    """The journal of a process: its writes pass the gate on the way in and on the way out."""

    def __init__(self, database_url: str, gate: Gate) -> None:
        super().__init__(database_url)
        self._gate = gate
        self.writing = 0
        self.started = asyncio.Event()
        """Set when a write begins."""

    async def write(self, function: Callable[..., Sequence[Any]], item: Any) -> Any:
        name = function.__name__
        if function is not transactions.claim:
            await self._gate.passed(f"before {name}")
        self.writing += 1
        try:
            await self._gate.usable()
            self.started.set()
            result = await in_thread(super().write(function, item))
        finally:
            self.writing -= 1
        if function is not transactions.claim or result:
            await self._gate.passed(f"after {name}")
        return result

    async def read(self, function: Callable[..., Any], *args: Any) -> Any:
        await self._gate.usable()
        result = await super().read(function, *args)
        await self._gate.usable()
        return result


class GatedTransport(httpx.AsyncBaseTransport):
    """Carries calls from a process to the network; what has left arrives, whatever becomes of the process."""

    def __init__(self, network: Network, gate: Gate) -> None:
        self._network = network
        self._gate = gate
        self._under_way: set[asyncio.Task[Any]] = set()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        what = f"{request.headers['tcc-operation']} {request.headers['tcc-branch']}"
        await self._gate.passed(f"before {what}")
        arrived = asyncio.create_task(self._network.handle(await request.aread()))
        self._under_way.add(arrived)
        arrived.add_done_callback(self._under_way.discard)
        reply = await asyncio.shield(arrived)
        await self._gate.passed(f"after {what}")
        if reply.silent:
            await asyncio.get_running_loop().create_future()
        return httpx.Response(reply.status, json=reply.body, headers=reply.headers)


def impatient_settings(database_url: str, **settings: Any) -> Settings:
    """Settings of a coordinator on virtual time: short enough for leases and back-offs to matter in each test."""
    impatient: dict[str, Any] = {
        "allowed_endpoints": "http://*:*",
        "call_timeout_s": CALL_TIMEOUT_S,
        "retry_cap_s": 4.0,
        "hung_attempts": 3,
        "hung_after_s": 20.0,
        "lease_s": 1.5,
    }
    return Settings(database_url=database_url, **{**impatient, **settings})


class Replica:
    """A coordinator with its recovery; `async with` starts it and buries it. `settings` override the impatient ones."""

    def __init__(
        self,
        database_url: str,
        network: Network,
        *,
        freeze_at: int | None = None,
        recovers: bool = True,
        alone: bool = False,
        **settings: Any,
    ) -> None:
        self.gate = Gate(freeze_at=freeze_at)
        self.journal = GatedJournal(database_url, self.gate)
        self.transport = GatedTransport(network, self.gate)
        self.told: list[str] = []
        chosen = impatient_settings(database_url, **settings)
        caller = caller_of(chosen, self.transport, now, coordinator_id="c-1")
        parts = assemble(chosen, self.journal, caller, now, poll_s=lambda: POLL_S, tell=self.told.append, alone=alone)
        self.memory = parts.memory
        self.coordinator = parts.coordinator
        self.runs = parts.coordinator.runs
        self.registry = parts.registry
        self.metrics = parts.metrics
        self.recovery = recovery_of(parts)
        self.inbox = inbox_of(parts, poll_s=lambda: POLL_S)
        self._recovers = recovers
        self._alone = alone

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        loop.before_jump.append(self.check_no_connection_held)
        await self.registry.refresh()
        if self._recovers:
            await self.recovery.start()
        if not self._alone:
            await self.inbox.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        """End it without its taking part: what it holds in memory is gone."""
        self.gate.kill()
        tasks = [*self.runs._tasks, *filter(None, [self.recovery.task.task, self.inbox.task.task])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.journal.close()

    def check_no_connection_held(self) -> None:
        """Rule 8: while time passes, all that anybody waits for is an answer or a timer."""
        if not self.gate.is_closed:
            held = self.journal.engine.pool.checkedout()  # type: ignore[attr-defined]
            assert held == self.journal.writing == 0, f"{held} connections are held while time passes"

    async def command(self, transaction_id: str, command: Command) -> Transaction:
        """What an initiator or operator asks of this replica."""
        return await self.coordinator.commands.carry_out(transaction_id, command)

    async def finish(self, begin: Begin) -> Transaction:
        """What a client does: begin, and wait for the end."""
        begun = await self.coordinator.begin(begin)
        return await self.end_of(begun.id)

    async def end_of(self, transaction_id: str) -> Transaction:
        ended = await self.coordinator.wait(transaction_id, lambda t: t.finished, 600.0)
        assert ended.finished, f"still {ended.phase} after ten minutes"
        return ended


def make_schema(database_url: str) -> Engine:
    """An engine of the test's own on a database with the tables and the participants, its upgrade finished."""
    engine = engine_with_tables(database_url)
    register_participants(engine)
    with engine.execution_options(holdfast_writes=True).begin() as connection:
        connection.execute(compatibility.delete())
        connection.execute(compatibility.insert().values(compatible_from=_head()))
    return engine


def register_participants(engine: Engine) -> None:
    """What Network plays."""
    entries = [
        RegisteredParticipant(name=name, base_url=f"http://{name}", call_timeout_s=None, concurrency_max=64)
        for name in (*BRANCHES, *STEPS)
    ]
    with engine.execution_options(holdfast_writes=True).begin() as connection:
        participants.put_participants(connection, [participants.Registration(participant=each) for each in entries])


def stored(engine: Engine, transaction_id: str) -> Transaction:
    """The transaction as anybody else sees it."""
    with engine.connect() as connection:
        found = transactions.find(connection, transaction_id).finish()
    assert found is not None
    return found


def begin_of(*names: str, **fields: Any) -> Begin:
    """A transaction of these branches, each at the participant of its name; all three if none is named."""
    branches = tuple(Branch(name=name, participant=name, payload=text_of({"for": name})) for name in names or BRANCHES)
    return replace(Begin(branches=branches, timeout_s=30.0), **fields)


async def settled(*awaited: Awaitable[Any]) -> list[Any]:
    """The results of all, exceptions among them."""
    return await asyncio.gather(*awaited, return_exceptions=True)
