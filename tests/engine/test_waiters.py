"""Waiting clients: told at the moment it happens, wherever it happens, and never of what is not durable."""

import asyncio

import pytest
from sqlalchemy import Engine

from app.engine.errors import UnknownTransactionError
from app.engine.notifications import POLL_S
from app.protocol.values import Phase, Transaction
from holdfast.wire import Decision, Operation
from tests.harness.network import SILENT, Network, Reply
from tests.harness.replica import Replica, begin_of, stored
from tests.harness.virtual_time import in_virtual_time, now

TRY, CONFIRM, CANCEL = Operation.TRY, Operation.CONFIRM, Operation.CANCEL


def decided(transaction: Transaction) -> bool:
    return transaction.decision is not Decision.UNDECIDED


@in_virtual_time
async def test_it_is_told_at_the_moment_it_happens(database_url: str, engine: Engine) -> None:
    network = Network(engine, now, {("car", TRY): [Reply(delay_s=1.0)], ("car", CONFIRM): [Reply(delay_s=1.5)]})
    async with Replica(database_url, network) as replica:
        began = now()
        begun = await replica.coordinator.begin(begin_of())
        at_decision = await replica.coordinator.wait(begun.id, decided, 60.0)
        assert stored(engine, begun.id).decision is at_decision.decision is Decision.CONFIRM
        assert now() - began == pytest.approx(1.0, abs=0.01)
        clients = [replica.coordinator.wait(begun.id, lambda t: t.finished, 60.0) for _ in range(10)]
        assert {each.phase for each in await asyncio.gather(*clients)} == {"confirmed"}
        assert now() - began == pytest.approx(2.5, abs=0.01)
        assert not replica.coordinator._waiters._waiters
    network.check(begun.id)


@in_virtual_time
async def test_when_the_time_is_up_it_gets_what_there_is(database_url: str, engine: Engine) -> None:
    network = Network(engine, now, {("car", TRY): [SILENT]})
    async with Replica(database_url, network) as replica:
        begun = await replica.coordinator.begin(begin_of())
        for timeout_s in (0.0, 0.7):
            began = now()
            seen = await replica.coordinator.wait(begun.id, lambda t: t.finished, timeout_s)
            assert seen.phase is Phase.TRYING
            assert now() - began == pytest.approx(timeout_s, abs=0.01)
        with pytest.raises(UnknownTransactionError):
            await replica.coordinator.wait("00000000-0000-7000-8000-000000000000", decided, 60.0)


@in_virtual_time
async def test_it_is_told_soon_of_what_happens_elsewhere(database_url: str, engine: Engine) -> None:
    network = Network(engine, now, {("car", TRY): [Reply(delay_s=1.1)]})
    async with Replica(database_url, network) as one, Replica(database_url, network, recovers=False) as two:
        begun = await one.coordinator.begin(begin_of())
        ended = await two.end_of(begun.id)
        assert now() - (ended.finished_at or 0) <= POLL_S + 0.01
        assert len(two.runs) == 0
    network.check(begun.id)


@in_virtual_time
async def test_it_is_told_when_another_takes_over_and_ends_it(database_url: str, engine: Engine) -> None:
    network = Network(engine, now, {("car", TRY): [SILENT, Reply(delay_s=0.1)]})
    async with Replica(database_url, network, recovers=False) as asleep, Replica(database_url, network) as other:
        begun = await asleep.coordinator.begin(begin_of())
        waiter = asyncio.create_task(asleep.end_of(begun.id))
        asleep.gate.freeze()
        await other.end_of(begun.id)
        asleep.gate.thaw()
        assert (await waiter).phase == "confirmed"
        assert now() - (waiter.result().finished_at or 0) < 3.0
    network.check(begun.id)


@in_virtual_time
async def test_it_is_told_soon_that_a_call_after_the_decision_has_failed_elsewhere(
    database_url: str, engine: Engine
) -> None:
    works_then_fails = [Reply(status=202), Reply(status=503), Reply(travel_s=60.0)]
    network = Network(engine, now, {("car", CONFIRM): works_then_fails})
    async with (
        Replica(database_url, network, hung_after_s=3600.0, call_timeout_s=100.0) as one,
        Replica(database_url, network, recovers=False) as two,
    ):
        begun = await one.coordinator.begin(begin_of())
        seen = await two.coordinator.wait(begun.id, lambda t: t.is_delayed, 60.0)
        assert seen.is_delayed
        assert len(network.calls(begun.id, "car", CONFIRM)) == 2
        assert one.told.count(begun.id) == 2, "of the decision, and of the failure"
        await one.end_of(begun.id)
        assert one.told.count(begun.id) == 3
    network.check(begun.id)
