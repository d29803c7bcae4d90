"""Two coordinators on one database: whoever is quicker, nobody is left without an answer, and nothing is done twice."""

import asyncio

import pytest
from sqlalchemy import Engine

from app.protocol.messages import CancelRequested, RetryRequested
from holdfast.wire import Operation
from tests.harness.network import Network, Reply, Script
from tests.harness.replica import Replica, begin_of, make_schema
from tests.harness.virtual_time import in_virtual_time, now, until

TRY, CONFIRM, CANCEL = Operation.TRY, Operation.CONFIRM, Operation.CANCEL
ROUNDS = 10
LATER = Reply(status=503, headers={"Retry-After": "12"})


@pytest.mark.parametrize("command", [CancelRequested(), RetryRequested()])
@in_virtual_time
async def test_commands_that_race_are_all_answered(
    command: CancelRequested | RetryRequested, database_url: str, engine: Engine
) -> None:
    network = Network(engine, now, {("car", TRY): [LATER]})
    async with Replica(database_url, network) as one, Replica(database_url, network) as two:
        for _ in range(ROUNDS):  # threads decide who is quicker: each round is another order
            begun = await one.coordinator.begin(begin_of())
            await until(lambda: len(one.runs) == len(two.runs) == 0)
            answers = await asyncio.gather(*(replica.command(begun.id, command) for replica in [one, two] * 5))
            assert {each.id for each in answers} == {begun.id}
            await one.command(begun.id, CancelRequested())
            await one.end_of(begun.id)
            network.check(begun.id)


@pytest.mark.parametrize(
    "script",
    [
        {},
        {("car", TRY): [Reply(status=409)]},
        {("car", TRY): [Reply(status=503), Reply()], ("car", CONFIRM): [Reply(status=503), Reply()]},
    ],
    ids=["confirmed", "cancelled", "with retries"],
)
@in_virtual_time
async def test_the_others_are_told_of_the_decision_and_of_the_end_and_of_a_failure_between(
    script: Script, sqlite_url: str
) -> None:
    engine = make_schema(sqlite_url)
    network = Network(engine, now, script)
    async with Replica(sqlite_url, network) as replica:
        ended = await replica.finish(begin_of())
        fails = ("car", CONFIRM) in script
        assert replica.told == [ended.id] * (3 if fails else 2)
    engine.dispose()


@in_virtual_time
async def test_calls_and_ends_are_counted(sqlite_url: str) -> None:
    engine = make_schema(sqlite_url)
    network = Network(engine, now, {("car", TRY): [Reply(status=503), Reply(status=409)]})
    async with Replica(sqlite_url, network) as replica:
        await replica.finish(begin_of("car"))
        value = replica.metrics.registry.get_sample_value
        counted = {
            (operation, answer): value(
                "holdfast_call_duration_seconds_count",
                {"participant": "car", "operation": operation, "answer": answer},
            )
            for operation, answer in [("try", "unanswered"), ("try", "refused"), ("cancel", "succeeded")]
        }
        assert counted == {("try", "unanswered"): 1, ("try", "refused"): 1, ("cancel", "succeeded"): 1}
        assert value("holdfast_transactions_begun_total") == 1
        (finished,) = replica.metrics.finished.collect()
        ends = {sample.labels["outcome"]: sample.value for sample in finished.samples if sample.name.endswith("_total")}
        assert ends == {"confirmed": 0, "cancelled": 1, "mixed": 0}
    engine.dispose()
