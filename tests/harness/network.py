"""Scripted participants on a network of their own: they keep their word, and write down what they were asked.

Each holds, confirms and cancels like a service with a fence (section 5 of the contract), unless its script says
otherwise. Whatever breaks the rules of section 2 is noted in `violations`; a test asserts that there are none.
"""

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Engine

from app.storage import tables, transactions
from holdfast.wire import Operation
from tests.harness.evidence import Effect, Request
from tests.harness.virtual_time import pass_time


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """How a participant answers one call. `effect` says whether it does what it was asked to."""

    status: int = 200
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)
    travel_s: float = 0.0
    """How long the call takes to arrive."""
    delay_s: float = 0.0
    """How long the answer takes, when the work is done."""
    silent: bool = False
    effect: bool | None = None

    @property
    def does_it(self) -> bool:
        return 200 <= self.status < 300 and self.status != 202 if self.effect is None else self.effect


HOLDS = Reply(body={"hold": 1})
SILENT = Reply(silent=True, effect=True)  # it did it, but nobody will hear of it
Script = dict[tuple[str, Operation], list[Reply]]


@dataclass(frozen=True, slots=True)
class Asked:
    """One call as a participant saw it."""

    transaction_id: str
    branch: str
    operation: Operation
    attempt: int
    at: float
    message: dict[str, Any]


class Network:
    """All participants. `script` gives the replies to a branch's operation in turn; the last one repeats."""

    def __init__(self, engine: Engine, clock: Callable[[], float], script: Script | None = None) -> None:
        self._engine = engine
        self._clock = clock
        self.script: Script = script or {}
        self.asked: list[Asked] = []
        self.requests: list[Request] = []
        self.effects: list[Effect] = []
        self._sent: Counter[tuple[str, str, Operation]] = Counter()
        self.fences: dict[tuple[str, str], str] = {}
        self.violations: list[str] = []

    async def handle(self, body: bytes) -> Reply:
        """What a participant does on arrival of a call, and its answer."""
        message = self.read(body)
        operation = Operation(message["operation"])
        key = (message["transaction_id"], message["branch"])
        self._check_durable(key, operation, says_held=message.get("held", False))
        replies = self.script.get((message["branch"], operation), [HOLDS if operation is Operation.TRY else Reply()])
        reply = replies[min(self._sent[*key, operation], len(replies) - 1)]
        self._sent[*key, operation] += 1
        if reply.travel_s:
            await pass_time(reply.travel_s)
        self.asked.append(Asked(*key, operation, message["attempt"], self._clock(), message))
        status = self._act(key, operation) if reply.does_it else reply.status
        self._write_down(key, operation, message["attempt"], status)
        if reply.delay_s:
            await pass_time(reply.delay_s)
        return reply if status == reply.status or reply.silent or status == 200 else Reply(status=status)

    @staticmethod
    def read(body: bytes) -> dict[str, Any]:
        """The message in a body."""
        message: dict[str, Any] = json.loads(body)
        return message

    def calls(self, transaction_id: str, branch: str, operation: Operation | None = None) -> list[Asked]:
        """The calls that a branch got, in order."""
        return [
            call
            for call in self.asked
            if (call.transaction_id, call.branch) == (transaction_id, branch) and operation in (None, call.operation)
        ]

    def settle_by_hand(self, transaction_id: str, branch: str, operation: Operation) -> None:
        """A person does at the participant what the coordinator could not."""
        self._act((transaction_id, branch), operation)

    def _act(self, key: tuple[str, str], operation: Operation) -> int:
        state = self.fences.get(key)
        status = self._decide(key, operation, state)
        if self.fences.get(key) != state and (operation, state) != (Operation.CANCEL, None):
            self.effects.append(_effect(key, operation, self._clock()))
        return status

    def _decide(self, key: tuple[str, str], operation: Operation, state: str | None) -> int:
        match operation, state:
            case Operation.TRY, None:
                self.fences[key] = "held"
            case Operation.TRY, "cancelled":
                return 409
            case Operation.CONFIRM, "held" | "confirmed":
                self.fences[key] = "confirmed"
            case Operation.CANCEL, None | "held" | "cancelled":
                self.fences[key] = "cancelled"
            case ((Operation.CONFIRM | Operation.CANCEL), _):
                self.violations.append(f"{key}: {operation} of a branch that is {state}")
                return 409
        return 200

    def _write_down(self, key: tuple[str, str], operation: Operation, attempt: int, status: int) -> None:
        at = self._clock()
        transaction_id, branch = key
        self.requests.append(
            Request(
                participant=branch,
                operation=operation.value,
                transaction_id=transaction_id,
                branch=branch,
                attempt=attempt,
                arrived_at=at,
                answered_at=at,
                status=status,
            )
        )

    def _check_durable(self, key: tuple[str, str], operation: Operation, *, says_held: bool) -> None:
        """Rules 1 and 2: what a call presupposes is in the database, seen by somebody else."""
        with self._engine.connect() as connection:
            stored = transactions.find(connection, key[0]).finish()
        if stored is None:
            self.violations.append(f"{key}: {operation} before the record was durable")
            return
        branch = stored.branch(key[1])
        assert branch is not None
        if operation is Operation.TRY and branch.phase == "pending":
            self.violations.append(f"{key}: Try while the record says that none was sent")
        if operation is not Operation.TRY and stored.decision.value != operation.value:
            self.violations.append(f"{key}: {operation} while the durable decision was {stored.decision}")
        if says_held and (operation is not Operation.CANCEL or key not in self.fences):
            self.violations.append(f"{key}: {operation} says held, but this never held")
        if operation is Operation.CANCEL and branch.was_held and not says_held:
            self.violations.append(f"{key}: {operation} doesn't say that this held")

    def check(self, transaction_id: str) -> None:
        """The rules, looked at from the end: nothing mixed, and every branch knows how it ended."""
        assert not self.violations, self.violations
        with self._engine.connect() as connection:
            stored = transactions.find(connection, transaction_id).finish()
            left = connection.execute(
                tables.transactions.select().where(tables.transactions.c.wake_at.is_not(None))
            ).all()
        assert stored is not None
        assert stored.finished
        assert left == []
        for branch in stored.branches:
            asked = {call.operation for call in self.calls(transaction_id, branch.name)}
            fence = self.fences.get((transaction_id, branch.name))
            if stored.phase == "confirmed":
                assert (branch.phase, fence) == ("confirmed", "confirmed")
            elif Operation.TRY in asked:
                assert (branch.phase, fence) == ("cancelled", "cancelled"), f"{branch.name} was tried"
            else:
                assert (branch.phase, asked) == ("cancelled", set()), f"{branch.name} was never tried"


def _effect(key: tuple[str, str], operation: Operation, at: float) -> Effect:
    transaction_id, branch = key
    what = {"participant": branch, "transaction_id": transaction_id, "branch": branch, "operation": operation.value}
    return Effect(kind="debit", account=0, amount=1, at=at, **what)
