"""Stop: nothing new, what is under way ends or is handed over, and whoever waits is answered."""

import asyncio
from typing import Any

import pytest
from sqlalchemy import Engine

from app.engine.errors import OverloadedError
from app.engine.runs import SAVE_LIMIT_S
from app.protocol.messages import CancelRequested, RetryRequested
from app.storage.transactions import Taken
from holdfast.wire import Decision, Operation
from tests.harness.network import SILENT, Network, Reply
from tests.harness.replica import Replica, begin_of, settled, stored
from tests.harness.virtual_time import in_virtual_time, now, pass_time, until

TRY, CONFIRM, CANCEL = Operation.TRY, Operation.CONFIRM, Operation.CANCEL


@in_virtual_time
async def test_what_can_end_within_the_limit_ends(database_url: str, engine: Engine) -> None:
    network = Network(engine, now, {("car", TRY): [Reply(delay_s=1.0)]})
    async with Replica(database_url, network) as replica:
        client = asyncio.create_task(replica.finish(begin_of()))
        await until(lambda: len(network.asked) == 3)
        await replica.runs.stop(5.0)
        assert (await client).phase == "confirmed"
        with pytest.raises(OverloadedError):
            await replica.coordinator.begin(begin_of())
        await replica.runs.stop(5.0)  # nothing left to do
    network.check(client.result().id)


@in_virtual_time
async def test_what_can_not_is_handed_over_and_its_clients_are_answered(database_url: str, engine: Engine) -> None:
    network = Network(engine, now, {("car", CONFIRM): [SILENT, Reply()]})
    async with Replica(database_url, network) as replica:
        client = asyncio.create_task(replica.coordinator.begin(begin_of()))
        waiter = asyncio.create_task(replica.coordinator.wait((await client).id, lambda t: t.finished, 600.0))
        await until(lambda: len(network.asked) == 6)
        began = now()
        await replica.recovery.stop()
        await replica.runs.stop(0.5)
        assert (await waiter).phase == "confirming"
        assert now() - began == pytest.approx(0.5, abs=0.05)
        assert len(replica.runs) == 0
        assert (stored(engine, client.result().id).wake_at or 0) <= now()
    async with Replica(database_url, network) as other:
        ended = await other.end_of(client.result().id)
        assert now() - began < 1.0  # a lease would have been longer
    network.check(ended.id)


@in_virtual_time
async def test_a_save_under_way_is_let_through_and_then_handed_over(database_url: str, engine: Engine) -> None:
    network = Network(engine, now, {("car", TRY): [SILENT]})
    async with Replica(database_url, network, recovers=False) as replica:
        begun = await replica.coordinator.begin(begin_of())
        await until(lambda: len(network.asked) == 3)
        command = asyncio.create_task(replica.command(begun.id, CancelRequested()))
        await until_writing(replica)
        await replica.runs.stop(0.0)
        kept = stored(engine, begun.id)
        assert (kept.decision, (kept.wake_at or 0) <= now()) == (Decision.CANCEL, True)
        (answer,) = await settled(command)
        assert isinstance(answer, OverloadedError) or answer.decision is Decision.CANCEL


@in_virtual_time
async def test_commands_that_wait_are_answered_and_take_nothing_over_again(database_url: str, engine: Engine) -> None:
    network = Network(engine, now, {("car", TRY): [Reply(status=503, headers={"Retry-After": "20"})]})
    async with Replica(database_url, network, recovers=False) as replica:
        begun = [await replica.coordinator.begin(begin_of()) for _ in range(3)]
        await until(lambda: len(replica.runs) == 0)
        commands = [asyncio.create_task(replica.command(each.id, RetryRequested())) for each in begun]
        await until_writing(replica)
        await replica.runs.stop(0.0)
        answers = await settled(*commands)
        assert all(isinstance(answer, OverloadedError) or answer.id in {b.id for b in begun} for answer in answers)
        with pytest.raises(OverloadedError):
            await replica.command(begun[0].id, CancelRequested())
        await check_idle(replica, network)
        assert all((stored(engine, each.id).wake_at or 0) <= now() + 20 for each in begun)


@in_virtual_time
async def test_a_begin_under_way_is_recorded_and_left_to_others(database_url: str, engine: Engine) -> None:
    network = Network(engine, now)
    async with Replica(database_url, network, recovers=False) as replica:
        begin = asyncio.create_task(replica.coordinator.begin(begin_of()))
        await until_writing(replica)
        await replica.runs.stop(0.0)
        begun = await begin
        await check_idle(replica, network)
        assert network.asked == []
        began = now()
    async with Replica(database_url, network) as other:
        assert (await other.end_of(begun.id)).phase == "confirmed"
        assert now() - began < 1.0
    network.check(begun.id)


async def until_writing(replica: Replica) -> None:
    replica.journal.started.clear()
    await replica.journal.started.wait()


async def check_idle(replica: Replica, network: Network) -> None:
    asked = len(network.asked)
    await pass_time(5.0)
    assert (len(replica.runs), len(network.asked)) == (0, asked)
    assert not replica.runs._tasks


@in_virtual_time
async def test_nothing_is_claimed_any_more_once_it_stops(database_url: str, engine: Engine) -> None:
    network = Network(engine, now, {("car", TRY): [Reply(status=202, headers={"Retry-After": "2"})]})
    async with Replica(database_url, network, recovers=False) as replica:
        begun = await replica.coordinator.begin(begin_of())
        await until(lambda: len(replica.runs) == 0)
        await pass_time(5.0)
        await replica.runs.stop(0.1)
        version = stored(engine, begun.id).version
        assert (await replica.recovery.run_once(), stored(engine, begun.id).version) == (0, version)


@in_virtual_time
async def test_what_was_claimed_as_it_stopped_is_handed_over(
    database_url: str, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = Network(engine, now, {("car", TRY): [Reply(status=202, headers={"Retry-After": "2"})]})
    async with Replica(database_url, network, recovers=False) as replica:
        begun = await replica.coordinator.begin(begin_of())
        await until(lambda: len(replica.runs) == 0)
        await pass_time(5.0)
        asked, adopt = len(network.asked), replica.runs.adopt

        async def stop_first(taken: Taken) -> bool:
            await replica.runs.stop(0.1)
            return await adopt(taken)

        monkeypatch.setattr(replica.runs, "adopt", stop_first)
        assert await replica.recovery.run_once() == 1
        assert (stored(engine, begun.id).wake_at or 0) <= now(), "and its lease holds up nobody"
        assert (len(replica.runs), len(network.asked)) == (0, asked)


@in_virtual_time
async def test_a_save_that_hangs_does_not_hold_up_the_stop_for_ever(
    database_url: str, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = Network(engine, now, {("car", TRY): [SILENT]})
    async with Replica(database_url, network, recovers=False) as replica:
        begun = await replica.coordinator.begin(begin_of())
        await until(lambda: len(network.asked) == 3)
        write, hangs = replica.journal.write, asyncio.Event()

        async def hang_once(function: Any, item: Any) -> Any:
            if not hangs.is_set():
                hangs.set()
                await asyncio.get_running_loop().create_future()
            return await write(function, item)

        monkeypatch.setattr(replica.journal, "write", hang_once)
        command = asyncio.create_task(replica.command(begun.id, CancelRequested()))
        await hangs.wait()
        began = now()
        await replica.runs.stop(0.5)
        assert now() - began == pytest.approx(0.5 + SAVE_LIMIT_S)
        assert (stored(engine, begun.id).wake_at or 0) <= now()
        await settled(command)
