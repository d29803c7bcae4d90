"""The transactions in progress on this process: starts a run for each, and ends or hands over all when it stops.

Doesn't advance transactions (run.py does), and doesn't decide which are started here.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, Final

from app.calling.caller import Caller
from app.calling.registry import Registry
from app.engine.errors import ForgottenTransactionError, UnknownTransactionError
from app.engine.forgotten import Forgotten
from app.engine.memory_budget import MemoryBudget
from app.engine.run import Context, PendingCommand, Place, Run, hand_over
from app.engine.waiters import Waiters
from app.metrics import Metrics
from app.protocol.messages import Step
from app.protocol.policy import Policy
from app.protocol.steps import was_interrupted
from app.protocol.values import CallRecord, Transaction
from app.storage import queries, transactions
from app.storage.errors import DatabaseError, DatabaseUnavailableError
from app.storage.group_commit import Journal
from app.storage.queries import StoredDecision
from app.storage.transactions import Taken

log = logging.getLogger(__name__)

SAVE_LIMIT_S: Final = 2.0
"""How long a save in progress may take when the process stops, in seconds."""


class Runs:
    """All runs of this process, by transaction. The parameters are those of `Context`, and what may be forgotten."""

    def __init__(
        self,
        *,
        journal: Journal,
        caller: Caller,
        registry: Registry,
        policy: Policy,
        metrics: Metrics,
        memory: MemoryBudget,
        waiters: Waiters,
        tell: Callable[[str], None],
        clock: Callable[[], float],
        forgotten: Forgotten,
    ) -> None:
        self._forgotten = forgotten
        self.context: Final = Context(
            journal=journal,
            caller=caller,
            registry=registry,
            policy=policy,
            metrics=metrics,
            memory=memory,
            waiters=waiters,
            places=Counter(),
            owners=Counter(),
            spawn=self._spawn,
            tell=tell,
            clock=clock,
        )
        self.stopping = False
        """The process is stopping and adopts nothing more."""
        self._runs: dict[str, Run] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._claims: set[asyncio.Task[None]] = set()
        self._stopped = False
        self._stop: asyncio.Task[None] | None = None

    def __len__(self) -> int:
        return len(self._runs)

    def get(self, transaction_id: str) -> Run | None:
        """The run of this transaction, whatever it is doing."""
        return self._runs.get(transaction_id)

    def active(self, transaction_id: str) -> Run | None:
        """The run that speaks for this transaction; one that is leaving may have been overtaken."""
        run = self._runs.get(transaction_id)
        return None if run is None or run.leaving else run

    async def find(self, transaction_id: str) -> Transaction:
        """The transaction as it stands. Raises UnknownTransactionError."""
        run = self.active(transaction_id)
        return await self.find_stored(transaction_id) if run is None else run.latest

    async def find_stored(self, transaction_id: str) -> Transaction:
        """The transaction as it is in the database. Raises UnknownTransactionError."""
        transaction = await self.context.journal.read(transactions.find, transaction_id)
        if transaction is None:
            await self.find_decision_for_sure(transaction_id, None)
            raise DatabaseUnavailableError("a connection that reads lags behind one that writes")
        return transaction

    async def find_decision_for_sure(self, transaction_id: str, branch: str | None) -> StoredDecision:
        """What is durably decided, as the writer sees it. Raises UnknownTransactionError, ForgottenTransactionError.

        A participant takes the first for cancel, so it is raised nowhere else, and never of what a restore forgot.
        """
        found = await self.context.journal.write(queries.find_decisions_for_sure, (transaction_id, branch))
        if found is not None:
            return found
        if self._forgotten.may_include(transaction_id):
            raise ForgottenTransactionError(transaction_id)
        raise UnknownTransactionError(transaction_id)

    def unsaved_calls(self, transaction_id: str) -> list[CallRecord]:
        """The calls that have finished since the transaction was last saved, oldest first."""
        run = self._runs.get(transaction_id)
        return list(run.history) if run else []

    async def begin(self, recorded: Transaction, first: Step) -> None:
        """Start to work on a transaction that has just been recorded with its first step."""
        if self._stopped:
            await hand_over(self.context, recorded)
        else:
            self._start(recorded, place=Place.BEGUN, first=first)

    async def adopt(self, taken: Taken, commands: Iterable[PendingCommand] = ()) -> bool:
        """Start to work on a transaction whose lease this process has just taken; returns whether it has started.

        The run gets the commands before its first step, so it sends nothing that a command was meant to stop. If this
        process still has a run for it, that run was too slow to renew its lease. It ends at its next save, and the
        transaction is claimed again only after that, so that no Cancel overtakes a Try of the same process.
        """
        transaction = taken.transaction
        if self._stopped:
            await hand_over(self.context, transaction)
            return False
        if transaction.id in self._runs:
            return False
        if was_interrupted(transaction):
            log.info("event=recovered transaction_id=%s", transaction.id)
            self.context.metrics.claimed.inc()
        waiting = [PendingCommand(command=asked.command, id=asked.id) for asked in taken.commands]
        place = Place.ADOPTED if transaction.hung_since is None else Place.HUNG
        self._start(transaction, place=place, commands=[*waiting, *commands])
        return True

    def heard(self, transaction_id: str) -> None:
        """Another process has changed this transaction, or asks something of it.

        A run that is here has been overtaken, has a command in its inbox, or the notification is an old one. Otherwise
        the clients wake up that wait here.
        """
        run = self.active(transaction_id)
        if run is None:
            self.context.waiters.look_again(transaction_id)
        else:
            self._spawn(self._look(run))

    def spawn_claim(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Start a claim, which a stop lets end: what it has taken would wait for the end of its lease."""
        task = asyncio.create_task(coroutine)
        self._claims.add(task)
        task.add_done_callback(self._claims.discard)
        return task

    async def stop(self, limit_s: float) -> None:
        """Adopt nothing new, give runs `limit_s` seconds to finish, and hand over the rest.

        A second call waits for the first one to finish.
        """
        if self._stop is None:
            self._stop = asyncio.create_task(self._stop_once(limit_s), name="stop")
        await asyncio.shield(self._stop)

    def _start(
        self,
        saved: Transaction,
        *,
        place: Place,
        first: Step | None = None,
        commands: Iterable[PendingCommand] = (),
    ) -> None:
        run = Run(self.context, saved, place=place, commands=commands)
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
            self.context.waiters.look_again(run.saved.id)

    async def _look(self, run: Run) -> None:
        try:
            await run.look()
        except DatabaseError as error:
            log.info("event=ownership_unknown transaction_id=%s error=%s", run.saved.id, error.kind)
        self.context.waiters.look_again(run.saved.id)

    async def _stop_once(self, limit_s: float) -> None:
        self.stopping = True  # clients that wait for runs in progress are still answered
        await _ended((run.task for run in self._runs.values()), limit_s)
        left = list(self._runs.values())
        self._stopped = True
        for run in left:
            run.halt()
        await _ended((*(run.task for run in left), *self._claims), SAVE_LIMIT_S)
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.context.waiters.close()
        await asyncio.gather(*(run.hand_over() for run in left))


async def _ended(tasks: Iterable[asyncio.Task[Any] | None], limit_s: float) -> None:
    """Wait until all tasks have finished, for at most `limit_s` seconds."""
    under_way = [task for task in tasks if task is not None]
    if under_way:
        await asyncio.wait(under_way, timeout=limit_s)
