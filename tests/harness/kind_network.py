"""Scripted participants of every kind, and what must hold of them: who may be called when, and what is so at the end.

As network.py, for transactions of other kinds than TCC (docs/reference/patterns.md, sections 1 to 3).
"""

from collections import Counter
from typing import Any, Final

from app.protocol.values import Transaction
from app.storage import transactions
from holdfast.wire import Decision, Kind, Operation
from tests.harness.network import Network, Reply

DONE: Final = "done"
UNDONE: Final = "undone"
ALREADY_DONE: Final = Reply(
    status=409,
    body={"type": "/problems/already-done", "result": {"hold": 1}},
    headers={"Content-Type": "application/problem+json"},
)
NEVER: Final = "never"
"""A tombstone: what comes later is refused."""


class KindNetwork(Network):
    """All participants, each of the kind that its messages say. Whatever breaks a rule is noted in `violations`."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.kinds: dict[tuple[str, str], Kind] = {}
        self.took_effect: Counter[tuple[str, str, Operation]] = Counter()

    async def handle(self, body: bytes) -> Any:
        message = self.read(body)
        self.kinds[message["transaction_id"], message["branch"]] = Kind(message["kind"])
        reply = await super().handle(body)
        is_withdrawal = message["kind"] == Kind.PIVOT and message["operation"] == Operation.CANCEL
        return ALREADY_DONE if is_withdrawal and reply.status == 409 else reply

    def _act(self, key: tuple[str, str], operation: Operation) -> int:
        if self.kinds[key] is Kind.TCC:
            return super()._act(key, operation)
        return self._decide(key, operation, self.fences.get(key))  # its effects aren't money

    def _decide(self, key: tuple[str, str], operation: Operation, state: str | None) -> int:
        kind = self.kinds[key]
        if kind is Kind.TCC:
            return super()._decide(key, operation, state)
        match operation, state:
            case Operation.ACTION, None:
                self._becomes(key, operation, DONE)
            case Operation.ACTION, "done":
                pass
            case Operation.ACTION, _:
                return 409
            case Operation.COMPENSATION, "done":
                self._becomes(key, operation, UNDONE)
            case Operation.COMPENSATION, None:
                self.fences[key] = NEVER
            case Operation.CANCEL, None:
                self.fences[key] = NEVER
            case Operation.CANCEL, "done":
                return 409
            case _:
                pass
        return 200

    def _becomes(self, key: tuple[str, str], operation: Operation, state: str) -> None:
        self.fences[key] = state
        self.took_effect[*key, operation] += 1

    def _check_durable(self, key: tuple[str, str], operation: Operation, *, says_held: bool) -> None:
        with self._engine.connect() as connection:
            stored = transactions.find(connection, key[0]).finish()
        if stored is None:
            self.violations.append(f"{key}: {operation} before the record was durable")
            return
        if self.kinds[key] is Kind.TCC:
            super()._check_durable(key, operation, says_held=says_held)
            return
        if why := self._why_not(stored, key, operation):
            self.violations.append(f"{key}: {operation} {why}")
        if says_held and self.fences.get(key) is None:
            self.violations.append(f"{key}: {operation} says held, but this never took effect")

    def _why_not(self, stored: Transaction, key: tuple[str, str], operation: Operation) -> str | None:
        """Why this call may not leave, by what is durable and by what the others have done."""
        branch = stored.branch(key[1])
        assert branch is not None
        match self.kinds[key], operation:
            case Kind.RETRYABLE, _:
                return None if stored.decision is Decision.CONFIRM else f"while {stored.decision} was durable"
            case Kind.PIVOT, Operation.ACTION:
                others = [each for each in stored.branches if each.kind not in (Kind.PIVOT, Kind.RETRYABLE)]
                missing = [each.name for each in others if self.fences.get((stored.id, each.name)) not in _HOLDS]
                return f"while {', '.join(missing)} had not done its part" if missing else _unless_sent(stored, branch)
            case Kind.PIVOT, _:
                if stored.decision is not Decision.UNDECIDED:
                    return "although it was decided"
                return None if self._clock() >= stored.deadline else "before the deadline"
            case _, Operation.COMPENSATION:
                if stored.decision is not Decision.CANCEL:
                    return f"while {stored.decision} was durable"
                left = [after for after in branch.undone_after if self.fences.get((stored.id, after)) == DONE]
                return f"before {', '.join(left)} was undone" if left else None
            case _:
                return _unless_sent(stored, branch)

    def faults_at_the_end(self, transaction: Transaction) -> list[str]:
        """What is wrong with the effects of a transaction that has ended: nothing half done, and nothing done twice."""
        confirmed = transaction.decision is Decision.CONFIRM
        wrong = []
        for branch in transaction.branches:
            state = self.fences.get((transaction.id, branch.name))
            expected: tuple[str | None, ...] = (None, UNDONE, NEVER)
            if branch.kind is Kind.TCC:
                expected = ("confirmed",) if confirmed else (None, "cancelled")
            elif branch.kind is Kind.CHECK:
                expected = (DONE,) if confirmed else (None, DONE)
            elif confirmed:
                expected = (DONE,)
            elif branch.kind is Kind.RETRYABLE:
                expected = (None,)
            if state not in expected:
                wrong.append(f"{branch.name} ({branch.kind}) is {state}, and the decision is {transaction.decision}")
        wrong += [f"{what} took effect {times} times" for what, times in self.took_effect.items() if times > 1]
        return wrong


_HOLDS: Final = frozenset({"held", DONE})


def _unless_sent(stored: Transaction, branch: Any) -> str | None:
    if branch.phase == "pending":
        return "while the record says that it was not sent"
    return None if stored.decision is Decision.UNDECIDED else f"although {stored.decision} was decided"
