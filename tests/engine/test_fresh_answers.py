"""What a replica says of a transaction that another one has taken over from it: what is true, as soon as it is told."""

import asyncio
from typing import Any

from sqlalchemy import Engine

from app.protocol.messages import CancelRequested
from app.protocol.values import Transaction
from app.storage import transactions
from app.storage.errors import DatabaseUnavailableError
from holdfast.wire import Decision, Operation
from tests.harness.network import SILENT, Network, Reply
from tests.harness.replica import CALL_TIMEOUT_S, Replica, begin_of
from tests.harness.virtual_time import in_virtual_time, now, pass_time, until

TRY = Operation.TRY


def is_decided(transaction: Transaction) -> bool:
    return transaction.decision is not Decision.UNDECIDED


@in_virtual_time
async def test_whoever_waits_at_the_replica_that_was_overtaken_hears_of_it(database_url: str, engine: Engine) -> None:
    network = Network(engine, now, {("car", TRY): [SILENT]})
    async with Replica(database_url, network) as one, Replica(database_url, network) as two:
        begun = await one.coordinator.begin(begin_of())
        await until(lambda: len(network.asked) == 3)
        waiting = asyncio.create_task(one.coordinator.wait(begun.id, is_decided, 60.0))
        began = now()
        await two.command(begun.id, CancelRequested())
        one.runs.heard(begun.id)
        assert (await waiting).decision is Decision.CANCEL
        assert (await one.coordinator.find(begun.id)).decision is Decision.CANCEL
        assert now() - began < CALL_TIMEOUT_S / 2, "the Try that nobody answers isn't waited for"
        ended = await one.end_of(begun.id)
        assert ended == await two.coordinator.find(begun.id)
        await until(lambda: len(one.runs) == 0)
    network.check(begun.id)


@in_virtual_time
async def test_a_command_at_the_replica_that_was_overtaken_is_carried_out(database_url: str, engine: Engine) -> None:
    """By a new claim, once the calls of the run that was overtaken have ended."""
    network = Network(engine, now, {("car", TRY): [SILENT]})
    async with Replica(database_url, network) as one:
        begun = await one.coordinator.begin(begin_of())
        await until(lambda: len(network.asked) == 3)
        with engine.execution_options(holdfast_writes=True).begin() as connection:
            claim = transactions.Claim(due_by=None, lease_until=now() + 90.0, transaction_id=begun.id)
            transactions.claim(connection, [claim])  # and its process dies
        one.runs.heard(begun.id)
        answer = await one.command(begun.id, CancelRequested())
        assert answer.decision is Decision.CANCEL
        await one.end_of(begun.id)
    network.check(begun.id)


@in_virtual_time
async def test_an_old_notification_stops_nobody(database_url: str, engine: Engine) -> None:
    network = Network(engine, now, {("car", TRY): [Reply(delay_s=1.0)]})
    async with Replica(database_url, network, recovers=False) as one:
        begun = await one.coordinator.begin(begin_of())
        await until(lambda: len(network.asked) == 3)
        one.runs.heard(begun.id)
        await pass_time(0.1)
        assert not one.runs._runs[begun.id].leaving
        await one.end_of(begun.id)  # by this run: nobody else recovers it
    network.check(begun.id)


@in_virtual_time
async def test_the_owner_does_not_mistake_its_own_save_for_that_of_another(database_url: str, engine: Engine) -> None:
    network = Network(engine, now)
    async with Replica(database_url, network, recovers=False) as one:
        saved, told = asyncio.Event(), asyncio.Event()
        write = one.journal.write

        async def write_and_wait(function: Any, item: Any) -> Any:
            result = await write(function, item)
            if function is transactions.save:
                saved.set()
                await told.wait()  # durable, and not known to its own run yet
            return result

        one.journal.write = write_and_wait  # type: ignore[method-assign]
        begun = await one.coordinator.begin(begin_of())
        await saved.wait()
        await one.runs._runs[begun.id].look()
        assert not one.runs._runs[begun.id].leaving
        told.set()
        assert (await one.end_of(begun.id)).phase == "confirmed"
    network.check(begun.id)


@in_virtual_time
async def test_a_database_that_fails_at_the_look_costs_nothing(database_url: str, engine: Engine) -> None:
    network = Network(engine, now, {("car", TRY): [SILENT]})
    async with Replica(database_url, network) as one:
        begun = await one.coordinator.begin(begin_of())
        await until(lambda: len(network.asked) == 3)
        read = one.journal.read

        async def fail(function: Any, *args: Any) -> Any:
            if function is transactions.find_news:
                raise DatabaseUnavailableError("as scripted")
            return await read(function, *args)

        one.journal.read = fail  # type: ignore[method-assign]
        one.runs.heard(begun.id)
        await one.end_of(begun.id)
    network.check(begun.id)
