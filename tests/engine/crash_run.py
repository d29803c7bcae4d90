"""One run of a coordinator that dies and is started again, among participants and clients that don't.

Everything of the coordinator but sockets and threads: its API, its loop, recovery, its journal's batches, on a real
database. Clients repeat what was not answered, as they must. What everybody did and was told is written down, and
tests/harness/checker.py says what is wrong with it.
"""

import asyncio
import contextvars
import json
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import httpx
import pytest
from sqlalchemy import event, func, select
from sqlalchemy.exc import OperationalError

from app.api.rendering import transaction_json
from app.engine.notifications import POLL_S
from app.main import assemble, caller_of, create_app, inbox_of, recovery_of
from app.storage import calls, tables, transactions
from app.storage.errors import DatabaseUnavailableError
from app.storage.group_commit import CommitFailedError, Journal, PendingWrite, settle
from holdfast.wire import Decision
from tests.engine.processes import Moment, Plan, Point, Process, ProcessLoop
from tests.harness.checker import check
from tests.harness.evidence import Evidence, HistoryCall, Hold, Known, known_of
from tests.harness.kind_network import KindNetwork
from tests.harness.network import Network, Script
from tests.harness.notes import Note, note_of, slug_of
from tests.harness.replica import impatient_settings, make_schema
from tests.harness.virtual_time import now, pass_time

LATENCY_S: Final = 0.01
"""How long a call takes on its way to a participant, and an answer back."""
AGAIN_S: Final = 0.1
"""How long a client waits before it repeats what was answered 503."""
OF_TCC: Final = frozenset(
    {
        "history_explains_the_end",
        "never_both_decisions",
        "calls_follow_the_decision",
        "nobody_refuses_what_was_decided",
        "confirm_only_when_all_hold",
        "participants_agree",
        "effects_are_the_outcome",
        "no_try_after_its_cancel",
        "no_hold_left",
        "money_is_conserved",
    }
)
"""Rules of the checker in words of TCC; of other kinds KindNetwork says what must be so."""
TABLES: Final = (tables.hung_branches, tables.commands, tables.calls, tables.branches, tables.transactions)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """What happens unless something dies. `phase`, `reason` and `outcome` say how it ends, whatever dies.

    `actors` are whoever else takes part: an operator, a client that thinks better of it.
    """

    name: str
    phase: str
    reason: tuple[str, str | None] | None = None
    """Its code, and which branch is to blame."""
    outcome: str | None = None
    branches: tuple[str, ...] = ("flight", "hotel")
    kinds: Mapping[str, str] = field(default_factory=dict)
    """The kinds of branches that aren't TCC."""
    undo: str = "parallel"
    timeout_s: float = 30.0
    try_order: str = "parallel"
    answer_at: str = "decision"
    decisions_stall_s: float = 0.0
    """The database takes so long for each decision to confirm, before its COMMIT."""
    clients: int = 1
    """So many begin it at once, under one key."""
    script: Script = field(default_factory=dict)
    actors: tuple[Callable[["CrashRun", str], Awaitable[None]], ...] = ()
    excused: frozenset[str] = frozenset()
    """Rules of the checker that the script breaks by itself."""

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a client was told; `status` 0 means nothing: the coordinator died."""

    status: int
    document: Any = None

    @property
    def transaction(self) -> Any:
        return self.document.get("transaction", self.document)

    @property
    def problem(self) -> str | None:
        return slug_of(self.document)


class Environment:
    """What all runs on one database share: it is emptied before each."""

    def __init__(self, database_url: str) -> None:
        self.settings = impatient_settings(database_url)
        self.engine = make_schema(database_url)
        if self.engine.dialect.name == "sqlite":
            event.listen(self.engine, "connect", _sync_nothing)
            self.engine.dispose()
        self.app = create_app(self.settings)

    @property
    def is_embedded(self) -> bool:
        return self.engine.dialect.name == "sqlite"

    def empty(self) -> None:
        with self.engine.execution_options(holdfast_writes=True).begin() as connection:
            for table in TABLES:
                connection.exec_driver_sql(f"DELETE FROM {table.name}")

    def close(self) -> None:
        self.engine.dispose()


def _sync_nothing(connection: Any, _record: Any) -> None:
    """No power cut will happen here: whatever dies, the machine lives on."""
    connection.execute("PRAGMA synchronous=OFF")


class InlineJournal(Journal):
    """The journal of one life: the same batches, made by the loop and not by a thread."""

    def __init__(self, crash_run: "CrashRun") -> None:
        self.engine = crash_run.environment.engine
        self._writing_engine = self.engine.execution_options(holdfast_writes=True)
        self._crash_run = crash_run
        self._loop = crash_run.loop
        self._waiting: list[PendingWrite] = []
        self._is_writing = False
        self._closed = False

    async def write(self, function: Callable[..., Sequence[Any]], item: Any) -> Any:
        future = self._loop.create_future()
        self._waiting.append(PendingWrite(function, item, self._loop, future))
        if not self._is_writing:
            self._is_writing = True
            self._loop.call_soon(self._write_all)
        return await future

    async def read(self, function: Callable[..., Any], *args: Any) -> Any:
        await asyncio.sleep(0)
        result = self._read(function, args)
        await asyncio.sleep(0)
        return result

    def _write_all(self) -> None:
        batch, self._waiting = self._waiting, []
        answers = [(write.future, result) for write, result in zip(batch, self.commit(batch), strict=True)]
        self._loop.call_soon(self._answer, answers)

    def _answer(self, answers: list[tuple["asyncio.Future[Any]", Any]]) -> None:
        settle(answers)
        self._is_writing = bool(self._waiting)
        if self._waiting:
            self._loop.call_soon(self._write_all)

    def _commit_together(self, batch: list[PendingWrite]) -> list[Any]:
        if any(_decides_to_confirm(write.item) for write in batch):
            self._loop.stall(self._crash_run.scenario.decisions_stall_s)
        results = super()._commit_together(batch)
        written = [
            write.function.__name__
            for write, result in zip(batch, results, strict=True)
            if result or write.function is not transactions.claim
        ]
        if written:
            self._crash_run.left(f"commits {' '.join(written)}")
            if self._crash_run.plan.loses_reply_of(" ".join(written)):
                raise CommitFailedError(OperationalError("the reply was lost", None, ConnectionError()))
        return results


def _decides_to_confirm(item: Any) -> bool:
    if not isinstance(item, transactions.Save):
        return False
    return item.before.decision is not item.after.decision is Decision.CONFIRM


class CallTransport(httpx.AsyncBaseTransport):
    """Carries calls to the participants; what has left arrives, whatever becomes of who sent it."""

    def __init__(self, crash_run: "CrashRun") -> None:
        self._crash_run = crash_run

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        body = await request.aread()
        self._crash_run.left(f"sends {request.headers['tcc-operation']} {request.headers['tcc-branch']}")
        reply = await asyncio.shield(self._crash_run.begin_task(self._carry(body)))
        if reply.silent:
            await asyncio.get_running_loop().create_future()
        return httpx.Response(reply.status, json=reply.body, headers=reply.headers)

    async def _carry(self, body: bytes) -> Any:
        await pass_time(LATENCY_S)
        reply = await self._crash_run.network.handle(body)
        self._crash_run.events.append("arrived")
        await pass_time(LATENCY_S)
        return reply


class Life:
    """One process, from its start to its death."""

    def __init__(self, crash_run: "CrashRun") -> None:
        self.process = Process(crash_run.loop, crash_run.plan)
        self.is_up = asyncio.Event()
        self.process.run(lambda: self._assemble(crash_run))
        self.started = self.process.spawn(self._start(crash_run))

    def _assemble(self, crash_run: "CrashRun") -> None:
        self.journal = InlineJournal(crash_run)
        settings = crash_run.environment.settings
        caller = caller_of(settings, CallTransport(crash_run), now, coordinator_id="c-1")
        self.parts = assemble(
            settings,
            self.journal,
            caller,
            now,
            poll_s=lambda: POLL_S,
            tell=lambda transaction_id: None,
            alone=crash_run.environment.is_embedded,
        )

    async def _start(self, crash_run: "CrashRun") -> None:
        """What main.py does before the first request."""
        while True:
            try:
                if crash_run.environment.is_embedded:
                    await self.journal.write(transactions.release_leases, now())
                await self.parts.registry.refresh()
                break
            except DatabaseUnavailableError:  # a supervisor starts it again
                continue
        await recovery_of(self.parts).start()
        if not crash_run.environment.is_embedded:
            await inbox_of(self.parts, poll_s=lambda: POLL_S).start()
        crash_run.environment.app.state.parts = self.parts
        self.is_up.set()


class CrashRun:
    """One run of `scenario` with these faults; `problems` is what was wrong with it, to be read after `run`."""

    def __init__(self, environment: Environment, scenario: Scenario, faults: Sequence[Point] = ()) -> None:
        self.environment = environment
        self.scenario = scenario
        self.events: list[str] = []
        self._left = 0
        self.plan = Plan(faults, self._moment)
        self.lives = 0
        self.notes: list[Note] = []
        self.histories: dict[str, list[HistoryCall]] = {}
        self.known: dict[str, Known] = {}
        self.problems: list[str] = []
        self._ids = 0

    def run(self) -> "CrashRun":
        """Run it to the end of all, and look at what is left."""
        self.environment.empty()
        random.seed(0)
        self.loop = ProcessLoop()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("app.engine.coordinator._new_id", self._new_id)
            try:
                self.loop.run_world(self._run())
            except TimeoutError:
                self.problems.append("stranded: somebody was still waiting after ten minutes")
        return self

    def begin_task(self, coroutine: Any) -> "asyncio.Task[Any]":
        """What happens outside of the process that asks for it."""
        return self.loop.create_task(coroutine, context=self._context)

    def left(self, what: str) -> None:
        """Something has left the process that lives now."""
        self._left += 1
        self.events.append(what)

    # --- for clients ---------------------------------------------------------------------------------------------

    async def begin(self, key: str = "order-1") -> Answer:
        """Begin the scenario's transaction, and repeat it until it is answered."""
        scenario = self.scenario
        body = {
            "name": "journey",
            "reference": key,
            "answer_at": scenario.answer_at,
            "timeout_s": scenario.timeout_s,
            "try_order": scenario.try_order,
            "undo": scenario.undo,
            "branches": [
                {"participant": name, "kind": scenario.kinds.get(name, "tcc"), "payload": {"for": name}}
                for name in scenario.branches
            ],
        }
        headers = {"Idempotency-Key": f'"{key}"', "Prefer": "wait=300"}
        answer = await self.insist("begin", "POST", "/v1/transactions", body, headers, key=key)
        assert answer.status in (201, 202, 409), answer
        assert "id" in answer.transaction, answer
        return answer

    async def get(self, transaction_id: str, wait_s: int = 0) -> Any:
        """The transaction, as the coordinator says."""
        path, headers = f"/v1/transactions/{transaction_id}", {"Prefer": f"wait={wait_s}"}
        return (await self.insist("get", "GET", path, headers=headers)).document

    async def insist(self, kind: str, method: str, path: str, *args: Any, **more: Any) -> Answer:
        """Ask until there is an answer."""
        while True:
            answer = await self.ask(kind, method, path, *args, **more)
            if answer.status not in (0, 503):
                return answer
            await pass_time(AGAIN_S if answer.status else 0.0)

    async def ask(
        self,
        kind: str,
        method: str,
        path: str,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
        key: str | None = None,
    ) -> Answer:
        """Ask once, of whoever lives now, and write down what came back."""
        life = self.life
        sent_at = self.loop.time()
        up = asyncio.ensure_future(life.is_up.wait())
        either: list[asyncio.Future[Any]] = [up, life.process.died]
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        up.cancel()
        if life.process.dead:
            return Answer(status=0)
        content = b"" if body is None else json.dumps(body).encode()
        request = httpx.Request(
            method,
            f"http://localhost{path}",
            headers={"Content-Type": "application/json"} | dict(headers or {}),
            content=content,
        )
        asked = life.process.spawn(self._answered(request))
        await asyncio.wait({asked, life.process.died}, return_when=asyncio.FIRST_COMPLETED)
        answer = asked.result() if asked.done() else Answer(status=0)
        if answer.status == 500:
            self.problems.append(f"{method} {path} was answered 500")
        if kind in ("begin", "get", "decision", "cancel"):
            seen_at = self.loop.time()
            self.notes.append(
                note_of(
                    kind,
                    answer.document,
                    replica=self.lives,
                    sent_at=sent_at,
                    seen_at=seen_at,
                    status=answer.status,
                    key=key,
                )
            )
        return answer

    async def _answered(self, request: httpx.Request) -> Answer:
        transport = httpx.ASGITransport(self.environment.app, raise_app_exceptions=False)
        response = await transport.handle_async_request(request)
        answer = Answer(status=response.status_code, document=json.loads(await response.aread()))
        self.events.append(f"answers {answer.status}")
        return answer

    # --- the run -------------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        self._context = contextvars.copy_context()
        network = KindNetwork if self.scenario.kinds else Network
        self.network = network(self.environment.engine, now, dict(self.scenario.script))
        self.life = self._boot()
        self._supervisor = asyncio.create_task(self._supervise())
        answers = await asyncio.gather(*(self.begin() for _ in range(self.scenario.clients)))
        transaction_id = answers[0].transaction["id"]
        await asyncio.gather(*(actor(self, transaction_id) for actor in self.scenario.actors))
        end = await self.get(transaction_id, wait_s=300)
        self._check_end(end)
        again = await self.begin()
        if (again.transaction["id"], again.transaction["outcome"]) != (end["id"], end["outcome"]):
            self.problems.append(f"begun again under its key it is {again.transaction}")
        self._look_back()

    def _boot(self) -> Life:
        self.lives += 1
        self.events.append("boots")
        return Life(self)

    async def _supervise(self) -> None:
        while True:
            await self.life.process.died
            self.life = self._boot()

    def _check_end(self, end: Any) -> None:
        scenario = self.scenario
        reason = end["reason"] and (end["reason"]["code"], end["reason"]["branch"])
        ended = (end["phase"], reason, end["outcome"])
        if ended != (scenario.phase, scenario.reason, scenario.outcome or scenario.phase):
            self.problems.append(f"it ended {ended}")

    def _look_back(self) -> None:
        """What is in the database now, and whether it agrees with what everybody did and was told."""
        with self.environment.engine.connect() as connection:
            ids = connection.execute(select(tables.transactions.c.id)).scalars().all()
            unfinished = select(func.count()).where(tables.transactions.c.wake_at.is_not(None))
            left = connection.execute(unfinished).scalar_one()
            hung = connection.execute(select(func.count()).select_from(tables.hung_branches)).scalar_one()
            for id_ in ids:
                transaction = transactions.find(connection, id_).finish()
                assert transaction is not None
                if isinstance(self.network, KindNetwork):
                    self.problems += self.network.faults_at_the_end(transaction)
                self.known[id_] = known_of(transaction_json(transaction))
                self.histories[id_] = [
                    HistoryCall(branch=call.branch, operation=call.operation.value, answer=call.answer.value)
                    for _, call in calls.list_calls(connection, id_, 1000, 0)
                ]
        if left or hung:
            self.problems.append(f"stranded: {left} transactions and {hung} branches at the end")
        found = check(self._evidence())
        excused = self.scenario.excused | (OF_TCC if self.scenario.kinds else frozenset())
        self.problems += [f"{each.rule}: {each.what}" for each in found if each.rule not in excused]
        self.problems += self.network.violations

    def _evidence(self) -> Evidence:
        network = self.network
        return Evidence(
            opening_balance=0,
            opening_total=0,
            requests=network.requests,
            effects=network.effects,
            holds=[
                Hold(participant=branch, transaction_id=id_, branch=branch, state=state)
                for (id_, branch), state in network.fences.items()
                if state == "held"
            ],
            notes=self.notes,
            known=self.known,
            histories=self.histories,
        )

    def _moment(self) -> Moment:
        return Moment(self._left, len(self.events), self.loop.time())

    def _new_id(self, at: float) -> str:
        """Ids, and with them the jitter of every back-off, are the same in every run."""
        self._ids += 1
        return f"00000000-0000-7000-8000-{self._ids:012d}"
