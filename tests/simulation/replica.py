"""One replica of the coordinator: everything of it but sockets and threads, and its restarts."""

import json
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

import httpx

from app.api import admin, transactions
from app.api.dependencies import Parts
from app.api.problems import Problem
from app.api.schemas import CallsQuery, HungQuery, ResolveRequest, TransactionsQuery
from app.auth.roles import ANYBODY
from app.engine.errors import ObjectedError, OverloadedError, UnknownTransactionError
from app.engine.recovery import Recovery
from app.main import assemble, caller_of, clock_sync_of, inbox_of, recovery_of, retention_of
from app.maintenance import clock_sync
from app.settings import Settings
from app.storage.errors import DatabaseUnavailableError
from tests.simulation.faults import Branch, Fault
from tests.simulation.journal import SimulatedJournal
from tests.simulation.network import Reply
from tests.simulation.restarting import Restarting
from tests.simulation.scheduler import Process, current, freeze, never

_Result = TypeVar("_Result")
POLL_S = 0.25
STOP_S = 0.3
COORDINATOR_ID = "the-coordinator"


class CallTransport(httpx.AsyncBaseTransport):
    """Carries a replica's calls to participants."""

    def __init__(self, world: Any, name: str) -> None:
        self._world = world
        self._name = name

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        world, host = self._world, request.url.host
        headers = {name.lower(): value for name, value in request.headers.raw}
        operation = headers[b"tcc-operation"].decode()
        topic = (headers[b"tcc-transaction-id"].decode(), headers[b"tcc-branch"].decode())
        attempt = int(headers[b"tcc-attempt"])
        call = world.oracle.call_leaves(current().name, *topic, operation)
        if attempt > 1:
            world.plan.count(Branch.REPEATED)
        message = (request.url.path, list(headers.items()), b"".join(request.stream))  # type: ignore[arg-type]
        label = f"{operation} {world.short(topic[0])} {topic[1]} #{attempt}"
        leaves_in_s = freeze() if world.plan.hits(Fault.REPLICA_FREEZE_AT_CALL) else 0.0
        exchange = world.network.exchange(self._name, host, message, topic, label, leaves_in_s=leaves_in_s)
        if world.plan.hits(Fault.REPLICA_CRASH_AT_CALL):
            if world.draw.random() < 0.7:
                world.loop.world.spawn(_forget(exchange))
            else:
                exchange.close()
            current().kill()
            await never()
        try:
            reply: Reply = await exchange
        finally:
            world.oracle.call_ends(call)
        if operation == "try" and reply.status == 200:
            world.oracle.held(*topic, reply.headers)
        if reply.status >= 400:
            world.tell("answer", host, self._name, f"{label}: {reply.status}")
        stream = httpx.ByteStream(reply.body)
        return httpx.Response(reply.status, headers=reply.headers, stream=stream)


async def _surely(start: Callable[[], Awaitable[_Result]]) -> _Result:
    """A supervisor starts it again until its database answers."""
    while True:
        with suppress(DatabaseUnavailableError):
            return await start()


async def _forget(exchange: Any) -> None:
    with suppress(httpx.HTTPError):
        await exchange


class Replica(Restarting):
    """A replica, and its restarts."""

    def __init__(self, world: Any, name: str, settings: Settings) -> None:
        super().__init__(world, name)
        self.settings = settings
        self.parts: Parts | None = None
        self.recovery: Recovery | None = None
        self.is_ready = False
        self.ready_at = 0.0

    def _assemble(self, life: Process) -> None:
        self.is_ready = False
        self.parts = self.recovery = None
        life.spawn(self._start(life, SimulatedJournal(life, self.world, self.name)))

    async def _start(self, life: Process, journal: SimulatedJournal) -> None:
        ask = clock_sync.asks_the_database(journal, life.elapsed)
        clock = await _surely(lambda: clock_sync.start_clock(ask, life.elapsed))
        journal.clock = clock
        caller = caller_of(self.settings, CallTransport(self.world, self.name), clock, coordinator_id=COORDINATOR_ID)
        parts = self.parts = assemble(
            self.settings, journal, caller, clock, poll_s=lambda: POLL_S, tell=self._tell_the_others, alone=False
        )
        await _surely(parts.registry.refresh)
        sync = clock_sync_of(parts, clock, life.clock)
        self.recovery = recovery_of(parts)
        for service in (sync, self.recovery, inbox_of(parts, poll_s=lambda: POLL_S), retention_of(parts, sync)):
            await service.start()
        if self.life is life:
            self.is_ready = True
            self.ready_at = self.world.loop.now

    def _tell_the_others(self, transaction_id: str) -> None:
        """What LISTEN and NOTIFY do, where the database has them."""
        if not self.world.notifies:
            return
        for replica in self.world.replicas:
            if replica is not self and not self.world.plan.hits(Fault.NOTIFICATION_LOST):
                self.world.network.notify(replica.name, partial(replica.hear, transaction_id))

    def hear(self, transaction_id: str) -> None:
        """A notification has arrived."""
        if self.parts is not None:
            self.parts.coordinator.runs.heard(transaction_id)

    def _changed(self, what: str, life: Process) -> None:
        super()._changed(what, life)
        if what == "dies":
            self.world.replica_died()

    async def stop(self) -> None:
        """SIGTERM."""
        life, parts, recovery = self.life, self.parts, self.recovery
        assert life is not None
        assert parts is not None
        assert recovery is not None

        async def stop() -> None:
            await recovery.stop()
            await parts.coordinator.runs.stop(STOP_S)
            life.kill()

        life.spawn(stop())

    @property
    def _listens(self) -> bool:
        return self.is_ready

    async def _serve(self, request: Any) -> Any:
        return await answer(self.world, self.parts, request)


async def answer(world: Any, parts: Any, request: tuple[str, ...]) -> tuple[int, Any]:
    """What the API answers: status and document."""
    try:
        response = await _route(parts, request)
    except Problem as problem:
        response = problem.response()
    except OverloadedError:
        response = Problem("overloaded").response()
    except UnknownTransactionError:
        response = Problem("unknown-transaction").response()
    except ObjectedError as error:
        response = Problem(error.reason.value).response()
    except DatabaseUnavailableError:
        response = Problem("unavailable").response()
    except Exception as error:
        world.oracle.violated("no_defects", None, f"{request[0]} raised {error!r}")
        response = Problem("internal-error").response()
    return response.status_code, json.loads(response.body)


async def _route(parts: Any, request: tuple[Any, ...]) -> Any:
    match request:
        case ("begin", body, prefer, key):
            return await transactions.begin(body, _REQUEST, parts, ANYBODY, prefer, f'"{key}"', None)
        case ("get", transaction_id, prefer):
            return await transactions.get(transaction_id, _REQUEST, parts, ANYBODY, prefer)
        case ("cancel", transaction_id):
            return await transactions.cancel(transaction_id, _REQUEST, parts, ANYBODY)
        case ("decision", transaction_id, *branch):
            return await transactions.get_decision(transaction_id, _REQUEST, parts, ANYBODY, *branch)
        case ("retry", transaction_id):
            return await admin.retry(transaction_id, _REQUEST, parts, ANYBODY)
        case ("list",):
            return await transactions.list_newest(parts, ANYBODY, TransactionsQuery(limit=500))
        case ("hung",):
            return await admin.list_hung(parts, ANYBODY, HungQuery(limit=500))
        case ("calls", transaction_id):
            return await transactions.list_calls(transaction_id, _REQUEST, parts, ANYBODY, CallsQuery(limit=500))
        case ("resolve", transaction_id, branch, settled, reason):
            body = ResolveRequest.model_validate({"as": settled, "reason": reason})
            return await admin.resolve(transaction_id, branch, body, _REQUEST, parts, ANYBODY)
    raise AssertionError(request)


class _Request:
    client = None


_REQUEST: Any = _Request()
