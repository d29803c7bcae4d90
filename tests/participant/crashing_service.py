"""A service with the SDK that dies at the nth point: before each statement, before and after each commit, around each
effect outside and each question to the coordinator, and before it answers.

What dies is never resumed: neither its `finally` nor its `except` runs, its connections are cut, and a new process
starts on the same database. Between two points nothing leaves the process.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

import httpx
from sqlalchemy import Engine, event
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.util import await_only, greenlet_spawn

from holdfast import Hold, Refused
from holdfast.fence.database import Database
from holdfast.fence.execution import BACKOFF_CAP_S
from holdfast.testing import Answer, Branch, Decided, FakeCoordinator
from tests.harness.participant_app import SeatRequest, Service, service_on

LEASE_S: Final = 36
ROUNDS_MAX: Final = 60  # "busy" says to come back in a second, and a lease lasts 35


class Fault(StrEnum):
    KILLED = "killed"
    REPLY_LOST = "reply lost"  # the commit is durable, and the process, which lives on, is told that it failed


Point = tuple[Fault, int]
"""A fault, and at which point (or commit) since the fault before it: 1, 2, 3, …"""


class Stranded(AssertionError):
    """Repeating led nowhere."""


@dataclass(slots=True)
class Plan:
    """The faults of one run, in order; and the points and commits that it came past since the last of them."""

    faults: Sequence[Point]
    points: list[str] = field(default_factory=list)
    commits: int = 0
    happened: int = 0
    died: asyncio.Event = field(default_factory=asyncio.Event)

    def passes(self, point: str) -> bool:
        """Whether the process lives on."""
        self.points.append(point)
        if self._happens(Fault.KILLED, len(self.points)):
            self.died.set()
        return not self.died.is_set()

    def loses_reply(self) -> bool:
        self.commits += 1
        return self._happens(Fault.REPLY_LOST, self.commits)

    def _happens(self, fault: Fault, count: int) -> bool:
        if self.all_happened or self.faults[self.happened] != (fault, count):
            return False
        self.happened += 1
        self.points.clear()
        self.commits = 0
        return True

    @property
    def all_happened(self) -> bool:
        return self.happened == len(self.faults)


class Gateway:
    """Something outside, of the least helpful kind: authorising after a void takes the money again."""

    def __init__(self) -> None:
        self.state: dict[str, str] = {}

    def perform(self, operation: str, key: str) -> None:
        match operation:
            case "try":
                self.state[key] = "authorised"
            case "confirm":
                self.state[key] = "captured"
            case "cancel" if self.state.get(key) == "authorised":
                self.state[key] = "void"


class _Inline(Database):
    """Runs work of a synchronous engine on the loop, where it can be left where it is."""

    async def run(self, work: Callable[..., Any], *, calls_handlers: bool = False) -> Any:
        return await greenlet_spawn(self._run_here, work)


class Environment:
    """What outlives processes and is shared by all runs: the engine, with points in it."""

    def __init__(self, engine: Engine | AsyncEngine) -> None:
        self.engine = engine
        self.plan = Plan(())
        self._out: dict[Any, Any] = {}
        sync = engine.sync_engine if isinstance(engine, AsyncEngine) else engine
        event.listen(sync, "before_cursor_execute", self._statement)
        event.listen(sync, "checkout", self._checked_out)
        event.listen(sync, "checkin", self._checked_in)
        self._commit, self._error = sync.dialect.do_commit, sync.dialect.dbapi.OperationalError  # type: ignore[union-attr]
        sync.dialect.do_commit = self._do_commit  # type: ignore[method-assign, assignment]

    def point(self, what: str) -> None:
        """A point in code that runs in a greenlet, which stays here for ever when the process dies."""
        if not self.plan.passes(what):
            await_only(never())

    async def kill(self) -> None:
        """Cut the connections of the dead process, as the system does."""
        out, self._out = self._out, {}
        for driver in out.values():
            if hasattr(driver, "terminate"):
                driver.terminate()
            elif isinstance(self.engine, AsyncEngine):
                await driver.close()
            else:
                driver.close()
        if isinstance(self.engine, AsyncEngine):
            await self.engine.dispose()
        else:
            self.engine.dispose()

    def _statement(self, _connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        self.point(statement.split(maxsplit=1)[0])

    def _do_commit(self, connection: Any) -> None:
        self.point("COMMIT")
        self._commit(connection)
        if self.plan.loses_reply():
            raise self._error("the reply was lost")
        self.point("committed")

    def _checked_out(self, connection: Any, record: Any, _proxy: Any) -> None:
        self._out[id(record)] = record.driver_connection

    def _checked_in(self, _connection: Any, record: Any) -> None:
        self._out.pop(id(record), None)


async def never() -> None:
    await asyncio.get_running_loop().create_future()


class CrashRun:
    """One run: a coordinator and a clock outside, one process after the other inside."""

    def __init__(self, environment: Environment, faults: Sequence[Point], *, outside: bool, **options: Any) -> None:
        self.environment = environment
        self.plan = environment.plan = Plan(faults)
        self.gateway = Gateway() if outside else None
        self.refuses = False
        self.refuses_repeats = False
        """The gateway says no to a key that it knows."""
        self.failures = 0
        """So many runs of handlers fail."""
        self.decision: Decided = "undecided"
        self.told: list[tuple[str, Answer]] = []
        self.lives = 0
        self._options = options
        self._passed_s = 0.0
        self._dead: list[Any] = []
        self._boot()
        self.branch: Branch = self.coordinator.branch({"quantity": 2})

    def _boot(self) -> None:
        self.lives += 1
        self.plan.died = asyncio.Event()
        self.service: Service = service_on(self.environment.engine, **self._options)
        self.service.behave.append(self._handle)
        participant = self.service.participant
        participant._creates_table = False
        if not participant._database.asynchronous:
            participant._database = _Inline(self.environment.engine)
        self.coordinator = FakeCoordinator(participant, decision=self.decision)
        self.coordinator._passed_s = self._passed_s

    def _handle(self, operation: str, hold: Hold[SeatRequest]) -> Any:
        if self.failures:
            self.failures -= 1
            raise RuntimeError("it did not work")
        known = self.gateway is not None and hold.idempotency_key in self.gateway.state
        if operation == "try" and (self.refuses or (self.refuses_repeats and known)):
            raise Refused("sold out")
        if self.gateway is None:
            return {"reserved": hold.payload.quantity}
        return self._outside(operation, hold.idempotency_key)

    def _outside(self, operation: str, key: str) -> Any:
        """The call to the gateway, with a point before and one after it."""
        assert self.gateway is not None
        if isinstance(self.environment.engine, AsyncEngine):
            return self._outside_async(operation, key)
        self.environment.point(f"gateway {operation}")
        self.gateway.perform(operation, key)
        self.environment.point("gateway answered")
        return {"authorisation": key}

    async def _outside_async(self, operation: str, key: str) -> Any:
        assert self.gateway is not None
        await self._point(f"gateway {operation}")
        self.gateway.perform(operation, key)
        await self._point("gateway answered")
        return {"authorisation": key}

    async def _point(self, what: str) -> None:
        if not self.plan.passes(what):
            await never()

    # --- what the coordinator, the reaper and time do ----------------------------------------------------------------

    def pass_time(self, seconds: float) -> None:
        self._passed_s += seconds
        self.coordinator.pass_time(seconds)

    async def call(self, operation: str) -> Answer:
        """One call, repeated as the coordinator repeats it: until it is answered."""
        for _ in range(ROUNDS_MAX):
            answer = await self.call_once(operation)
            if answer is not None and answer.status < 500:
                return answer
            self.pass_time(answer.retry_after_s or 1.0 if answer else LEASE_S)
        raise Stranded(f"{operation} is never answered: {self.told[-3:]}")

    async def call_once(self, operation: str) -> Answer | None:
        """One call; None when the process died before it answered."""
        self.branch.coordinator = self.coordinator
        ask = {"try": self.branch.try_, "confirm": self.branch.confirm, "cancel": self.branch.cancel}[operation]
        answer: Answer | None = await self._while_it_lives(ask)
        if answer is not None:
            self.told.append((operation, answer))
        return answer

    async def reap(self) -> None:
        """Rounds of the reaper, until one ends in which nothing went wrong."""
        for _ in range(ROUNDS_MAX):
            before = self.plan.happened
            self.coordinator.decision = self.decision
            with suppress(SQLAlchemyError):  # the service's own loop goes on to the next round
                await self._while_it_lives(self.coordinator.reap)
            if self.plan.happened == before:
                return
            self.pass_time(BACKOFF_CAP_S)
        raise Stranded("the reaper never ends a round")

    async def _while_it_lives(self, do: Callable[[], Awaitable[Any]]) -> Any:
        """What comes of it; None when the process died, and another one runs now."""
        running = asyncio.ensure_future(self._as_process(do))
        died = asyncio.ensure_future(self.plan.died.wait())
        await asyncio.wait({running, died}, return_when=asyncio.FIRST_COMPLETED)
        died.cancel()
        if not self.plan.died.is_set():
            return running.result()
        self._dead.append(running)
        await self.environment.kill()
        self._boot()
        return None

    async def _as_process(self, do: Callable[[], Awaitable[Any]]) -> Any:
        async with self.coordinator:
            participant = self.service.participant
            fake = participant._transport
            assert fake is not None
            participant._transport = httpx.MockTransport(self._question(fake))
            await self._point("arrives")
            result = await do()
            await self._point("answers")
            return result

    def _question(
        self, fake: httpx.AsyncBaseTransport
    ) -> Callable[[httpx.Request], Coroutine[None, None, httpx.Response]]:
        async def ask(request: httpx.Request) -> httpx.Response:
            await self._point("asks")
            response = await fake.handle_async_request(request)
            await self._point("hears")
            return response

        return ask

    async def bury(self) -> None:
        """Now that all has been looked at: let go of what is still under way in dead processes.

        What they come past while they are let go of is no part of the run.
        """
        seen = list(self.plan.points), self.plan.commits
        for task in self._dead:
            task.cancel()
        with suppress(Exception):
            await asyncio.gather(*self._dead, return_exceptions=True)
        self.plan.points, self.plan.commits = seen
