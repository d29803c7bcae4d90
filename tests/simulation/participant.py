"""One participant: the SDK on a database of its own, run without threads, and its restarts.

`gateway` is the two-step one: its effects are outside of its database, under idempotency keys.
"""

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import httpx
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session, sessionmaker
from starlette.requests import Request as StarletteRequest

from holdfast import Hold, Participant, Refused
from holdfast.fence import table
from holdfast.fence.database import Database
from holdfast.fence.execution import CrashPoint
from holdfast.fence.schedule import Holding
from holdfast.participant import inquiry
from holdfast.participant.routes import Description, _route
from holdfast.participant.running import Running
from holdfast.wire import Operation
from tests.harness import ledger
from tests.harness.evidence import Account, Effect, Request
from tests.harness.ledger import CHANGES, Movement
from tests.harness.notes import note_of
from tests.simulation.databases import ACCOUNTS, participant_engine
from tests.simulation.direct_sqlite import DirectSession
from tests.simulation.faults import Branch, Fault
from tests.simulation.journal import DriverError
from tests.simulation.network import Reply
from tests.simulation.restarting import Restarting
from tests.simulation.scheduler import Process, current, never, pass_time

GATEWAY = "gateway"
WORK_S = (0.0005, 0.005)
SLOW_S = (0.05, 0.8)
REAP_INTERVAL_S = 0.5
ASK_TIMEOUT_S = 0.5


class HandlerFailed(Exception):
    """What a handler raises that fails."""


class Died(BaseException):
    """The process dies here."""


here: Any = None
"""The world that runs now: handlers belong to participants, which outlive seeds."""


class FlakySession(DirectSession):
    """A session whose commits fail, before or after they are done."""

    def commit(self) -> None:
        if here.plan.hits(Fault.PARTICIPANT_DATABASE_FAILED):
            raise OperationalError("simulated", None, DriverError())
        super().commit()
        if here.plan.hits(Fault.PARTICIPANT_COMMIT_REPLY_LOST):
            raise OperationalError("simulated", None, DriverError())


class InlineDatabase(Database):
    """Runs units of work at once, with some time before and after."""

    async def run(self, work: Callable[..., Any], *, calls_handlers: bool = False) -> Any:
        draw = here.draw
        slow = here.plan.hits(Fault.PARTICIPANT_SLOW)
        await pass_time(draw.uniform(*(SLOW_S if slow else WORK_S)))
        crashes = here.plan.hits(Fault.PARTICIPANT_CRASH_AT_COMMIT)
        try:
            if crashes and draw.random() < 0.5:
                raise Died
            result = self._run_here(work)
            if crashes:
                raise Died
        except Died:
            current().kill()
            await never()
        await pass_time(draw.uniform(*WORK_S))
        return result


@cache
def participant_named(name: str) -> Participant:
    """The participant with its handlers, which every seed copies."""
    sessions = sessionmaker(participant_engine(name), class_=FlakySession)
    two_step = name == GATEWAY
    participant = Participant(
        name,
        sessions,
        coordinator_url="http://replica",
        two_step=two_step,
        handler_timeout_s=0.3 if two_step else None,
    )
    change = _outside if two_step else _inside

    @participant.on_try
    def hold_it(hold: Hold[Movement], session: Session) -> dict[str, str]:
        _may_fail()
        if here.plan.hits(Fault.HANDLER_REFUSES):
            raise Refused("not today")
        change(session, hold, "try")
        return {"hold": hold.idempotency_key}

    @participant.on_confirm
    def make_it_final(hold: Hold[Movement], session: Session) -> None:
        _may_fail()
        change(session, hold, "confirm")

    @participant.on_cancel
    def give_it_back(hold: Hold[Movement], session: Session) -> None:
        _may_fail()
        if hold.attempt == 0:
            here.plan.count(Branch.REAPED)
        change(session, hold, "cancel")

    return participant


def _may_fail() -> None:
    if here.plan.hits(Fault.HANDLER_FAILS):
        raise HandlerFailed


def _inside(session: Session, hold: Hold[Movement], operation: str) -> None:
    ledger._change(session, hold, operation)


def _outside(_session: Session, hold: Hold[Movement], operation: str) -> None:
    here.gateway.change(hold, operation)
    _may_fail()


class Gateway:
    """A system outside, which knows idempotency keys and survives everything."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._done: dict[str, list[str]] = {}
        self.effects: list[Effect] = []
        self.accounts = {
            number: {"balance": ledger.OPENING_BALANCE, "held": 0, "incoming": 0} for number in range(ACCOUNTS)
        }

    def change(self, hold: Hold[Movement], operation: str) -> None:
        done = self._done.setdefault(hold.idempotency_key, [])
        if operation in done:
            return
        if operation == "cancel" and "try" not in done:
            done.append("cancel")  # and a Try that comes later finds the key void
            return
        if operation == "try" and "cancel" in done:
            raise Refused("void")
        movement, account = hold.payload, self.accounts[hold.payload.account]
        if (movement.kind, operation) == ("debit", "try") and account["balance"] < movement.amount:
            raise Refused("insufficient funds")
        for name, sign in CHANGES[movement.kind, operation].items():
            account[name] += sign * movement.amount
        done.append(operation)
        self.effects.append(
            Effect(
                participant=GATEWAY,
                at=self._now(),
                transaction_id=hold.transaction_id,
                branch=hold.branch,
                operation=operation,
                **movement.moves(),
            )
        )


class InquiryTransport(httpx.AsyncBaseTransport):
    """Carries a participant's questions to any replica, or, while it is misled, to a coordinator of another system."""

    def __init__(self, world: Any, name: str, *, is_misled: bool) -> None:
        self._world = world
        self._name = name
        self._is_misled = is_misled

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        world, transaction_id, branch = self._world, request.url.path.split("/")[-2], request.url.params["branch"]
        is_stranger = (transaction_id, branch) in world.strangers
        if self._is_misled and world.plan.on and not is_stranger:
            return httpx.Response(404, json={"type": inquiry.UNKNOWN_TRANSACTION, "coordinator_id": "another"})
        replica = world.draw.randrange(len(world.replicas))
        sent_at = world.loop.now
        label = f"asks {world.short(transaction_id)}"
        question = ("decision", transaction_id, branch)
        topic = (self._name, "asks", transaction_id, branch)
        status, document = await world.network.exchange(self._name, f"replica-{replica}", question, topic, label)
        told = document.get("decision")
        if status == 404:
            world.plan.count(Branch.TOLD_UNKNOWN)
        if told == "cancel" and is_stranger and world.oracle.is_confirmed(transaction_id):
            world.plan.count(Branch.TOLD_STRAY)
        if not is_stranger:
            note = note_of(
                "inquiry",
                document,
                replica=replica,
                sent_at=sent_at,
                seen_at=world.loop.now,
                status=status,
                transaction_id=transaction_id,
            )
            world.notes.append(note)
        world.tell("told", f"replica-{replica}", self._name, f"{world.short(transaction_id)} {told or status}")
        return httpx.Response(status, json=document)


_TOLD = {
    inquiry.Verdict.CONFIRM: Branch.TOLD_CONFIRM,
    inquiry.Verdict.CANCEL: Branch.TOLD_CANCEL,
    inquiry.Verdict.UNDECIDED: Branch.TOLD_UNDECIDED,
    inquiry.Verdict.UNREACHABLE: Branch.UNREACHABLE,
}


class SimulatedParticipant(Restarting):
    """A participant, and its restarts."""

    def __init__(
        self, world: Any, name: str, *, hold_ttl_max_s: float | None, hold_max_s: float | None, reacquires: bool
    ) -> None:
        super().__init__(world, name)
        self.hold_ttl_max_s = hold_ttl_max_s
        self.hold_max_s = hold_max_s
        self.reacquires = reacquires
        self.is_misled = world.plan.hits_once(Fault.ANOTHER_COORDINATOR)
        self._answers: dict[str, Any] = {}

    def _assemble(self, life: Process) -> None:
        template = participant_named(self.name)
        participant = copy.copy(template)
        participant._running = Running()  # what was under way in the life before is gone
        participant._rules = replace(
            template._rules,
            clock=life.clock,
            jitter=self.world.draw.random,
            probe=self._probe,
            schedule=Holding(hold_ttl_max_s=self.hold_ttl_max_s, hold_max_s=self.hold_max_s),
            fence=table.fence(may_reacquire=self.reacquires),
            lease_s=0.6,
        )
        participant._knows_table = True
        participant._database = InlineDatabase(template._database._sync)  # type: ignore[arg-type]
        described = Description(self.name, participant._rules.fence, participant._signatures)
        self._answers = {
            f"/{operation.value}": _route(operation, participant._receive, participant._failure_of, described)
            for operation in Operation
        }
        transport = InquiryTransport(self.world, self.name, is_misled=self.is_misled)

        async def ask(question: inquiry.Question) -> inquiry.Answered:
            answered = await inquiry.ask(transport, "http://replica", question, timeout_s=ASK_TIMEOUT_S)
            self.world.plan.count(_TOLD[answered.verdict])
            return answered

        life.spawn(participant._reaper(ask).run_for_ever(REAP_INTERVAL_S))

    def _probe(self, point: CrashPoint) -> None:
        if here.plan.hits(Fault.PARTICIPANT_CRASH_AT_COMMIT):
            raise Died

    async def _serve(self, message: tuple[str, Any, bytes]) -> Reply:
        path, headers, body = message
        world = self.world
        named = dict(headers)
        transaction_id, branch = named[b"tcc-transaction-id"].decode(), named[b"tcc-branch"].decode()
        arrived_at, operation = world.loop.now, path.rpartition("/")[2]
        scope = {"type": "http", "method": "POST", "path": path, "query_string": b"", "headers": headers}

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": body, "more_body": False}

        request = Request(
            participant=self.name,
            operation=operation,
            transaction_id=transaction_id,
            branch=branch,
            attempt=int(named[b"tcc-attempt"]),
            arrived_at=arrived_at,
        )
        place = len(world.requests)
        world.requests.append(request)
        response = await self._answers[f"/{operation}"](StarletteRequest(scope, receive))
        world.requests[place] = replace(request, answered_at=world.loop.now, status=response.status_code)
        if operation == "try" and response.status_code == 409 and b"already-cancelled" in response.body:
            world.plan.count(Branch.LATE_TRY)
        return Reply(response.status_code, response.raw_headers, response.body)

    def accounts(self, connection: Any) -> list[Account]:
        rows = connection.execute("SELECT account, balance, held, incoming FROM accounts")
        return [Account(participant=self.name, account=a, balance=b, held=h, incoming=i) for a, b, h, i in rows]
