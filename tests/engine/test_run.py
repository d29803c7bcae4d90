"""The loop itself: no connection held during a call, and no branch or transaction that waits for another one."""

import asyncio
from typing import Any

import pytest
from sqlalchemy import Engine

from app.engine import run
from app.protocol.steps import advance
from app.protocol.values import HungReason
from app.storage import calls, participants, queries
from holdfast.wire import Operation
from tests.harness.network import SILENT, Network, Reply, Script
from tests.harness.replica import BRANCHES, Replica, begin_of
from tests.harness.virtual_time import in_virtual_time, now, pass_time, until

TRY, CONFIRM, CANCEL = Operation.TRY, Operation.CONFIRM, Operation.CANCEL
BUSY = Reply(status=503)


@in_virtual_time
async def test_no_connection_is_held_while_a_call_is_under_way(database_url: str, engine: Engine) -> None:
    """`Replica` looks whenever time passes (rule 8); here it is seen to look, and during calls."""
    network = Network(engine, now, {(name, TRY): [Reply(delay_s=1.0)] for name in BRANCHES})
    async with Replica(database_url, network) as replica:
        client = asyncio.create_task(replica.finish(begin_of()))
        await until(lambda: len(network.asked) == 3)
        connection = replica.journal.engine.connect()
        with pytest.raises(AssertionError, match="1 connections are held"):
            replica.check_no_connection_held()
        connection.close()
        replica.check_no_connection_held()
        ended = await client
    network.check(ended.id)


@pytest.mark.parametrize("operation", [CONFIRM, CANCEL])
@in_virtual_time
async def test_a_branch_that_never_answers_delays_no_other(
    operation: Operation, database_url: str, engine: Engine
) -> None:
    script: Script = {("car", operation): [SILENT, SILENT, SILENT, Reply()]}
    if operation is CANCEL:
        script["hotel", TRY] = [Reply(status=409)]
    network = Network(engine, now, script)
    async with Replica(database_url, network) as replica:
        began = now()
        first = await replica.coordinator.begin(begin_of())
        await until(lambda: len(network.asked) == 6)
        others = await asyncio.gather(*(replica.finish(begin_of("flight", "hotel")) for _ in range(20)))
        assert now() - began < 0.1  # nobody waited for the car
        ended = await replica.end_of(first.id)
        assert now() - began > 6.0
    assert all(call.at - began < 0.1 for call in network.asked if call.branch != "car")
    for each in (ended, *others):
        network.check(each.id)


@in_virtual_time
async def test_a_refusal_decides_at_once_and_a_slow_try_gets_its_cancel_when_it_has_ended(
    database_url: str, engine: Engine
) -> None:
    network = Network(engine, now, {("hotel", TRY): [Reply(status=409)], ("car", TRY): [Reply(delay_s=1.5)]})
    async with Replica(database_url, network) as replica:
        began = now()
        ended = await replica.finish(begin_of())
    at = {(call.branch, call.operation): call.at - began for call in network.asked}
    assert (ended.decided_at or 0) - began < 0.1
    assert at["flight", CANCEL] < 0.1 < at["car", CANCEL] == pytest.approx(1.5, abs=0.1)
    network.check(ended.id)


@in_virtual_time
async def test_the_lease_is_kept_while_a_call_takes_long(database_url: str, engine: Engine) -> None:
    with engine.execution_options(holdfast_writes=True).begin() as connection:
        slow = participants.RegisteredParticipant(
            name="car", base_url="http://car", call_timeout_s=60.0, concurrency_max=1
        )
        participants.put_participants(connection, [participants.Registration(participant=slow)])
    network = Network(engine, now, {("car", TRY): [Reply(delay_s=20.0)]})
    async with Replica(database_url, network) as one, Replica(database_url, network) as two:
        ended = await one.finish(begin_of())
        assert two.metrics.claimed._value.get() == 0
    assert len(network.calls(ended.id, "car", TRY)) == 1
    network.check(ended.id)


@in_virtual_time
async def test_what_is_called_is_recorded_with_the_transaction(database_url: str, engine: Engine) -> None:
    network = Network(engine, now, {("car", TRY): [BUSY, Reply()], ("hotel", CONFIRM): [Reply(status=404), Reply()]})
    async with Replica(database_url, network) as replica:
        ended = await replica.finish(begin_of())
    with engine.connect() as connection:
        listed = [call for _, call in calls.list_calls(connection, ended.id, 100, 0)]
    assert sorted((c.branch, c.operation, c.attempt) for c in listed) == sorted(
        (call.branch, call.operation, call.attempt) for call in network.asked
    )
    assert [c.answer for c in listed if c.http_status in (404, 503)] == ["unanswered", "refused"]


def break_for(monkeypatch: pytest.MonkeyPatch, is_broken: Any) -> None:
    def breaking(transaction: Any, *args: Any) -> Any:
        assert not is_broken(transaction), "an invariant that a test broke"
        return advance(transaction, *args)

    monkeypatch.setattr(run, "advance", breaking)


@in_virtual_time
async def test_a_broken_invariant_sets_one_transaction_aside_and_heals(
    database_url: str, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken: set[str] = set()
    break_for(monkeypatch, lambda transaction: transaction.id in broken)
    network = Network(engine, now, {("car", CONFIRM): [Reply(delay_s=1.0)]})
    async with Replica(database_url, network) as replica:
        begun = [await replica.coordinator.begin(begin_of()) for _ in range(3)]
        await until(lambda: len(network.asked) == 18)
        broken.add(begun[1].id)
        await replica.end_of(begun[0].id)
        await replica.end_of(begun[2].id)
        check_hung_with_internal_error(engine, begun[1].id)
        await pass_time(10.0)  # tried again, and still broken
        check_hung_with_internal_error(engine, begun[1].id)
        broken.clear()
        ended = await replica.end_of(begun[1].id)
    network.check(ended.id)
    with engine.connect() as connection:
        assert queries.count_hung(connection) == 0
        assert queries.total_hung(connection, queries.HungFilter()) == []


def check_hung_with_internal_error(engine: Engine, transaction_id: str) -> None:
    with engine.connect() as connection:
        hung = queries.list_hung(connection, queries.HungFilter(), 10, None).finish().transactions
    assert [(each.id, each.hung_reason) for each in hung] == [(transaction_id, HungReason.INTERNAL_ERROR)]


@in_virtual_time
async def test_a_transaction_broken_when_it_is_claimed_does_not_keep_the_others(
    database_url: str, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = Network(engine, now, {("car", TRY): [SILENT]})
    async with Replica(database_url, network, recovers=False) as replica:
        begun = [await replica.coordinator.begin(begin_of()) for _ in range(5)]
        replica.gate.kill()
    network.script = {}
    broken = {begun[1].id}
    break_for(monkeypatch, lambda transaction: transaction.id in broken)
    async with Replica(database_url, network) as replica:
        for position in (0, 2, 3, 4):
            assert (await replica.end_of(begun[position].id)).phase == "confirmed"
        check_hung_with_internal_error(engine, begun[1].id)
        broken.clear()
        assert (await replica.end_of(begun[1].id)).phase in {"confirmed", "cancelled"}
    assert network.violations == []
