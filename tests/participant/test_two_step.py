"""Effects outside the database: whatever crashes, stalls or overtakes, nothing outside outlives a Cancel.

The gateway here is the least helpful one could be: authorising after a void takes the money again.
"""

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import pytest

from holdfast import Hold, Refused
from holdfast.testing import Branch, FakeCoordinator
from tests.harness.participant_app import SeatRequest, Service, running
from tests.harness.search_share import share
from tests.participant.crashing_service import Gateway

LEASE_S = 36
HOUR_S = 3601


class GatedGateway(Gateway):
    """Fails when it is told to; `gate` lets a test stop a call on its way there."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, str]] = []
        self.gate: asyncio.Event | None = None
        self.arrived = asyncio.Event()
        self.error: Exception | None = None
        self.error_before: Exception | None = None

    def do(self, operation: str, hold: Hold[SeatRequest]) -> Any:
        if self.gate is not None and operation == "try":
            gate, self.gate = self.gate, None
            return self._when_open(gate, operation, hold)
        return self._now(operation, hold)

    async def _when_open(self, gate: asyncio.Event, operation: str, hold: Hold[SeatRequest]) -> Any:
        self.arrived.set()
        await gate.wait()
        return self._now(operation, hold)

    def _now(self, operation: str, hold: Hold[SeatRequest]) -> Any:
        self.calls.append((operation, hold.idempotency_key))
        if self.error_before is not None:
            raise self.error_before
        key = hold.idempotency_key
        self.perform(operation, key)
        if self.error is not None:
            error, self.error = self.error, None
            raise error
        return {"authorisation": key}


class Payment:
    """A two-step service, its gateway and its fake coordinator."""

    def __init__(self, service: Service, coordinator: FakeCoordinator) -> None:
        self.service = service
        self.coordinator = coordinator
        self.gateway = GatedGateway()
        service.behave.append(self.gateway.do)

    def branch(self) -> Branch:
        return self.coordinator.branch({"quantity": 2})

    async def check_settled(self, branch: Branch) -> None:
        """Nothing outside without a confirm, nothing written twice, and both sides agree."""
        phase = await branch.phase()
        effects = await self.service.effects(branch.transaction_id)
        outside = {
            state
            for key, state in self.gateway.state.items()
            if key.startswith(f"{branch.transaction_id}:{branch.name}")
        }
        assert phase in (None, "confirmed", "cancelled", "expired")
        assert "authorised" not in outside, "the money is still held"
        assert ("captured" in outside) == (phase == "confirmed")
        assert max(effects.values(), default=0) <= 1, "written twice"
        assert effects["confirm"] == (phase == "confirmed")
        if phase != "confirmed":
            assert effects["cancel"] == effects["try"], "half of it is left in the database"


@pytest.fixture
async def payment(url: str, kind: str) -> AsyncIterator[Payment]:
    async with (
        running(url, kind, two_step=True, hold_max_s=3600) as service,
        FakeCoordinator(service.participant) as coordinator,
    ):
        yield Payment(service, coordinator)


asynchronous = pytest.mark.parametrize("kind", ["sqlite+aiosqlite", "postgresql+asyncpg", "mysql+asyncmy"])

STEPS = [
    *("try", "confirm", "cancel", "lapse", "abandon"),
    *(f"{call} dies {point}" for call in ("try", "confirm", "cancel") for point in ("marked", "handled", "committed")),
]


async def take(step: str, branch: Branch) -> None:
    """One call, one death, or the passing of time; a step that can't be taken now is none."""
    coordinator = branch.coordinator
    match step.split():
        case [call, "dies", point]:
            with suppress(AssertionError):  # it was turned away before it came there
                await branch.crash(call, at=point)
        case ["lapse" | "abandon" as event]:
            coordinator.decision = "cancel" if event == "lapse" else "unreachable"
            coordinator.pass_time(61 if event == "lapse" else HOUR_S)
            await coordinator.reap()
        case [call]:
            await {"try": branch.try_, "confirm": branch.confirm, "cancel": branch.cancel}[call]()


async def settle(branch: Branch) -> None:
    """What the coordinator and the reaper do in the end: repeat what was decided until it is done."""
    coordinator = branch.coordinator
    for _ in range(5):
        coordinator.pass_time(LEASE_S)
        answer = await branch.cancel()
        if answer.problem == "already-confirmed":
            answer = await branch.confirm()
        if answer.ok:
            break
    else:
        raise AssertionError("it never ended")
    for _ in range(3):
        coordinator.pass_time(LEASE_S + 61)
        await coordinator.reap()


@pytest.mark.parametrize("kind", ["sqlite+aiosqlite", "postgresql+psycopg"])
async def test_every_two_steps_and_every_death_end_well(payment: Payment) -> None:
    for steps in share([*itertools.product(STEPS, repeat=2)]):
        branch = payment.branch()
        for step in steps:
            await take(step, branch)
        await settle(branch)
        await payment.check_settled(branch)


@pytest.mark.parametrize("kind", ["sqlite"])
@pytest.mark.parametrize("first", ["try", "try dies marked", "try dies handled"])
async def test_every_two_more_steps_after_a_try_end_well(payment: Payment, first: str) -> None:
    for steps in share([*itertools.product(STEPS, repeat=2)]):
        branch = payment.branch()
        for step in (first, *steps):
            await take(step, branch)
        await settle(branch)
        await payment.check_settled(branch)


@pytest.mark.parametrize("kind", ["sqlite", "postgresql+asyncpg"])
async def test_the_reaper_alone_ends_what_crashed(payment: Payment) -> None:
    """Nobody calls again: the time of the hold passes, and every crash of a release is ended too."""
    for steps in share([*itertools.product(STEPS, repeat=2)]):
        if any("confirm" in step for step in steps):
            continue
        branch = payment.branch()
        for step in steps:
            await take(step, branch)
        payment.coordinator.decision = "unknown"
        for _ in range(4):
            payment.coordinator.pass_time(LEASE_S + 61)
            await payment.coordinator.reap()
        await payment.check_settled(branch)


async def test_a_confirm_that_died_is_ended_by_its_repeat(payment: Payment) -> None:
    branch = payment.branch()
    assert (await branch.try_()).ok
    await branch.crash("confirm", at="handled")
    assert (await branch.phase()) == "confirming"
    assert (await branch.confirm()).problem == "busy"
    assert (await branch.cancel()).problem == "already-confirmed"
    payment.coordinator.pass_time(LEASE_S)
    assert (await branch.confirm()).ok
    key = f"{branch.transaction_id}:{branch.name}"
    assert payment.gateway.calls == [("try", key), ("confirm", key), ("confirm", key)], "one key for all"
    await payment.check_settled(branch)


async def test_a_cancel_knows_whether_try_was_committed(payment: Payment) -> None:
    done, died = payment.branch(), payment.branch()
    assert (await done.try_()).ok
    await died.crash("try", at="handled")
    payment.coordinator.pass_time(LEASE_S)
    assert (await done.cancel()).ok
    assert (await died.cancel()).ok
    seen = [(hold.held, hold.result) for operation, hold in payment.service.holds if operation == "cancel"]
    assert seen == [(True, {"authorisation": f"{done.transaction_id}:{done.name}"}), (False, None)]
    await payment.check_settled(done)


@asynchronous
async def test_cancel_waits_for_a_try_that_is_running(payment: Payment) -> None:
    branch, gate = payment.branch(), asyncio.Event()
    payment.gateway.gate = gate
    trying = asyncio.create_task(branch.try_())
    await payment.gateway.arrived.wait()
    answer = await branch.cancel()
    assert (answer.status, answer.problem) == (503, "busy")
    assert answer.retry_after_s is not None
    assert 1 <= answer.retry_after_s <= LEASE_S
    assert (await branch.try_()).problem == "busy"
    assert (await branch.confirm()).problem == "busy"
    gate.set()
    assert (await trying).ok
    assert (await branch.cancel()).ok
    await payment.check_settled(branch)


@asynchronous
async def test_no_connection_is_held_while_the_gateway_is_called(payment: Payment) -> None:
    branch, gate = payment.branch(), asyncio.Event()
    payment.gateway.gate = gate
    trying = asyncio.create_task(branch.try_())
    await payment.gateway.arrived.wait()
    assert payment.service.connections_in_use == 0
    gate.set()
    assert (await trying).ok


@asynchronous
@pytest.mark.parametrize("end", ["cancel", "abandon"])
async def test_a_try_that_outlives_an_acknowledged_release_is_undone(payment: Payment, end: str) -> None:
    """A process stalls for longer than its lease, the branch is released, then its gateway call goes out."""
    branch, gate = payment.branch(), asyncio.Event()
    payment.gateway.gate = gate
    trying = asyncio.create_task(branch.try_())
    await payment.gateway.arrived.wait()
    payment.coordinator.pass_time(LEASE_S)
    await take(end, branch)
    assert await branch.phase() == ("cancelled" if end == "cancel" else "expired")
    gate.set()
    assert (await trying).problem == ("already-cancelled" if end == "cancel" else "hold-expired")
    await payment.check_settled(branch)
    assert (await payment.service.effects(branch.transaction_id)).total() == 0, "the loser wrote nothing"


@asynchronous
async def test_a_try_that_outlives_its_cancel_and_then_fails_is_undone_too(payment: Payment) -> None:
    branch, gate = payment.branch(), asyncio.Event()
    payment.gateway.gate = gate
    trying = asyncio.create_task(branch.try_())
    await payment.gateway.arrived.wait()
    payment.coordinator.pass_time(LEASE_S)
    assert (await branch.cancel()).ok
    payment.coordinator.pass_time(LEASE_S)
    await payment.coordinator.reap()  # the sweep that was planned comes too early as well
    payment.gateway.error = RuntimeError("answer lost; it was authorised")
    gate.set()
    assert (await trying).problem == "handler-failed"
    await payment.check_settled(branch)


@asynchronous
async def test_a_try_that_takes_effect_late_and_dies_is_undone_by_the_reaper(payment: Payment) -> None:
    branch, gate = payment.branch(), asyncio.Event()
    payment.gateway.gate = gate
    crashing = asyncio.create_task(branch.crash("try", at="handled"))
    await payment.gateway.arrived.wait()
    payment.coordinator.pass_time(LEASE_S)
    assert (await branch.cancel()).ok
    gate.set()
    await crashing
    assert "authorised" in payment.gateway.state.values()
    payment.coordinator.pass_time(LEASE_S)
    await payment.coordinator.reap()
    await payment.check_settled(branch)


@asynchronous
async def test_a_repeated_try_takes_over_and_the_stalled_one_loses(payment: Payment) -> None:
    branch, gate = payment.branch(), asyncio.Event()
    payment.gateway.gate = gate
    stalled = asyncio.create_task(branch.try_())
    await payment.gateway.arrived.wait()
    payment.coordinator.pass_time(LEASE_S)
    assert (await branch.try_()).ok
    gate.set()
    assert (await stalled).ok, "the stored result of the run that took over"
    assert (await payment.service.effects(branch.transaction_id)) == {"try": 1}
    await settle(branch)
    await payment.check_settled(branch)


async def test_when_undoing_a_lost_try_fails_the_reaper_repeats_it(payment: Payment) -> None:
    branch = payment.branch()
    await branch.crash("try", at="handled")
    payment.coordinator.pass_time(LEASE_S)
    assert (await branch.cancel()).ok
    payment.gateway.state[f"{branch.transaction_id}:{branch.name}"] = "authorised"  # it arrived only now
    payment.gateway.error_before = RuntimeError("gateway down")
    payment.coordinator.pass_time(LEASE_S)
    assert await payment.coordinator.reap() == 0
    payment.gateway.error_before = None
    payment.coordinator.pass_time(LEASE_S)
    assert await payment.coordinator.reap() == 1
    await payment.check_settled(branch)


async def test_an_exception_frees_the_lease_and_cancel_undoes_what_was_done(payment: Payment) -> None:
    branch = payment.branch()
    payment.gateway.error = RuntimeError("timeout: was it authorised?")
    assert (await branch.try_()).problem == "handler-failed"
    assert (await branch.phase()) == "trying"
    assert (await branch.cancel()).ok, "at once, without waiting for a lease"
    await payment.check_settled(branch)


async def test_what_a_failed_try_sent_may_arrive_after_the_cancel_and_is_swept(payment: Payment) -> None:
    """The gateway was slow: the handler gave up, Cancel found nothing to void, then the money was taken."""
    branch = payment.branch()
    payment.gateway.error_before = RuntimeError("timeout")
    assert (await branch.try_()).problem == "handler-failed"
    payment.gateway.error_before = None
    assert (await branch.cancel()).ok
    payment.gateway.state[f"{branch.transaction_id}:{branch.name}"] = "authorised"
    payment.coordinator.pass_time(LEASE_S)
    assert await payment.coordinator.reap() == 1
    await payment.check_settled(branch)
    payment.coordinator.pass_time(LEASE_S)
    assert await payment.coordinator.reap() == 0, "once"


async def test_after_an_exception_a_repeat_runs_the_handler_again(payment: Payment) -> None:
    branch = payment.branch()
    payment.gateway.error = RuntimeError("timeout")
    assert (await branch.try_()).status == 500
    assert (await branch.try_()).ok
    assert len({key for _, key in payment.gateway.calls}) == 1
    assert [hold.attempt for _, hold in payment.service.holds] == [1, 2]
    await settle(branch)
    await payment.check_settled(branch)


async def test_a_refusal_in_the_first_run_leaves_nothing_and_calls_no_cancel(payment: Payment) -> None:
    branch = payment.branch()
    payment.gateway.error_before = Refused("card declined")
    answer = await branch.try_()
    assert (answer.status, answer.problem, answer.detail) == (409, "refused", "card declined")
    assert await branch.phase() is None
    payment.gateway.error_before = None
    assert (await branch.cancel()).ok
    assert [operation for operation, _ in payment.gateway.calls] == ["try"]
    assert (await branch.try_()).problem == "already-cancelled"


async def test_a_refusal_after_a_failure_may_have_left_something(payment: Payment) -> None:
    branch = payment.branch()
    payment.gateway.error = RuntimeError("timeout")
    assert (await branch.try_()).status == 500
    payment.gateway.error_before = Refused("duplicate")
    assert (await branch.try_()).problem == "refused"
    payment.gateway.error_before = None
    assert (await branch.cancel()).ok
    await payment.check_settled(branch)


async def test_a_failing_confirm_or_cancel_stays_where_it_is_and_is_repeated(payment: Payment) -> None:
    for call, between, end in (("confirm", "confirming", "confirmed"), ("cancel", "cancelling", "cancelled")):
        branch = payment.branch()
        assert (await branch.try_()).ok
        for error, problem in ((RuntimeError("down"), "handler-failed"), (Refused("not now"), "refused")):
            payment.gateway.error_before = error
            answer = await (branch.confirm() if call == "confirm" else branch.cancel())
            assert answer.problem == problem
            assert await branch.phase() == between
        payment.gateway.error_before = None
        assert (await (branch.confirm() if call == "confirm" else branch.cancel())).ok
        assert await branch.phase() == end
        await payment.check_settled(branch)


@asynchronous
async def test_a_handler_that_hangs_is_stopped(url: str, kind: str) -> None:
    async with (
        running(url, kind, two_step=True, handler_timeout_s=0.01) as service,
        FakeCoordinator(service.participant) as coordinator,
    ):
        payment = Payment(service, coordinator)
        payment.gateway.gate = asyncio.Event()
        branch = payment.branch()
        answer = await branch.try_()
        assert (answer.status, answer.problem) == (500, "handler-failed")
        assert (await branch.cancel()).ok
        await payment.check_settled(branch)


async def test_an_invalid_payload_leaves_no_mark(payment: Payment) -> None:
    branch = payment.coordinator.branch({"quantity": -1})
    assert (await branch.try_()).problem == "invalid-payload"
    assert await branch.phase() is None


@pytest.mark.parametrize("dies", [None, "marked", "handled"])
async def test_a_late_confirm_acquires_anew_with_a_new_key(url: str, kind: str, dies: str | None) -> None:
    async with (
        running(url, kind, two_step=True, reacquire=True, hold_max_s=3600) as service,
        FakeCoordinator(service.participant) as coordinator,
    ):
        payment = Payment(service, coordinator)
        branch = payment.branch()
        assert (await branch.try_()).ok
        await take("abandon", branch)
        assert await branch.phase() == "expired"
        if dies:
            await branch.crash("confirm", at=dies)
            assert (await branch.confirm()).problem == "busy"
            assert (await branch.cancel()).problem == "already-confirmed"
            coordinator.pass_time(LEASE_S)
        assert (await branch.confirm()).ok
        key = f"{branch.transaction_id}:{branch.name}"
        assert payment.gateway.state == {key: "void", f"{key}:2": "captured"}
        assert service.holds[-1][1].result == {"authorisation": f"{key}:2"}
        assert await service.effects() == {"try": 2, "cancel": 1, "confirm": 1}


async def test_when_re_acquiring_is_refused_nothing_is_left_outside(url: str, kind: str) -> None:
    async with (
        running(url, kind, two_step=True, reacquire=True, hold_max_s=3600) as service,
        FakeCoordinator(service.participant) as coordinator,
    ):
        payment = Payment(service, coordinator)
        branch = payment.branch()
        assert (await branch.try_()).ok
        await take("abandon", branch)
        await branch.crash("confirm", at="handled")  # authorised and captured... and nobody knows
        payment.gateway.state[f"{branch.transaction_id}:{branch.name}:2"] = "authorised"
        coordinator.pass_time(LEASE_S)
        payment.gateway.error_before = Refused("card stolen")
        assert (await branch.confirm()).problem == "hold-expired"
        payment.gateway.error_before = None
        await coordinator.reap()
        assert "authorised" not in payment.gateway.state.values()
