"""Begins transactions, carries out commands, lets clients wait, and starts a run for each transaction on this replica.

Doesn't advance transactions (run.py does) and doesn't look for due ones (recovery.py does).
"""

import asyncio
import logging
import os
import random
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final

from app.calling.caller import Caller
from app.calling.registry import Registry
from app.engine.memory_budget import MemoryBudget
from app.engine.run import Context, ObjectedError, PendingCommand, Place, Run, RunEndedError, hand_over, take_over
from app.engine.waiters import Waiters
from app.metrics import Metrics
from app.protocol.identity import Identity
from app.protocol.messages import Command, Step
from app.protocol.policy import Policy
from app.protocol.steps import advance, objection
from app.protocol.transaction_id import ENTROPY_BYTES, new_id
from app.protocol.values import Branch, CallRecord, Transaction, TryOrder, in_order
from app.storage import queries, transactions
from app.storage.errors import DatabaseError, DuplicateKeyError
from app.storage.group_commit import Journal
from app.storage.queries import StoredDecision

log = logging.getLogger(__name__)

SAVE_LIMIT_S: Final = 2.0
"""How long a save in progress may take when the process stops, in seconds."""
COMMAND_ROUNDS_MAX: Final = 8
"""Maximum attempts at a command whose transaction other replicas keep taking over."""
COMMAND_PAUSE_S: Final = 0.05
"""Longest pause before the second attempt at a command, in seconds; grows with each further attempt."""


class OverloadedError(Exception):
    """The coordinator is at capacity or stopping. Nothing was recorded; try again later."""


class UnknownTransactionError(Exception):
    """There is no transaction with this id."""


class UnknownParticipantError(Exception):
    """A participant that the request names isn't registered any more. Nothing was recorded."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


class IdempotencyKeyConflictError(Exception):
    """The key was used for another request, which began the transaction `transaction_id`."""

    def __init__(self, transaction_id: str) -> None:
        super().__init__(transaction_id)
        self.transaction_id = transaction_id


@dataclass(frozen=True, slots=True, kw_only=True)
class Begin:
    """What an initiator asks for. `timeout_s` is the time to a decision, in seconds."""

    branches: tuple[Branch, ...]
    timeout_s: float
    name: str | None = None
    reference: str | None = None
    try_order: TryOrder = TryOrder.PARALLEL
    traceparent: str | None = None
    idempotency_key: str | None = None
    identity: Identity | None = None


class Coordinator:
    """Runs the transactions of this process, and gives access to all others.

    `clock` gives seconds since the epoch and never goes backwards. A transaction that a client waits for is looked up
    every `poll_s()` seconds, because another process may be working on it. `tell` is called with the id of each
    transaction that is decided, delayed or finished here, so that other processes needn't wait for their next poll.
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
    ) -> None:
        self._journal = journal
        self._policy = policy
        self._metrics = metrics
        self._memory = memory
        self._inflight_max = inflight_max
        self._clock = clock
        self._poll_s = poll_s
        self._waiters = Waiters(self.find, self._look_again_s)
        self._context = Context(
            journal=journal,
            caller=caller,
            registry=registry,
            policy=policy,
            metrics=metrics,
            memory=memory,
            waiters=self._waiters,
            places=Counter(),
            spawn=self._spawn,
            tell=tell,
            clock=clock,
        )
        self._runs: dict[str, Run] = {}
        self._beginning = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._taking: dict[str, asyncio.Task[None]] = {}
        self._asked: dict[str, list[PendingCommand]] = {}
        self._stopping = False
        self._stopped = False
        self._stop: asyncio.Task[None] | None = None

    # --- for initiators ------------------------------------------------------------------------------------------

    async def begin(self, request: Begin) -> Transaction:
        """Record a transaction and start it; returns once the record is durable.

        If the idempotency key is already known, returns the transaction that has it. Records nothing if it raises
        OverloadedError, UnknownParticipantError or IdempotencyKeyConflictError.
        """
        size = sum(len(branch.payload) for branch in request.branches)
        if self._stopping or (self._is_full(size) and not await self.has_begun(request.idempotency_key)):
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
        run = self._active(transaction_id)
        if run is not None:
            return run.latest
        transaction = await self._journal.read(transactions.find, transaction_id)
        if transaction is None:
            raise UnknownTransactionError(transaction_id)
        return transaction

    async def find_decision(self, transaction_id: str, branch: str | None) -> StoredDecision:
        """What is durably decided, about one branch if named. Raises UnknownTransactionError.

        A participant takes that error for cancel, so it is raised only after the writer has looked, too.
        """
        found = await self._journal.read(queries.find_decision, transaction_id, branch)
        if found is None:
            found = await self._journal.write(queries.find_decisions_for_sure, (transaction_id, branch))
        if found is None:
            raise UnknownTransactionError(transaction_id)
        return found

    async def wait(self, transaction_id: str, awaited: Callable[[Transaction], bool], timeout_s: float) -> Transaction:
        """Wait until `awaited` is true of the transaction, or for `timeout_s` seconds, and return it as it stands then.

        Raises UnknownTransactionError.
        """
        return await self._waiters.wait(transaction_id, awaited, timeout_s)

    def heard(self, transaction_id: str) -> None:
        """Another process has changed this transaction: wake the clients that wait for it.

        A run that is here has been overtaken, unless the notification is an old one.
        """
        run = self._active(transaction_id)
        if run is None:
            self._waiters.look_again(transaction_id)
        else:
            self._spawn(self._check_ownership(run))

    def unsaved_calls(self, transaction_id: str) -> list[CallRecord]:
        """The calls that have finished since the transaction was last saved, oldest first."""
        run = self._runs.get(transaction_id)
        return list(run.history) if run else []

    # --- for people ----------------------------------------------------------------------------------------------

    async def command(self, transaction_id: str, command: Command) -> Transaction:
        """Carry out a command of an operator or initiator; returns once its effect is durable.

        Raises UnknownTransactionError, or ObjectedError if the transaction's state doesn't allow it.
        """
        for round_ in range(COMMAND_ROUNDS_MAX):
            await asyncio.sleep(
                random.uniform(0, COMMAND_PAUSE_S * round_)
            )  # so that two replicas don't keep colliding
            pending = PendingCommand(command, asyncio.get_running_loop().create_future())
            run = self._runs.get(transaction_id)
            if run is not None and not run.latest.finished:
                if run.leaving:
                    await run.ended.wait()
                    continue
                run.ask(pending)
            elif self._stopping:
                raise OverloadedError
            else:
                transaction = await self.find(transaction_id)
                _check(transaction, command)
                if transaction.finished:
                    return transaction  # nothing left to do: it already is as requested
                if not await self._take(transaction_id, pending):
                    continue
            try:
                return await pending.done
            except RunEndedError:
                continue
        raise OverloadedError

    # --- for recovery --------------------------------------------------------------------------------------------

    def place_of(self, transaction_id: str) -> Place | None:
        """What the transaction counts as while this process is working on it, and None when it isn't."""
        run = self._runs.get(transaction_id)
        return None if run is None else run.place

    @property
    def stopping(self) -> bool:
        """Whether the process is stopping and adopts nothing more."""
        return self._stopping

    @property
    def running(self) -> int:
        """How many transactions this process is working on."""
        return len(self._runs)

    async def adopt(self, transaction: Transaction) -> None:
        """Start to work on a transaction whose lease this process has just taken.

        If this process still has a run for it, that run was too slow to renew its lease. It ends at its next save, and
        the transaction is claimed again only after that, so that no Cancel overtakes a Try of the same process.
        """
        if self._stopped:
            await hand_over(self._context, transaction)
        elif transaction.id not in self._runs:
            self._start(transaction, place=_place_for(transaction))

    async def stop(self, limit_s: float) -> None:
        """Accept nothing new, give runs `limit_s` seconds to finish, and hand over the rest.

        A second call waits for the first one to finish.
        """
        if self._stop is None:
            self._stop = asyncio.create_task(self._stop_once(limit_s), name="stop")
        await asyncio.shield(self._stop)

    # --- runs ----------------------------------------------------------------------------------------------------

    async def _begin(self, request: Begin) -> Transaction:
        now = self._clock()
        new = Transaction(
            id=_new_id(now),
            created_at=now,
            deadline=now + request.timeout_s,
            branches=in_order(request.branches, request.try_order),
            name=request.name,
            reference=request.reference,
            try_order=request.try_order,
            traceparent=request.traceparent,
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
                raise IdempotencyKeyConflictError(recorded.transaction_id)
            return await self.find(recorded.transaction_id)
        self._metrics.begun.inc()
        if self._stopped:
            await hand_over(self._context, step.transaction)
            return step.transaction
        self._start(step.transaction, place=Place.BEGUN, first=replace(step, must_save=False))
        return step.transaction

    async def _is_same(self, identity: Identity | None, recorded: transactions.Recorded) -> bool:
        """Whether this is the request that was recorded under its idempotency key. Compares payloads in a thread."""
        assert identity is not None, "a request with an idempotency key has an identity"
        if identity.is_surely(recorded.request_hash):
            return True
        judge = partial(identity.is_same, recorded.request_hash)
        return await self._journal.read(transactions.judge_payloads, recorded.transaction_id, judge)

    def _is_full(self, size: int) -> bool:
        begun = self._context.places[Place.BEGUN] + self._beginning
        return begun >= self._inflight_max or not self._memory.admits(size)

    def _active(self, transaction_id: str) -> Run | None:
        """The run that speaks for this transaction; one that is leaving may have been overtaken."""
        run = self._runs.get(transaction_id)
        return None if run is None or run.leaving else run

    async def _check_ownership(self, run: Run) -> None:
        try:
            await run.check_ownership()
        except DatabaseError as error:
            log.info("event=ownership_unknown transaction_id=%s error=%s", run.saved.id, error.kind)
        self._waiters.look_again(run.saved.id)

    def _look_again_s(self, transaction_id: str) -> float:
        return self._poll_s() if self._active(transaction_id) is None else float("inf")

    def _start(
        self,
        saved: Transaction,
        *,
        place: Place,
        first: Step | None = None,
        commands: Iterable[PendingCommand] = (),
    ) -> None:
        run = Run(self._context, saved, place=place, commands=commands)
        self._runs[saved.id] = run
        run.task = self._spawn(self._drive(run, first))

    def _spawn(self, coroutine: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _drive(self, run: Run, first: Step | None) -> None:
        try:
            await run.drive(first)
        finally:
            del self._runs[run.saved.id]
            run.ended.set()
            self._waiters.look_again(run.saved.id)

    async def _take(self, transaction_id: str, pending: PendingCommand) -> bool:
        """Take a transaction over, once for all waiting commands; returns whether this command went along.

        The run gets the commands before its first step, so it sends nothing that a command was meant to stop.
        """
        self._asked.setdefault(transaction_id, []).append(pending)
        taking = self._taking.get(transaction_id)
        if taking is None:
            taking = self._taking[transaction_id] = asyncio.create_task(self._claim(transaction_id))
            taking.add_done_callback(lambda _: self._taking.pop(transaction_id))
        try:
            await asyncio.shield(taking)
        finally:
            left = self._asked.get(transaction_id, [])
            went_along = pending not in left
            if not went_along:
                left.remove(pending)
            if not left:
                self._asked.pop(transaction_id, None)
        return went_along

    async def _claim(self, transaction_id: str) -> None:
        now = self._clock()
        claim = transactions.Claim(due_by=None, lease_until=now + self._policy.lease_s, transaction_id=transaction_id)
        claimed = await take_over(self._journal, claim)
        if not claimed:
            return
        if self._stopped:
            await hand_over(self._context, claimed[0])
        elif transaction_id not in self._runs:  # a run that is here ends at its next save, which is stale
            self._start(claimed[0], place=_place_for(claimed[0]), commands=self._asked.pop(transaction_id, ()))

    async def _stop_once(self, limit_s: float) -> None:
        self._stopping = True  # clients that wait for runs in progress are still answered
        await _ended((run.task for run in self._runs.values()), limit_s)
        left = list(self._runs.values())
        self._stopped = True
        for run in left:
            run.halt()
        await _ended((*(run.task for run in left), *self._taking.values()), SAVE_LIMIT_S)
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._waiters.close()
        await asyncio.gather(*(run.hand_over() for run in left))


def _place_for(claimed: Transaction) -> Place:
    return Place.ADOPTED if claimed.hung_since is None else Place.HUNG


def _check(transaction: Transaction, command: Command) -> None:
    reason = objection(transaction, command)
    if reason is not None:
        raise ObjectedError(reason, transaction)


async def _ended(tasks: Iterable[asyncio.Task[Any] | None], limit_s: float) -> None:
    """Wait until all tasks have finished, for at most `limit_s` seconds."""
    under_way = [task for task in tasks if task is not None]
    if under_way:
        await asyncio.wait(under_way, timeout=limit_s)


def _new_id(now: float) -> str:
    return new_id(now, os.urandom(ENTROPY_BYTES))
