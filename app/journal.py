"""The database: group commit for writes, a small pool for reads.

Many callers' writes that wait at the same moment go into one database transaction, in one thread; a caller goes on
only when its write is durable. A write that fails fails its own caller, not the batch. What is written is not known
here: a write is a function of a connection and of all the items that wait for it (store.py has them).

SQL runs in threads and never on the event loop, so that no connection is ever held across an await.
"""

import asyncio
import logging
import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Final, TypeVar

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError

log = logging.getLogger(__name__)

BATCH_MAX: Final = 256
"""Writes that share one database transaction, at the most."""
READERS: Final = 4
"""Threads, and so connections, that read."""
SQLITE_BUSY_S: Final = 10
"""How long SQLite waits for another process's lock before it gives up, in seconds."""

CONNECT_TIMEOUT_S: Final = 5
"""How long PostgreSQL may take to accept a connection, in seconds."""
SILENCE_MAX_S: Final = 10
"""A connection whose peer acknowledges nothing for so long is given up: a black hole must not hold the writer."""

LOCK_WAIT_MAX_S: Final = 3
"""How long a statement waits for another's lock: one writer serves everybody and must not be held up by one row."""
STATEMENT_MAX_S: Final = 10
"""How long a statement may take, and how long a transaction of a frozen process keeps its locks."""
CLOSE_MAX_S: Final = 15.0
"""How long closing waits for the writes that are under way."""
UNDONE_MAX: Final = 5
"""How often writes that the database undid in favour of others are tried again, at once."""
_UNDONE: Final = frozenset({"40001", "40P01"})
"""SQLSTATE of serialization failure (MySQL's deadlocks and Galera's conflicts have it too) and of a deadlock."""
_WAITED_TOO_LONG: Final = frozenset({"55P03", "57014", "HY000", "70100"})
"""SQLSTATE of lock_not_available and query_canceled, and the two that MySQL has for such and other troubles."""

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")
WriteFunction = Callable[[Connection, Sequence[_Item]], Sequence[_Result]]


@dataclass(slots=True)
class _Write:
    function: WriteFunction[Any, Any]
    item: Any
    loop: asyncio.AbstractEventLoop
    future: "asyncio.Future[Any]"


class Outrun(Exception):
    """What a write raises when others were quicker, and it is to be undone and done again."""


class Instead(Exception):
    """What a write raises when it is to be undone with all its items, and done by `function`, the slower and surer."""

    def __init__(self, function: "WriteFunction[Any, Any]", text: str) -> None:
        super().__init__(text)
        self.function = function
        self.replaced: WriteFunction[Any, Any] | None = None  # known to the journal, which called it


class JournalClosed(Exception):
    """The journal was closed before this write was made durable."""


class Journal:
    """Runs reads and writes against one database. Open it with the application, close it last."""

    def __init__(self, database_url: str) -> None:
        self.engine = make_engine(database_url)
        self._writing_engine = self.engine.execution_options(holdfast_writes=True)
        self._queue: queue.SimpleQueue[_Write | None] = queue.SimpleQueue()
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="holdfast-read")
        self._writer = threading.Thread(target=self._write_until_closed, name="holdfast-write", daemon=True)
        self._closed = False
        self._writer.start()

    async def write(self, function: WriteFunction[_Item, _Result], item: _Item) -> _Result:
        """Have `function(connection, items)` run with this item among others, and return this item's result.

        Returns when the result is durable. Raises what the function raised for this item alone, and JournalClosed.
        """
        if self._closed:
            raise JournalClosed
        loop = asyncio.get_running_loop()
        future: asyncio.Future[_Result] = loop.create_future()
        self._queue.put(_Write(function, item, loop, future))
        return await future

    async def write_apart(self, function: WriteFunction[_Item, _Result], item: _Item) -> _Result:
        """As `write`, but nobody waits for it: in a database transaction of its own, beside the writer's.

        On SQLite, where only one can write at a time, it goes along with the others.
        """
        if self.engine.dialect.name == "sqlite":
            return await self.write(function, item)
        if self._closed:
            raise JournalClosed
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._readers, self._write_apart, function, item)

    async def read(self, function: Callable[..., _Result], *args: Any) -> _Result:
        """Run `function(connection, *args)` in a reading thread and return what it returns."""
        if self._closed:
            raise JournalClosed
        return await asyncio.get_running_loop().run_in_executor(self._readers, self._read, function, args)

    async def close(self) -> None:
        """Finish the writes that wait, then let go of the database."""
        self._closed = True
        self._queue.put(None)
        await asyncio.to_thread(self._writer.join, CLOSE_MAX_S)
        self._readers.shutdown(wait=True)
        self.engine.dispose()

    def _read(self, function: Callable[..., _Result], args: tuple[Any, ...]) -> _Result:
        try:
            with self.engine.connect() as connection:
                return function(connection, *args)
        except DBAPIError as error:
            if not _was_cut_off(error):
                raise
        with self.engine.connect() as connection:
            return function(connection, *args)

    def _write_apart(self, function: WriteFunction[_Item, _Result], item: _Item) -> _Result:
        with self._writing_engine.begin() as connection:
            return function(connection, [item])[0]

    def _write_until_closed(self) -> None:
        closing = False
        while not closing:
            batch, closing = self._next_batch()
            if batch:
                _deliver(batch, self._commit(batch))

    def _next_batch(self) -> tuple[list[_Write], bool]:
        """Wait for one write, and take along all that wait behind it."""
        batch: list[_Write] = []
        while len(batch) < BATCH_MAX:
            try:
                write = self._queue.get(block=not batch)
            except queue.Empty:
                break
            if write is None:
                return batch, True
            batch.append(write)
        return batch, False

    def _commit(self, batch: list[_Write], *, again: bool = False) -> list[Any]:
        """The results of `batch`, in its order; an exception stands for a write that failed."""
        try:
            return self._commit_undone_again(batch)
        except _CommitFailed as failed:
            return [failed.cause] * len(batch)  # it may be durable or not: nobody may take it for either
        except Instead as it:
            return self._commit(
                [replace(write, function=it.function) if write.function is it.replaced else write for write in batch]
            )
        except Exception as error:
            if not again and _was_cut_off(error):
                return self._commit(batch, again=True)  # while the connection lay in the pool; nothing was committed
            if len(batch) == 1:
                return [error]
        except BaseException as error:  # a panic in an extension: whatever it is, the writer must live on
            log.exception("event=write_panicked writes=%d", len(batch))
            return [RuntimeError(f"{type(error).__name__}: {error}")] * len(batch)
        results: list[Any] = []
        for position, write in enumerate(batch):
            results += self._commit([write])
            if _is_out_of_reach(results[-1]):
                return results + [results[-1]] * (len(batch) - position - 1)  # no database: no use in asking on
        return results

    def _commit_undone_again(self, batch: list[_Write]) -> list[Any]:
        for _ in range(UNDONE_MAX):
            try:
                return self._commit_together(batch)
            except Exception as error:
                if not _was_undone(error):
                    raise
                log.info("event=writes_undone writes=%d", len(batch))
        return self._commit_together(batch)

    def _commit_together(self, batch: list[_Write]) -> list[Any]:
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
                    except Instead as it:
                        it.replaced = function
                        raise
                    assert len(answers) == len(positions), f"{function.__name__} must answer each item"
                    for position, answer in zip(positions, answers, strict=True):
                        results[position] = answer
            except BaseException:
                transaction.rollback()
                raise
            try:
                transaction.commit()
            except Exception as error:
                connection.invalidate()  # on SQLite it would still be in the transaction, and hold the lock
                if _was_undone(error):
                    raise
                raise _CommitFailed(error) from error
        return results


def _was_cut_off(error: Exception) -> bool:
    """Whether the connection was found dead: all of the pool have been replaced then, and asking again is worth it."""
    return isinstance(error, DBAPIError) and error.connection_invalidated


def _is_out_of_reach(result: Any) -> bool:
    """Whether a write failed for want of a database, not because somebody else holds what it needs."""
    if not isinstance(result, (OperationalError, InterfaceError)):
        return False
    return getattr(result.orig, "sqlstate", None) not in _WAITED_TOO_LONG | _UNDONE


def _was_undone(error: Exception) -> bool:
    """Whether it was rolled back in favour of others: nothing is there, even if the database said so on commit."""
    if isinstance(error, DBAPIError):
        return getattr(error.orig, "sqlstate", None) in _UNDONE
    return isinstance(error, Outrun)


class _CommitFailed(Exception):
    def __init__(self, cause: Exception) -> None:
        super().__init__(str(cause))
        self.cause = cause


def _deliver(batch: list[_Write], results: list[Any]) -> None:
    """Wake the callers, once for all those of one event loop."""
    by_loop: dict[asyncio.AbstractEventLoop, list[tuple[asyncio.Future[Any], Any]]] = {}
    for write, result in zip(batch, results, strict=True):
        by_loop.setdefault(write.loop, []).append((write.future, result))
    for loop, answers in by_loop.items():
        try:
            loop.call_soon_threadsafe(_settle, answers)
        except RuntimeError:  # the loop has been closed; its callers are gone
            log.warning("event=journal_caller_gone writes=%d", len(answers))


def _settle(answers: list[tuple["asyncio.Future[Any]", Any]]) -> None:
    for future, result in answers:
        if future.done():
            continue
        if isinstance(result, BaseException):
            future.set_exception(result)
        else:
            future.set_result(result)


# --- engines -----------------------------------------------------------------------------------------------------

_DRIVERS: Final = {
    "sqlite": "sqlite",
    "postgresql": "postgresql+psycopg",
    "postgres": "postgresql+psycopg",
    "mysql": "mysql+pymysql",
    "mariadb": "mysql+pymysql",
}


def normal_url(database_url: str) -> URL:
    """The URL with the driver that is installed, whatever driver it named.

    Raises ValueError when the database is not one that Holdfast speaks to.
    """
    try:
        url = make_url(database_url)
    except ValueError:  # its message would quote what stands where the port should: of a password with an @, the rest
        raise ValueError("HOLDFAST_DATABASE_URL: not a URL; %-encode @, : and / in a name or password") from None
    backend = url.drivername.partition("+")[0]
    if backend not in _DRIVERS:
        known = "sqlite:///…, postgresql://… or mysql://…"
        raise ValueError(f"HOLDFAST_DATABASE_URL: {backend} is not supported; use {known}")
    return url.set(drivername=_DRIVERS[backend])


def is_embedded(database_url: str) -> bool:
    """Whether the database is a file of this process's own (SQLite)."""
    return normal_url(database_url).get_backend_name() == "sqlite"


def make_engine(database_url: str, *, patient: bool = False) -> Engine:
    """An engine as the coordinator needs it; on SQLite durable (synchronous=FULL) and with one writer at a time.

    With a `patient` one statements may take as long as they like: a migration does.
    """
    url = normal_url(database_url)
    backend = url.get_backend_name()
    if backend == "sqlite":
        return _sqlite_engine(url)
    arguments = _postgresql_arguments(patient) if backend == "postgresql" else _mysql_arguments(patient)
    engine = create_engine(url, pool_size=READERS + 2, max_overflow=2, **arguments)
    if backend == "mysql":
        event.listen(engine, "do_connect", _connect_mysql)
        if not patient:
            event.listen(engine, "connect", _limit_mysql)
    return engine


def _postgresql_arguments(patient: bool) -> dict[str, Any]:
    connect_args: dict[str, Any] = {
        "connect_timeout": CONNECT_TIMEOUT_S,
        "tcp_user_timeout": 1000 * SILENCE_MAX_S,
        "keepalives_idle": SILENCE_MAX_S,
        "keepalives_interval": 2,
        "keepalives_count": 3,
    }
    if not patient:
        connect_args["options"] = (
            f"-c lock_timeout={LOCK_WAIT_MAX_S}s -c statement_timeout={STATEMENT_MAX_S}s "
            f"-c idle_in_transaction_session_timeout={STATEMENT_MAX_S}s"
        )
    return {"connect_args": connect_args}


def _mysql_arguments(patient: bool) -> dict[str, Any]:
    """Whatever the server's defaults are: all of Unicode, nothing cut off silently, no gap locks."""
    connect_args = {
        "connect_timeout": CONNECT_TIMEOUT_S,
        "write_timeout": SILENCE_MAX_S,
        "read_timeout": None if patient else STATEMENT_MAX_S + CONNECT_TIMEOUT_S,  # the server's own limit comes first
        "charset": "utf8mb4",
        "sql_mode": "STRICT_ALL_TABLES",
    }
    return {"connect_args": connect_args, "isolation_level": "READ COMMITTED"}


def _connect_mysql(dialect: Any, _record: Any, arguments: Any, options: Any) -> Any:
    """The driver takes what stands after the URL's `?` for arguments, and doesn't say whose they are."""
    try:
        return dialect.connect(*arguments, **options)
    except TypeError as error:
        raise ValueError(f"HOLDFAST_DATABASE_URL: {error}") from None


def _limit_mysql(connection: Any, _record: Any) -> None:
    """Set what this server has of limits, and that on a Galera node each transaction sees all that went before it.

    MySQL bounds reads alone, and what a frozen process has locked only by how long its connection is idle.
    """
    limits = {
        "innodb_lock_wait_timeout": LOCK_WAIT_MAX_S,
        "max_statement_time": STATEMENT_MAX_S,  # MariaDB
        "max_execution_time": 1000 * STATEMENT_MAX_S,  # MySQL
        "idle_transaction_timeout": STATEMENT_MAX_S,  # MariaDB
        "wsrep_sync_wait": 7,  # Galera, before reads, updates and inserts
    }
    with connection.cursor() as cursor:
        cursor.execute("SHOW SESSION VARIABLES WHERE Variable_name IN %s", [tuple(limits)])
        has = {name: limits[name] for name, _ in cursor.fetchall()}
        if "idle_transaction_timeout" not in has:
            has["wait_timeout"] = 3 * STATEMENT_MAX_S
        cursor.execute("SET " + ", ".join(f"SESSION {name} = {value}" for name, value in has.items()))


def _sqlite_engine(url: URL) -> Engine:
    if not url.database or url.database == ":memory:":
        raise ValueError("HOLDFAST_DATABASE_URL: name a file, such as sqlite:///holdfast.db; memory forgets")
    engine = create_engine(url, pool_size=READERS + 1, connect_args={"timeout": SQLITE_BUSY_S})
    event.listen(engine, "connect", _configure_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _configure_sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # BEGIN is ours: the driver would begin too late, and never IMMEDIATE
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    writes = connection.get_execution_options().get("holdfast_writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
