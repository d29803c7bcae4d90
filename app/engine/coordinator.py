"""Begins transactions, finds them, and lets clients wait for them.

Doesn't advance transactions (run.py does) and doesn't look for due ones (recovery.py does). What people ask of a
transaction is commands.py's.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

from app.calling.caller import Caller
from app.calling.registry import Registry
from app.engine.commands import Commands
from app.engine.errors import (
    IdempotencyKeyConflictError,
    OverloadedError,
    UnknownParticipantError,
)
from app.engine.forgotten import Forgotten
from app.engine.memory_budget import MemoryBudget
from app.engine.run import Place
from app.engine.runs import Runs
from app.engine.waiters import Waiters
from app.metrics import Metrics
from app.protocol.identity import Identity
from app.protocol.policy import Policy
from app.protocol.steps import advance
from app.protocol.transaction_id import ENTROPY_BYTES, new_id
from app.protocol.values import Branch, Transaction, TryOrder, Undo, in_order
from app.storage import queries, transactions
from app.storage.errors import DuplicateKeyError
from app.storage.group_commit import Journal
from app.storage.queries import StoredDecision
from holdfast.wire import Kind


@dataclass(frozen=True, slots=True, kw_only=True)
class Begin:
    """What an initiator asks for. `timeout_s` is the time to a decision, in seconds."""

    branches: tuple[Branch, ...]
    timeout_s: float
    name: str | None = None
    reference: str | None = None
    try_order: TryOrder = TryOrder.PARALLEL
    undo: Undo = Undo.PARALLEL
    traceparent: str | None = None
    idempotency_key: str | None = None
    identity: Identity | None = None
    owner: str | None = None


OWNER_SHARE: Final = 0.8
"""The share of HOLDFAST_INFLIGHT_MAX that one owner may take, so that the others can still begin."""


class Coordinator:
    """Begins and finds transactions, and lets clients wait for them.

    `clock` gives seconds since the epoch and never goes backwards. A transaction that a client waits for is looked up
    every `poll_s()` seconds, because another process may be working on it; with `alone`, none is. `tell` is called with
    the id of each transaction that is decided, delayed or finished here, or that a command is for, so that other
    processes needn't wait for their next poll. What is `forgotten` is never called unknown.
    """

    def __init__(
        self,
        *,
        journal: Journal,
        caller: Caller,
        registry: Registry,
        policy: Policy,
        metrics: Metrics,
        memory: MemoryBudget,
        inflight_max: int,
        clock: Callable[[], float],
        poll_s: Callable[[], float],
        tell: Callable[[str], None],
        alone: bool,
        forgotten: Forgotten,
    ) -> None:
        self._journal = journal
        self._policy = policy
        self._metrics = metrics
        self._memory = memory
        self._inflight_max = inflight_max
        self._clock = clock
        self._poll_s = poll_s
        self._waiters = Waiters(self.find, self._look_again_s)
        self.runs: Final = Runs(
            journal=journal,
            caller=caller,
            registry=registry,
            policy=policy,
            metrics=metrics,
            memory=memory,
            waiters=self._waiters,
            tell=tell,
            clock=clock,
            forgotten=forgotten,
        )
        self.commands: Final = Commands(runs=self.runs, poll_s=poll_s, alone=alone)
        self._beginning = 0

    async def begin(self, request: Begin) -> Transaction:
        """Record a transaction and start it; returns once the record is durable.

        If the idempotency key is already known, returns the transaction that has it. Records nothing if it raises
        OverloadedError, UnknownParticipantError or IdempotencyKeyConflictError.
        """
        size = sum(len(branch.payload) for branch in request.branches)
        is_full = self._is_full(size) or self._has_enough(request.owner)
        if self.runs.stopping or (is_full and not await self.has_begun(request.idempotency_key)):
            raise OverloadedError
        self._beginning += 1
        self._memory.hold(size)
        try:
            return await self._begin(request)
        finally:
            self._beginning -= 1
            self._memory.free(size)

    async def has_begun(self, idempotency_key: str | None) -> bool:
        """Whether a transaction with this key exists; False for None."""
        return idempotency_key is not None and await self._journal.read(transactions.is_key_taken, idempotency_key)

    async def find(self, transaction_id: str) -> Transaction:
        """The transaction as it stands. Raises UnknownTransactionError."""
        return await self.runs.find(transaction_id)

    async def find_decision(self, transaction_id: str, branch: str | None) -> StoredDecision:
        """What is durably decided, about one branch if named. Raises UnknownTransactionError.

        A participant takes that error for cancel, so it is raised only after the writer has looked, too.
        """
        found = await self._journal.read(queries.find_decision, transaction_id, branch)
        return found or await self.runs.find_decision_for_sure(transaction_id, branch)

    async def wait(self, transaction_id: str, awaited: Callable[[Transaction], bool], timeout_s: float) -> Transaction:
        """Wait until `awaited` is true of the transaction, or for `timeout_s` seconds, and return it as it stands then.

        Raises UnknownTransactionError.
        """
        return await self._waiters.wait(transaction_id, awaited, timeout_s)

    async def _begin(self, request: Begin) -> Transaction:
        now = self._clock()
        new = Transaction(
            id=_new_id(now),
            created_at=now,
            deadline=now + request.timeout_s,
            branches=in_order(tuple(map(self._limited, request.branches)), request.try_order, request.undo),
            name=request.name,
            reference=request.reference,
            try_order=request.try_order,
            undo=request.undo,
            traceparent=request.traceparent,
            owner=request.owner,
            version=1,
        )
        step = advance(new, (), now, self._policy)
        assert step.must_save, "the record is durable before the first Try leaves"
        record = transactions.NewRecord(
            transaction=step.transaction,
            idempotency_key=request.idempotency_key,
            request_hash=None if request.identity is None else request.identity.text,
            participants=frozenset(branch.participant for branch in request.branches if branch.participant),
        )
        try:
            recorded = await self._journal.write(transactions.record, record)
        except DuplicateKeyError:  # another replica recorded this key at the same moment; the retry finds it
            recorded = await self._journal.write(transactions.record, record)
        if isinstance(recorded, transactions.NotRegistered):
            raise UnknownParticipantError(recorded.participant)
        if not recorded.created:
            if not await self._is_same(request.identity, recorded):
                raise IdempotencyKeyConflictError(recorded.transaction_id, recorded.owner)
            return await self.find(recorded.transaction_id)
        self._metrics.begun.inc()
        await self.runs.begin(step.transaction, replace(step, must_save=False))
        return step.transaction

    def _limited(self, branch: Branch) -> Branch:
        """A pivot with the time limit of its calls, because holds must be safe for as long before it leaves."""
        if branch.kind is not Kind.PIVOT or branch.participant is None:
            return branch
        registered = self.runs.context.registry.get(branch.participant)
        return branch if registered is None else replace(branch, call_timeout_s=registered.call_timeout_s)

    async def _is_same(self, identity: Identity | None, recorded: transactions.Recorded) -> bool:
        """Whether this is the request that was recorded under its idempotency key. Compares payloads in a thread."""
        assert identity is not None, "a request with an idempotency key has an identity"
        if identity.is_surely(recorded.request_hash):
            return True
        judge = partial(identity.is_same, recorded.request_hash)
        return await self._journal.read(transactions.judge_payloads, recorded.transaction_id, judge)

    def _is_full(self, size: int) -> bool:
        begun = self.runs.context.places[Place.BEGUN] + self._beginning
        return begun >= self._inflight_max or not self._memory.admits(size)

    def _has_enough(self, owner: str | None) -> bool:
        """Whether this owner has as many transactions in progress as one may have."""
        return owner is not None and self.runs.context.owners[owner] >= OWNER_SHARE * self._inflight_max

    def _look_again_s(self, transaction_id: str) -> float:
        return self._poll_s() if self.runs.active(transaction_id) is None else float("inf")


def _new_id(now: float) -> str:
    return new_id(now, os.urandom(ENTROPY_BYTES))
