"""The loop: advance, save, call, and again, for each transaction that this process works on.

A new transaction and one that recovery has claimed run through the same `_drive`. Nothing is decided here
(protocol.py decides), no SQL is written here (store.py), and no database connection is held while a participant is
being called: a save is one write that is over before the first call leaves.
"""

import asyncio
import logging
import os
import random
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from sqlalchemy.exc import IntegrityError, InterfaceError, OperationalError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from app import store
from app.caller import Caller
from app.journal import Journal, JournalClosed
from app.metrics import Metrics
from app.models import CallRecord
from app.protocol import Answered, Call, Command, Input, Objection, Policy, Step, advance, broken, objection
from app.registry import Registry
from app.transaction import Branch, Transaction, TryOrder

log = logging.getLogger(__name__)

SAVE_LIMIT_S: Final = 2.0
"""How long a save that is under way may take when the process stops."""
POLL_S: Final = 0.25
"""How often a waiting client's transaction is looked up when another process works on it."""
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


class ObjectedError(Exception):
    """The command can't be carried out on the transaction as it stands."""

    def __init__(self, reason: Objection, transaction: Transaction) -> None:
        super().__init__(reason)
        self.reason = reason
        self.transaction = transaction


class RunEndedError(Exception):
    """The run that should have taken the command ended first; it is safe to ask again."""


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


@dataclass(slots=True)
class _Run:
    """One transaction that this process works on. `latest` may be ahead of `saved` by what a crash may forget."""

    saved: Transaction
    latest: Transaction
    answers: list[Answered] = field(default_factory=list)
    commands: list[tuple[Command, asyncio.Future[Transaction]]] = field(default_factory=list)
    taken: list[asyncio.Future[Transaction]] = field(default_factory=list)
    """Who waits for the command that is being carried out."""
    history: list[CallRecord] = field(default_factory=list)
    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    adopted: bool = False
    task: asyncio.Task[None] | None = None


@dataclass(slots=True, eq=False)
class _Watcher:
    """A client that waits; `seen` is what the transaction has become since it last looked."""

    changed: asyncio.Event = field(default_factory=asyncio.Event)
    seen: Transaction | None = None


class Coordinator:
    """Begins transactions, drives them to their end, and lets clients wait and people intervene.

    `clock` gives seconds since the epoch and never goes back while the process lives.
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
    ) -> None:
        self._journal = journal
        self._caller = caller
        self._registry = registry
        self._policy = policy
        self._metrics = metrics
        self._inflight_max = inflight_max
        self._clock = clock
        self._runs: dict[str, _Run] = {}
        self._beginning = 0
        self._adopted = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._taking: dict[str, asyncio.Task[None]] = {}
        self._watchers: dict[str, set[_Watcher]] = {}
        self._stopping = False
        self._stopped = False
        self._stop: asyncio.Task[None] | None = None

    # --- for initiators ------------------------------------------------------------------------------------------

    async def begin(self, it: Begin) -> Transaction:
        """Record a transaction and set it going; returns once the record is durable.

        With an idempotency key that is there already, returns the transaction that has it. Raises OverloadedError
        and IdempotencyKeyConflictError, and records nothing then.
        """
        if self._stopping or (self._is_full and not await self._has_begun(it)):
            raise OverloadedError
        self._beginning += 1
        try:
            return await self._begin(it)
        finally:
            self._beginning -= 1

    @property
    def _is_full(self) -> bool:
        """What recovery has adopted, and what hangs, has a limit of its own and takes nobody's place."""
        return len(self._runs) - self._adopted + self._beginning >= self._inflight_max

    async def _has_begun(self, it: Begin) -> bool:
        key = it.idempotency_key
        return key is not None and await self._journal.read(store.is_key_taken, key)

    async def find(self, transaction_id: str) -> Transaction:
        """The transaction as it stands. Raises UnknownTransactionError."""
        run = self._runs.get(transaction_id)
        if run is not None:
            return run.latest
        transaction = await self._journal.read(store.find, transaction_id)
        if transaction is None:
            raise UnknownTransactionError(transaction_id)
        return transaction

    async def wait(self, transaction_id: str, awaited: Callable[[Transaction], bool], timeout_s: float) -> Transaction:
        """The transaction as soon as `awaited` holds of it, or as it stands after `timeout_s` seconds.

        Raises UnknownTransactionError.
        """
        loop = asyncio.get_running_loop()
        until = loop.time() + timeout_s
        watcher = _Watcher()
        self._watchers.setdefault(transaction_id, set()).add(watcher)
        try:
            while True:
                watcher.changed.clear()
                transaction = watcher.seen or await self.find(transaction_id)
                watcher.seen = None
                left_s = until - loop.time()
                if awaited(transaction) or left_s <= 0 or self._stopped:
                    return transaction
                is_here = transaction_id in self._runs
                await _wait_for(watcher.changed, left_s if is_here else min(left_s, POLL_S))
        finally:
            watchers = self._watchers[transaction_id]
            watchers.discard(watcher)
            if not watchers:
                del self._watchers[transaction_id]

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
            run = self._runs.get(transaction_id)
            try:
                if run is None:
                    if self._stopping:
                        raise OverloadedError
                    transaction = await self.find(transaction_id)
                    _check(transaction, command)
                    if transaction.finished:
                        return transaction  # nothing left to do, and no objection: it is as was asked
                    await self._take(transaction_id)
                    run = self._runs.get(transaction_id)
                    if run is None:
                        continue
                future: asyncio.Future[Transaction] = asyncio.get_running_loop().create_future()
                run.commands.append((command, future))
                run.arrived.set()
                return await future
            except RunEndedError:
                continue
        raise OverloadedError

    # --- for recovery --------------------------------------------------------------------------------------------

    @property
    def adopted(self) -> int:
        """How many of the transactions worked on were adopted."""
        return self._adopted

    @property
    def stopping(self) -> bool:
        """Whether nothing more is to be adopted."""
        return self._stopping

    @property
    def running(self) -> int:
        """How many transactions are worked on."""
        return len(self._runs)

    def adopt(self, transaction: Transaction) -> None:
        """Work on a transaction whose lease this process has just taken.

        One that is still worked on here was too slow to renew its lease: it ends at its next save, and only after
        that, so that no Cancel overtakes a Try of this very process, is it taken up anew.
        """
        if transaction.id in self._runs:
            return
        self._adopted += 1
        self._start(transaction, None, adopted=True)

    async def stop(self, limit_s: float) -> None:
        """Begin nothing more, give what is under way `limit_s` seconds to end, and hand the rest over.

        Called again, it waits for the first call to be done.
        """
        if self._stop is None:
            self._stop = asyncio.create_task(self._stop_once(limit_s), name="stop")
        await asyncio.shield(self._stop)

    async def _stop_once(self, limit_s: float) -> None:
        self._stopping = True  # waiting clients are still answered, with whatever comes of what is under way
        await _ended((run.task for run in self._runs.values()), limit_s)
        left = list(self._runs.values())
        self._stopped = True
        for run in left:
            run.arrived.set()  # each leaves before it calls or waits again; a save is let through, or it would be stale
        await _ended((*(run.task for run in left), *self._taking.values()), SAVE_LIMIT_S)
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for watchers in self._watchers.values():
            for watcher in watchers:
                watcher.changed.set()
        await asyncio.gather(*(self._hand_over(run) for run in left))

    # --- the loop ------------------------------------------------------------------------------------------------

    async def _begin(self, it: Begin) -> Transaction:
        now = self._clock()
        new = Transaction(
            id=_new_id(now),
            created_at=now,
            deadline=now + it.timeout_s,
            branches=it.branches,
            name=it.name,
            reference=it.reference,
            try_order=it.try_order,
            traceparent=it.traceparent,
            version=1,
        )
        step = advance(new, (), now, self._policy)
        assert step.must_save, "the record is durable before the first Try leaves"
        item = store.NewRecord(
            transaction=step.transaction, idempotency_key=it.idempotency_key, request_hash=it.request_hash
        )
        try:
            recorded = await self._journal.write(store.record, item)
        except IntegrityError:  # another replica recorded this key at this moment: now it is there
            recorded = await self._journal.write(store.record, item)
        if not recorded.created:
            if recorded.request_hash != it.request_hash:
                raise IdempotencyKeyConflictError(recorded.transaction_id)
            return await self.find(recorded.transaction_id)
        self._metrics.begun.inc()
        if self._stopped:
            await self._hand_over(_Run(saved=step.transaction, latest=step.transaction))
            return step.transaction
        self._start(step.transaction, replace(step, must_save=False))
        return step.transaction

    def _start(self, saved: Transaction, step: Step | None, *, adopted: bool = False) -> _Run:
        run = _Run(saved=saved, latest=saved, adopted=adopted)
        self._runs[saved.id] = run
        run.task = self._spawn(self._drive(run, step))
        return run

    def _spawn(self, coroutine: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _drive(self, run: _Run, step: Step | None) -> None:
        """Work on one transaction until it rests, or until somebody else has it."""
        try:
            await self._steps(run, step)
        except store.StaleError:
            log.info("event=taken_over transaction_id=%s", run.saved.id)
        except (OperationalError, InterfaceError, PoolTimeoutError, JournalClosed) as error:
            log.warning("event=save_failed transaction_id=%s error=%s", run.saved.id, type(error).__name__)
        except Exception:
            log.exception("event=broken transaction_id=%s", run.saved.id)
            await self._set_aside(run)
        finally:
            self._end(run)

    async def _steps(self, run: _Run, first: Step | None) -> None:
        """The loop itself. `first` is the step that was recorded already; a claimed transaction has none."""
        step = first or advance(run.saved, (), self._clock(), self._policy)
        while True:
            transaction = await self._save(run, step) if step.must_save else step.transaction
            self._publish(run, transaction)
            if self._stopped or (step.rests and not run.commands):
                return
            for call in step.calls:
                self._spawn(self._call(run, call))
            await self._something(run, step)
            step = advance(transaction, self._inputs(run, transaction), self._clock(), self._policy)

    async def _save(self, run: _Run, step: Step) -> Transaction:
        calls = tuple(run.history)
        save = store.Save(before=run.saved, after=step.transaction, calls=calls)
        run.saved = await self._journal.write(store.save, save)
        del run.history[: len(calls)]
        if run.saved.finished:
            self._metrics.finished.labels(outcome=run.saved.outcome).inc()
        return run.saved

    def _publish(self, run: _Run, transaction: Transaction) -> None:
        run.latest = transaction
        if transaction.hung_since is not None and not run.adopted:
            run.adopted = True
            self._adopted += 1
        taken, run.taken = run.taken, []
        for future in taken:
            if not future.done():
                future.set_result(transaction)
        self._notify(transaction)

    def _notify(self, transaction: Transaction) -> None:
        for watcher in self._watchers.get(transaction.id, ()):
            watcher.seen = transaction
            watcher.changed.set()

    async def _something(self, run: _Run, step: Step) -> None:
        """Wait until an answer or a command is there, or until it is time to look again."""
        if not run.answers and not run.commands:
            run.arrived.clear()
            await _wait_for(run.arrived, step.wake_at - self._clock())

    def _inputs(self, run: _Run, transaction: Transaction) -> Sequence[Input]:
        """One command by itself, or all the answers that are there: a command is checked against what is known."""
        while run.commands:
            command, future = run.commands.pop(0)
            reason = objection(transaction, command)
            if reason is None:
                run.taken = [future]
                return [command]
            if not future.done():
                future.set_exception(ObjectedError(reason, transaction))
        answers, run.answers = run.answers, []
        return answers

    async def _call(self, run: _Run, call: Call) -> None:
        answered, record = await self._caller.call(call, self._registry.target(call))
        self._metrics.observe_call(call.branch.participant, record)
        run.history.append(record)
        run.answers.append(answered)
        run.arrived.set()

    def _end(self, run: _Run) -> None:
        self._adopted -= run.adopted
        if self._runs.get(run.saved.id) is run:
            del self._runs[run.saved.id]
        for future in (*run.taken, *(future for _, future in run.commands)):
            if not future.done():
                future.set_exception(RunEndedError())
        for watcher in self._watchers.get(run.saved.id, ()):
            watcher.changed.set()

    async def _set_aside(self, run: _Run) -> None:
        """A broken invariant stops this one transaction: it is listed as hung, and looked at again later."""
        after = broken(run.saved, self._clock(), self._policy)
        try:
            await self._journal.write(store.save, store.Save(before=run.saved, after=after, calls=tuple(run.history)))
        except (store.StaleError, SQLAlchemyError, JournalClosed) as error:
            log.warning("event=set_aside_failed transaction_id=%s error=%s", run.saved.id, type(error).__name__)

    async def _take(self, transaction_id: str) -> None:
        """Try to take one transaction over, whoever has it, once for all who ask; it may end before they look."""
        taking = self._taking.get(transaction_id)
        if taking is None:
            taking = self._taking[transaction_id] = asyncio.create_task(self._claim(transaction_id))
            taking.add_done_callback(lambda _: self._taking.pop(transaction_id))
        await asyncio.shield(taking)

    async def _claim(self, transaction_id: str) -> None:
        now = self._clock()
        claim = store.Claim(due_by=float("inf"), lease_until=now + self._policy.lease_s, transaction_id=transaction_id)
        claimed = await self._journal.write(store.claim, claim)
        if not claimed:
            return
        if self._stopped:
            await self._hand_over(_Run(saved=claimed[0], latest=claimed[0]))
        elif transaction_id not in self._runs:  # one that is here ends as stale
            self._start(claimed[0], None)

    async def _hand_over(self, run: _Run) -> None:
        """Give the lease back, so that whoever starts next need not wait for its end."""
        if run.saved.finished:
            return
        after = replace(run.saved, wake_at=self._clock())
        try:
            await self._journal.write(store.save, store.Save(before=run.saved, after=after, calls=tuple(run.history)))
        except (store.StaleError, SQLAlchemyError, JournalClosed) as error:
            log.info("event=hand_over_failed transaction_id=%s error=%s", run.saved.id, type(error).__name__)


def _check(transaction: Transaction, command: Command) -> None:
    reason = objection(transaction, command)
    if reason is not None:
        raise ObjectedError(reason, transaction)


async def _ended(tasks: Iterable[asyncio.Task[Any] | None], limit_s: float) -> None:
    """Wait for the end of all tasks, for so many seconds at the most."""
    under_way = [task for task in tasks if task is not None]
    if under_way:
        await asyncio.wait(under_way, timeout=limit_s)


async def _wait_for(event: asyncio.Event, timeout_s: float) -> None:
    try:
        async with asyncio.timeout(max(0.0, timeout_s)):
            await event.wait()
    except TimeoutError:
        pass


def _new_id(now: float) -> str:
    """A UUID of version 7 (RFC 9562, 5.7): ordered by time, so that newest first is an order of ids."""
    value = int(now * 1000) << 80 | int.from_bytes(os.urandom(10))
    value = value & ~(0xF << 76) | 0x7 << 76
    value = value & ~(0x3 << 62) | 0x2 << 62
    text = f"{value:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"
