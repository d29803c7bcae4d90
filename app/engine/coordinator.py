"""Begins transactions, takes commands, lets clients wait, and starts a run for each transaction worked on here.

How a transaction moves on is the run's affair (run.py); which ones are claimed because they are due is recovery's.
"""

import asyncio
import os
import random
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass, replace
from typing import Any, Final

from app.calling.caller import Caller
from app.calling.registry import Registry
from app.engine.run import Context, ObjectedError, PendingCommand, Place, Run, RunEndedError, hand_over
from app.engine.waiters import Waiters
from app.metrics import Metrics
from app.protocol.messages import Command, Step
from app.protocol.policy import Policy
from app.protocol.steps import advance, objection
from app.protocol.transaction_id import ENTROPY_BYTES, new_id
from app.protocol.values import Branch, CallRecord, Transaction, TryOrder
from app.storage import transactions
from app.storage.errors import DuplicateKeyError
from app.storage.group_commit import Journal

SAVE_LIMIT_S: Final = 2.0
"""How long a save that is under way may take when the process stops."""
COMMAND_ROUNDS_MAX: Final = 8
"""How often a command is tried when others take the transaction over at the same moment."""
COMMAND_PAUSE_S: Final = 0.05
"""The longest pause before a command is tried the second time; it grows with every further one."""


class OverloadedError(Exception):
    """Too much is under way, or the process is stopping: nothing was recorded."""


class UnknownTransactionError(Exception):
    """There is no transaction of this id."""


class IdempotencyKeyConflictError(Exception):
    """The key is in use for another request; `transaction_id` is what that one began."""

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
    request_hash: str | None = None


class Coordinator:
    """The transactions of this process, and the way in to those of others.

    `clock` gives seconds since the epoch and never goes back while the process lives. As another process may work on
    it, a waiting client's transaction is looked up every `poll_s()` seconds; `tell` is given the id of each
    transaction that is decided or ended here, so that other processes needn't poll for it.
    """

    def __init__(
        self,
        *,
        journal: Journal,
        caller: Caller,
        registry: Registry,
        policy: Policy,
        metrics: Metrics,
        inflight_max: int,
        clock: Callable[[], float],
        poll_s: Callable[[], float],
        tell: Callable[[str], None],
    ) -> None:
        self._journal = journal
        self._policy = policy
        self._metrics = metrics
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
        """Record a transaction and set it going; returns once the record is durable.

        With an idempotency key that is there already, returns the transaction that has it. Raises OverloadedError
        and IdempotencyKeyConflictError, and records nothing then.
        """
        if self._stopping or (self._is_full and not await self.has_begun(request.idempotency_key)):
            raise OverloadedError
        self._beginning += 1
        try:
            return await self._begin(request)
        finally:
            self._beginning -= 1

    async def has_begun(self, idempotency_key: str | None) -> bool:
        """Whether a transaction has this key; none has no key."""
        return idempotency_key is not None and await self._journal.read(transactions.is_key_taken, idempotency_key)

    async def find(self, transaction_id: str) -> Transaction:
        """The transaction as it stands. Raises UnknownTransactionError."""
        run = self._runs.get(transaction_id)
        if run is not None:
            return run.latest
        transaction = await self._journal.read(transactions.find, transaction_id)
        if transaction is None:
            raise UnknownTransactionError(transaction_id)
        return transaction

    async def wait(self, transaction_id: str, awaited: Callable[[Transaction], bool], timeout_s: float) -> Transaction:
        """The transaction as soon as `awaited` is true of it, or as it stands after `timeout_s` seconds.

        Raises UnknownTransactionError.
        """
        return await self._waiters.wait(transaction_id, awaited, timeout_s)

    def heard(self, transaction_id: str) -> None:
        """Another process has changed this transaction: whoever waits for it looks again."""
        self._waiters.look_again(transaction_id)

    def unsaved_calls(self, transaction_id: str) -> list[CallRecord]:
        """The calls that have ended since the transaction was last saved, oldest first."""
        run = self._runs.get(transaction_id)
        return list(run.history) if run else []

    # --- for people ----------------------------------------------------------------------------------------------

    async def command(self, transaction_id: str, command: Command) -> Transaction:
        """Carry out a person's or an initiator's command; returns once what it changed is durable.

        Raises UnknownTransactionError, and ObjectedError when the transaction does not allow it.
        """
        for round_ in range(COMMAND_ROUNDS_MAX):
            await asyncio.sleep(random.uniform(0, COMMAND_PAUSE_S * round_))  # so that two replicas don't stay in step
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
                    return transaction  # nothing left to do, and no objection: it is as was asked
                if not await self._take(transaction_id, pending):
                    continue
            try:
                return await pending.done
            except RunEndedError:
                continue
        raise OverloadedError

    # --- for recovery --------------------------------------------------------------------------------------------

    def is_working_on(self, transaction_id: str) -> bool:
        """Whether this transaction is worked on here."""
        return transaction_id in self._runs

    @property
    def stopping(self) -> bool:
        """Whether nothing more is to be adopted."""
        return self._stopping

    @property
    def running(self) -> int:
        """How many transactions are worked on."""
        return len(self._runs)

    async def adopt(self, transaction: Transaction) -> None:
        """Work on a transaction whose lease this process has just taken.

        One that is still worked on here was too slow to renew its lease: it ends at its next save, and only after
        that, so that no Cancel overtakes a Try of this very process, is it taken up anew.
        """
        if self._stopped:
            await hand_over(self._context, transaction)
        elif transaction.id not in self._runs:
            self._start(transaction, place=_place_of(transaction))

    async def stop(self, limit_s: float) -> None:
        """Begin nothing more, give what is under way `limit_s` seconds to end, and hand the rest over.

        Called again, it waits for the first call to be done.
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
            branches=request.branches,
            name=request.name,
            reference=request.reference,
            try_order=request.try_order,
            traceparent=request.traceparent,
            version=1,
        )
        step = advance(new, (), now, self._policy)
        assert step.must_save, "the record is durable before the first Try leaves"
        record = transactions.NewRecord(
            transaction=step.transaction, idempotency_key=request.idempotency_key, request_hash=request.request_hash
        )
        try:
            recorded = await self._journal.write(transactions.record, record)
        except DuplicateKeyError:  # another replica recorded this idempotency key at this moment: now it is there
            recorded = await self._journal.write(transactions.record, record)
        if not recorded.created:
            if recorded.request_hash != request.request_hash:
                raise IdempotencyKeyConflictError(recorded.transaction_id)
            return await self.find(recorded.transaction_id)
        self._metrics.begun.inc()
        if self._stopped:
            await hand_over(self._context, step.transaction)
            return step.transaction
        self._start(step.transaction, place=Place.BEGUN, first=replace(step, must_save=False))
        return step.transaction

    @property
    def _is_full(self) -> bool:
        return self._context.places[Place.BEGUN] + self._beginning >= self._inflight_max

    def _look_again_s(self, transaction_id: str) -> float:
        return float("inf") if transaction_id in self._runs else self._poll_s()

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
        """Take one transaction over, whoever has it, once for all who ask; whether the command went along.

        It is there before the first step: nothing is sent that the command is to stop.
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
        claimed = await self._journal.write(transactions.claim, claim)
        if not claimed:
            return
        if self._stopped:
            await hand_over(self._context, claimed[0])
        elif transaction_id not in self._runs:  # one that is here ends as stale
            self._start(claimed[0], place=_place_of(claimed[0]), commands=self._asked.pop(transaction_id, ()))

    async def _stop_once(self, limit_s: float) -> None:
        self._stopping = True  # waiting clients are still answered, with whatever comes of what is under way
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


def _place_of(claimed: Transaction) -> Place:
    return Place.ADOPTED if claimed.hung_since is None else Place.HUNG


def _check(transaction: Transaction, command: Command) -> None:
    reason = objection(transaction, command)
    if reason is not None:
        raise ObjectedError(reason, transaction)


async def _ended(tasks: Iterable[asyncio.Task[Any] | None], limit_s: float) -> None:
    """Wait for the end of all tasks, but no longer than `limit_s` seconds."""
    under_way = [task for task in tasks if task is not None]
    if under_way:
        await asyncio.wait(under_way, timeout=limit_s)


def _new_id(now: float) -> str:
    return new_id(now, os.urandom(ENTROPY_BYTES))
