"""A coordinator is frozen at every point that the outside can see, and wakes up when another has done its work.

Point n = 1, 2, 3, … before and after every write and every call, until a run ends without reaching it. The client
repeats its begin under the same idempotency key, as it must when it got no answer.
"""

import asyncio
from dataclasses import dataclass, field

import pytest
from sqlalchemy import Engine, func, select

from app.protocol.identity import Identity
from app.protocol.values import Transaction
from app.storage.tables import transactions
from holdfast.wire import Operation
from tests.harness.network import Network, Reply, Script
from tests.harness.replica import Replica, begin_of
from tests.harness.virtual_time import in_virtual_time, now, until

TRY = Operation.TRY
REFUSES = Reply(status=409, body={"detail": "sold out"})
POINTS_MAX = 200


@dataclass(frozen=True, slots=True)
class Scenario:
    name: str
    ends: tuple[str, str | None, str | None]
    """Phase, reason and the branch that is to blame."""
    script: Script = field(default_factory=dict)

    def __str__(self) -> str:
        return self.name


SCENARIOS = [
    Scenario("all hold", ("confirmed", None, None)),
    Scenario(
        "one refuses while another is slow",
        ("cancelled", "refused", "hotel"),
        {("hotel", TRY): [REFUSES], ("car", TRY): [Reply(delay_s=1.0)]},
    ),
]


def check_end(scenario: Scenario, ended: Transaction, network: Network, engine: Engine) -> None:
    reason = ended.reason
    blamed = (reason.code, reason.branch) if reason else (None, None)
    assert (ended.phase, *blamed) == scenario.ends
    network.check(ended.id)
    with engine.connect() as connection:
        assert connection.execute(select(func.count()).select_from(transactions)).scalar_one() == 1


def empty(engine: Engine) -> None:
    with engine.execution_options(holdfast_writes=True).begin() as connection:
        connection.execute(transactions.delete())


async def frozen_at(point: int, scenario: Scenario, database_url: str, engine: Engine) -> bool:
    """One run in which the first process sleeps at `point` until another has finished; whether it did."""
    network = Network(engine, now, scenario.script)
    begin = begin_of(idempotency_key="the key", identity=Identity(text="the hash"))
    async with Replica(database_url, network, freeze_at=point, recovers=False) as sleeper:
        client = asyncio.create_task(sleeper.finish(begin))
        frozen = asyncio.create_task(sleeper.gate.froze.wait())
        async with Replica(database_url, network) as other:
            await asyncio.wait({client, frozen}, return_when=asyncio.FIRST_COMPLETED)
            frozen.cancel()
            was_frozen = not client.done()
            check_end(scenario, await other.finish(begin), network, engine)
        sleeper.gate.thaw()
        check_end(scenario, await client, network, engine)
        await until(lambda: len(sleeper.runs) == 0)
    check_end(scenario, client.result(), network, engine)
    return was_frozen


@pytest.mark.parametrize("scenario", SCENARIOS, ids=str)
@in_virtual_time
async def test_frozen_at_every_point_it_wakes_up_and_does_no_harm(
    scenario: Scenario, database_url: str, engine: Engine
) -> None:
    for point in range(1, POINTS_MAX):
        empty(engine)
        if not await frozen_at(point, scenario, database_url, engine):
            break
    assert 10 < point < POINTS_MAX - 1
