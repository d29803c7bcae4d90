"""The journal of a replica, run by the scheduler: the same batches, without threads.

Writes that wait at the same moment share a database transaction, which is made in one go: other replicas come before
or after it, never between. What is drawn: when it happens, whether it fails before, is undone, is done and not
answered, and whether the process dies before or after.
"""

from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy.exc import OperationalError

from app.storage import errors, purge, transactions
from app.storage.errors import DatabaseUnavailableError
from app.storage.group_commit import BATCH_MAX, CommitFailedError, Journal, PendingWrite, settle
from tests.simulation.databases import coordinator_engine, raw
from tests.simulation.direct_sqlite import DirectEngine
from tests.simulation.faults import Branch, Fault, Plan
from tests.simulation.scheduler import Process, freeze, never, pass_time

COMMIT_S = (0.001, 0.01)
SLOW_S = (0.1, 1.2)
READ_S = (0.0005, 0.003)


class DriverError(Exception):
    """What a database driver raises."""

    def __init__(self, sqlstate: str | None = None) -> None:
        super().__init__("simulated")
        self.sqlstate = sqlstate


class SimulatedJournal(Journal):
    """The journal of one life of one replica."""

    def __init__(self, process: Process, world: Any, name: str) -> None:
        engine = DirectEngine(raw(coordinator_engine()))
        self.engine: Any = engine
        self._writing_engine: Any = engine.execution_options(holdfast_writes=True)
        self._process = process
        self._world = world
        self._plan: Plan = world.plan
        self._name = name
        self.clock: Callable[[], float] = process.clock
        """The clock of the coordinator, once it has one."""
        self._waiting: list[PendingWrite] = []
        self._is_writing = False
        self._closed = False
        self._draw = process.loop.draw

    async def write(self, function: Callable[..., Sequence[Any]], item: Any) -> Any:
        future = self._process.loop.create_future()
        self._waiting.append(PendingWrite(function, item, self._process.loop, future))
        if not self._is_writing:
            self._is_writing = True
            self._process.spawn(self._write_all())
        try:
            result = await future
        except errors.StaleError:
            self._plan.count(Branch.STALE)
            raise
        except errors.LateError as late:
            self._plan.count(Branch.TOO_LATE if late.reached is None else Branch.REFUSED_AS_LATE)
            raise
        self._notice(function, result)
        return result

    def _notice(self, function: Callable[..., Sequence[Any]], result: Any) -> None:
        """Count what only a look at the writes shows."""
        if function is transactions.record and isinstance(result, transactions.Recorded) and not result.created:
            self._plan.count(Branch.KEY_KNOWN)
        elif function is transactions.save and result.hung_since is not None:
            self._plan.count(Branch.HUNG if result.decided_at is not None else Branch.HUNG_UNDECIDED)

    def _note_commands(self, item: Any, result: Any) -> None:
        """What a save that was committed says of commands."""
        if not isinstance(item, transactions.Save) or isinstance(result, Exception):
            return
        for heard in item.heard:
            self._plan.count(Branch.HEARD if heard.objection is None else Branch.OBJECTED)
            self._world.oracle.heard(item.after.id, heard.id)

    def _note_owner(self, function: Callable[..., Sequence[Any]], item: Any, result: Any) -> None:
        """Whose a transaction is from this commit on, known or not to those who had it before."""
        if function is transactions.claim:
            for claimed in result:
                before = self._world.take(self._process.name, claimed.id)
                if before is not None and not before.startswith(f"{self._name}."):
                    self._plan.count(Branch.ADOPTED)
                    if item.version is not None:
                        self._plan.count(Branch.TAKEN_FOR_A_COMMAND)
                        self._world.oracle.taken_for_a_command(before, claimed.id)
        elif function is transactions.record and isinstance(result, transactions.Recorded) and result.created:
            self._world.take(self._process.name, result.transaction_id)

    def _note_decision(self, item: Any, result: Any) -> None:
        """A decision is durable from now on, by the clock of the replica that made it; or the end is."""
        if not isinstance(item, transactions.Save) or isinstance(result, Exception):
            return
        if item.before.decision is not item.after.decision:
            self._world.oracle.decided(item.after, self.clock())
        if item.after.finished:
            self._world.oracle.finished(item.after.id)

    def _note_purge(self, item: Any, result: Any) -> None:
        if isinstance(item, purge.Deletion) and not isinstance(result, Exception):
            self._world.oracle.purged(item.ids)

    async def write_apart(self, function: Callable[..., Sequence[Any]], item: Any) -> Any:
        return await self.write(function, item)

    async def read(self, function: Callable[..., Any], *args: Any) -> Any:
        await pass_time(self._draw.uniform(*READ_S))
        if self._plan.hits(Fault.READ_FAILED):
            raise DatabaseUnavailableError("simulated")
        result = self._read(function, args)
        await pass_time(self._draw.uniform(*READ_S))
        return result

    async def close(self) -> None:
        self._closed = True

    async def _write_all(self) -> None:
        """What the writing thread does."""
        try:
            while self._waiting:
                began, share = self._process.loop.now, self._draw.random()
                await pass_time(self._latency_s())
                lag_s = (self._process.loop.now - began) * share
                batch, self._waiting = self._waiting[:BATCH_MAX], self._waiting[BATCH_MAX:]
                if self._plan.hits(Fault.REPLICA_CRASH_AT_COMMIT):
                    await self._crash(before=self._draw.random() < 0.5, batch=batch)
                if self._plan.hits(Fault.REPLICA_FREEZE_AT_COMMIT):
                    freeze()
                    await pass_time(0.0)
                if self._plan.hits(Fault.REPLICA_PAUSE_AT_COMMIT):
                    freeze(with_its_clocks=True)
                    await pass_time(0.0)
                self._world.lag_s = lag_s
                results = self.commit(batch)
                self._world.lag_s = 0.0
                if self._plan.hits(Fault.REPLICA_FREEZE_AT_COMMIT):
                    freeze()
                    await pass_time(0.0)
                await pass_time(self._draw.uniform(*READ_S))
                answers = [(write.future, result) for write, result in zip(batch, results, strict=True)]
                settle(answers)
        finally:
            self._is_writing = False

    def _latency_s(self) -> float:
        slow = self._plan.hits(Fault.COMMIT_SLOW)
        return self._draw.uniform(*(SLOW_S if slow else COMMIT_S))

    async def _crash(self, *, before: bool, batch: list[PendingWrite]) -> None:
        if not before:
            self.commit(batch)
        self._process.kill()
        await never()

    def _commit_together(self, batch: list[PendingWrite]) -> list[Any]:
        if self._plan.hits(Fault.BATCH_FAILED):
            raise OperationalError("simulated", None, DriverError())
        if self._plan.hits(Fault.BATCH_UNDONE):
            raise OperationalError("simulated", None, DriverError("40001"))
        if self._plan.hits(Fault.COMMIT_LOST):
            raise CommitFailedError(OperationalError("simulated", None, DriverError()))
        results = super()._commit_together(batch)
        for write, result in zip(batch, results, strict=True):
            self._note_owner(write.function, write.item, result)
            self._note_commands(write.item, result)
            self._note_decision(write.item, result)
            self._note_purge(write.item, result)
        self._world.committed()
        if self._plan.hits(Fault.COMMIT_REPLY_LOST):
            if any(write.function is transactions.save for write in batch):
                self._plan.count(Branch.AMBIGUOUS)
            raise CommitFailedError(OperationalError("simulated", None, DriverError()))
        return results
