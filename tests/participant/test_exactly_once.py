"""Exactly once, also when configured wrongly: whatever ends the local transaction early is stopped or noticed."""

import threading
from collections.abc import Callable
from typing import Annotated, Any

import pymysql
import pytest
from sqlalchemy import Column, Integer, MetaData, Table, create_engine, func, insert, make_url, select, text, update
from sqlalchemy.exc import IntegrityError, OperationalError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session, sessionmaker

from holdfast import Hold, Participant
from holdfast.testing import FakeCoordinator
from tests.harness.participant_app import EFFECTS, METADATA, engine_for, running

AnyHold = Hold[Any]


def written() -> Any:
    return insert(EFFECTS).values(transaction_id="x", operation="try")


def participant_of(database: Any, handler: Callable[[AnyHold, Session], Any], **options: Any) -> Participant:
    """A participant whose Try is `handler`, in the form that its database takes."""
    participant = Participant("other", database, coordinator_url="http://coordinator", **options)
    if options.get("two_step") and isinstance(database, AsyncEngine):

        async def on_try(hold: AnyHold, session: AsyncSession) -> Any:
            return await session.run_sync(lambda plain: handler(hold, plain))

        participant.on_try(on_try)
    else:
        participant.on_try(handler)
    return participant


# --- 1: no transaction, or one that the handler ends -----------------------------------------------------------------


async def test_an_engine_in_autocommit_is_refused(url: str, kind: str) -> None:
    asynchronous = isinstance(engine_for(url, kind), AsyncEngine)
    address = make_url(url).set(drivername=kind)
    address = address.set(query={}) if kind.endswith("asyncmy") else address
    create: Any = create_async_engine if asynchronous else create_engine
    make: Any = async_sessionmaker if asynchronous else sessionmaker
    told_at_first, told_later = create(address, isolation_level="AUTOCOMMIT"), create(address)
    told_later = told_later.execution_options(isolation_level="AUTOCOMMIT")
    for database in (told_at_first, told_later, make(told_at_first), make(told_later)):
        with pytest.raises(ValueError, match="AUTOCOMMIT"):
            Participant("seats", database, coordinator_url="http://coordinator")


DRIVER_SAYS: dict[str, dict[str, Any]] = {
    "sqlite": {"isolation_level": None},
    "sqlite+aiosqlite": {"isolation_level": None},
    "postgresql+psycopg": {"autocommit": True},
    "mariadb+pymysql": {"autocommit": True},
    "mysql+asyncmy": {"autocommit": True},
}


@pytest.mark.parametrize("dialect_knows", [True, False])
@pytest.mark.parametrize("two_step", [False, True])
@pytest.mark.parametrize("kind", DRIVER_SAYS)
async def test_a_driver_in_autocommit_is_refused_before_anything_is_written(
    url: str, kind: str, two_step: bool, dialect_knows: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the engine doesn't know of is seen on the connection in use. SQLAlchemy's dialects tell it since 2.0.43."""

    def does_not_know(_: Any) -> None:
        raise NotImplementedError

    async with running(url, kind) as service:
        address = make_url(url).set(drivername=kind)
        address = address.set(query={}) if kind.endswith("asyncmy") else address
        create: Any = create_async_engine if isinstance(service.database, AsyncEngine) else create_engine
        engine = create(address, connect_args=DRIVER_SAYS[kind])
        if not dialect_knows:
            monkeypatch.setattr(engine.dialect, "detect_autocommit_setting", does_not_know, raising=False)
        participant = participant_of(
            engine, lambda hold, session: session.execute(written()) and None, two_step=two_step
        )
        async with FakeCoordinator(participant) as coordinator:
            branch = coordinator.branch()
            for _ in range(3):
                assert (await branch.try_()).status == 500
            assert await branch.phase() is None
            assert not await service.effects()
        await engine.dispose() if isinstance(engine, AsyncEngine) else engine.dispose()


def swallowing(end: Callable[[Session], Any]) -> Callable[[Session], Any]:
    def act(session: Session) -> None:
        try:
            end(session)
        except RuntimeError:
            return
        raise AssertionError("it was let through")

    return act


def within_a_savepoint(session: Session) -> None:
    session.begin_nested()
    session.execute(written())
    session.get_transaction().commit()  # type: ignore[union-attr]


def rolled_back_and_again(session: Session) -> None:
    session.rollback()
    session.execute(written())
    session.commit()


COMMITS: dict[str, Callable[[Session], Any]] = {
    "session": lambda session: session.commit(),
    "transaction": lambda session: session.get_transaction().commit(),  # type: ignore[union-attr]
    "connection": lambda session: session.connection().commit(),
    "raw": lambda session: session.execute(text("COMMIT")),
    "commented": lambda session: session.execute(text("/* done */ -- so\n commit")),
    "driver SQL": lambda session: session.connection().exec_driver_sql("COMMIT"),
    "new begin": lambda session: session.execute(text("BEGIN")),
    "savepoint's": within_a_savepoint,
    "after a rollback": rolled_back_and_again,
    "swallowed": swallowing(lambda session: session.commit()),
    "raw and swallowed": swallowing(lambda session: session.execute(text("COMMIT"))),
}


@pytest.mark.parametrize("commit", COMMITS)
@pytest.mark.parametrize("two_step", [False, True])
@pytest.mark.parametrize("kind", ["sqlite", "postgresql+asyncpg", "postgresql+psycopg", "mariadb+pymysql"])
async def test_a_commit_in_a_handler_raises_and_leaves_nothing(
    url: str, kind: str, two_step: bool, commit: str
) -> None:
    def handler(hold: AnyHold, session: Session) -> None:
        session.execute(written())
        COMMITS[commit](session)

    async with running(url, kind) as service:
        participant = participant_of(service.database, handler, two_step=two_step)
        async with FakeCoordinator(participant) as coordinator:
            branch = coordinator.branch()
            for _ in range(2):
                assert (await branch.try_()).problem == "handler-failed"
                assert not await service.effects()
            assert await branch.phase() == ("trying" if two_step else None)


AMONG_OTHERS = [
    "SELECT 1; COMMIT",
    "UPDATE effects SET operation = 'x'; commit work; SELECT 1",
    "SELECT ';'; /* ; */ -- ;\n COMMIT; BEGIN",
    "SELECT 1; END",
    "SELECT $body$ ; $body$; ROLLBACK; SELECT 1",
]


@pytest.mark.parametrize("several", AMONG_OTHERS)
@pytest.mark.parametrize("two_step", [False, True])
@pytest.mark.parametrize("kind", ["postgresql+psycopg"])
async def test_a_commit_among_other_statements_raises_and_leaves_nothing(
    url: str, kind: str, two_step: bool, several: str
) -> None:
    def handler(hold: AnyHold, session: Session) -> None:
        session.execute(written())
        session.connection().exec_driver_sql(several)

    async with running(url, kind) as service:
        participant = participant_of(service.database, handler, two_step=two_step)
        async with FakeCoordinator(participant) as coordinator:
            assert (await coordinator.branch().try_()).problem == "handler-failed"
            assert not await service.effects()


HARMLESS = [
    "SELECT '; commit'",
    "SELECT 'it''s; commit;'",
    "SELECT E'it\\'s; commit;'",
    'SELECT 1 AS "; commit; "',
    "SELECT $$; commit; $$",
    "DO $$ BEGIN PERFORM 1; END $$",
    "CREATE FUNCTION pg_temp.one() RETURNS integer BEGIN ATOMIC SELECT 1; END",
    "SELECT 1 /* ; commit; */; SELECT 2 -- ; commit",
    "SAVEPOINT a; ROLLBACK TO a; RELEASE a;",
]


@pytest.mark.parametrize("statement", HARMLESS)
@pytest.mark.parametrize("kind", ["postgresql+psycopg"])
async def test_what_only_looks_like_a_commit_is_let_through(url: str, kind: str, statement: str) -> None:
    def handler(hold: AnyHold, session: Session) -> None:
        session.execute(written())
        session.connection().exec_driver_sql(statement)

    async with running(url, kind) as service:
        participant = participant_of(service.database, handler)
        async with FakeCoordinator(participant) as coordinator:
            assert (await coordinator.branch().try_()).ok
            assert await service.effects() == {"try": 1}


@pytest.mark.parametrize(
    "several", ["SELECT 1; COMMIT", "SELECT 'it\\'s; '; ALTER TABLE effects ADD n INTEGER; SELECT 1"]
)
@pytest.mark.parametrize("kind", ["mariadb+pymysql"])
async def test_on_mysql_too_where_the_driver_sends_several(url: str, kind: str, several: str) -> None:
    async with running(url, kind) as service:
        together = {"client_flag": pymysql.constants.CLIENT.MULTI_STATEMENTS}
        engine = create_engine(make_url(url).set(drivername=kind), connect_args=together)

        def handler(hold: AnyHold, session: Session) -> None:
            session.execute(written())
            session.connection().exec_driver_sql("SELECT 'it\\'s; commit; '")
            if hold.attempt == 1:
                session.connection().exec_driver_sql(several)

        participant = participant_of(engine, handler)
        async with FakeCoordinator(participant) as coordinator:
            branch = coordinator.branch()
            assert (await branch.try_()).problem == "handler-failed"
            assert not await service.effects()
            assert (await branch.try_()).ok
        engine.dispose()


UNDONE: dict[str, Callable[[Session], Any]] = {
    "session": lambda session: session.rollback(),
    "connection": lambda session: session.connection().rollback(),
    "raw": swallowing(lambda session: session.execute(text("ROLLBACK"))),
    "closed": lambda session: session.close(),
}


@pytest.mark.parametrize("undo", UNDONE)
@pytest.mark.parametrize("kind", ["sqlite", "postgresql+asyncpg", "mariadb+pymysql"])
async def test_a_confirm_that_undoes_its_transaction_is_not_confirmed(url: str, kind: str, undo: str) -> None:
    async with running(url, kind) as service:
        participant = participant_of(service.database, lambda hold, session: None)

        def on_confirm(hold: AnyHold, session: Session) -> None:
            session.execute(written())
            UNDONE[undo](session)

        participant.on_confirm(on_confirm)
        async with FakeCoordinator(participant) as coordinator:
            branch = coordinator.branch()
            assert (await branch.try_()).ok
            assert (await branch.confirm()).problem == "handler-failed"
            assert await branch.phase() == "held"
            assert not await service.effects()


@pytest.mark.parametrize("kind", ["mariadb+pymysql"])
async def test_what_mariadb_commits_for_is_refused(url: str, kind: str) -> None:
    def handler(hold: AnyHold, session: Session) -> None:
        session.execute(written())
        session.execute(text("CREATE TABLE audit (n INTEGER)"))

    async with running(url, kind) as service:
        participant = participant_of(service.database, handler)
        async with FakeCoordinator(participant) as coordinator:
            assert (await coordinator.branch().try_()).problem == "handler-failed"
            assert not await service.effects()


# --- 2: rows are counted whatever the driver's flags -----------------------------------------------------------------


@pytest.mark.parametrize("two_step", [False, True])
@pytest.mark.parametrize("kind", ["mariadb+pymysql"])
async def test_mysql_without_found_rows(url: str, kind: str, two_step: bool) -> None:
    """As connectors that bring their own `creator` connect."""
    at = make_url(url)

    def connect() -> Any:
        return pymysql.connect(host=at.host, port=at.port or 3306, user=at.username, database=at.database)

    engine = create_engine("mysql+pymysql://", creator=connect, isolation_level="READ COMMITTED")
    METADATA.create_all(engine)
    participant = participant_of(engine, lambda hold, session: session.execute(written()) and None, two_step=two_step)
    async with FakeCoordinator(participant) as coordinator:
        kept, given_back = coordinator.branch(), coordinator.branch()
        for branch in (kept, given_back):
            assert (await branch.try_()).ok
            assert (await branch.try_()).ok
        assert (await kept.confirm()).ok
        assert (await kept.confirm()).ok
        assert (await given_back.cancel()).ok
        assert (await given_back.cancel()).ok
        assert (await given_back.try_()).problem == "already-cancelled"
        with engine.connect() as connection:
            assert connection.scalar(select(func.count()).select_from(EFFECTS)) == 2
    engine.dispose()


# --- 3: what the database undid --------------------------------------------------------------------------------------

LOCKED = Table(
    "locked", MetaData(), Column("id", Integer, primary_key=True), Column("n", Integer), mysql_engine="InnoDB"
)


@pytest.mark.parametrize("two_step", [False, True])
@pytest.mark.parametrize("kind", ["mariadb+pymysql"])
async def test_a_swallowed_deadlock_is_not_committed_as_done(url: str, kind: str, two_step: bool) -> None:
    engine = create_engine(make_url(url).set(drivername=kind), isolation_level="READ COMMITTED")
    LOCKED.metadata.create_all(engine)
    with engine.begin() as connection:
        connection.execute(insert(LOCKED), [{"id": n, "n": 0} for n in range(1, 9)])
    rival_has_two, handler_has_one = threading.Event(), threading.Event()
    swallowed: list[int] = []

    def handler(hold: AnyHold, session: Session) -> None:
        session.execute(update(LOCKED).where(LOCKED.c.id == 1).values(n=LOCKED.c.n + 1))
        handler_has_one.set()
        assert rival_has_two.wait(30)
        try:
            session.execute(update(LOCKED).where(LOCKED.c.id == 2).values(n=LOCKED.c.n + 1))
        except OperationalError as error:
            swallowed.append(error.orig.args[0])  # type: ignore[union-attr]

    def rival() -> None:
        with engine.begin() as connection:  # it has changed more, so the handler is the one that is undone
            connection.execute(update(LOCKED).where(LOCKED.c.id > 1).values(n=LOCKED.c.n + 100))
            rival_has_two.set()
            assert handler_has_one.wait(30)
            connection.execute(update(LOCKED).where(LOCKED.c.id == 1).values(n=LOCKED.c.n))

    participant = participant_of(engine, lambda hold, session: None, two_step=two_step)
    participant.on_confirm(handler)
    async with FakeCoordinator(participant) as coordinator:
        branch = coordinator.branch()
        assert (await branch.try_()).ok
        thread = threading.Thread(target=rival)
        thread.start()
        assert (await branch.confirm()).ok, "repeated at once, as after any deadlock"
        thread.join()
        assert swallowed == [1213]
        with engine.connect() as connection:
            assert connection.scalar(select(LOCKED.c.n).where(LOCKED.c.id == 1)) == 1, "exactly once"
    engine.dispose()


@pytest.mark.parametrize("two_step", [False, True])
@pytest.mark.parametrize("kind", ["sqlite", "sqlite+aiosqlite"])
async def test_what_sqlite_undid_is_not_committed_as_done(url: str, kind: str, two_step: bool) -> None:
    def on_confirm(hold: AnyHold, session: Session) -> None:
        session.execute(written())
        try:
            session.execute(
                text("INSERT OR ROLLBACK INTO effects (id, transaction_id, operation) VALUES (1, 'y', 'z')")
            )
        except IntegrityError:
            session.execute(text("SELECT 1"))

    async with running(url, kind) as service:
        participant = participant_of(service.database, lambda hold, session: None, two_step=two_step)
        if two_step and isinstance(service.database, AsyncEngine):

            async def confirm(hold: AnyHold, session: AsyncSession) -> None:
                await session.run_sync(lambda plain: on_confirm(hold, plain))

            participant.on_confirm(confirm)
        else:
            participant.on_confirm(on_confirm)
        async with FakeCoordinator(participant) as coordinator:
            first = coordinator.branch()
            assert (await first.try_()).ok
            await insert_first_effect(service)
            assert (await first.confirm()).problem == "handler-failed"
            assert await first.phase() == ("confirming" if two_step else "held")
            assert await service.effects() == {"first": 1}


async def insert_first_effect(service: Any) -> None:
    statement = insert(EFFECTS).values(id=1, transaction_id="first", operation="first")
    if isinstance(service.database, AsyncEngine):
        async with service.database.begin() as connection:
            await connection.execute(statement)
    else:
        with service.database.begin() as connection:
            connection.execute(statement)


# --- 4: savepoints, and handlers that do nothing -------------------------------------------------------------------


@pytest.mark.parametrize("raw", [False, True])
@pytest.mark.parametrize("two_step", [False, True])
async def test_a_savepoint_is_undone_with_its_handler(url: str, kind: str, two_step: bool, raw: bool) -> None:
    def handler(hold: AnyHold, session: Session) -> None:
        if raw:
            session.execute(text("SAVEPOINT mine"))
            session.execute(written())
            session.execute(text("RELEASE SAVEPOINT mine"))
        else:
            with session.begin_nested():
                session.execute(written())
        if hold.attempt <= 3:
            raise RuntimeError("the gateway is down")

    async with running(url, kind) as service:
        participant = participant_of(service.database, handler, two_step=two_step)
        async with FakeCoordinator(participant) as coordinator:
            branch = coordinator.branch()
            for _ in range(3):
                assert (await branch.try_()).status == 500
            assert not await service.effects()
            assert (await branch.try_()).ok
            assert await service.effects() == {"try": 1}


def test_a_session_of_the_wrong_kind_is_refused_when_decorated() -> None:
    participant = Participant("a", create_async_engine("sqlite+aiosqlite:///never"), coordinator_url="http://c")

    async def plain(hold: AnyHold, session: Session) -> None: ...
    async def postponed(hold: AnyHold, session: "Session") -> None: ...
    async def annotated(hold: AnyHold, session: Annotated[Session, "ours"]) -> None: ...
    def asynchronous(hold: AnyHold, session: AsyncSession) -> None: ...
    async def right(hold: AnyHold, session: AsyncSession) -> None: ...
    async def unknown(hold: AnyHold, session: "OnlyForTypeCheckers") -> None: ...  # type: ignore[name-defined] # noqa: F821

    for handler in (plain, postponed, annotated, asynchronous):
        with pytest.raises(TypeError, match="Session"):
            participant.on_try(handler)
    participant.on_try(right)
    participant.on_cancel(unknown)
    synchronous = Participant("a", create_engine("sqlite:///never"), coordinator_url="http://c")
    with pytest.raises(TypeError, match="Session"):
        synchronous.on_try(asynchronous)


@pytest.mark.parametrize("two_step", [False, True])
@pytest.mark.parametrize("kind", ["sqlite+aiosqlite", "postgresql+asyncpg", "mysql+asyncmy"])
async def test_a_forgotten_await_fails_loudly(url: str, kind: str, two_step: bool) -> None:
    async with running(url, kind) as service:
        participant = Participant("other", service.database, coordinator_url="http://c", two_step=two_step)

        @participant.on_try
        async def reserve(hold: AnyHold, session: AsyncSession) -> None:
            await session.execute(select(1))
            if hold.attempt == 1:
                session.execute(written())  # type: ignore[unused-coroutine]
            else:
                await session.execute(written())

        async with FakeCoordinator(participant) as coordinator:
            branch = coordinator.branch()
            assert (await branch.try_()).status == 500
            assert (await branch.try_()).ok
            assert await service.effects() == {"try": 1}


@pytest.mark.parametrize("kind", ["sqlite"])
async def test_a_handler_that_returns_a_coroutine_fails_loudly(url: str, kind: str) -> None:
    async def really(hold: AnyHold, session: Session) -> None: ...

    def partial_of(function: Any) -> Callable[[AnyHold, Session], Any]:
        def undeclared(hold: AnyHold, session: Session) -> Any:
            return function(hold, session)

        return undeclared

    async with running(url, kind) as service:
        participant = participant_of(service.database, lambda hold, session: None)
        participant.on_confirm(partial_of(really))
        async with FakeCoordinator(participant) as coordinator:
            branch = coordinator.branch()
            assert (await branch.try_()).ok
            assert (await branch.confirm()).status == 500
            assert await branch.phase() == "held"
