"""Errors that say what is wrong: whose failure it was, what to do about it, and nobody's payload in the log."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from pydantic import BaseModel
from sqlalchemy import TextClause, create_engine, text
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from holdfast import Hold, NotNow, Participant, Refused
from holdfast.testing import Answer, FakeCoordinator
from tests.harness.participant_app import EFFECTS, SeatRequest, Service, running

SECRET = "ada@secret.example"
HandlerBody = Callable[[Session], Any]

sqlite_only = pytest.mark.parametrize("kind", ["sqlite", "sqlite+aiosqlite"])
asynchronous = pytest.mark.parametrize("kind", ["sqlite+aiosqlite", "postgresql+asyncpg", "mysql+asyncmy"])


@asynccontextmanager
async def coordinated(service: Service, *bodies: HandlerBody, **options: Any) -> AsyncIterator[FakeCoordinator]:
    """A participant on the service's database whose try, confirm and cancel handlers run `bodies`."""
    participant = Participant("other", service.database, coordinator_url="http://coordinator", **options)
    for decorate, body in zip(
        (participant.on_try, participant.on_confirm, participant.on_cancel), bodies, strict=False
    ):

        def handle(hold: Hold, session: Session, body: HandlerBody = body) -> Any:  # type: ignore[type-arg]
            return body(session)

        decorate(handle)
    async with FakeCoordinator(participant) as coordinator:
        yield coordinator


def raises(error: Exception) -> HandlerBody:
    def body(session: Session) -> None:
        raise error

    return body


def runs(statement: str) -> HandlerBody:
    return lambda session: session.execute(text(statement), {"e": SECRET})


async def tried(service: Service, body: HandlerBody, **options: Any) -> Answer:
    async with coordinated(service, body, **options) as coordinator:
        return await coordinator.branch({"email": SECRET}).try_()


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError("/missing/template.txt"),
        PermissionError("no"),
        TimeoutError(),
        ConnectionRefusedError("redis"),
        httpx.ConnectTimeout("gateway"),
        ValueError("a bug"),
        ExceptionGroup("tasks", [TimeoutError(), Refused("sold out")]),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_what_a_handler_raises_is_not_the_databases_trouble(service: Service, error: Exception) -> None:
    answer = await tried(service, raises(error))
    assert (answer.status, answer.problem) == (500, "handler-failed")
    assert answer.detail == f"The try handler raised {type(error).__name__}; the participant's log has the details."


@asynchronous
async def test_a_two_step_handler_past_its_time_limit_failed_itself(url: str, kind: str) -> None:
    async with running(url, kind, two_step=True, handler_timeout_s=0.01) as service:
        never = asyncio.Event()
        service.behave.append(lambda operation, hold: never.wait())
        async with FakeCoordinator(service.participant) as coordinator:
            assert (await coordinator.branch({"quantity": 1}).try_()).problem == "handler-failed"


async def test_the_session_in_use_is_the_database(service: Service, kind: str) -> None:
    """Its connection is lost in the middle of a handler, and the same raised in a group."""

    def loses_its_connection(session: Session) -> None:
        connection = session.connection()
        dbapi = connection.connection.driver_connection
        if kind.startswith("postgresql"):
            session.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))
        elif kind.startswith("sqlite"):
            raise OperationalError("UPDATE", {}, TimeoutError("database is locked"))
        else:
            session.execute(text("KILL CONNECTION_ID()"))
        raise AssertionError(dbapi)

    def in_a_group(session: Session) -> None:
        try:
            loses_its_connection(session)
        except Exception as error:
            raise ExceptionGroup("tasks", [error]) from None

    for body in (loses_its_connection, in_a_group):
        answer = await tried(service, body)
        assert (answer.status, answer.problem) == (503, "unavailable")


ONLY_READS = {
    "postgresql": ("DO $$ BEGIN RAISE EXCEPTION 'read only' USING ERRCODE = '25006'; END $$",),
    "mysql": (
        "SIGNAL SQLSTATE 'HY000' SET MYSQL_ERRNO = 1290, MESSAGE_TEXT = 'running with the --read-only option'",
        "SIGNAL SQLSTATE '25006' SET MYSQL_ERRNO = 1792, MESSAGE_TEXT = 'in a READ ONLY transaction'",
    ),
}


@pytest.mark.parametrize("kind", ["postgresql+psycopg", "postgresql+asyncpg", "mariadb+pymysql", "mysql+asyncmy"])
async def test_a_server_that_only_reads_will_pass(service: Service, kind: str) -> None:
    """Its primary was demoted: new connections will reach another one."""
    for statement in ONLY_READS["postgresql" if kind.startswith("postgresql") else "mysql"]:
        answer = await tried(service, runs(statement))
        assert (answer.status, answer.problem, answer.retry_after_s) == (503, "unavailable", 1), statement


async def test_another_database_of_the_handler_is_the_handlers(service: Service) -> None:
    elsewhere = create_engine("postgresql+psycopg://nobody@127.0.0.1:1/nothing")

    def body(session: Session) -> None:
        with elsewhere.connect():
            pass

    assert (await tried(service, body)).problem == "handler-failed"
    elsewhere.dispose()


async def test_a_mistake_in_sql_does_not_pass_by_itself(service: Service) -> None:
    for statement in ("SELECT 1 FROM missing", "SELECT missing FROM effects"):
        answer = await tried(service, runs(statement))
        assert (answer.status, answer.problem) == (500, "handler-failed")


COLLISIONS = {
    "postgresql": "DO $$ BEGIN RAISE EXCEPTION 'a deadlock' USING ERRCODE = '40P01'; END $$",
    "mysql": "SIGNAL SQLSTATE '40001' SET MYSQL_ERRNO = 1213, MESSAGE_TEXT = 'a deadlock'",
}
COLLIDING = pytest.mark.parametrize(
    "kind", ["postgresql+psycopg", "postgresql+asyncpg", "mariadb+pymysql", "mysql+asyncmy"]
)


def collision(kind: str) -> TextClause:
    """A statement that fails as if it had lost against another transaction."""
    return text(COLLISIONS["postgresql" if kind.startswith("postgresql") else "mysql"])


@COLLIDING
async def test_a_group_with_a_deadlock_is_repeated_like_the_deadlock(service: Service, kind: str) -> None:
    left = [3]

    def collides(session: Session) -> None:
        session.execute(EFFECTS.insert().values(transaction_id="x", operation="try"))
        left[0] -= 1
        if left[0] < 0:
            return
        try:
            session.execute(collision(kind))
        except DBAPIError as error:
            consequence = ValueError("what a sibling made of it")
            raise ExceptionGroup("tasks", [consequence, ExceptionGroup("inner", [error])]) from None

    assert (await tried(service, collides)).ok
    assert await service.effects() == {"try": 1}
    left[0] = 100
    answer = await tried(service, collides)
    assert (answer.status, answer.problem, left[0]) == (503, "unavailable", 95), "but not for ever"
    assert await service.effects() == {"try": 1}


@pytest.mark.parametrize("two_step", [False, True])
@pytest.mark.parametrize("kind", ["postgresql+asyncpg", "mysql+asyncmy"])
async def test_a_deadlock_in_a_task_group_is_repeated(service: Service, kind: str, two_step: bool) -> None:
    left = [3]
    participant = Participant("other", service.database, coordinator_url="http://coordinator", two_step=two_step)

    @participant.on_try
    async def collides(hold: Hold, session: AsyncSession) -> None:  # type: ignore[type-arg]
        await session.execute(EFFECTS.insert().values(transaction_id="x", operation="try"))
        left[0] -= 1
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(session.execute(collision(kind) if left[0] >= 0 else text("SELECT 1")))

    async with FakeCoordinator(participant) as coordinator:
        assert (await coordinator.branch().try_()).ok
    assert left == [-1]
    assert await service.effects() == {"try": 1}


async def test_a_deadlock_elsewhere_is_the_handlers(service: Service) -> None:
    """It is repeated, which does no harm; but it says nothing about the participant's own database."""

    class Deadlock(Exception):
        sqlstate = "40P01"

    def elsewhere(session: Session) -> None:
        raise ExceptionGroup("tasks", [Deadlock()])

    assert (await tried(service, elsewhere)).problem == "handler-failed"


@pytest.mark.parametrize(
    ("error", "retry_after_s"),
    [
        (ExceptionGroup("tasks", [NotNow("gateway down", retry_after_s=9)]), 9),
        (ExceptionGroup("tasks", [NotNow("one"), ExceptionGroup("in", [NotNow("gateway down", retry_after_s=9)])]), 9),
        (ExceptionGroup("tasks", [Refused("sold out"), NotNow("gateway down", retry_after_s=3)]), 3),
    ],
    ids=["one", "nested", "with a refusal"],
)
@pytest.mark.parametrize("two_step", [False, True])
async def test_a_group_with_a_not_now_asks_for_more_time(
    url: str, kind: str, error: Exception, retry_after_s: float, two_step: bool
) -> None:
    def fails(operation: str, hold: Hold[SeatRequest]) -> None:
        raise error

    async with running(url, kind, two_step=two_step) as service, FakeCoordinator(service.participant) as coordinator:
        service.behave.append(fails)
        branch = coordinator.branch({"quantity": 1})
        answer = await branch.try_()
        assert (answer.status, answer.problem, answer.detail) == (503, "unavailable", "gateway down")
        assert answer.retry_after_s == retry_after_s
        assert await branch.phase() == ("trying" if two_step else None), "what it sent may have arrived"
        assert not await service.effects()


@pytest.mark.parametrize(
    "error",
    [
        ExceptionGroup("tasks", [Refused("sold out")]),
        ExceptionGroup("tasks", [ExceptionGroup("inner", [Refused("sold out")]), Refused("too late")]),
    ],
)
async def test_a_group_of_refusals_refuses(service: Service, error: Exception) -> None:
    def writes_first(session: Session) -> None:
        session.execute(EFFECTS.insert().values(transaction_id="x", operation="try"))
        raise error

    answer = await tried(service, writes_first)
    assert (answer.status, answer.problem, answer.detail) == (409, "refused", "sold out")
    assert not await service.effects()


async def test_a_missing_table_is_named_with_what_to_do(
    service: Service, coordinator: FakeCoordinator, caplog: pytest.LogCaptureFixture
) -> None:
    branch = coordinator.branch({"quantity": 1})
    assert (await branch.try_()).ok
    await drop_table(service)
    for call in (branch.try_, branch.confirm, branch.cancel):
        answer = await call()
        assert (answer.status, answer.problem, answer.retry_after_s) == (503, "unavailable", 1)
        assert answer.detail is not None
        assert "no table holdfast_branches" in answer.detail
        assert "migrations" in answer.detail
    assert "no table holdfast_branches" in caplog.text
    await service.participant.create_table()
    assert (await branch.try_()).ok


async def drop_table(service: Service) -> None:
    def work(session: Session, _: Any) -> None:
        session.execute(text("DROP TABLE holdfast_branches"))
        session.commit()

    await service.participant._database.run(work)


async def test_what_confirm_and_cancel_return_is_ignored(service: Service) -> None:
    bodies: list[HandlerBody] = [
        lambda session: {"held": 1},
        lambda session: session.execute(text("UPDATE effects SET operation = 'x'")),
        lambda session: object(),
    ]
    async with coordinated(service, *bodies) as coordinator:
        confirmed, cancelled, lapsed = (coordinator.branch() for _ in range(3))
        for branch in (confirmed, cancelled, lapsed):
            assert (await branch.try_()).body == {"held": 1}
        for call in (confirmed.confirm, confirmed.confirm, cancelled.cancel, cancelled.cancel):
            assert (await call()).ok
        assert (await confirmed.try_()).body == {"held": 1}, "the stored result is Try's"
        coordinator.decision = "cancel"
        coordinator.pass_time(61)
        assert await coordinator.reap() == 1
        assert await lapsed.phase() == "cancelled"


class Number(BaseModel):
    n: int


def unique_violation(session: Session) -> None:
    session.execute(text("INSERT INTO customers VALUES (:e)"), {"e": SECRET})
    session.execute(text("INSERT INTO customers VALUES (:e)"), {"e": SECRET})


def group_of_statements(session: Session) -> None:
    try:
        unique_violation(session)
    except Exception as error:
        raise ExceptionGroup(SECRET, [ExceptionGroup("inner", [error])]) from error


def chained(session: Session) -> None:
    try:
        int(SECRET)
    except ValueError as error:
        raise KeyError(SECRET) from error


def annotated(session: Session) -> None:
    error = RuntimeError(f"can't charge {SECRET}")
    error.add_note(SECRET)
    raise error


VALUES_IN_ERRORS: dict[str, HandlerBody] = {
    "driver": unique_violation,
    "bad cast": runs("SELECT 1 FROM missing WHERE e = :e"),
    "group": group_of_statements,
    "pydantic": lambda session: Number.model_validate({"n": SECRET}),
    "chain": chained,
    "note": annotated,
    "passing": raises(OperationalError("SELECT", {"e": SECRET}, TimeoutError(SECRET))),
}


async def test_no_log_line_carries_a_payload(service: Service, caplog: pytest.LogCaptureFixture) -> None:
    def create(session: Session, _: Any) -> None:
        session.execute(text("CREATE TABLE customers (email VARCHAR(50) PRIMARY KEY)"))
        session.commit()

    await service.participant._database.run(create)
    for name, body in VALUES_IN_ERRORS.items():
        caplog.clear()
        with caplog.at_level(logging.DEBUG, "holdfast"):
            async with coordinated(service, lambda session: None, body, body) as coordinator:
                branch = coordinator.branch({"email": SECRET})
                assert (await branch.try_()).ok
                assert (await branch.confirm()).status >= 500
                assert (await branch.cancel()).status >= 500
                coordinator.decision = "cancel"
                coordinator.pass_time(61)
                await coordinator.reap()
        printed = "\n".join(logging.Formatter().format(record) for record in caplog.records)
        assert SECRET not in printed, name
        assert branch.transaction_id in printed
        assert "test_failures.py" in printed, "the stack is there all the same"
        assert not any(record.exc_info for record in caplog.records), "for handlers that format by themselves"


@asynchronous
async def test_no_log_line_of_a_task_group_carries_a_payload(
    service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    participant = Participant("other", service.database, coordinator_url="http://coordinator")

    @participant.on_try
    async def in_tasks(hold: Hold[dict[str, str]], session: AsyncSession) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(session.execute(text("INSERT INTO missing VALUES (:e)"), {"e": hold.payload["email"]}))

    async with FakeCoordinator(participant) as coordinator:
        assert (await coordinator.branch({"email": SECRET}).try_()).problem == "handler-failed"
    assert SECRET not in caplog.text
    assert "ExceptionGroup" in caplog.text


@pytest.mark.parametrize("two_step", [False, True])
async def test_a_failing_handler_is_described_by_its_own_stack(
    url: str, kind: str, two_step: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """The SDK's way to it is the same each time, and longer than all the rest."""

    def fails(operation: str, hold: Hold[SeatRequest]) -> None:
        raise ValueError

    async with running(url, kind, two_step=two_step) as service, FakeCoordinator(service.participant) as coordinator:
        service.behave.append(fails)
        caplog.clear()
        assert (await coordinator.branch({"quantity": 1}).try_()).problem == "handler-failed"
        (record,) = [each for each in caplog.records if "handler_failed" in each.getMessage()]
    lines = logging.Formatter().format(record).splitlines()
    assert len(lines) <= 12, "one for the event and one for the stack, three a frame, one for the exception"
    assert "in fails" in lines[-3]
    assert lines[-1] == "ValueError"
    assert "holdfast/fence" not in "".join(lines)


@sqlite_only
async def test_the_sdks_own_messages_and_the_kinds_of_errors_stay(
    service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    await tried(service, lambda session: session.commit())
    assert "a handler must not commit" in caplog.text
    await tried(service, lambda session: Number.model_validate({"n": SECRET}))
    assert "int_parsing" in caplog.text
    await tried(service, runs("SELECT 1 FROM missing"))
    assert "SQLITE_ERROR" in caplog.text
