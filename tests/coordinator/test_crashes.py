"""A coordinator is killed at every point that the outside can see; another one brings about the same end.

Point n = 1, 2, 3, … before and after every write and every call, until a run ends without reaching it. The client
repeats its begin under the same idempotency key, as it must when it got no answer.
"""

import asyncio
import itertools
from dataclasses import dataclass, field

import pytest
from sqlalchemy import Engine, func, select

from app.coordinator import Begin
from app.store import transactions
from app.transaction import Transaction, TryOrder
from holdfast.wire import Operation
from tests.coordinator.network import HOLDS, SILENT, Network, Reply, Script
from tests.coordinator.node import Node, begin_of
from tests.coordinator.virtual_time import in_virtual_time, now, until

TRY, CONFIRM, CANCEL = Operation.TRY, Operation.CONFIRM, Operation.CANCEL
REFUSES = Reply(status=409, body={"detail": "sold out"})
BUSY = Reply(status=503)
POINTS_MAX = 200


@dataclass(frozen=True, slots=True)
class Scenario:
    name: str
    ends: tuple[str, str | None, str | None]
    """Phase, reason and the branch that is to blame."""
    script: Script = field(default_factory=dict)
    begin: Begin = field(default_factory=begin_of)

    def __str__(self) -> str:
        return self.name


SCENARIOS = [
    Scenario("all hold", ("confirmed", None, None)),
    Scenario("all hold slowly", ("confirmed", None, None), {("hotel", TRY): [Reply(delay_s=1.5, body=0)]}),
    Scenario("one refuses", ("cancelled", "refused", "hotel"), {("hotel", TRY): [REFUSES]}),
    Scenario(
        "one refuses while another is slow",
        ("cancelled", "refused", "hotel"),
        {("hotel", TRY): [REFUSES], ("car", TRY): [Reply(delay_s=1.0)]},
    ),
    Scenario("one never answers", ("cancelled", "timed_out", "car"), {("car", TRY): [SILENT]}, begin_of(timeout_s=5.0)),
    Scenario("sequential", ("confirmed", None, None), {}, begin_of(try_order=TryOrder.SEQUENTIAL)),
    Scenario(
        "sequential, the second refuses",
        ("cancelled", "refused", "hotel"),
        {("hotel", TRY): [REFUSES]},
        begin_of(try_order=TryOrder.SEQUENTIAL),
    ),
    Scenario(
        "a hold is too short",
        ("cancelled", "hold_expired", "flight"),
        {("flight", TRY): [Reply(headers={"Tcc-Hold-Ttl": "4"})], ("car", TRY): [BUSY]},
    ),
    Scenario(
        "confirm is refused twice",
        ("confirmed", None, None),
        {("hotel", CONFIRM): [Reply(status=404), Reply(status=404), Reply()]},
    ),
    Scenario(
        "cancel is not answered at first",
        ("cancelled", "refused", "car"),
        {("car", TRY): [REFUSES], ("flight", CANCEL): [BUSY, SILENT, Reply()], ("hotel", TRY): [BUSY, HOLDS]},
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


async def killed_at(points: tuple[int, ...], scenario: Scenario, database_url: str, engine: Engine) -> bool:
    """One run in which the first process is killed at points[0], the next at points[1]; whether all of them were."""
    network = Network(engine, now, scenario.script)
    begin = begin_of_key(scenario)
    for point in points:
        async with Node(database_url, network, crash_at=point) as node:
            client = asyncio.create_task(node.finish(begin))
            dead = asyncio.create_task(node.gate.died.wait())
            await asyncio.wait({client, dead}, return_when=asyncio.FIRST_COMPLETED)
            dead.cancel()
            if client.done():
                check_end(scenario, client.result(), network, engine)
                return False
            client.cancel()
            await asyncio.wait({client})
    async with Node(database_url, network) as node:
        check_end(scenario, await node.finish(begin), network, engine)
    return True


async def frozen_at(point: int, scenario: Scenario, database_url: str, engine: Engine) -> bool:
    """One run in which the first process sleeps at `point` until another has finished; whether it did."""
    network = Network(engine, now, scenario.script)
    begin = begin_of_key(scenario)
    async with Node(database_url, network, freeze_at=point, recovers=False) as sleeper:
        client = asyncio.create_task(sleeper.finish(begin))
        frozen = asyncio.create_task(sleeper.gate.froze.wait())
        async with Node(database_url, network) as other:
            await asyncio.wait({client, frozen}, return_when=asyncio.FIRST_COMPLETED)
            frozen.cancel()
            was_frozen = not client.done()
            check_end(scenario, await other.finish(begin), network, engine)
        sleeper.gate.thaw()
        check_end(scenario, await client, network, engine)
        await until(lambda: sleeper.coordinator.running == 0)
    check_end(scenario, client.result(), network, engine)
    return was_frozen


def begin_of_key(scenario: Scenario) -> Begin:
    fields = {name: getattr(scenario.begin, name) for name in ("branches", "timeout_s", "try_order")}
    return Begin(**fields, idempotency_key="the key", request_hash="the hash")


on_sqlite_and_postgresql = pytest.mark.parametrize("database_url", ["sqlite", "postgresql"], indirect=True)
"""What happens at a crash is decided above the database: one more of them, two of the scenarios, must do."""


@pytest.mark.parametrize(
    ("database_url", "scenario"),
    [
        *itertools.product(["sqlite", "postgresql"], SCENARIOS),
        *itertools.product(["mariadb"], [SCENARIOS[0], SCENARIOS[2]]),
    ],
    indirect=["database_url"],
    ids=str,
)
@in_virtual_time
async def test_killed_at_every_point_it_ends_the_same(scenario: Scenario, database_url: str, engine: Engine) -> None:
    for point in range(1, POINTS_MAX):
        empty(engine)
        if not await killed_at((point,), scenario, database_url, engine):
            break
    assert 10 < point < POINTS_MAX - 1


@pytest.mark.parametrize("scenario", [SCENARIOS[0], SCENARIOS[2]], ids=lambda scenario: scenario.name)
@pytest.mark.parametrize("first", [6])
@on_sqlite_and_postgresql
@in_virtual_time
async def test_the_one_that_recovers_is_killed_too(
    scenario: Scenario, first: int, database_url: str, engine: Engine
) -> None:
    for point in range(1, POINTS_MAX):
        empty(engine)
        if not await killed_at((first, point), scenario, database_url, engine):
            break
    assert 10 < point < POINTS_MAX - 1


@pytest.mark.parametrize("scenario", [SCENARIOS[0], SCENARIOS[3]], ids=lambda scenario: scenario.name)
@in_virtual_time
async def test_frozen_at_every_point_it_wakes_up_and_does_no_harm(
    scenario: Scenario, database_url: str, engine: Engine
) -> None:
    for point in range(1, POINTS_MAX):
        empty(engine)
        if not await frozen_at(point, scenario, database_url, engine):
            break
    assert 10 < point < POINTS_MAX - 1
