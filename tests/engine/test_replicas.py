"""Two coordinators on one database: whoever is quicker, nobody is left without an answer, and nothing is done twice."""

import asyncio

import pytest
from sqlalchemy import Engine

from app.protocol.messages import CancelRequested, RetryRequested
from holdfast.wire import Operation
from tests.harness.network import Network, Reply
from tests.harness.replica import Replica, begin_of
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
            await until(lambda: one.coordinator.running == two.coordinator.running == 0)
            answers = await asyncio.gather(
                *(replica.coordinator.command(begun.id, command) for replica in [one, two] * 5)
            )
            assert {each.id for each in answers} == {begun.id}
            await one.coordinator.command(begun.id, CancelRequested())
            await one.end_of(begun.id)
            network.check(begun.id)
