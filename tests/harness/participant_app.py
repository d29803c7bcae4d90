"""A small service that mounts the SDK, in each of the kinds that the SDK supports. Its effects can be counted.

`reserve`, `book` and `release` each add one row to `effects`; so "exactly once" is a count.
"""

import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel, PositiveInt
from sqlalchemy import (
    Column,
    Engine,
    Integer,
    MetaData,
    String,
    Table,
    create_engine,
    event,
    func,
    insert,
    make_url,
    select,
)
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from holdfast import Hold, Participant, Refused

METADATA = MetaData()
EFFECTS = Table(
    "effects",
    METADATA,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("transaction_id", String(64), nullable=False),
    Column("operation", String(16), nullable=False),
)
KINDS = [
    *("sqlite", "sqlite+aiosqlite", "postgresql+psycopg", "postgresql+asyncpg"),
    *("mariadb+pymysql", "mysql+asyncmy"),  # the same server, by both names
]
ASYNCHRONOUS = {"aiosqlite", "asyncpg", "asyncmy"}


class SeatRequest(BaseModel):
    quantity: PositiveInt = 1


class Boom(Exception):
    """A handler's bug."""


class InUse:
    """Counts an engine's connections in use, whatever its pool: a NullPool can't tell."""

    def __init__(self, engine: Engine | AsyncEngine) -> None:
        self.count = 0
        self._lock = threading.Lock()
        sync = engine.sync_engine if isinstance(engine, AsyncEngine) else engine
        event.listen(sync, "checkout", lambda *_: self._change(1))
        event.listen(sync, "checkin", lambda *_: self._change(-1))

    def _change(self, by: int) -> None:
        with self._lock:
            self.count += by


Behaviour = Callable[[str, Hold[SeatRequest]], Any]
"""What a handler does before it writes: (operation, hold) → what it returns."""


@dataclass
class Service:
    """The participant, its database and what the test makes its handlers do."""

    database: Engine | AsyncEngine
    participant: Participant
    behave: list[Behaviour] = field(default_factory=list)
    holds: list[tuple[str, Hold[SeatRequest]]] = field(default_factory=list)
    in_use: InUse | None = None

    @property
    def connections_in_use(self) -> int:
        """How many connections are in use, of a service that `running` has started."""
        assert self.in_use is not None
        return self.in_use.count

    def act(self, operation: str, hold: Hold[SeatRequest]) -> Any:
        self.holds.append((operation, hold))
        return self.behave[-1](operation, hold) if self.behave else {"reserved": hold.payload.quantity}

    async def effects(self, transaction_id: str | None = None) -> Counter[str]:
        """How often each handler's changes were committed."""
        query = select(EFFECTS.c.operation, func.count()).group_by(EFFECTS.c.operation)
        if transaction_id is not None:
            query = query.where(EFFECTS.c.transaction_id == transaction_id)
        return Counter({row[0]: row[1] for row in await self.rows(query)})

    async def rows(self, query: Any) -> list[Any]:
        if isinstance(self.database, AsyncEngine):
            async with self.database.connect() as connection:
                return list((await connection.execute(query)).all())
        with self.database.connect() as connection:
            return list(connection.execute(query).all())


def engine_for(url: str, kind: str) -> Engine | AsyncEngine:
    """An engine of `kind` on the database at `url`, as docs/reference/sdk.md says to make it."""
    made = make_url(url).set(drivername=kind)
    options: dict[str, Any] = {}
    if made.get_backend_name() in ("mysql", "mariadb"):
        options = {"isolation_level": "READ COMMITTED"}
    if kind.endswith("asyncmy"):
        made = made.set(query={})
    asynchronous = kind.rsplit("+", maxsplit=1)[-1] in ASYNCHRONOUS
    return create_async_engine(made, **options) if asynchronous else create_engine(made, **options)


@asynccontextmanager
async def running(url: str, kind: str, **options: Any) -> AsyncIterator[Service]:
    """A service on a new database, closed down at the end."""
    engine = engine_for(url, kind)
    if isinstance(engine, AsyncEngine):
        async with engine.begin() as connection:
            await connection.run_sync(METADATA.create_all)
    else:
        METADATA.create_all(engine)
    service = service_on(engine, **options)
    service.in_use = InUse(engine)
    await service.participant.create_table()
    try:
        yield service
    finally:
        if isinstance(engine, AsyncEngine):
            await engine.dispose()
        else:
            engine.dispose()


def service_on(engine: Engine | AsyncEngine, name: str = "seats", **options: Any) -> Service:
    """A participant with three handlers that write one row each."""
    participant = Participant(name, engine, coordinator_url="http://coordinator", **options)
    service = Service(database=engine, participant=participant)

    def written(operation: str, hold: Hold[SeatRequest]) -> Any:
        return insert(EFFECTS).values(transaction_id=hold.transaction_id, operation=operation)

    if isinstance(engine, AsyncEngine):

        def a_handler(operation: str) -> Any:
            async def handle(hold: Hold[SeatRequest], session: AsyncSession) -> Any:
                result = service.act(operation, hold)
                if hasattr(result, "__await__"):
                    result = await result
                if operation != "cancel" or hold.held:
                    await session.execute(written(operation, hold))
                return result

            return handle
    else:

        def a_handler(operation: str) -> Any:
            def handle(hold: Hold[SeatRequest], session: Session) -> Any:
                result = service.act(operation, hold)
                if operation != "cancel" or hold.held:
                    session.execute(written(operation, hold))
                return result

            return handle

    participant.on_try(a_handler("try"))
    participant.on_confirm(a_handler("confirm"))
    participant.on_cancel(a_handler("cancel"))
    return service


def refuses(operation: str, hold: Hold[SeatRequest]) -> Any:
    raise Refused("sold out")


def breaks(operation: str, hold: Hold[SeatRequest]) -> Any:
    raise Boom("secret payload")
