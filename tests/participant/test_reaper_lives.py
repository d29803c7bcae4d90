"""The reaper never dies, never lags, never lies: whatever handlers raise, however much is due, whoever is silent."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from inspect import CORO_CLOSED, getcoroutinestate
from typing import Any

import httpx
import pytest
from fastapi import APIRouter, FastAPI
from sqlalchemy import MetaData, create_engine, insert, inspect
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.orm import Session

from holdfast import Hold, Participant
from holdfast.fence.steps import State
from holdfast.participant import reaper as reaper_module
from holdfast.participant.inquiry import PAUSE_S
from holdfast.participant.reaper import BATCH_MAX
from holdfast.testing import FakeCoordinator
from tests.harness.participant_app import Service, running

one_of_each = pytest.mark.parametrize("kind", ["sqlite", "postgresql+asyncpg", "mariadb+pymysql"])
asynchronous = pytest.mark.parametrize("kind", ["sqlite+aiosqlite", "postgresql+asyncpg", "mysql+asyncmy"])
DAY_S = 86_400


async def due_rows(service: Service, count: int, *, transaction_id: str = "t-{}", **columns: Any) -> None:
    """Holds whose time is up, as Try would have left them."""
    table = service.participant.table
    now = service.participant._rules.clock()
    values = [
        {
            "participant": "seats",
            "transaction_id": transaction_id.format(n),
            "branch": str(n),
            "state": State.HELD,
            "version": 1,
            "payload": '{"quantity": 1}',
            "payload_hash": "x",
            "result": "null",
            "acquisition": 1,
            "doubtful": False,
            "expires_at": now - 1,
            "created_at": now - 60,
            "held_at": now - 60,
            "check_at": now - 1,
            "checks": 0,
        }
        | columns
        for n in range(count)
    ]
    if isinstance(service.database, AsyncEngine):
        async with service.database.begin() as connection:
            await connection.execute(insert(table), values)
    else:
        with service.database.begin() as connection:
            connection.execute(insert(table), values)


# --- 5: it never dies ------------------------------------------------------------------------------------------------


async def awaits_a_cancelled_task() -> None:
    task = asyncio.create_task(asyncio.Event().wait())
    task.cancel()
    await task


async def raises_a_base_group() -> None:
    raise BaseExceptionGroup("several", [asyncio.CancelledError(), ValueError()])


async def exits() -> None:
    raise SystemExit(1)


POISONS: list[Callable[[], Any]] = [awaits_a_cancelled_task, raises_a_base_group, exits]


@asynchronous
@pytest.mark.parametrize("two_step", [False, True])
@pytest.mark.parametrize("poison", POISONS)
async def test_whatever_a_handler_raises_the_reaper_lives(
    url: str, kind: str, poison: Callable[[], Any], two_step: bool
) -> None:
    async with (
        running(url, kind, two_step=two_step, reap_interval_s=0.001) as service,
        FakeCoordinator(service.participant, decision="cancel") as coordinator,
    ):
        bad, good = coordinator.branch({"quantity": 13}), coordinator.branch({"quantity": 1}, hold_ttl_s=120)
        assert (await bad.try_()).ok
        assert (await good.try_()).ok
        poisoned, released = asyncio.Event(), asyncio.Event()

        def cancel(operation: str, hold: Any) -> Any:
            if hold.payload.quantity == 13:
                poisoned.set()
                return poison()
            released.set()
            return None

        service.behave.append(cancel)
        assert (await bad.cancel()).status == 500, "a call that fails so is answered, too"
        coordinator.pass_time(61)
        poisoned.clear()
        async with service.participant.lifespan(), asyncio.timeout(30):
            await poisoned.wait()
            coordinator.pass_time(61)
            await released.wait()
        assert (await good.cancel()).ok
        assert await good.phase() == "cancelled"
        service.behave.clear()
        coordinator.pass_time(DAY_S)
        assert (await bad.cancel()).ok, "and it ends when the handler is mended"


@pytest.mark.parametrize("two_step", [False, True])
@pytest.mark.parametrize(
    "poison", [asyncio.CancelledError, lambda: BaseExceptionGroup("several", [asyncio.CancelledError()]), SystemExit]
)
@pytest.mark.parametrize("kind", ["sqlite", "postgresql+psycopg", "mariadb+pymysql"])
async def test_whatever_a_def_handler_raises_the_round_goes_on(
    url: str, kind: str, poison: Callable[[], BaseException], two_step: bool
) -> None:
    """It runs in a thread, where a cancellation can't be that of the reaper."""
    async with (
        running(url, kind, two_step=two_step) as service,
        FakeCoordinator(service.participant, decision="cancel") as coordinator,
    ):
        bad, good = coordinator.branch({"quantity": 13}), coordinator.branch({"quantity": 1}, hold_ttl_s=61)
        for branch in (bad, good):
            assert (await branch.try_()).ok

        def cancel(operation: str, hold: Any) -> None:
            if hold.payload.quantity == 13:
                raise poison()

        service.behave.append(cancel)
        coordinator.pass_time(62)
        assert await coordinator.reap() == 1
        assert await good.phase() == "cancelled"
        assert (await bad.cancel()).status == 500
        service.behave.clear()
        coordinator.pass_time(DAY_S)
        assert await coordinator.reap() == 1, "and it ends when the handler is mended"


@pytest.mark.parametrize("kind", ["sqlite"])
async def test_a_round_that_fails_badly_is_not_the_last(url: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(url, kind, reap_interval_s=0.001) as service:
        rounds, enough = [0], asyncio.Event()

        async def due(_: Any) -> list[Any]:
            rounds[0] += 1
            if rounds[0] == 3:
                enough.set()
            raise BaseExceptionGroup("several", [asyncio.CancelledError()])

        monkeypatch.setattr(reaper_module.Reaper, "_due", due)
        async with service.participant.lifespan(), asyncio.timeout(30):
            await enough.wait()
            assert reapers() == 1


@asynchronous
async def test_a_release_that_hangs_delays_no_other(url: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """More of them than the reaper has workers."""
    monkeypatch.setattr(reaper_module, "PATIENCE_S", 0.05)
    async with (
        running(url, kind, two_step=True, reap_interval_s=0.001) as service,
        FakeCoordinator(service.participant, decision="cancel") as coordinator,
    ):
        released = asyncio.Event()

        def cancel(operation: str, hold: Any) -> Any:
            if hold.payload.quantity == 13:
                return asyncio.Event().wait()
            released.set()
            return None

        hanging = [coordinator.branch({"quantity": 13}) for _ in range(reaper_module.CONCURRENCY_MAX)]
        good = coordinator.branch({"quantity": 1}, hold_ttl_s=61)
        for branch in (*hanging, good):
            assert (await branch.try_()).ok
        service.behave.append(cancel)
        coordinator.pass_time(62)
        async with service.participant.lifespan(), asyncio.timeout(30):
            await released.wait()


@asynchronous
async def test_a_round_goes_on_past_releases_that_hang_and_their_end_is_no_failure(
    url: str, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    """What waits for a worker is done in the same round; when the process stops, what hangs is just cancelled."""
    async with (
        running(url, kind, two_step=True) as service,
        FakeCoordinator(service.participant, decision="cancel") as coordinator,
        service.participant._asking() as ask,
        asyncio.timeout(30),
    ):
        released = asyncio.Event()

        def cancel(operation: str, hold: Any) -> Any:
            return released.set() if hold.payload.quantity == 1 else asyncio.Event().wait()

        hanging = [coordinator.branch({"quantity": 13}) for _ in range(reaper_module.CONCURRENCY_MAX)]
        good = coordinator.branch({"quantity": 1}, hold_ttl_s=61)
        for branch in (*hanging, good):
            assert (await branch.try_()).ok
        service.behave.append(cancel)
        coordinator.pass_time(62)
        reaper = service.participant._reaper(ask)
        await reaper.run_once(patience_s=0.05)
        await released.wait()
        assert len(reaper._slow) >= len(hanging)
        await reaper_module._end(reaper._slow)
        assert "release_failed" not in caplog.text


# --- 6: it never lags ------------------------------------------------------------------------------------------------


@one_of_each
async def test_a_round_goes_on_while_its_batches_are_full(service: Service, coordinator: FakeCoordinator) -> None:
    await due_rows(service, BATCH_MAX * 2 + 5)
    coordinator.decision = "confirm"
    assert await coordinator.reap() == BATCH_MAX * 2 + 5
    assert await coordinator.reap() == 0


@one_of_each
async def test_old_rows_go_in_one_round_however_many(service: Service, coordinator: FakeCoordinator) -> None:
    old: dict[str, Any] = {"state": State.CANCELLED, "check_at": None, "finished_at": 1.0}
    await due_rows(service, BATCH_MAX * 2 + 5, **old)
    await coordinator.reap()
    assert await service.rows(service.participant.table.select()) == []


class Silent(httpx.AsyncBaseTransport):
    """Never answers, unless it is told to."""

    def __init__(self) -> None:
        self.questions = 0
        self.answer: httpx.Response | None = None

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.questions += 1
        if self.answer is not None:
            return self.answer
        await asyncio.Event().wait()
        raise AssertionError


@pytest.mark.parametrize("kind", ["postgresql+psycopg", "postgresql+asyncpg", "mariadb+pymysql"])
async def test_a_silent_coordinator_is_left_alone_for_a_while(url: str, kind: str) -> None:
    """A hundred and twenty holds past their hard limit: given up after one round of questions, not fifteen."""
    now = [1_000_000.0]
    silent = Silent()
    options: dict[str, Any] = {"hold_max_s": 1, "ask_timeout_s": 0.05, "clock": lambda: now[0], "transport": silent}
    async with running(url, kind, **options) as service:
        await due_rows(service, 120)
        assert await service.participant.reap() == 120
        assert silent.questions <= reaper_module.CONCURRENCY_MAX


@pytest.mark.parametrize("kind", ["sqlite"])
async def test_one_question_finds_out_whether_it_is_back(url: str, kind: str) -> None:
    now = [1_000_000.0]
    silent = Silent()
    options: dict[str, Any] = {"ask_timeout_s": 0.05, "clock": lambda: now[0], "transport": silent}
    async with running(url, kind, **options) as service, service.participant._asking() as ask:
        reaper = service.participant._reaper(ask)
        await due_rows(service, 20)
        assert await reaper.run_once() == 0
        first = silent.questions
        now[0] += PAUSE_S / 2
        assert await reaper.run_once() == 0
        assert silent.questions == first, "not asked"
        now[0] += PAUSE_S
        assert await reaper.run_once() == 0
        assert silent.questions == first + 1
        silent.answer = httpx.Response(404, json={"detail": "a proxy's"})
        now[0] += 301
        assert await reaper.run_once() == 0
        assert silent.questions > first + 2, "an answer that can't be read is one: it may be about one transaction"


# --- 7: it never lies ------------------------------------------------------------------------------------------------


@one_of_each
async def test_giving_up_a_hold_is_a_warning(
    service: Service, coordinator: FakeCoordinator, caplog: pytest.LogCaptureFixture
) -> None:
    branch = coordinator.branch({"quantity": 1})
    assert (await branch.try_()).ok
    coordinator.pass_time(DAY_S)
    await coordinator.reap()
    assert await branch.phase() == "expired"
    (record,) = [record for record in caplog.records if "abandoned" in record.getMessage()]
    assert record.levelno == logging.WARNING
    assert branch.transaction_id in record.getMessage()


def reapers() -> int:
    return sum(task.get_name() == "reaper of seats" for task in asyncio.all_tasks())


@asynccontextmanager
async def started(app: Any) -> AsyncIterator[None]:
    async with app.router.lifespan_context(app):
        yield


@one_of_each
async def test_the_router_brings_the_reaper_once(url: str, kind: str) -> None:
    async with running(url, kind) as service:
        participant = service.participant

        @asynccontextmanager
        async def own(app: FastAPI) -> AsyncIterator[None]:
            async with participant.lifespan(app):
                yield

        nested = APIRouter()
        nested.include_router(participant.router)
        for lifespan, router in (
            (None, participant.router),
            (participant.lifespan, participant.router),
            (own, participant.router),
            (None, nested),
        ):
            app = FastAPI(lifespan=lifespan)
            app.include_router(router, prefix="/tcc")
            assert reapers() == 0
            async with started(app):
                assert reapers() == 1
                async with started(app):
                    assert reapers() == 1
                assert reapers() == 1, "ended by the last who uses it"
            assert reapers() == 0


@pytest.mark.parametrize("kind", ["sqlite"])
async def test_a_lifespan_that_never_runs_is_told_once(url: str, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    async with running(url, kind) as service:
        outer, inner = FastAPI(), FastAPI()
        inner.include_router(service.participant.router)
        outer.mount("/tcc", inner)
        async with (
            started(outer),
            httpx.AsyncClient(transport=httpx.ASGITransport(outer), base_url="http://s") as client,
        ):
            for branch in ("a", "b"):
                answer = await client.post(
                    "/tcc/try", json={"transaction_id": "t", "branch": branch, "payload": {"quantity": 1}}
                )
                assert answer.status_code == 200
        assert [record.levelname for record in caplog.records if "lifespan" in record.getMessage()] == ["WARNING"]


@one_of_each
async def test_a_missing_table_is_told_at_start(url: str, kind: str) -> None:
    async with running(url, kind) as service:
        metadata = MetaData()
        participant = Participant("a", service.database, coordinator_url="http://c", metadata=metadata)
        participant.on_try(lambda hold, session: None)
        if isinstance(service.database, AsyncEngine):
            async with service.database.begin() as connection:
                await connection.run_sync(metadata.drop_all)
        else:
            metadata.drop_all(service.database)
        app = FastAPI()
        app.include_router(participant.router)
        with pytest.raises(RuntimeError, match=r"no table 'holdfast_branches'.*create_table"):
            async with started(app):
                pass
        await participant.create_table()
        async with started(app):
            pass


@pytest.mark.parametrize("kind", ["sqlite"])
async def test_a_table_in_the_services_metadata_is_the_services(url: str, kind: str) -> None:
    engine, metadata = create_engine(url), MetaData()
    participant = Participant("a", engine, coordinator_url="http://c", metadata=metadata)

    @participant.on_try
    def reserve(hold: Hold[Any], session: Session) -> None: ...

    with pytest.raises(RuntimeError, match="holdfast_branches"):
        async with participant.lifespan():
            pass
    assert not inspect(engine).has_table("holdfast_branches")
    engine.dispose()


@pytest.mark.parametrize("has_slow", [False, True])
def test_a_loop_that_never_ends_it_is_no_error(sqlite_url: str, has_slow: bool) -> None:
    """The garbage collector ends it then, when there may be no loop any more: it must not wait for anything."""
    engine = create_engine(sqlite_url)
    participant = Participant("seats", engine, coordinator_url="http://coordinator")

    async def begun() -> Coroutine[Any, Any, None]:
        reaper = participant._reaper(participant._ask_over(httpx.MockTransport(lambda request: httpx.Response(503))))
        if has_slow:
            reaper._slow.add(asyncio.create_task(asyncio.Event().wait()))  # type: ignore[arg-type]
        running = reaper.run_for_ever(3600)
        running.send(None)  # now it sleeps
        return running

    running = asyncio.run(begun())
    running.close()
    assert getcoroutinestate(running) == CORO_CLOSED
    engine.dispose()
