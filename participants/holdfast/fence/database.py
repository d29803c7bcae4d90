"""The participant's own database: one way to run a unit of work on an Engine or an AsyncEngine.

A unit of work is a plain function of a Session. It runs in a worker thread (Engine) or in `AsyncSession.run_sync`
(AsyncEngine), so that nothing is written twice. Also tells transient failures from others.
"""

import asyncio
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, Final, TypeVar
from weakref import WeakKeyDictionary

from anyio import CapacityLimiter, to_thread
from sqlalchemy import URL, Connection, Engine, Table, inspect
from sqlalchemy.exc import DBAPIError, InterfaceError, NoSuchTableError, OperationalError, StatementError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker
from sqlalchemy.orm import Session, sessionmaker
from sqlalchemy.pool import StaticPool

from holdfast.fence.awaiting import remembering
from holdfast.fence.groups import leaves
from holdfast.fence.guard import Undone, refuse_autocommit, watch
from holdfast.fence.handlers import Invoke, invoke_def, invoker_for
from holdfast.fence.rows import ADDED, DIALECTS, adding

T = TypeVar("T")

HANDLER_THREADS_MAX: Final = 40
"""Maximum number of concurrent handlers of a participant on a synchronous engine; they have their own threads."""

CHAIN_MAX: Final = 10
"""How many exceptions of a chain are looked at."""

AnyDatabase = Engine | AsyncEngine | sessionmaker[Any] | async_sessionmaker[Any]

_COLLISIONS: Final = frozenset({"40001", "40P01"})
"""SQLSTATEs of serialization failures and deadlocks on PostgreSQL; MySQL's drivers report a number instead."""
_MYSQL_COLLISIONS: Final = frozenset({1213, 1020})
"""1213: a deadlock, or a conflict with another node of a cluster. 1020: a row changed since it was read."""
_SQLITE_ERROR: Final = 1
"""SQLite's code for errors in SQL, such as a missing table; its driver reports them as operational errors, too."""
_MYSQL_MISTAKES: Final = frozenset({1054, 1146, 1305, 1364})
"""Unknown column, table or procedure, or a column without a value; some drivers call these operational."""
_PASSING_STATES: Final = ("08", "25006", "25P03", "40", "53", "55", "57")
"""SQLSTATEs, or their classes: connection, a server that only reads (it was demoted), a transaction that was idle for
too long, rollback, resources, object in use (lock not available), operator intervention."""


class Database:
    """Sessions of the service's own engine or session factory. Raises TypeError or ValueError for anything else."""

    def __init__(self, database: AnyDatabase) -> None:
        self._sync: sessionmaker[Any] | None = None
        self._async: async_sessionmaker[Any] | None = None
        match database:
            case Engine():
                self._sync = sessionmaker(database)
            case sessionmaker():
                self._sync = database
            case AsyncEngine():
                self._async = async_sessionmaker(database)
            case async_sessionmaker():
                self._async = database
            case _:
                raise TypeError(
                    "database must be an Engine, an AsyncEngine, a sessionmaker or an async_sessionmaker, "
                    f"not {type(database).__name__}"
                )
        if self._async is not None:
            self._async_class = remembering(self._async.class_)
        engine = self._bind()
        if engine.dialect.name not in DIALECTS:
            raise ValueError(f"holdfast supports {', '.join(sorted(DIALECTS))}, not {engine.dialect.name}")
        if engine.dialect.name == "sqlite" and _is_in_memory(engine):
            raise ValueError(
                "an in-memory SQLite database loses its holds with each connection: use a file, such as sqlite:///service.db"
            )
        refuse_autocommit(engine)
        watch(engine)
        self._limiters: WeakKeyDictionary[asyncio.AbstractEventLoop, CapacityLimiter] = WeakKeyDictionary()

    @property
    def asynchronous(self) -> bool:
        return self._async is not None

    @property
    def engine(self) -> Engine:
        """The engine that sessions use, or the synchronous side of an AsyncEngine."""
        return self._bind()

    async def run(self, work: Callable[[Session, Invoke], T], *, calls_handlers: bool = False) -> T:
        """Run `work` with a new session, which is closed afterwards; `work` has to commit.

        `calls_handlers`: on a synchronous engine, use the threads that are reserved for handlers. However many of them
        hang, the service's other endpoints and the reaper's own queries find a thread.
        """
        if self._async is not None:
            session: AsyncSession
            try:
                async with self._async_class(**self._async.kw) as session:
                    return await session.run_sync(work, invoker_for(session))
            except BaseException as error:
                _let_go_of_cursors(error)
                raise
        limiter = self._limiter() if calls_handlers else None
        return await to_thread.run_sync(self._run_here, work, limiter=limiter)

    async def create(self, table: Table) -> None:
        """Create `table`, or the columns that it lacks; another replica may be doing the same."""

        def work(session: Session, _: Invoke) -> None:
            connection = session.connection()
            table.create(connection, checkfirst=True)
            for name in missing_columns(connection, table) or ():
                connection.execute(adding(table, name, connection.dialect))
            session.commit()

        for _ in ("table", *ADDED):
            with suppress(DBAPIError):  # another replica may have added it meanwhile; otherwise this fails again
                await self.run(work)
                return
        await self.run(work)

    async def missing_columns(self, table: Table) -> tuple[str, ...] | None:
        """The columns that `table` lacks because an older version created it; None if there is no table."""
        return await self.run(lambda session, _: missing_columns(session.connection(), table))

    def _limiter(self) -> CapacityLimiter:
        """One per event loop, because a limiter belongs to its loop."""
        return self._limiters.setdefault(asyncio.get_running_loop(), CapacityLimiter(HANDLER_THREADS_MAX))

    def _run_here(self, work: Callable[[Session, Invoke], T]) -> T:
        assert self._sync is not None
        with self._sync() as session:
            return work(session, invoke_def)

    def _bind(self) -> Engine:
        maker = self._async or self._sync
        assert maker is not None
        bind = maker.kw.get("bind")
        if isinstance(bind, AsyncEngine):
            return bind.sync_engine
        if isinstance(bind, Engine):
            return bind
        raise TypeError("database: the session factory must be bound to an engine, as in sessionmaker(engine)")


def printable_database(url: URL) -> str:
    """`url` without user, password and options, for logs."""
    return URL.create(url.drivername, host=url.host, port=url.port, database=url.database).render_as_string()


def _is_in_memory(engine: Engine) -> bool:
    """Whether each connection has its own database. A StaticPool shares one connection, which is fine for tests."""
    name, options = engine.url.database or "", engine.url.query
    in_memory = name in ("", ":memory:", "file::memory:") or options.get("mode") == "memory" or "mode=memory" in name
    return in_memory and not isinstance(engine.pool, StaticPool)


def missing_columns(connection: Connection, table: Table) -> tuple[str, ...] | None:
    """As the method of `Database`, on a connection."""
    try:
        columns = {column["name"] for column in inspect(connection).get_columns(table.name, schema=table.schema)}
    except NoSuchTableError:
        return None
    return tuple(name for name in ADDED if name not in columns)


def collided(error: BaseException) -> bool:
    """Whether the database rolled the transaction back in favour of another, so that it should be retried at once.

    In a group one such error is enough: the others may be its consequences.
    """
    return any(
        isinstance(leaf, Undone) or _sqlstate(leaf) in _COLLISIONS or _mysql_code(leaf) in _MYSQL_COLLISIONS
        for leaf in leaves(error)
    )


def will_pass(error: BaseException) -> bool:
    """Whether `error` is a transient problem of the database (down, full, locked, slow), not a bug of the handler."""
    if _is_mistake(error):
        return False
    if isinstance(error, OperationalError | InterfaceError | PoolTimeoutError | OSError):
        return True
    if isinstance(error, DBAPIError) and error.connection_invalidated:
        return True
    state = _sqlstate(error)
    return state is not None and state.startswith(_PASSING_STATES)


def hide_values(error: BaseException) -> None:
    """Remove statement parameters, which contain payloads, from the error's text before it is logged."""
    for one in _chain(error):
        if isinstance(one, StatementError):
            one.hide_parameters = True


def _let_go_of_cursors(error: BaseException) -> None:
    """Clear the local variables of the frames that `error` passed, where a statement was cancelled.

    SQLite's lock outlives the connection's close until the last cursor that isn't exhausted is gone, and exceptions
    keep their frames as long as somebody keeps the exception (sqlite3_close_v2: a zombie connection).
    """
    for one in _chain(error):
        for leaf in leaves(one):
            if isinstance(leaf, asyncio.CancelledError):
                traceback.clear_frames(leaf.__traceback__)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and what led to it."""
    seen: BaseException | None = error
    for _ in range(CHAIN_MAX):
        if seen is None:
            return
        yield seen
        seen = seen.__cause__ or seen.__context__


def _is_mistake(error: BaseException) -> bool:
    """Whether the statement will fail however often it is repeated."""
    orig = error.orig if isinstance(error, DBAPIError) else None
    return getattr(orig, "sqlite_errorcode", None) == _SQLITE_ERROR or _mysql_code(error) in _MYSQL_MISTAKES


def _sqlstate(error: BaseException) -> str | None:
    orig = error.orig if isinstance(error, DBAPIError) else error
    for name in ("sqlstate", "pgcode"):
        state = getattr(orig, name, None)
        if isinstance(state, str):
            return state
    return None


def _mysql_code(error: BaseException) -> int | None:
    orig = error.orig if isinstance(error, DBAPIError) else None
    arguments = getattr(orig, "args", ())
    return arguments[0] if arguments and isinstance(arguments[0], int) else None
