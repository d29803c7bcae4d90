"""The loop: advance, save, call, and again, for each transaction that this process works on.

A new transaction and one that recovery has claimed run through the same `_drive`. Nothing is decided here
(protocol.py decides), no SQL is written here (store.py), and no database connection is held while a participant is
being called: a save is one write that is over before the first call leaves.
"""

import asyncio
import logging
import os
import random
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
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
from holdfast.wire import Answer

log = logging.getLogger(__name__)

SAVE_LIMIT_S: Final = 2.0
"""How long a save that is under way may take when the process stops."""
COMMAND_ROUNDS_MAX: Final = 8
"""How often a command is tried when others take the transaction over at the same moment."""
COMMAND_PAUSE_S: Final = 0.05
"""The longest pause before a command is tried the second time; it grows with every further one."""


class Place(StrEnum):
    """What a transaction that is worked on counts as; each has a limit of its own, so that none crowds out another."""

    BEGUN = "begun"  # here, just now: HOLDFAST_INFLIGHT_MAX
    ADOPTED = "adopted"  # claimed because it was due
    HUNG = "hung"  # wherever it came from


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


Asked = tuple[Command, asyncio.Future[Transaction]]
"""A command, and who waits for what comes of it."""


@dataclass(slots=True, kw_only=True)
class _Run:
    """One transaction that this process works on. `latest` may be ahead of `saved` by what a crash may forget."""

    saved: Transaction
    latest: Transaction
    answers: list[Answered] = field(default_factory=list)
    commands: list[Asked] = field(default_factory=list)
    taken: list[asyncio.Future[Transaction]] = field(default_factory=list)
    """Who waits for the command that is being carried out."""
    history: list[CallRecord] = field(default_factory=list)
    calls: set[asyncio.Task[None]] = field(default_factory=set)
    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    place: Place
    leaves: bool = False
    """It only waits for its calls to end, and takes no commands any more."""
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None

    def turn_away(self) -> None:
        """Take no commands any more, and send those that are there to whoever has the transaction next."""
        self.leaves = True
        for future in (*self.taken, *(future for _, future in self.commands)):
            if not future.done():
                future.set_exception(RunEndedError())


@dataclass(slots=True, eq=False)
class _Watcher:
    """A client that waits; `seen` is what the transaction has become since it last looked."""

    changed: asyncio.Event = field(default_factory=asyncio.Event)
    seen: Transaction | None = None


class Coordinator:
    """Begins transactions, drives them to their end, and lets clients wait and people intervene.

    `clock` gives seconds since the epoch and never goes back while the process lives. In case that another process
    works on it, a waiting client's transaction is looked up every `poll_s()` seconds; `tell` is given the id of each
    transaction that is decided or ended here, so that others needn't.
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
        self._poll_s = poll_s
        self._tell = tell
        self._caller = caller
        self._registry = registry
        self._policy = policy
        self._metrics = metrics
        self._inflight_max = inflight_max
        self._clock = clock
        self._runs: dict[str, _Run] = {}
        self._beginning = 0
        self._places: Counter[Place] = Counter()
        self._tasks: set[asyncio.Task[None]] = set()
        self._taking: dict[str, asyncio.Task[None]] = {}
        self._asked: dict[str, list[Asked]] = {}
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
        if self._stopping or (self._is_full and not await self.has_begun(it.idempotency_key)):
            raise OverloadedError
        self._beginning += 1
        try:
            return await self._begin(it)
        finally:
            self._beginning -= 1

    @property
    def _is_full(self) -> bool:
        return self._places[Place.BEGUN] + self._beginning >= self._inflight_max

    async def has_begun(self, idempotency_key: str | None) -> bool:
        """Whether a transaction has this key; none has no key."""
        return idempotency_key is not None and await self._journal.read(store.is_key_taken, idempotency_key)

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
                await _wait_for(watcher.changed, left_s if is_here else min(left_s, self._poll_s()))
        finally:
            watchers = self._watchers[transaction_id]
            watchers.discard(watcher)
            if not watchers:
                del self._watchers[transaction_id]

    def heard(self, transaction_id: str) -> None:
        """Another process has changed this transaction: whoever waits for it looks again."""
        for watcher in self._watchers.get(transaction_id, ()):
            watcher.changed.set()

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
            asked: Asked = (command, asyncio.get_running_loop().create_future())
            run = self._runs.get(transaction_id)
            if run is not None and not run.latest.finished:
                if run.leaves:
                    await run.ended.wait()
                    continue
                run.commands.append(asked)
                run.arrived.set()
            elif self._stopping:
                raise OverloadedError
            else:
                transaction = await self.find(transaction_id)
                _check(transaction, command)
                if transaction.finished:
                    return transaction  # nothing left to do, and no objection: it is as was asked
                if not await self._take(transaction_id, asked):
                    continue
            try:
                return await asked[1]
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
            await self._hand_over(transaction)
        elif transaction.id not in self._runs:
            self._start(transaction, place=_place_of(transaction))

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
        await asyncio.gather(*(self._hand_over(run.saved, run.history) for run in left))

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
            await self._hand_over(step.transaction)
            return step.transaction
        self._start(step.transaction, place=Place.BEGUN, first=replace(step, must_save=False))
        return step.transaction

    def _start(
        self,
        saved: Transaction,
        *,
        place: Place,
        first: Step | None = None,
        commands: Iterable[Asked] = (),
    ) -> None:
        run = _Run(saved=saved, latest=saved, place=place, commands=list(commands))
        self._places[place] += 1
        self._runs[saved.id] = run
        run.task = self._spawn(self._drive(run, first))

    def _spawn(self, coroutine: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _drive(self, run: _Run, step: Step | None) -> None:
        """Work on one transaction until it rests, or until somebody else has it."""
        try:
            await self._work(run, step)
            await self._leave(run)
        finally:
            self._end(run)

    async def _work(self, run: _Run, step: Step | None) -> None:
        """The loop, and what becomes of a transaction when the loop can't go on."""
        try:
            await self._steps(run, step)
        except store.StaleError:
            log.info("event=taken_over transaction_id=%s", run.saved.id)
        except (OperationalError, InterfaceError, PoolTimeoutError, JournalClosed) as error:
            log.warning("event=save_failed transaction_id=%s error=%s", run.saved.id, type(error).__name__)
        except Exception:
            log.exception("event=broken transaction_id=%s", run.saved.id)
            await self._set_aside(run)

    async def _leave(self, run: _Run) -> None:
        """Stay until the calls under way have ended, so that no Cancel overtakes a Try of this very process."""
        run.turn_away()
        while run.calls and not self._stopped:
            await asyncio.wait(run.calls)
        if run.history and not self._stopped:
            try:
                await self._journal.write(store.add_calls, tuple(run.history))
            except (SQLAlchemyError, JournalClosed) as error:
                log.warning("event=history_lost transaction_id=%s error=%s", run.saved.id, type(error).__name__)

    async def _steps(self, run: _Run, first: Step | None) -> None:
        """The loop itself. `first` is the step that was recorded already; a claimed transaction has none."""
        step = first or advance(run.saved, self._inputs(run, run.saved), self._clock(), self._policy)
        while True:
            transaction = await self._save(run, step) if step.must_save else step.transaction
            self._publish(run, transaction)
            if self._stopped or (step.rests and not run.commands):
                return
            for call in step.calls:
                calling = self._spawn(self._call(run, call))
                run.calls.add(calling)
                calling.add_done_callback(run.calls.discard)
            await self._something(run, step)
            step = advance(transaction, self._inputs(run, transaction), self._clock(), self._policy)

    async def _save(self, run: _Run, step: Step) -> Transaction:
        calls = tuple(run.history)
        save = store.Save(before=run.saved, after=step.transaction, calls=calls)
        before, run.saved = run.saved, await self._journal.write(store.save, save)
        del run.history[: len(calls)]
        if run.saved.phase is not before.phase:
            self._tell(run.saved.id)
        if run.saved.finished:
            self._metrics.finished.labels(outcome=run.saved.outcome).inc()
        return run.saved

    def _publish(self, run: _Run, transaction: Transaction) -> None:
        run.latest = transaction
        if transaction.hung_since is not None and run.place is not Place.HUNG:
            self._places[run.place] -= 1
            self._places[Place.HUNG] += 1
            run.place = Place.HUNG
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
        try:
            answered, record = await self._caller.call(call, self._registry.target(call))
            run.history.append(record)
            self._metrics.observe_call(call.branch.participant, record)
        except Exception as error:  # a call without an answer would be waited for for ever
            log.exception("event=call_broken transaction_id=%s branch=%s", call.transaction_id, call.branch.name)
            answered = Answered(
                branch=call.branch.name,
                operation=call.operation,
                attempt=call.attempt,
                answer=Answer.UNANSWERED,
                error=f"the coordinator could not tell what came of the call ({type(error).__name__})",
            )
        run.answers.append(answered)
        run.arrived.set()

    def _end(self, run: _Run) -> None:
        run.turn_away()
        self._places[run.place] -= 1
        if self._runs.get(run.saved.id) is run:
            del self._runs[run.saved.id]
        run.ended.set()
        self.heard(run.saved.id)

    async def _set_aside(self, run: _Run) -> None:
        """A broken invariant stops this one transaction: it is listed as hung, and looked at again later."""
        after = broken(run.saved, self._clock(), self._policy)
        try:
            await self._journal.write(store.save, store.Save(before=run.saved, after=after, calls=tuple(run.history)))
            run.history.clear()
        except Exception as error:  # what broke may be what would have to be written
            log.warning("event=set_aside_failed transaction_id=%s error=%s", run.saved.id, type(error).__name__)

    async def _take(self, transaction_id: str, asked: Asked) -> bool:
        """Take one transaction over, whoever has it, once for all who ask; whether the command went along.

        It is there before the first step: nothing is sent that the command is to stop.
        """
        self._asked.setdefault(transaction_id, []).append(asked)
        taking = self._taking.get(transaction_id)
        if taking is None:
            taking = self._taking[transaction_id] = asyncio.create_task(self._claim(transaction_id))
            taking.add_done_callback(lambda _: self._taking.pop(transaction_id))
        try:
            await asyncio.shield(taking)
        finally:
            left = self._asked.get(transaction_id, [])
            went_along = asked not in left
            if not went_along:
                left.remove(asked)
            if not left:
                self._asked.pop(transaction_id, None)
        return went_along

    async def _claim(self, transaction_id: str) -> None:
        now = self._clock()
        claim = store.Claim(due_by=None, lease_until=now + self._policy.lease_s, transaction_id=transaction_id)
        claimed = await self._journal.write(store.claim, claim)
        if not claimed:
            return
        if self._stopped:
            await self._hand_over(claimed[0])
        elif transaction_id not in self._runs:  # one that is here ends as stale
            self._start(claimed[0], place=_place_of(claimed[0]), commands=self._asked.pop(transaction_id, ()))

    async def _hand_over(self, saved: Transaction, history: Sequence[CallRecord] = ()) -> None:
        """Give the lease back, so that whoever starts next need not wait for its end."""
        if saved.finished:
            return
        after = replace(saved, wake_at=self._clock())
        try:
            await self._journal.write(store.save, store.Save(before=saved, after=after, calls=tuple(history)))
        except (store.StaleError, SQLAlchemyError, JournalClosed) as error:
            log.info("event=hand_over_failed transaction_id=%s error=%s", saved.id, type(error).__name__)


def _place_of(claimed: Transaction) -> Place:
    return Place.ADOPTED if claimed.hung_since is None else Place.HUNG


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
    """Wait for `event`, which is set when `timeout_s` seconds are over, too: a timer alone, no cancelling."""
    timer = asyncio.get_running_loop().call_later(max(0.0, timeout_s), event.set)
    try:
        await event.wait()
    finally:
        timer.cancel()


def _new_id(now: float) -> str:
    """A UUID of version 7 (RFC 9562, 5.7): ordered by time, so that newest first is an order of ids."""
    value = int(now * 1000) << 80 | int.from_bytes(os.urandom(10))
    value = value & ~(0xF << 76) | 0x7 << 76
    value = value & ~(0x3 << 62) | 0x2 << 62
    text = f"{value:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"
