"""Steps of every kind on every kind of database: effects exactly once, tombstones, durable refusals, crash points."""

import asyncio
import base64
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from pydantic import BaseModel, PositiveInt
from sqlalchemy import Engine, func, insert, select
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import Session

from holdfast import Check, Hold, NotNow, Participant, Pivot, Refused, Retryable, SagaStep, Step
from holdfast.fence.execution import Happening
from holdfast.fence.rows import Key
from holdfast.fence.steps import Event
from holdfast.participant.steps import StepParticipant
from holdfast.testing import Answer, Branch, FakeCoordinator
from tests.harness.participant_app import EFFECTS, METADATA, Boom, engine_for

RETENTION_S = 1000
LEASE_S = 36


class Request(BaseModel):
    quantity: PositiveInt = 1


Behaviour = Callable[[str, Step[Request]], Any]


class Service:
    """A step, and what a test makes its handlers do; each handler adds one row to `effects`."""

    def __init__(self, database: Engine | AsyncEngine, participant: StepParticipant) -> None:
        self.database = database
        self.participant = participant
        self.behave: Behaviour = lambda operation, step: {"done": step.payload.quantity}
        self.calls: list[tuple[str, Step[Request]]] = []

    def handler(self, operation: str) -> Any:
        def act(step: Step[Request]) -> Any:
            self.calls.append((operation, step))
            return self.behave(operation, step)

        def writes(step: Step[Request]) -> Any:
            return insert(EFFECTS).values(transaction_id=step.transaction_id, operation=operation)

        if isinstance(self.database, AsyncEngine):

            async def handle(step: Step[Request], session: AsyncSession) -> Any:
                await session.execute(writes(step))
                return act(step)

            return handle

        def handle_here(step: Step[Request], session: Session) -> Any:
            session.execute(writes(step))
            return act(step)

        return handle_here

    async def effects(self, branch: Branch) -> Counter[str]:
        query = select(EFFECTS.c.operation, func.count()).group_by(EFFECTS.c.operation)
        query = query.where(EFFECTS.c.transaction_id == branch.transaction_id)
        if isinstance(self.database, AsyncEngine):
            async with self.database.connect() as connection:
                return Counter({row[0]: row[1] for row in await connection.execute(query)})
        with self.database.connect() as sync_connection:
            return Counter({row[0]: row[1] for row in sync_connection.execute(query)})

    @property
    def called(self) -> list[str]:
        return [operation for operation, _ in self.calls]


@asynccontextmanager
async def mounted(
    url: str, driver: str, of: type[StepParticipant], *, voids: bool = False, **options: Any
) -> AsyncIterator[tuple[Service, FakeCoordinator]]:
    engine = engine_for(url, driver)
    if isinstance(engine, AsyncEngine):
        async with engine.begin() as connection:
            await connection.run_sync(METADATA.create_all)
    else:
        METADATA.create_all(engine)
    participant = of("step", engine, coordinator_url="http://coordinator", retention_s=RETENTION_S, **options)
    service = Service(engine, participant)
    participant.on_action(service.handler("action"))
    if isinstance(participant, SagaStep):
        participant.on_compensation(service.handler("compensation"))
    if voids:
        assert isinstance(participant, Pivot)
        participant.on_cancel(service.handler("cancel"))
    try:
        async with FakeCoordinator(participant) as coordinator:
            yield service, coordinator
    finally:
        await dispose(engine)


async def dispose(engine: Engine | AsyncEngine) -> None:
    await engine.dispose() if isinstance(engine, AsyncEngine) else engine.dispose()


async def until_answered(call: Callable[[], Any]) -> Answer:
    """Repeat a call that is told "busy", as the coordinator does."""
    while (answer := await call()).problem == "busy":
        continue
    assert isinstance(answer, Answer)
    return answer


def refuses(operation: str, step: Step[Request]) -> Any:
    raise Refused("limit exceeded")


def breaks(operation: str, step: Step[Request]) -> Any:
    raise Boom("secret")


two_forms = pytest.mark.parametrize("two_step", [False, True])
asynchronous = pytest.mark.parametrize("kind", ["sqlite+aiosqlite", "postgresql+asyncpg", "mysql+asyncmy"])
on_sqlite = pytest.mark.parametrize("kind", ["sqlite"])


# --- saga steps ------------------------------------------------------------------------------------------------------


@two_forms
async def test_a_saga_step_takes_effect_once_and_is_compensated_once(url: str, kind: str, two_step: bool) -> None:
    async with mounted(url, kind, SagaStep, two_step=two_step) as (service, coordinator):
        branch = coordinator.branch({"quantity": 2}, results={"order": {"id": 7}})
        for _ in range(3):
            answer = await branch.action()
            assert (answer.status, answer.body) == (200, {"done": 2})
        assert await branch.phase() == "held"
        for _ in range(3):
            assert (await branch.compensation()).status == 200
        late = await branch.action()
        assert (late.status, late.problem) == (409, "already-compensated")
        assert await service.effects(branch) == {"action": 1, "compensation": 1}
        (_, action), (_, compensation) = service.calls
        assert (action.result, action.done, action.results, action.attempt) == (None, False, {"order": {"id": 7}}, 1)
        assert (compensation.result, compensation.done, compensation.payload.quantity) == ({"done": 2}, True, 2)
        assert compensation.idempotency_key == action.idempotency_key == f"{branch.transaction_id}:step"
        assert action.key_for("void") == f"{action.idempotency_key}:void"


@two_forms
async def test_a_compensation_before_its_action_leaves_a_tombstone(url: str, kind: str, two_step: bool) -> None:
    async with mounted(url, kind, SagaStep, two_step=two_step) as (service, coordinator):
        branch = coordinator.branch({})
        assert (await branch.compensation()).status == 200
        assert (await branch.action()).problem == "already-compensated"
        assert (await branch.compensation()).status == 200
        assert not service.calls
        forgotten = coordinator.branch({})
        forgotten.held = True
        answer = await forgotten.compensation()
        assert (answer.status, answer.problem, await forgotten.phase()) == (409, "forgotten", None)


@two_forms
async def test_action_and_compensation_at_the_same_time(url: str, kind: str, two_step: bool) -> None:
    async with mounted(url, kind, SagaStep, two_step=two_step) as (service, coordinator):
        for _ in range(10):
            branch = coordinator.branch({})
            calls = (branch.action, branch.compensation, branch.action, branch.compensation)
            answers = await asyncio.gather(*(until_answered(call) for call in calls))
            assert [answers[1].status, answers[3].status] == [200, 200]
            assert await branch.phase() == "cancelled"
            effects = await service.effects(branch)
            assert effects in ({}, {"action": 1, "compensation": 1})


@two_forms
async def test_a_refused_action_leaves_nothing_and_another_payload_is_refused(
    url: str, kind: str, two_step: bool
) -> None:
    async with mounted(url, kind, SagaStep, two_step=two_step) as (service, coordinator):
        branch = coordinator.branch({})
        usual, service.behave = service.behave, refuses
        answer = await branch.action()
        assert (answer.status, answer.problem, answer.detail) == (409, "refused", "limit exceeded")
        assert (await branch.phase(), await service.effects(branch)) == (None, {})
        service.behave = usual
        assert (await branch.action()).ok
        branch.payload = {"quantity": 9}
        assert (await branch.action()).problem == "payload-mismatch"
        assert (await coordinator.branch({"quantity": 0}).action()).status == 422


@pytest.mark.parametrize("at", ["marked", "handled", "committed"])
async def test_a_crashed_action_is_compensated_whatever_it_did(url: str, kind: str, at: str) -> None:
    async with mounted(url, kind, SagaStep, two_step=True) as (service, coordinator):
        branch = coordinator.branch({})
        await branch.crash("action", at=at)
        assert await branch.phase() == ("held" if at == "committed" else "trying")
        if at != "committed":
            assert (await branch.compensation()).problem == "busy"
        coordinator.pass_time(LEASE_S)
        assert (await branch.compensation()).status == 200
        (*_, (operation, step)) = service.calls
        done = at == "committed"
        assert (operation, step.done, step.result) == ("compensation", done, {"done": 1} if done else None)
        assert (await branch.action()).problem == "already-compensated"


@pytest.mark.parametrize("at", ["marked", "handled", "committed"])
async def test_a_crashed_compensation_is_finished_by_the_next_and_by_nobody_else(url: str, kind: str, at: str) -> None:
    async with mounted(url, kind, SagaStep, two_step=True) as (service, coordinator):
        branch = coordinator.branch({})
        assert (await branch.action()).ok
        await branch.crash("compensation", at=at)
        coordinator.pass_time(LEASE_S)
        calls = len(service.calls)
        await coordinator.reap()
        assert len(service.calls) == calls
        assert (await branch.compensation()).status == 200
        assert await service.effects(branch) == {"action": 1, "compensation": 1}


@asynchronous
async def test_a_stalled_action_that_acts_after_its_compensation_is_compensated_again(url: str, kind: str) -> None:
    async with mounted(url, kind, SagaStep, two_step=True) as (service, coordinator):
        branch, arrived, gate = coordinator.branch({}), asyncio.Event(), asyncio.Event()
        participant, database = SagaStep("other", service.database, coordinator_url="http://c", two_step=True), []

        @participant.on_action
        async def act(step: Step[Any], session: AsyncSession) -> None:
            arrived.set()
            await gate.wait()
            database.append("action")

        @participant.on_compensation
        async def undo(step: Step[Any], session: AsyncSession) -> None:
            database.append("compensation")

        async with FakeCoordinator(participant) as other:
            branch = other.branch()
            stalled = asyncio.create_task(branch.action())
            await arrived.wait()
            other.pass_time(LEASE_S)
            assert (await branch.compensation()).status == 200
            gate.set()
            assert (await stalled).problem == "already-compensated"
            assert database == ["compensation", "action", "compensation"]


@pytest.mark.parametrize("of", [SagaStep, Pivot, Retryable])
@pytest.mark.parametrize("decision", ["unknown", "cancel", "confirm", "undecided", "unreachable"])
async def test_nothing_but_the_coordinator_s_call_undoes_a_step(
    sqlite_url: str, of: type[StepParticipant], decision: Any
) -> None:
    """A row goes after the retention, and only when the transaction is finished or unknown."""
    async with mounted(sqlite_url, "sqlite", of) as (service, coordinator):
        branch = coordinator.branch({})
        assert (await branch.action()).ok
        before = await branch.phase()
        coordinator.decision = decision
        coordinator.pass_time(RETENTION_S - 1)
        await coordinator.reap()
        assert (coordinator.asked, await branch.phase()) == ([], before)
        for _ in range(3):
            coordinator.pass_time(RETENTION_S)
            await coordinator.reap()
            assert await branch.phase() == (None if decision == "unknown" else before)
        coordinator.finished = True
        coordinator.pass_time(RETENTION_S)
        await coordinator.reap()
        assert (await branch.phase() is None) == (decision not in ("undecided", "unreachable"))
        assert service.called == ["action"]


async def test_another_coordinator_s_unknown_removes_nothing(sqlite_url: str) -> None:
    async with mounted(sqlite_url, "sqlite", SagaStep) as (_, coordinator):
        branch = coordinator.branch({})
        assert (await branch.action()).ok
        coordinator.decision, coordinator.coordinator_id = "unknown", "another"
        coordinator.pass_time(RETENTION_S)
        await coordinator.reap()
        assert await branch.phase() == "held"


# --- pivots ----------------------------------------------------------------------------------------------------------


@two_forms
async def test_a_pivot_s_refusal_is_recorded_and_repeated(url: str, kind: str, two_step: bool) -> None:
    async with mounted(url, kind, Pivot, two_step=two_step) as (service, coordinator):
        branch = coordinator.branch({})
        usual, service.behave = service.behave, refuses
        for _ in range(2):
            answer = await branch.action()
            assert (answer.status, answer.problem, answer.detail) == (409, "refused", "limit exceeded")
            assert await branch.phase() == "refused"
            service.behave = usual
        assert (await branch.cancel()).status == 200
        assert (service.called, await service.effects(branch)) == (["action"], {})


@two_forms
async def test_a_pivot_s_invalid_payload_is_recorded_and_repeated(url: str, kind: str, two_step: bool) -> None:
    async with mounted(url, kind, Pivot, two_step=two_step) as (_, coordinator):
        branch = coordinator.branch({"quantity": 0})
        answers = [await branch.action() for _ in range(2)]
        assert [(answer.status, answer.problem) for answer in answers] == [(422, "invalid-payload")] * 2
        assert answers[0].detail == answers[1].detail
        assert await branch.phase() == "refused"


@two_forms
async def test_a_pivot_is_done_once_and_a_cancel_says_with_what(url: str, kind: str, two_step: bool) -> None:
    async with mounted(url, kind, Pivot, two_step=two_step) as (service, coordinator):
        branch = coordinator.branch({"quantity": 3})
        for _ in range(2):
            assert (await branch.action()).body == {"done": 3}
        answer = await branch.cancel() if not branch.held else await unheld(branch).cancel()
        assert (answer.status, answer.problem, answer.body["result"]) == (409, "already-done", {"done": 3})
        branch.payload = {"quantity": 4}
        assert (await branch.action()).status == 500, "a 4xx would say that it never happened"
        cancelled = coordinator.branch({})
        assert (await cancelled.cancel()).status == 200
        assert (await cancelled.action()).problem == "already-cancelled"
        assert await service.effects(branch) == {"action": 1}
        assert await service.effects(cancelled) == {}


def unheld(branch: Branch) -> Branch:
    """The coordinator that cancels a pivot has seen no success."""
    branch.held = False
    return branch


@two_forms
async def test_action_and_cancel_of_a_pivot_at_the_same_time_agree(url: str, kind: str, two_step: bool) -> None:
    async with mounted(url, kind, Pivot, two_step=two_step) as (service, coordinator):
        for place in range(10):
            branch = coordinator.branch({})
            calls = (branch.action, branch.cancel) if place % 2 else (branch.cancel, branch.action)
            answers = await asyncio.gather(*(until_answered(call) for call in calls))
            action, cancel = answers if place % 2 else reversed(answers)
            assert (action.status, cancel.problem or cancel.status) in [(200, "already-done"), (409, 200)]
            assert await service.effects(branch) == ({"action": 1} if action.ok else {})


@pytest.mark.parametrize("at", ["marked", "handled"])
@pytest.mark.parametrize("ends", ["done", "refused"])
async def test_without_on_cancel_an_interrupted_pivot_is_finished_before_it_is_answered(
    url: str, kind: str, at: str, ends: str
) -> None:
    async with mounted(url, kind, Pivot, two_step=True) as (service, coordinator):
        branch = coordinator.branch({})
        await branch.crash("action", at=at)
        assert (await branch.cancel()).problem == "busy"
        coordinator.pass_time(LEASE_S)
        usual, service.behave = service.behave, breaks
        assert (await branch.cancel()).status == 500
        service.behave = refuses if ends == "refused" else usual
        answer = await branch.cancel()
        if ends == "done":
            assert (answer.problem, answer.body["result"]) == ("already-done", {"done": 1})
        else:
            assert answer.status == 200
            assert (await branch.action()).problem == "refused"
        assert await branch.phase() == ("confirmed" if ends == "done" else "refused")
        assert await service.effects(branch) == ({"action": 1} if ends == "done" else {})


async def test_on_cancel_voids_an_interrupted_pivot(url: str, kind: str) -> None:
    async with mounted(url, kind, Pivot, two_step=True, voids=True) as (service, coordinator):
        branch = coordinator.branch({})
        await branch.crash("action", at="handled")
        coordinator.pass_time(LEASE_S)
        await branch.crash("cancel", at="handled")
        coordinator.pass_time(LEASE_S)
        assert (await branch.action()).problem == "busy", "nobody charges while it may be void"
        assert (await branch.cancel()).status == 200
        assert (await branch.action()).problem == "already-cancelled"
        assert service.called == ["action", "cancel", "cancel"]


async def test_what_on_cancel_can_t_void_has_happened(url: str, kind: str) -> None:
    async with mounted(url, kind, Pivot, two_step=True, voids=True) as (service, coordinator):
        branch = coordinator.branch({})
        await branch.crash("action", at="handled")
        coordinator.pass_time(LEASE_S)

        def settled(operation: str, step: Step[Request]) -> Any:
            if operation == "cancel":
                raise Refused("captured")
            return {"done": "captured"}

        def away(operation: str, step: Step[Request]) -> Any:
            raise NotNow("gateway down")

        service.behave = away
        assert (await branch.cancel()).status == 503
        service.behave = settled
        answer = await branch.cancel()
        assert (answer.problem, answer.body["result"]) == ("already-done", {"done": "captured"})
        assert await service.effects(branch) == {"action": 1}


@two_forms
async def test_a_message_that_is_wrong_doesn_t_decide_a_pivot(sqlite_url: str, two_step: bool) -> None:
    async with (
        mounted(sqlite_url, "sqlite", Pivot, two_step=two_step) as (_, coordinator),
        httpx.AsyncClient(transport=httpx.ASGITransport(coordinator._app), base_url="http://step") as http,
    ):
        for body in (b"{", b'{"transaction_id": ""}', b'"text"'):
            assert (await http.post("/action", content=body)).status_code == 500
            assert (await http.post("/cancel", content=body)).status_code in (400, 422)


def test_on_cancel_is_for_the_two_step_form(sqlite_url: str) -> None:
    pivot = Pivot("charge", engine_for(sqlite_url, "sqlite"), coordinator_url="http://coordinator")
    with pytest.raises(TypeError, match="two_step"):
        pivot.on_cancel(lambda step, session: None)


# --- retryable steps and checks --------------------------------------------------------------------------------------


@two_forms
async def test_a_retryable_step_is_tried_until_it_is_done(url: str, kind: str, two_step: bool) -> None:
    async with mounted(url, kind, Retryable, two_step=two_step) as (service, coordinator):
        branch = coordinator.branch({"quantity": 5})
        usual = service.behave
        for behave, status in ((refuses, 409), (breaks, 500), (refuses, 409), (usual, 200), (breaks, 200)):
            service.behave = behave
            assert (await branch.action()).status == status
        assert (await branch.action()).body == {"done": 5}
        assert await service.effects(branch) == {"action": 1}


@two_forms
async def test_a_check_is_asked_again_each_time_and_leaves_nothing(url: str, kind: str, two_step: bool) -> None:
    async with mounted(url, kind, Check, two_step=two_step) as (service, coordinator):
        branch = coordinator.branch({"quantity": 6})
        usual = service.behave
        for behave, status in ((usual, 200), (refuses, 409), (usual, 200)):
            service.behave = behave
            assert (await branch.action()).status == status
            assert await branch.phase() is None
        assert service.called == ["action"] * 3
        assert (branch.result, await service.effects(branch)) == ({"done": 6}, {})


# --- calls of another kind -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("of", [SagaStep, Pivot, Retryable, Check])
@pytest.mark.parametrize("claimed", ["tcc", "compensable", "pivot", "retryable", "check"])
async def test_a_participant_refuses_a_kind_that_it_isn_t(
    sqlite_url: str, of: type[StepParticipant], claimed: str
) -> None:
    async with mounted(sqlite_url, "sqlite", of) as (service, coordinator):
        if claimed == coordinator.participant.kind:
            return
        branch = coordinator.branch({}, kind=claimed)
        answer = await (branch.try_() if claimed == "tcc" else branch.action())
        assert (answer.status, answer.problem) == (409, "wrong-kind")
        assert await branch.phase() == ("cancelled" if claimed == "pivot" else None), "a pivot's refusal is durable"
        undo = branch.compensation if claimed == "compensable" else branch.cancel
        assert ((await undo()).status, await branch.phase()) == (200, "cancelled")
        lost = coordinator.branch({}, kind=claimed)
        lost.held = True
        assert (await (lost.compensation if claimed == "compensable" else lost.cancel)()).problem == "forgotten"
        assert not service.calls


@on_sqlite
async def test_tcc_refuses_steps_and_remembers_what_they_undo(url: str, kind: str) -> None:
    engine = engine_for(url, kind)
    participant = Participant("seats", engine, coordinator_url="http://coordinator")
    participant.on_try(lambda hold, session: None)
    async with FakeCoordinator(participant) as coordinator:
        branch = coordinator.branch(kind="compensable")
        assert (await branch.action()).problem == "wrong-kind"
        assert (await branch.compensation()).status == 200
        branch = coordinator.branch(kind="tcc")
        assert (await branch.try_()).ok
        stray = coordinator.branch(kind="compensable", transaction_id=branch.transaction_id)
        assert (await stray.compensation()).problem == "wrong-kind", "a hold of another kind isn't undone"
        assert await branch.phase() == "held"
    await dispose(engine)


@on_sqlite
async def test_results_reach_a_hold(url: str, kind: str) -> None:
    seen: list[Any] = []
    engine = engine_for(url, kind)
    participant = Participant("seats", engine, coordinator_url="http://coordinator")
    participant.on_try(lambda hold, session: seen.append(hold.results))
    async with FakeCoordinator(participant) as coordinator:
        assert (await coordinator.branch(results={"a": [1], "b": None}).try_()).ok
        assert (await coordinator.branch({}).try_()).ok
        assert seen == [{"a": [1], "b": None}, {}]
    await dispose(engine)


# --- the connection test ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["", "/", "/tcc", "/tcc/"])
@pytest.mark.parametrize(
    ("of", "named"),
    [(SagaStep, "compensable"), (Pivot, "pivot"), (Retryable, "retryable"), (Check, "check"), (Participant, "tcc")],
)
async def test_the_base_url_says_what_is_there(sqlite_url: str, of: Any, named: str, path: str) -> None:
    participant = of("step", engine_for(sqlite_url, "sqlite"), coordinator_url="http://coordinator")
    app = FastAPI()
    app.include_router(participant.router, prefix=path.rstrip("/"))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://step") as http:
        answer = await http.get(path)
        assert (answer.status_code, answer.json()) == (
            200,
            {"participant": "step", "protocol": 1, "kinds": [named], "signature": "unchecked", "batch": False},
        )
        served = {route.rpartition("/")[2] for route in app.openapi()["paths"]}
        assert served == {operation.value for operation in participant._rules.fence.operations}


# --- what all participants have --------------------------------------------------------------------------------------


@pytest.mark.parametrize("of", [SagaStep, Pivot, Retryable, Check])
async def test_calls_of_steps_are_signed_too(sqlite_url: str, of: type[StepParticipant]) -> None:
    options: dict[str, Any] = {"secrets": ["whsec_" + base64.b64encode(b"s" * 32).decode()]}
    async with (
        mounted(sqlite_url, "sqlite", of, **options) as (service, coordinator),
        httpx.AsyncClient(transport=httpx.ASGITransport(coordinator._app), base_url="http://step") as http,
    ):
        assert (await coordinator.branch({}).action()).ok
        unsigned = await http.post("/action", json={"transaction_id": "t", "branch": "step", "kind": "pivot"})
        assert (unsigned.status_code, unsigned.json()["type"]) == (403, "/problems/bad-signature")
        assert (await http.get("/")).json()["signature"] == "require"
        assert len(service.calls) == 1


async def test_a_row_that_changed_since_it_was_asked_about_stays(url: str, kind: str) -> None:
    async with mounted(url, kind, SagaStep) as (service, coordinator):
        branch = coordinator.branch({})
        assert (await branch.action()).ok
        assert (await branch.compensation()).ok
        key = Key("step", branch.transaction_id, branch.name)
        found_before = Happening(key=key, event=Event.TOLD_FINISHED, version=2)
        await service.participant._perform(found_before)
        assert await branch.phase() == "cancelled"
        await service.participant._perform(replace(found_before, version=3))
        assert await branch.phase() is None


@pytest.mark.parametrize("fails", [False, True])
async def test_what_a_dead_action_may_still_do_outside_is_compensated_once_more(
    url: str, kind: str, fails: bool
) -> None:
    """The gateway may carry out late what the dead process sent. The background task sees to that after a lease."""
    async with mounted(url, kind, SagaStep, two_step=True) as (service, coordinator):
        branch = coordinator.branch({})
        await branch.crash("action", at="handled")
        coordinator.pass_time(LEASE_S)
        assert (await branch.compensation()).ok
        await coordinator.reap()
        assert service.called == ["action", "compensation"]
        coordinator.pass_time(LEASE_S)
        usual = service.behave
        if fails:
            service.behave = breaks
            await coordinator.reap()
            service.behave = usual
            coordinator.pass_time(301)
            service.calls.pop()
        await coordinator.reap()
        assert service.called == ["action", "compensation", "compensation"]
        swept = service.calls[-1][1]
        assert (swept.attempt, swept.done, swept.result, swept.results) == (0, False, None, {})
        coordinator.pass_time(RETENTION_S - 1)
        await coordinator.reap()
        assert (coordinator.asked, len(service.calls)) == ([], 3)
        coordinator.finished, coordinator.decision = True, "cancel"
        coordinator.pass_time(2)
        await coordinator.reap()
        assert await branch.phase() is None


async def test_results_must_be_an_object(sqlite_url: str) -> None:
    async with (
        mounted(sqlite_url, "sqlite", Retryable) as (service, coordinator),
        httpx.AsyncClient(transport=httpx.ASGITransport(coordinator._app), base_url="http://step") as http,
    ):
        message = {"transaction_id": "t", "branch": "b", "kind": "retryable", "payload": {}}
        for results, status in (([], 422), ("{}", 422), (None, 200), ({"a": 1}, 200)):
            answer = await http.post("/action", json=message | {"branch": f"b{results}", "results": results})
            assert answer.status_code == status
        assert [step.results for _, step in service.calls] == [{}, {"a": 1}]


@pytest.mark.parametrize("of", [SagaStep, Pivot, Retryable, Check])
async def test_without_an_action_handler_nothing_starts(sqlite_url: str, of: type[StepParticipant]) -> None:
    participant = of("step", engine_for(sqlite_url, "sqlite"), coordinator_url="http://coordinator")
    with pytest.raises(RuntimeError, match="on_action"):
        async with participant.lifespan():
            pass


async def test_a_step_gets_a_step_and_not_a_hold(sqlite_url: str) -> None:
    participant = SagaStep("step", engine_for(sqlite_url, "sqlite"), coordinator_url="http://coordinator")

    def takes_a_hold(hold: Hold[Any], session: Session) -> None: ...

    with pytest.raises(TypeError, match=r"Step or Step\[...\]"):
        participant.on_action(takes_a_hold)
