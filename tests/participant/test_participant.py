"""What a service's author and the coordinator see: handlers, messages, problems, limits, the table's home."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Annotated, Any

import httpx
import pymysql
import pytest
from fastapi import Depends, FastAPI, Header, HTTPException
from pydantic import BaseModel
from sqlalchemy import URL, MetaData, NullPool, create_engine, inspect, make_url, select, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session, sessionmaker
from sqlmodel import Session as SQLModelSession

from holdfast import Hold, Participant, Refused
from holdfast.fence.database import collided, will_pass
from holdfast.fence.execution import payload_hash
from holdfast.json_text import EMPTY_OBJECT
from holdfast.testing import FakeCoordinator
from holdfast.wire import MESSAGE_BYTES_MAX, Message, Operation
from tests.harness.asgi import JSON, ask
from tests.harness.participant_app import EFFECTS, METADATA, SeatRequest, Service, breaks, refuses, running, service_on

STOCK = Depends(dict)

sqlite_only = pytest.mark.parametrize("kind", ["sqlite"])


async def post(service: Service, operation: str, **request: Any) -> httpx.Response:
    app = FastAPI()
    app.include_router(service.participant.router, prefix="/tcc")
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://seats") as client:
        return await client.post(f"/tcc/{operation}", **request)


def message(operation: str = "try", **members: Any) -> dict[str, Any]:
    return {"transaction_id": "t-1", "branch": "seats", "operation": operation, "attempt": 1, "payload": {}} | members


async def test_a_refusal_leaves_nothing_and_says_why(service: Service, coordinator: FakeCoordinator) -> None:
    branch = coordinator.branch({"quantity": 2})
    service.behave.append(refuses)
    answer = await branch.try_()
    assert (answer.status, answer.problem, answer.detail) == (409, "refused", "sold out")
    assert await branch.phase() is None
    assert not await service.effects()
    service.behave.clear()
    assert (await branch.try_()).ok, "refusing is no tombstone: the coordinator's cancel is"


async def test_a_refusal_after_writing_takes_it_back(url: str, kind: str) -> None:
    async with running(url, kind) as service, FakeCoordinator(service.participant) as coordinator:
        branch = coordinator.branch({"quantity": 2})
        assert (await branch.try_()).ok
        for call, operation in ((branch.confirm, "confirm"), (branch.cancel, "cancel")):
            service.behave.append(refuses)
            assert (await call()).problem == "refused"
            service.behave.append(breaks)
            assert (await call()).problem == "handler-failed"
            service.behave.clear()
            assert await branch.phase() == "held"
            assert await service.effects() == {"try": 1}
            assert operation


async def test_a_bug_is_a_500_that_keeps_nothing_and_logs_no_payload(
    service: Service, coordinator: FakeCoordinator, caplog: pytest.LogCaptureFixture
) -> None:
    def bug(operation: str, hold: Hold[SeatRequest]) -> Any:
        raise HTTPException(409, "not a refusal")

    branch = coordinator.branch({"quantity": 424242})
    service.behave.append(bug)
    answer = await branch.try_()
    assert (answer.status, answer.problem) == (500, "handler-failed")
    assert await branch.phase() is None
    assert branch.transaction_id in caplog.text
    assert "424242" not in caplog.text


@pytest.mark.parametrize("verb", ["commit", "rollback"])
async def test_a_handler_must_not_end_the_transaction(url: str, kind: str, verb: str) -> None:
    async with running(url, kind) as service:
        participant = Participant("other", service.database, coordinator_url="http://coordinator")
        if isinstance(service.database, AsyncEngine):

            @participant.on_try
            async def reserve(hold: Hold, session: AsyncSession) -> None:  # type: ignore[type-arg]
                await session.execute(EFFECTS.insert().values(transaction_id="x", operation="try"))
                await getattr(session, verb)()
        else:

            @participant.on_try
            def reserve_(hold: Hold, session: Session) -> None:  # type: ignore[type-arg]
                session.execute(EFFECTS.insert().values(transaction_id="x", operation="try"))
                getattr(session, verb)()

        async with FakeCoordinator(participant) as coordinator:
            branch = coordinator.branch()
            assert (await branch.try_()).problem == "handler-failed"
            assert await branch.phase() is None
            assert not await service.effects()


async def test_savepoints_are_the_handlers_own(url: str, kind: str) -> None:
    async with running(url, kind) as service:
        participant = Participant("other", service.database, coordinator_url="http://coordinator")

        def in_savepoints(hold: Hold, session: Session) -> None:  # type: ignore[type-arg]
            with session.begin_nested():
                session.execute(EFFECTS.insert().values(transaction_id="x", operation="try"))
            lost = session.begin_nested()
            session.execute(EFFECTS.insert().values(transaction_id="x", operation="lost"))
            lost.rollback()

        participant.on_try(in_savepoints)  # a def handler, on an AsyncEngine too
        async with FakeCoordinator(participant) as coordinator:
            assert (await coordinator.branch().try_()).ok
            assert await service.effects() == {"try": 1}


async def test_one_payload_per_identity(service: Service, coordinator: FakeCoordinator) -> None:
    branch = coordinator.branch({"quantity": 2})
    assert (await branch.try_()).ok
    branch.payload = {"quantity": 2.0}
    assert (await branch.try_()).ok, "the same number"
    branch.payload = {"quantity": 3}
    for call in (branch.try_, branch.confirm, branch.cancel):
        answer = await call()
        assert (answer.status, answer.problem) == (409, "payload-mismatch")
    assert await branch.phase() == "held"


def test_payload_identity() -> None:
    same = ['{"a":1,"b":[2.0,null]}', '{"b":[2,null],"a":1.0}', ' { "a" : 1e0, "b" : [ 2, null ] } ']
    assert len({payload_hash(text) for text in same}) == 1
    different = ["1", '"1"', "true", "null", "[]", "{}", "[1]", "1.5", "-1", str(2**60), str(10**400), '"\\u0000"']
    assert len({payload_hash(text) for text in different}) == len(different)


@sqlite_only
async def test_confirm_and_cancel_get_what_was_stored(service: Service, coordinator: FakeCoordinator) -> None:
    branch = coordinator.branch({"quantity": 2})
    assert (await branch.try_()).body == {"reserved": 2}
    answer = await post(
        service,
        "confirm",
        json={"transaction_id": branch.transaction_id, "branch": branch.name, "attempt": 7, "result": "forged"},
    )
    assert (answer.status_code, answer.json()) == (200, {"phase": "confirmed"})
    operation, hold = service.holds[-1]
    assert (operation, hold.payload, hold.result, hold.attempt, hold.held) == (
        "confirm",
        SeatRequest(quantity=2),
        {"reserved": 2},
        7,
        True,
    )
    assert hold.idempotency_key == service.holds[0][1].idempotency_key
    assert not service.holds[0][1].held


@sqlite_only
@pytest.mark.parametrize(
    ("body", "status", "slug"),
    [
        (b"", 400, "malformed"),
        (b"{", 400, "malformed"),
        (b'{"payload": NaN}', 400, "malformed"),
        (b"[]", 422, "invalid-message"),
        (b"{}", 422, "invalid-message"),
        (message(branch=""), 422, "invalid-message"),
        (message(branch=" seats"), 422, "invalid-message"),
        (message(branch="se\x00ats"), 422, "invalid-message"),
        (message(branch="s" * 201), 422, "invalid-message"),
        (message(transaction_id=7), 422, "invalid-message"),
        (message(hold_ttl_s=-1), 422, "invalid-message"),
        (message(attempt=0), 422, "invalid-message"),
        (message(coordinator_id=""), 422, "invalid-message"),
        (message(coordinator_id="pro\x00duction"), 422, "invalid-message"),
        (message(coordinator_id="p" * 65), 422, "invalid-message"),
        (message(coordinator_id=7), 422, "invalid-message"),
        (message("confirm"), 422, "invalid-message"),
        (message("steal"), 422, "invalid-message"),
        (message(payload={"quantity": 0}), 422, "invalid-payload"),
        (message(payload="seats"), 422, "invalid-payload"),
        (message(payload=None), 422, "invalid-payload"),
        (b"[" * 100_000, 400, "malformed"),
        (b'"' + b"x" * MESSAGE_BYTES_MAX + b'"', 413, "payload-too-large"),
    ],
)
async def test_bad_messages(service: Service, body: Any, status: int, slug: str) -> None:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer = await post(service, "try", content=content)
    assert answer.headers["content-type"] == "application/problem+json"
    assert (answer.status_code, answer.json()["status"], answer.json()["type"]) == (status, status, f"/problems/{slug}")
    assert answer.json()["title"]
    assert answer.json()["detail"]
    assert await service.rows(select(service.participant.table)) == []


@sqlite_only
async def test_who_leaves_in_the_middle_of_a_message_is_no_defect(service: Service) -> None:
    app = FastAPI()
    app.include_router(service.participant.router)
    answer = await ask(app, "POST", "/try", headers=[JSON], body=[b'{"transaction_id": "t-', None])
    assert answer.status == 400
    assert await service.rows(select(service.participant.table)) == []


@sqlite_only
async def test_headers_must_agree_with_the_body_and_unknown_members_are_passed_over(service: Service) -> None:
    right = Message(transaction_id="t-1", branch="seats", operation=Operation.TRY, attempt=1, payload=EMPTY_OBJECT)
    for header in ("Tcc-Transaction-Id", "Tcc-Branch", "Tcc-Operation"):
        answer = await post(service, "try", content=right.body(), headers=right.headers() | {header: "other"})
        assert answer.status_code == 422
    newer = json.dumps(message(from_the_future=1)).encode()
    assert (await post(service, "try", content=newer, headers=right.headers())).status_code == 200


@sqlite_only
@pytest.mark.parametrize("branch", ["größe", "座席 1", 'say "a\\b"', "100%", "a%20b", "s" * 200])
async def test_any_name_can_be_carried(service: Service, coordinator: FakeCoordinator, branch: str) -> None:
    named = coordinator.branch({"quantity": 1}, name=branch)
    assert (await named.try_()).ok
    assert (await named.confirm()).ok
    assert service.holds[-1][1].branch == branch


@sqlite_only
async def test_openapi_describes_the_routes(service: Service) -> None:
    app = FastAPI()
    app.include_router(service.participant.router, prefix="/tcc")
    paths = app.openapi()["paths"]
    assert set(paths) == {"/tcc/try", "/tcc/confirm", "/tcc/cancel"}
    assert {"200", "409", "422", "503"} <= set(paths["/tcc/try"]["post"]["responses"])


@sqlite_only
async def test_the_documented_calls_can_be_sent(service: Service) -> None:
    app = FastAPI()
    app.include_router(service.participant.router)
    await service.participant.create_table()
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://participant") as client:
        for operation in ("try", "confirm"):
            body = app.openapi()["paths"][f"/{operation}"]["post"]["requestBody"]["content"]["application/json"]
            answer = await client.post(f"/{operation}", json=body["examples"][operation]["value"])
            assert answer.status_code == 200, answer.text


@sqlite_only
@pytest.mark.parametrize(
    ("options", "asked", "announced", "repeated"),
    [
        ({}, 60.0, None, None),
        ({"hold_ttl_max_s": 20}, 60.0, 20.0, 15.0),
        ({"hold_ttl_max_s": 20}, 10.0, 10.0, 5.0),
        ({"hold_ttl_max_s": 20}, None, 20.0, 15.0),
        ({"hold_max_s": 30}, 60.0, 30.0, 25.0),
        ({"hold_ttl_max_s": 3}, 60.0, 3.0, 0.0),
    ],
)
async def test_a_shorter_hold_is_announced_and_a_repeat_hears_what_is_left(
    url: str, kind: str, options: dict[str, float], asked: float | None, announced: float | None, repeated: float | None
) -> None:
    async with (
        running(url, kind, clock=lambda: 1_000_000.0, **options) as service,
        FakeCoordinator(service.participant) as coordinator,
    ):
        branch = coordinator.branch({"quantity": 1}, hold_ttl_s=asked)
        assert (await branch.try_()).hold_ttl_s == announced
        coordinator.pass_time(5)
        assert (await branch.try_()).hold_ttl_s == repeated


class Order(BaseModel):
    amount: Decimal


@sqlite_only
async def test_payload_types_and_results(url: str) -> None:
    engine = create_engine(url)
    participant = Participant("orders", engine, coordinator_url="http://coordinator")
    got: list[Any] = []

    @participant.on_try
    def hold_it(hold: "Hold[Order]", session: Session) -> Order:
        got.append(hold.payload)
        return hold.payload

    @participant.on_confirm
    def typed_like_try(hold, session):  # type: ignore[no-untyped-def]
        got.append(hold.payload)

    @participant.on_cancel
    def raw(hold: Hold, session: Session) -> None:  # type: ignore[type-arg]
        got.append(hold.payload)

    async with FakeCoordinator(participant) as coordinator:
        branch, other = coordinator.branch({"amount": "9.90"}), coordinator.branch({"amount": "9.90"})
        assert (await branch.try_()).body == {"amount": "9.90"}
        assert (await other.try_()).ok
        assert (await branch.confirm()).ok
        assert (await other.cancel()).ok
    assert got == [Order(amount=Decimal("9.90"))] * 3 + [{"amount": "9.90"}]
    engine.dispose()


@sqlite_only
async def test_a_stored_payload_that_no_longer_validates_is_no_refusal(url: str) -> None:
    engine = create_engine(url)
    participant = Participant("orders", engine, coordinator_url="http://coordinator")
    participant.on_try(lambda hold, session: None)

    @participant.on_confirm
    def stricter(hold: Hold[Order], session: Session) -> None: ...

    async with FakeCoordinator(participant) as coordinator:
        branch = coordinator.branch({"price": "9.90"})
        assert (await branch.try_()).ok
        answer = await branch.confirm()
        assert (answer.status, answer.problem) == (500, "handler-failed")
        assert await branch.phase() == "held"
    engine.dispose()


@sqlite_only
async def test_what_is_no_json_is_the_handlers_mistake(service: Service, coordinator: FakeCoordinator) -> None:
    service.behave.append(lambda operation, hold: {"amount": float("nan")})
    branch = coordinator.branch({"quantity": 1})
    assert (await branch.try_()).status == 500
    assert await branch.phase() is None


@sqlite_only
async def test_only_try_is_needed(url: str) -> None:
    engine = create_engine(url)
    participant = Participant("seats", engine, coordinator_url="http://coordinator")
    with pytest.raises(RuntimeError, match="no try handler"):
        async with participant.lifespan():
            pass
    participant.on_try(lambda hold, session: None)
    async with FakeCoordinator(participant) as coordinator:
        for end in ("confirm", "cancel"):
            branch = coordinator.branch()
            answer = await branch.try_()
            assert (answer.ok, answer.body) == (True, None)
            assert (await getattr(branch, end)()).ok
    engine.dispose()


def test_what_does_not_fit_is_said_when_it_is_decorated(sqlite_url: str) -> None:
    engine = create_engine(sqlite_url)
    seats = Participant("seats", engine, coordinator_url="http://coordinator")

    async def asynchronous(hold: Hold[SeatRequest], session: Any) -> None: ...
    def too_few(hold: Hold[SeatRequest]) -> None: ...
    def other_type(hold: SeatRequest, session: Session) -> None: ...
    def unknown(hold: "Hold[NotDefined]", session: Session) -> None: ...  # type: ignore[name-defined]  # noqa: F821
    def fits(hold: Hold[SeatRequest], session: Session) -> None: ...
    def depends(hold: Hold, session: Session, stock: Any = STOCK) -> None: ...  # type: ignore[type-arg]
    def also_depends(hold: Hold, session: Annotated[Session, Depends(dict)]) -> None: ...  # type: ignore[type-arg]
    def postponed(hold: Hold, session: "Annotated[Session, Depends(dict)]") -> None: ...  # type: ignore[type-arg]
    def from_header(hold: Hold, session: Session, agent: str = Header("")) -> None: ...  # type: ignore[type-arg]

    for handler, says in (
        (asynchronous, "database is synchronous"),
        (too_few, "must accept"),
        (other_type, "annotate"),
        (unknown, "NotDefined"),
        (depends, r"Depends\(...\) of parameter 'stock' is for routes only"),
        (also_depends, r"Depends\(...\) of parameter 'session'"),
        (postponed, r"Depends\(...\) of parameter 'session'"),
        (from_header, r"Header\(...\) of parameter 'agent'"),
    ):
        with pytest.raises(TypeError, match=says):
            seats.on_try(handler)
    assert seats.on_try(fits) is fits
    with pytest.raises(ValueError, match="already"):
        seats.on_try(fits)
    async_engine = create_async_engine(sqlite_url.replace("sqlite:", "sqlite+aiosqlite:"))
    blocking = Participant("pay", async_engine, coordinator_url="http://coordinator", two_step=True)
    with pytest.raises(TypeError, match="block the event loop"):
        blocking.on_cancel(fits)
    engine.dispose()


IN_MEMORY = [
    "sqlite://",
    "sqlite:///:memory:",
    "sqlite:///file::memory:?uri=true",
    "sqlite:///file:x?mode=memory&uri=true",
]


def test_arguments_are_checked(sqlite_url: str) -> None:
    engine = create_engine(sqlite_url)
    cases: list[tuple[dict[str, Any], type[Exception]]] = [
        ({"name": ""}, ValueError),
        ({"name": " seats"}, ValueError),
        ({"name": "se\nats"}, ValueError),
        ({"coordinator_url": "localhost:8000"}, ValueError),
        ({"coordinator_url": "http://coordinator/v1"}, ValueError),
        ({"coordinator_url": "http://coordinator/v1/"}, ValueError),
        *(({"database": create_engine(url, poolclass=NullPool)}, ValueError) for url in IN_MEMORY),
        ({"database": create_async_engine("sqlite+aiosqlite://", poolclass=NullPool)}, ValueError),
        ({"retention_s": 0}, ValueError),
        ({"hold_ttl_max_s": 10, "hold_max_s": 5}, ValueError),
        ({"database": "sqlite://"}, TypeError),
        ({"database": sessionmaker()}, TypeError),
    ]
    for options, error in cases:
        arguments: dict[str, Any] = {"name": "seats", "database": engine, "coordinator_url": "http://c", **options}
        with pytest.raises(error):
            Participant(**arguments)
    engine.dispose()


async def test_one_line_at_the_start_says_what_it_is_and_where(
    url: str, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(url, kind) as service:
        with caplog.at_level(logging.INFO, "holdfast"):
            async with service.participant.lifespan():
                pass
        (line,) = [record.getMessage() for record in caplog.records if record.name == "holdfast"]
        given = make_url(url)
        made = URL.create(kind, host=given.host, port=given.port, database=given.database)
        assert line == (
            f"event=participant_started participant=seats kind=tcc database={made} table=holdfast_branches "
            "coordinator=http://coordinator "
            "form=one-step signatures=unchecked reap_interval_s=5.0"
        )


def test_the_line_at_the_start_keeps_secrets(sqlite_url: str, caplog: pytest.LogCaptureFixture) -> None:
    engine = create_engine("postgresql+psycopg://ada:secret@host/shop?sslpassword=secret")
    participant = Participant("seats", engine, coordinator_url="http://ada:secret@coordinator/tcc/")
    with caplog.at_level(logging.INFO, "holdfast"):
        participant._announce()
    assert "postgresql+psycopg://host/shop" in caplog.text
    assert "http://coordinator/tcc " in caplog.text
    assert "secret" not in caplog.text


@sqlite_only
async def test_each_request_to_a_gateway_has_a_key_of_its_own(service: Service, coordinator: FakeCoordinator) -> None:
    branch = coordinator.branch({"quantity": 1})
    assert (await branch.try_()).ok
    assert (await branch.confirm()).ok
    keys = [(hold.idempotency_key, hold.key_for("capture")) for _, hold in service.holds]
    key = f"{branch.transaction_id}:seats"
    assert keys == [(key, f"{key}:capture")] * 2


async def test_session_factories_give_their_own_sessions(url: str, kind: str) -> None:
    async with running(url, kind) as service:
        seen: list[type] = []
        if isinstance(service.database, AsyncEngine):

            class OwnSession(AsyncSession):
                pass

            factory: Any = async_sessionmaker(service.database, class_=OwnSession)

            async def look(hold: Hold, session: Any) -> None:  # type: ignore[type-arg]
                seen.append(type(session))
        else:
            OwnSession = SQLModelSession  # type: ignore[misc,assignment]
            factory = sessionmaker(service.database, class_=SQLModelSession)

            def look(hold: Hold, session: Any) -> None:  # type: ignore[type-arg,misc]
                seen.append(type(session))

        participant = Participant("own", factory, coordinator_url="http://coordinator")
        participant.on_try(look)
        async with FakeCoordinator(participant) as coordinator:
            assert (await coordinator.branch().try_()).ok
        assert len(seen) == 1
        assert issubclass(seen[0], OwnSession)


async def test_the_table_joins_the_services_metadata_and_is_then_not_made_by_the_sdk(url: str, kind: str) -> None:
    async with running(url, kind) as service:
        own = MetaData()
        left, right = (
            Participant(name, service.database, coordinator_url="http://coordinator", metadata=own)
            for name in ("left", "right")
        )
        assert set(own.tables) == {"holdfast_branches"}
        assert left.table is right.table is own.tables["holdfast_branches"]
        assert not left._creates_table


def test_create_all_of_the_service_makes_the_table(sqlite_url: str) -> None:
    engine, own = create_engine(sqlite_url), MetaData()
    Participant("seats", engine, coordinator_url="http://coordinator", metadata=own)
    own.create_all(engine)
    assert inspect(engine).get_table_names() == ["holdfast_branches"]
    engine.dispose()


async def test_without_metadata_the_lifespan_makes_the_table(url: str, kind: str) -> None:
    async with running(url, kind) as service:
        await service.rows(text("SELECT 1"))
        async with service.participant.lifespan(), service.participant.lifespan():
            assert await service.rows(select(service.participant.table)) == []


async def test_participants_share_a_database_but_no_rows(service: Service, coordinator: FakeCoordinator) -> None:
    meals = service_on(service.database, "meals")
    branch = coordinator.branch({"quantity": 1}, name="same")
    assert (await branch.try_()).ok
    async with FakeCoordinator(meals.participant, decision="cancel") as other:
        twin = other.branch({"quantity": 1}, name="same", transaction_id=branch.transaction_id)
        assert (await twin.confirm()).problem == "nothing-held"
        other.pass_time(61)
        assert await other.reap() == 0, "another participant's holds are none of its business"
    assert await branch.phase() == "held"


@pytest.fixture
async def down() -> AsyncIterator[Service]:
    """A service whose database can't be reached."""
    engine = create_async_engine("postgresql+asyncpg://nobody@127.0.0.1:1/nothing")
    yield service_on(engine)
    await engine.dispose()


async def test_a_database_that_is_down_is_never_a_refusal(down: Service) -> None:
    psycopg = create_engine("postgresql+psycopg://nobody@127.0.0.1:1/nothing")
    for service in (down, service_on(psycopg)):
        for operation in ("try", "confirm", "cancel"):
            answer = await post(service, operation, json=message(operation))
            assert (answer.status_code, answer.json()["type"]) == (503, "/problems/unavailable")
            assert answer.headers["retry-after"] == "1"
    psycopg.dispose()


@sqlite_only
async def test_a_lock_that_can_not_be_had_is_a_503(url: str) -> None:
    METADATA.create_all(engine := create_engine(url, connect_args={"timeout": 0.01}))
    service = service_on(engine)
    await service.participant.create_table()
    with engine.connect() as other:
        other.exec_driver_sql("BEGIN IMMEDIATE")
        answer = await post(service, "try", json=message())
        assert (answer.status_code, answer.json()["type"]) == (503, "/problems/unavailable")
        other.exec_driver_sql("ROLLBACK")
    assert (await post(service, "try", json=message())).status_code == 200
    engine.dispose()


@sqlite_only
async def test_a_collision_is_repeated_at_once_but_not_for_ever(
    service: Service, coordinator: FakeCoordinator, caplog: pytest.LogCaptureFixture
) -> None:
    class Deadlock(Exception):
        sqlstate = "40P01"

    left, parameters = [3], {"pin": "4711-4712"}

    def collides(operation: str, hold: Hold[SeatRequest]) -> Any:
        left[0] -= 1
        if left[0] >= 0:
            raise OperationalError("UPDATE", parameters, Deadlock())
        return None

    service.behave.append(collides)
    assert (await coordinator.branch({"quantity": 1}).try_()).ok
    assert await service.effects() == {"try": 1}
    left[0] = 100
    with caplog.at_level(logging.WARNING):
        answer = await coordinator.branch({"quantity": 1}).try_()
    assert (answer.status, left[0]) == (503, 95)
    assert "4711-4712" not in caplog.text


@pytest.mark.parametrize(
    ("kind", "isolation"),
    [
        ("postgresql+psycopg", "SERIALIZABLE"),
        ("postgresql+asyncpg", "SERIALIZABLE"),
        ("mariadb+pymysql", "SERIALIZABLE"),
        ("mariadb+pymysql", "REPEATABLE READ"),  # what MySQL and MariaDB do when nothing is said
        ("mysql+asyncmy", "REPEATABLE READ"),
    ],
)
async def test_stricter_isolation_works_too(url: str, kind: str, isolation: str) -> None:
    async with running(url, kind) as service:
        strict = service.database.execution_options(isolation_level=isolation)
        other = service_on(strict)
        async with FakeCoordinator(other.participant) as coordinator:
            for _ in range(5):
                branch = coordinator.branch({"quantity": 1})
                answers = await asyncio.gather(*(branch.try_() for _ in range(4)))
                assert {answer.status for answer in answers} <= {200, 503}
                assert (await branch.try_()).ok
                await asyncio.gather(branch.confirm(), branch.cancel(), branch.confirm())
                assert await branch.phase() in ("confirmed", "cancelled")
                assert (await service.effects(branch.transaction_id))["try"] == 1
                assert (await service.effects(branch.transaction_id)).total() == 2


@pytest.mark.parametrize(
    ("error", "again"),
    [
        (pymysql.err.OperationalError(1213, "Deadlock found"), True),
        (pymysql.err.OperationalError(1020, "Record has changed since last read"), True),
        (pymysql.err.OperationalError(1205, "Lock wait timeout exceeded"), False),
        (pymysql.err.OperationalError(2013, "Lost connection"), False),
    ],
)
def test_what_the_database_undid_is_told_from_what_only_takes_time(error: Exception, again: bool) -> None:
    raised = OperationalError("UPDATE", {}, error)
    assert collided(raised) is again
    assert will_pass(raised)


def test_refused_has_a_detail() -> None:
    assert (Refused("sold out").detail, str(Refused("sold out"))) == ("sold out", "sold out")
