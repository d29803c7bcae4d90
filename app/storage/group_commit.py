"""Group commit for writes, and a small thread pool for reads.

Writes that wait at the same time share one database transaction in one thread. A caller continues only when its write
is durable. A failing write fails its own caller, not the batch. This module doesn't know what is written: a write is a
function of a connection and of all the items that wait for it (the modules named after tables have them). An item may
have `size_bytes`, and a function `is_late`, which is asked right before COMMIT: what is late is left out.

SQL runs in threads and never on the event loop, so that no connection is held across an await. Errors are translated
(errors.py) when they leave this module.
"""

import asyncio
import logging
import queue
import threading
from collections.abc import Callable, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Final, TypeVar, overload

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError

from app.storage.deferred import Deferred, finished
from app.storage.engines import READERS, make_engine
from app.storage.errors import (
    ConcurrentWriteError,
    JournalClosedError,
    LateError,
    RetryWithError,
    translated,
    translating,
)

log = logging.getLogger(__name__)

BATCH_MAX: Final = 256
"""Maximum number of writes that share one database transaction."""
BATCH_BYTES_MAX: Final = 8 * 1024 * 1024
"""A batch with this much to write takes no more; a larger write is a batch of its own."""
CLOSE_MAX_S: Final = 15.0
"""How long closing waits for writes in progress, in seconds."""
RETRIES_MAX: Final = 5
"""Maximum immediate retries of a batch that the database rolled back in favour of a concurrent transaction."""
LOCK_WAITS_MAX: Final = 2
"""Maximum number of writes of a batch that wait in vain for a lock; then the rest fails, too: the table is locked."""
_ROLLED_BACK: Final = frozenset({"40001", "40P01"})
"""SQLSTATEs of serialization failures (also MySQL's deadlocks and Galera's conflicts) and of deadlocks."""
_WAITED_TOO_LONG: Final = frozenset({"55P03", "57014", "HY000", "70100"})
"""SQLSTATEs of lock_not_available and query_canceled, and the two that MySQL uses for these and other errors."""

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")
WriteFunction = Callable[[Connection, Sequence[_Item]], Sequence[_Result]]


@dataclass(slots=True)
class PendingWrite:
    """A write that waits for its commit, and the future of its caller."""

    function: WriteFunction[Any, Any]
    item: Any
    loop: asyncio.AbstractEventLoop
    future: "asyncio.Future[Any]"


class CommitFailedError(Exception):
    """COMMIT failed: the batch may or may not be durable, and nobody may assume either."""

    def __init__(self, cause: Exception) -> None:
        super().__init__(str(cause))
        self.cause = cause


class SomeLateError(Exception):
    """Writes at these positions of the batch came too late. Nothing was committed; the batch is redone without them."""

    def __init__(self, positions: Set[int]) -> None:
        super().__init__(f"{len(positions)} writes came too late")
        self.positions = positions


class Journal:
    """Runs reads and writes on one database. Open it first and close it last."""

    def __init__(self, database_url: str, *, pooled: bool = False) -> None:
        """`pooled`: the URL is that of a pooler, which gives each transaction whichever session is free."""
        self.engine = make_engine(database_url, pooled=pooled)
        self._writing_engine = self.engine.execution_options(holdfast_writes=True)
        self._queue: queue.SimpleQueue[PendingWrite | None] = queue.SimpleQueue()
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="holdfast-read")
        self._writer = threading.Thread(target=self._write_until_closed, name="holdfast-write", daemon=True)
        self._closed = False
        self._writer.start()

    async def write(self, function: WriteFunction[_Item, _Result], item: _Item) -> _Result:
        """Run `function(connection, items)` with this item among others, and return this item's result.

        Returns once the result is durable. Raises what the function raised for this item, LateError if the item was
        late, or JournalClosedError.
        """
        if self._closed:
            raise JournalClosedError
        loop = asyncio.get_running_loop()
        future: asyncio.Future[_Result] = loop.create_future()
        self._queue.put(PendingWrite(function, item, loop, future))
        return await future

    async def write_apart(self, function: WriteFunction[_Item, _Result], item: _Item) -> _Result:
        """As `write`, but in its own database transaction, so that other writes don't wait for it.

        It is retried like others when the database rolls it back in favour of a concurrent transaction. On SQLite,
        which has one writer at a time, it joins the other writes.
        """
        if self.engine.dialect.name == "sqlite":
            return await self.write(function, item)
        if self._closed:
            raise JournalClosedError
        loop = asyncio.get_running_loop()
        write = PendingWrite(function, item, loop, loop.create_future())
        (outcome,) = await loop.run_in_executor(self._readers, self.commit, [write])
        settle([(write.future, outcome)])
        result: _Result = await write.future
        return result

    @overload
    async def read(self, function: Callable[..., Deferred[_Result]], *args: Any) -> _Result: ...

    @overload
    async def read(self, function: Callable[..., _Result], *args: Any) -> _Result: ...

    async def read(self, function: Callable[..., Any], *args: Any) -> Any:
        """Run `function(connection, *args)` in a reading thread and return what it returns."""
        if self._closed:
            raise JournalClosedError
        return await asyncio.get_running_loop().run_in_executor(self._readers, self._read, function, args)

    def read_in_this_thread(self, function: Callable[..., _Result], *args: Any) -> _Result:
        """As `read`, for a thread that has no event loop."""
        if self._closed:
            raise JournalClosedError
        result: _Result = self._read(function, args)
        return result

    async def close(self) -> None:
        """Finish the waiting writes, then disconnect from the database."""
        self._closed = True
        self._queue.put(None)
        await asyncio.to_thread(self._writer.join, CLOSE_MAX_S)
        self._readers.shutdown(wait=True)
        self.engine.dispose()

    def _read(self, function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        return finished(self._read_rows(function, args))

    def _read_rows(self, function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        with translating():
            try:
                with self.engine.connect() as connection:
                    return function(connection, *args)
            except DBAPIError as error:
                if not _was_cut_off(error):
                    raise
            with self.engine.connect() as connection:
                return function(connection, *args)

    def commit(self, batch: list[PendingWrite]) -> list[Any]:
        """Write a batch in the calling thread; returns results in order, an exception for each failed write."""
        return [translated(each) if isinstance(each, Exception) else each for each in self._outcomes(batch)]

    def _write_until_closed(self) -> None:
        closing = False
        while not closing:
            batch, closing = self._next_batch()
            if batch:
                deliver(batch, self.commit(batch))

    def _next_batch(self) -> tuple[list[PendingWrite], bool]:
        """Wait for one write, and take all that are queued behind it."""
        batch: list[PendingWrite] = []
        size = 0
        while len(batch) < BATCH_MAX and size < BATCH_BYTES_MAX:
            try:
                write = self._queue.get(block=not batch)
            except queue.Empty:
                break
            if write is None:
                return batch, True
            batch.append(write)
            size += getattr(write.item, "size_bytes", 0)
        return batch, False

    def _outcomes(self, batch: list[PendingWrite], *, again: bool = False) -> list[Any]:
        """As `commit`, but with SQLAlchemy's errors, whose SQLSTATE decides what to do."""
        try:
            return self._commit_with_retries(batch)
        except CommitFailedError as failed:
            return [failed.cause] * len(batch)
        except RetryWithError as retry:
            return self._outcomes([_with_the_surer_function(write, retry) for write in batch])
        except SomeLateError as late:
            return self._outcomes_without(batch, late.positions)
        except Exception as error:
            if not again and _was_cut_off(error):
                return self._outcomes(batch, again=True)  # the connection died in the pool; nothing was committed
            return [error] if len(batch) == 1 else self._outcomes_of_parts(batch, error)
        except BaseException as error:  # such as a panic in an extension; the writer must survive
            log.exception("event=write_panicked writes=%d", len(batch))
            return [RuntimeError(f"{type(error).__name__}: {error}")] * len(batch)

    def _outcomes_of_parts(self, batch: list[PendingWrite], error: Exception) -> list[Any]:
        """The outcomes of a batch that has failed, in halves: one bad write costs the others few commits.

        Where each attempt may take seconds the writes are tried one by one, and the rest fails with the last of them.
        """
        takes_long = _is_out_of_reach(error) or _waited_too_long(error)
        size = 1 if takes_long else (len(batch) + 1) // 2
        results: list[Any] = []
        while len(results) < len(batch):
            results += self._outcomes(batch[len(results) : len(results) + size])
            if _is_out_of_reach(results[-1]) or sum(map(_waited_too_long, results)) >= LOCK_WAITS_MAX:
                results += [results[-1]] * (len(batch) - len(results))
        return results

    def _outcomes_without(self, batch: list[PendingWrite], late: Set[int]) -> list[Any]:
        """The outcomes of a batch, redone without the writes at these positions, which are late for good."""
        rest = [write for position, write in enumerate(batch) if position not in late]
        outcomes = iter(self._outcomes(rest) if rest else ())
        return [LateError() if position in late else next(outcomes) for position in range(len(batch))]

    def _commit_with_retries(self, batch: list[PendingWrite]) -> list[Any]:
        for _ in range(RETRIES_MAX):
            try:
                return self._commit_together(batch)
            except Exception as error:
                if not _was_rolled_back(error):
                    raise
                log.info("event=writes_retried writes=%d", len(batch))
        return self._commit_together(batch)

    def _commit_together(self, batch: list[PendingWrite]) -> list[Any]:
        results: list[Any] = [None] * len(batch)
        groups: dict[WriteFunction[Any, Any], list[int]] = {}
        for position, write in enumerate(batch):
            groups.setdefault(write.function, []).append(position)
        with self._writing_engine.connect() as connection:
            transaction = connection.begin()
            try:
                for function, positions in groups.items():
                    try:
                        answers = function(connection, [batch[position].item for position in positions])
                    except RetryWithError as retry:
                        retry.raised_by = function
                        raise
                    assert len(answers) == len(positions), f"{function.__name__} must answer each item"
                    for position, answer in zip(positions, answers, strict=True):
                        results[position] = answer
                if late := {position for position, write in enumerate(batch) if _is_late(write)}:
                    raise SomeLateError(late)
            except BaseException:
                transaction.rollback()
                raise
            try:
                transaction.commit()
            except Exception as error:
                connection.invalidate()  # on SQLite it would stay in the transaction and hold the lock
                if _was_rolled_back(error):
                    raise
                raise CommitFailedError(error) from error
        return results


def _is_late(write: PendingWrite) -> bool:
    is_late: Callable[[], bool] | None = getattr(write.item, "is_late", None)
    return is_late is not None and is_late()


def _with_the_surer_function(write: PendingWrite, retry: RetryWithError) -> PendingWrite:
    return replace(write, function=retry.function) if write.function is retry.raised_by else write


def _was_cut_off(error: Exception) -> bool:
    """Whether the connection was found dead. The whole pool has been replaced then, so a retry is worthwhile."""
    return isinstance(error, DBAPIError) and error.connection_invalidated


def _is_out_of_reach(result: Any) -> bool:
    """Whether the database is unreachable or only reads; a lock or a conflict is none of this."""
    if isinstance(result, DBAPIError) and result.connection_invalidated:
        return True
    if not isinstance(result, (OperationalError, InterfaceError)):
        return False
    return getattr(result.orig, "sqlstate", None) not in _WAITED_TOO_LONG | _ROLLED_BACK


def _waited_too_long(result: Any) -> bool:
    """Whether a write failed because it waited for a lock, or took too long."""
    return isinstance(result, OperationalError) and getattr(result.orig, "sqlstate", None) in _WAITED_TOO_LONG


def _was_rolled_back(error: Exception) -> bool:
    """Whether the batch was rolled back in favour of another transaction: nothing is durable, even if COMMIT failed."""
    if isinstance(error, DBAPIError):
        return getattr(error.orig, "sqlstate", None) in _ROLLED_BACK
    return isinstance(error, ConcurrentWriteError)


def deliver(batch: list[PendingWrite], results: list[Any]) -> None:
    """Wake the callers, with one wake-up for each event loop."""
    by_loop: dict[asyncio.AbstractEventLoop, list[tuple[asyncio.Future[Any], Any]]] = {}
    for write, result in zip(batch, results, strict=True):
        by_loop.setdefault(write.loop, []).append((write.future, result))
    for loop, answers in by_loop.items():
        try:
            loop.call_soon_threadsafe(settle, answers)
        except RuntimeError:  # the event loop is closed, and its callers are gone
            log.warning("event=journal_caller_gone writes=%d", len(answers))


def settle(answers: list[tuple["asyncio.Future[Any]", Any]]) -> None:
    """Set the result or exception of each future, except those that are already done."""
    for future, result in answers:
        if future.done():
            continue
        if isinstance(result, BaseException):
            future.set_exception(result)
        else:
            future.set_result(result)
