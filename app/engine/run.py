"""One transaction that this process works on: advance, save, call, and again, until it rests.

A new transaction and one that recovery has claimed take the same way. Nothing is decided here (app.protocol decides),
no SQL is written here (app.storage), and no database connection is held while a participant is being called: a save is
one write that is over before the first call leaves.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from app.calling.caller import Caller
from app.calling.registry import Registry
from app.engine.waiters import Waiters, wait_for_event
from app.metrics import Metrics
from app.protocol.messages import Answered, Call, Command, Input, Objection, Step
from app.protocol.policy import Policy
from app.protocol.steps import advance, broken, objection
from app.protocol.values import CallRecord, Transaction
from app.storage import calls, transactions
from app.storage.errors import DatabaseError, DatabaseUnavailableError, StaleError
from app.storage.group_commit import Journal
from holdfast.wire import Answer

log = logging.getLogger(__name__)


class Place(StrEnum):
    """What a transaction counts as while it is worked on; each has a limit of its own, so that none crowds out another.

    After a crash recovery claims it again: as adopted, or as hung.
    """

    BEGUN = "begun"  # here, just now: HOLDFAST_INFLIGHT_MAX
    ADOPTED = "adopted"  # claimed because it was due
    HUNG = "hung"  # wherever it came from


class ObjectedError(Exception):
    """The command can't be carried out on the transaction as it stands."""

    def __init__(self, reason: Objection, transaction: Transaction) -> None:
        super().__init__(reason)
        self.reason = reason
        self.transaction = transaction


class RunEndedError(Exception):
    """The run that should have taken the command ended first; it is safe to ask again."""


@dataclass(frozen=True, slots=True, eq=False)
class PendingCommand:
    """A command, and the future of whoever waits for the transaction that it leads to."""

    command: Command
    done: asyncio.Future[Transaction]


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """What all runs of a process share.

    `places` counts the runs, `spawn` starts a task that is cancelled when the process stops, and `tell` lets other
    replicas know that this transaction was decided or has ended. `clock` gives seconds since the epoch.
    """

    journal: Journal
    caller: Caller
    registry: Registry
    policy: Policy
    metrics: Metrics
    waiters: Waiters
    places: Counter[Place]
    spawn: Callable[[Coroutine[None, None, None]], asyncio.Task[None]]
    tell: Callable[[str], None]
    clock: Callable[[], float]


class Run:
    """One transaction at work. `latest` may be ahead of `saved` by what a crash may forget."""

    def __init__(
        self, context: Context, saved: Transaction, *, place: Place, commands: Iterable[PendingCommand] = ()
    ) -> None:
        self._context = context
        self.saved = saved
        self.latest = saved
        self.history: list[CallRecord] = []
        """The calls that have ended since the transaction was last saved, oldest first."""
        self.leaving = False
        """It only waits for its calls to end, and takes no commands any more."""
        self.ended = asyncio.Event()
        self.task: asyncio.Task[None] | None = None
        self._place = place
        self._commands = list(commands)
        self._taken: list[asyncio.Future[Transaction]] = []
        """Who waits for the command that is being carried out."""
        self._answers: list[Answered] = []
        self._calls: set[asyncio.Task[None]] = set()
        self._arrived = asyncio.Event()
        self._halted = False
        context.places[place] += 1

    async def drive(self, first: Step | None) -> None:
        """Work until the transaction rests, or until somebody else has it.

        `first` is the step that was recorded already; a claimed transaction has none.
        """
        try:
            await self._work(first)
            await self._leave()
        finally:
            self._turn_away()
            self._context.places[self._place] -= 1

    def ask(self, pending: PendingCommand) -> None:
        """Have this command carried out; it is refused with RunEndedError when the run ends first."""
        self._commands.append(pending)
        self._arrived.set()

    def halt(self) -> None:
        """Leave before the next call or pause. A save that is under way is let through, or it would be stale."""
        self._halted = True
        self._arrived.set()

    async def hand_over(self) -> None:
        """Give the lease back, with what has happened since the last save."""
        await hand_over(self._context, self.saved, self.history)

    async def _work(self, first: Step | None) -> None:
        """The loop, and what becomes of a transaction when the loop can't go on."""
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
            transaction = await self._save(step) if step.must_save else step.transaction
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
        return advance(transaction, self._inputs(transaction), self._context.clock(), self._context.policy)

    def _inputs(self, transaction: Transaction) -> Sequence[Input]:
        """One command by itself, or all the answers that are there: a command is checked against what is known."""
        while self._commands:
            pending = self._commands.pop(0)
            reason = objection(transaction, pending.command)
            if reason is None:
                self._taken = [pending.done]
                return [pending.command]
            if not pending.done.done():
                pending.done.set_exception(ObjectedError(reason, transaction))
        answers, self._answers = self._answers, []
        return answers

    async def _save(self, step: Step) -> Transaction:
        made = tuple(self.history)  # a call that ends while this is under way is left for the next save
        save = transactions.Save(before=self.saved, after=step.transaction, calls=made)
        before, self.saved = self.saved, await self._context.journal.write(transactions.save, save)
        del self.history[: len(made)]
        if self.saved.phase is not before.phase:
            self._context.tell(self.saved.id)
        if self.saved.finished:
            self._context.metrics.finished.labels(outcome=self.saved.outcome).inc()
        return self.saved

    def _publish(self, transaction: Transaction) -> None:
        self.latest = transaction
        if transaction.hung_since is not None and self._place is not Place.HUNG:
            self._context.places[self._place] -= 1
            self._context.places[Place.HUNG] += 1
            self._place = Place.HUNG
        taken, self._taken = self._taken, []
        for future in taken:
            if not future.done():
                future.set_result(transaction)
        self._context.waiters.show(transaction)

    async def _something(self, step: Step) -> None:
        """Wait until an answer or a command is there, or until it is time to look again."""
        if not self._answers and not self._commands:
            self._arrived.clear()
            await wait_for_event(self._arrived, step.wake_at - self._context.clock())

    async def _call(self, call: Call) -> None:
        try:
            answered, record = await self._context.caller.call(call, self._context.registry.target(call))
            self.history.append(record)
            self._context.metrics.observe_call(call.branch.participant, record)
        except Exception as error:  # a call without an answer would be waited for for ever
            log.exception("event=call_broken transaction_id=%s branch=%s", call.transaction_id, call.branch.name)
            answered = Answered(
                branch=call.branch.name,
                operation=call.operation,
                attempt=call.attempt,
                answer=Answer.UNANSWERED,
                error=f"the coordinator could not tell what came of the call ({type(error).__name__})",
            )
        self._answers.append(answered)
        self._arrived.set()

    async def _leave(self) -> None:
        """Stay until the calls under way have ended, so that no Cancel overtakes a Try of this very process."""
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
        """Take no commands any more, and send those that are there to whoever has the transaction next."""
        self.leaving = True
        for future in (*self._taken, *(pending.done for pending in self._commands)):
            if not future.done():
                future.set_exception(RunEndedError())

    async def _set_aside(self) -> None:
        """A broken invariant stops this one transaction: it is listed as hung, and looked at again later."""
        after = broken(self.saved, self._context.clock(), self._context.policy)
        made = tuple(self.history)
        save = transactions.Save(before=self.saved, after=after, calls=made)
        try:
            await self._context.journal.write(transactions.save, save)
            del self.history[: len(made)]
        except Exception as error:  # what broke may be what would have to be written
            log.warning("event=set_aside_failed transaction_id=%s error=%s", self.saved.id, type(error).__name__)


async def hand_over(context: Context, saved: Transaction, history: Sequence[CallRecord] = ()) -> None:
    """Give the lease of a transaction back, so that whoever starts next need not wait for its end."""
    if saved.finished:
        return
    after = replace(saved, wake_at=context.clock())
    try:
        save = transactions.Save(before=saved, after=after, calls=tuple(history))
        await context.journal.write(transactions.save, save)
    except (StaleError, DatabaseError) as error:
        log.info("event=hand_over_failed transaction_id=%s error=%s", saved.id, type(error).__name__)
