"""One transaction in progress on this process: advance, save, call, repeat, until it rests.

New transactions and recovered ones take the same path. Makes no decisions (app.protocol does) and contains no SQL
(app.storage does). No database connection is held during a call: a save is one write that completes before the first
call leaves.
"""

import asyncio
import logging
import math
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from app.auth.audit_log import log_entry
from app.calling.caller import Caller
from app.calling.registry import Registry
from app.clock import DatabaseClock
from app.engine.audited import commands_in, entries_of
from app.engine.errors import ObjectedError
from app.engine.events import log_save
from app.engine.memory_budget import MemoryBudget, size_of
from app.engine.waiters import Waiters, wait_for_event
from app.metrics import Metrics
from app.protocol.messages import Answered, Call, Command, Input, Step
from app.protocol.policy import Policy
from app.protocol.steps import advance, broken, objection
from app.protocol.values import CallRecord, Transaction
from app.storage import calls, transactions
from app.storage.commands import Heard, WithdrawnError
from app.storage.errors import DatabaseError, DatabaseUnavailableError, LateError, StaleError
from app.storage.group_commit import Journal
from holdfast.wire import Answer

log = logging.getLogger(__name__)


class Place(StrEnum):
    """What a transaction in progress counts as. Each place has its own limit, so that none crowds out another.

    After a crash recovery claims it again: as adopted, or as hung.
    """

    BEGUN = "begun"  # by a client of this process: HOLDFAST_INFLIGHT_MAX
    ADOPTED = "adopted"  # claimed because it was due
    HUNG = "hung"  # as long as it is, wherever it came from


class RunEndedError(Exception):
    """The run ended before it took the command. It is safe to issue the command again."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class PendingCommand:
    """A command for a run: of this process, whose future `done` gets the resulting transaction, or of the inbox.

    `id` is that of the row in the inbox, which gets the outcome.
    """

    command: Command
    done: asyncio.Future[Transaction] | None = None
    id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """What all runs of a process share.

    `places` counts the runs, `owners` those of each owner that were begun here, `spawn` starts a task that is cancelled
    when the process stops, and `tell` notifies other replicas that a transaction was decided, is delayed or has
    finished. `clock` gives seconds since the epoch.
    """

    journal: Journal
    caller: Caller
    registry: Registry
    policy: Policy
    metrics: Metrics
    memory: MemoryBudget
    waiters: Waiters
    places: Counter[Place]
    owners: Counter[str]
    spawn: Callable[[Coroutine[None, None, None]], asyncio.Task[None]]
    tell: Callable[[str], None]
    clock: Callable[[], float]


class Run:
    """One transaction in progress. `latest` may be ahead of `saved` by what a crash is allowed to lose."""

    def __init__(
        self, context: Context, saved: Transaction, *, place: Place, commands: Iterable[PendingCommand] = ()
    ) -> None:
        self._context = context
        self.saved = saved
        self.latest = saved
        self.history: list[CallRecord] = []
        """The calls that have finished since the transaction was last saved, oldest first."""
        self.leaving = False
        """Accepts no more commands: its calls are finishing, or another replica has taken the transaction over."""
        self.ended = asyncio.Event()
        self.task: asyncio.Task[None] | None = None
        self.place = place
        self._place_unless_hung = Place.ADOPTED if place is Place.HUNG else place
        self._commands: list[PendingCommand] = []
        self._known: set[str] = set()
        """The ids of the inbox's commands that this run has been given; the inbox may tell of one twice."""
        self._heard: list[Heard] = []
        """The inbox's commands whose outcome is in the next save."""
        self._taken: list[asyncio.Future[Transaction]] = []
        """The futures that wait for the command in progress."""
        self._answers: list[Answered] = []
        self._basis: tuple[Transaction, Sequence[Input]] = saved, ()
        """What the last step was made from."""
        self._calls: set[asyncio.Task[None]] = set()
        self._arrived = asyncio.Event()
        self._halted = False
        self._saving = False
        self._size = 0
        self._count(place, 1)
        self._hold(size_of(saved))
        for pending in commands:
            self.ask(pending)

    async def drive(self, first: Step | None) -> None:
        """Work until the transaction rests, or until another replica has taken it over.

        `first` is the step that has already been recorded; a claimed transaction has none.
        """
        try:
            await self._work(first)
            await self._leave()
        finally:
            self._turn_away()
            self._count(self.place, -1)
            self._context.memory.free(self._size)

    def ask(self, pending: PendingCommand) -> None:
        """Carry out this command; its future gets RunEndedError if the run ends first."""
        if pending.id is not None:
            if pending.id in self._known:
                return
            self._known.add(pending.id)
        self._commands.append(pending)
        self._arrived.set()

    async def look(self) -> None:
        """Take new commands from the inbox, and say no more of the transaction if another replica has taken it over."""
        known = self.saved
        news = await self._context.journal.read(transactions.find_news, known.id)
        for asked in news.commands:
            self.ask(PendingCommand(command=asked.command, id=asked.id))
        if news.version is None or news.version <= known.version or self._saving or self.saved is not known:
            return  # a save in progress finds out by itself
        self._turn_away()  # the next save ends this run

    def halt(self) -> None:
        """Stop before the next call or pause. A save in progress completes, because the hand-over builds on it."""
        self._halted = True
        self._arrived.set()

    async def hand_over(self) -> None:
        """Release the lease, and save the calls made since the last save."""
        await hand_over(self._context, self.saved, self.history)

    async def _work(self, first: Step | None) -> None:
        """Run the loop, and deal with a transaction whose loop can't go on."""
        try:
            await self._steps(first)
        except StaleError:
            log.info("event=taken_over transaction_id=%s", self.saved.id)
        except DatabaseUnavailableError as error:
            log.warning("event=save_failed transaction_id=%s error=%s", self.saved.id, error.kind)
        except Exception:
            log.exception("event=broken transaction_id=%s", self.saved.id)
            await self._set_aside()

    async def _steps(self, first: Step | None) -> None:
        step = first or self._advance(self.saved)
        while True:
            try:
                must_save = step.must_save or self._heard or self._is_commanded
                transaction = await self._save(step) if must_save else step.transaction
            except LateError as late:
                log.warning("event=decision_late transaction_id=%s", self.saved.id)
                if late.reached is not None and isinstance(self._context.clock, DatabaseClock):
                    self._context.clock.not_before(late.reached)  # it had stood still, or the same would be decided
                step = self._advance_again()
                continue
            except WithdrawnError as withdrawn:
                self._forget(withdrawn.command_id)
                step = self._advance_again()
                continue
            self._publish(transaction)
            if self._halted or (step.rests and not self._commands):
                return
            for call in step.calls:
                calling = self._context.spawn(self._call(call))
                self._calls.add(calling)
                calling.add_done_callback(self._calls.discard)
            await self._something(step)
            step = self._advance(transaction)

    def _advance(self, transaction: Transaction) -> Step:
        self._basis = transaction, self._inputs(transaction)
        return self._advance_again()

    def _advance_again(self) -> Step:
        """The next step from what the last one was made from, as things are now."""
        transaction, inputs = self._basis
        return advance(transaction, inputs, self._context.clock(), self._context.policy)

    def _forget(self, command_id: str) -> None:
        """Go on without a command whose effect was not saved."""
        transaction, inputs = self._basis
        if any(heard.id == command_id and heard.objection is None for heard in self._heard):
            inputs = ()  # it was the only one
        self._basis = transaction, inputs
        self._heard = [heard for heard in self._heard if heard.id != command_id]

    def _inputs(self, transaction: Transaction) -> Sequence[Input]:
        """One command alone, or else all the answers so far: a command is checked against the current state."""
        while self._commands:
            pending = self._commands.pop(0)
            if pending.id is not None and transaction.finished:
                continue  # nothing is saved any more; whoever asked sees that it is finished
            reason = objection(transaction, pending.command)
            if pending.id is not None:
                self._heard.append(Heard(id=pending.id, objection=reason))
            if reason is None:
                self._taken = [] if pending.done is None else [pending.done]
                return [pending.command]
            if pending.done is not None and not pending.done.done():
                pending.done.set_exception(ObjectedError(reason, transaction))
        answers, self._answers = self._answers, []
        return answers

    async def _save(self, step: Step) -> Transaction:
        made = tuple(self.history)  # a call that finishes during this save is left for the next one
        heard = tuple(self._heard)
        audited = entries_of(self.saved, step.transaction, self._basis[1], self._context.clock())
        save = transactions.Save(
            before=self.saved,
            after=step.transaction,
            calls=made,
            heard=heard,
            audited=audited,
            is_late=self._lateness_of(step),
            until=self._limit_of(step),
        )
        self._saving = True
        try:
            before, self.saved = self.saved, await self._context.journal.write(transactions.save, save)
        finally:
            self._saving = False
        del self.history[: len(made)]
        del self._heard[: len(heard)]
        if heard or self.saved.phase is not before.phase or self.saved.is_delayed is not before.is_delayed:
            self._context.tell(self.saved.id)
        log_save(before, self.saved, self._basis[1])
        for entry in audited:
            log_entry(entry)
        if self.saved.finished:
            self._context.metrics.finished.labels(outcome=self.saved.outcome).inc()
        return self.saved

    @property
    def _is_commanded(self) -> bool:
        """Whether the last step carries out a command, which the record tells of even if it changed nothing."""
        return any(commands_in(*self._basis))

    def _lateness_of(self, step: Step) -> Callable[[], bool] | None:
        """What tells the writer whether it is too late for this step, by the clock that it was made by."""
        clock, not_after = self._context.clock, step.not_after
        return None if not_after == math.inf else lambda: clock() >= not_after

    def _limit_of(self, step: Step) -> float | None:
        """From when on the database refuses this step by its own clock, if this process goes by that one, too."""
        is_shared = isinstance(self._context.clock, DatabaseClock)
        return step.not_after if is_shared and step.not_after < math.inf else None

    def _publish(self, transaction: Transaction) -> None:
        self.latest = transaction
        place = self._place_unless_hung if transaction.hung_since is None else Place.HUNG
        if place is not self.place:
            self._count(self.place, -1)
            self._count(place, 1)
            self.place = place
        taken, self._taken = self._taken, []
        for future in taken:
            if not future.done():
                future.set_result(transaction)
        self._context.waiters.show(transaction)

    def _count(self, place: Place, change: int) -> None:
        self._context.places[place] += change
        owner, owners = self.saved.owner, self._context.owners
        if owner is not None and place is Place.BEGUN:
            owners[owner] += change
            if not owners[owner]:
                del owners[owner]

    async def _something(self, step: Step) -> None:
        """Wait for an answer, a command, or the step's wake-up time."""
        if not self._answers and not self._commands:
            self._arrived.clear()
            await wait_for_event(self._arrived, step.wake_at - self._context.clock())

    async def _call(self, call: Call) -> None:
        try:
            answered, record = await self._context.caller.call(call, self._context.registry.target(call))
            self.history.append(record)
            self._context.metrics.observe_call(call.branch.participant, record)
            self._hold(len(answered.result or ""))
        except Exception as error:  # without an answer the run would wait for this call forever
            log.exception("event=call_broken transaction_id=%s branch=%s", call.transaction_id, call.branch.name)
            answered = Answered(
                branch=call.branch.name,
                operation=call.operation,
                attempt=call.attempt,
                answer=Answer.UNANSWERED,
                error=f"the coordinator failed ({type(error).__name__}); its log has the details",
            )
        self._answers.append(answered)
        self._arrived.set()

    def _hold(self, size: int) -> None:
        """Count these bytes as used until the run ends."""
        self._size += size
        self._context.memory.hold(size)

    async def _leave(self) -> None:
        """Wait for the calls in progress, so that no Cancel overtakes a Try of the same process."""
        self._turn_away()
        while self._calls and not self._halted:
            await asyncio.wait(self._calls)
        if self.history and not self._halted:
            made = tuple(self.history)
            try:
                await self._context.journal.write(calls.add_calls, made)
                del self.history[: len(made)]
            except DatabaseError as error:
                log.warning("event=history_lost transaction_id=%s error=%s", self.saved.id, error.kind)

    def _turn_away(self) -> None:
        """Accept no more commands; those that wait are issued again, to the next run of the transaction."""
        self.leaving = True
        for future in (*self._taken, *(pending.done for pending in self._commands)):
            if future is not None and not future.done():
                future.set_exception(RunEndedError())

    async def _set_aside(self) -> None:
        """Stop a transaction whose invariant is broken, and no other: it is listed as hung and retried later."""
        after = broken(self.saved, self._context.clock(), self._context.policy)
        made = tuple(self.history)
        save = transactions.Save(before=self.saved, after=after, calls=made)
        try:
            await self._context.journal.write(transactions.save, save)
            del self.history[: len(made)]
            log_save(self.saved, after, ())
        except Exception as error:  # the state itself may be what can't be written
            log.warning("event=set_aside_failed transaction_id=%s error=%s", self.saved.id, type(error).__name__)


async def take_over(journal: Journal, claim: transactions.Claim) -> list[transactions.Taken]:
    """Claim transactions and read them; another process may already have taken some of them in turn."""
    claimed = await journal.write(transactions.claim, claim)
    return await journal.read(transactions.find_claimed, claimed) if claimed else []


async def hand_over(context: Context, saved: Transaction, history: Sequence[CallRecord] = ()) -> None:
    """Release the lease of a transaction, so that the next process needn't wait for it to end."""
    if saved.finished:
        return
    after = replace(saved, wake_at=context.clock())
    try:
        save = transactions.Save(before=saved, after=after, calls=tuple(history))
        await context.journal.write(transactions.save, save)
    except (StaleError, DatabaseError) as error:
        log.info("event=hand_over_failed transaction_id=%s error=%s", saved.id, type(error).__name__)
