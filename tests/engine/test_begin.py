"""Begin: recorded once, whoever asks how often at the same time; and not at all when there is too much to do."""

import asyncio

import pytest
from sqlalchemy import Engine, func, select

from app.engine.errors import IdempotencyKeyConflictError, OverloadedError
from app.protocol.identity import Identity
from app.storage.tables import transactions
from holdfast.wire import Operation
from tests.harness.network import SILENT, Network, Reply
from tests.harness.replica import BRANCHES, Replica, begin_of, settled
from tests.harness.virtual_time import in_virtual_time, now

KEYED = begin_of(idempotency_key="order-1", identity=Identity(text="a"))


def count(engine: Engine) -> int:
    with engine.connect() as connection:
        return connection.execute(select(func.count()).select_from(transactions)).scalar_one()


@in_virtual_time
async def test_fifty_at_once_with_one_key_begin_one_transaction(database_url: str, engine: Engine) -> None:
    network = Network(engine, now)
    async with Replica(database_url, network) as replica:
        ended = await asyncio.gather(*(replica.finish(KEYED) for _ in range(50)))
    assert len({each.id for each in ended}) == count(engine) == 1
    assert [each.phase for each in ended] == ["confirmed"] * 50
    assert all(len(network.calls(ended[0].id, name, Operation.TRY)) == 1 for name in BRANCHES)
    network.check(ended[0].id)


@in_virtual_time
async def test_fifty_at_once_on_two_replicas_begin_one_transaction(database_url: str, engine: Engine) -> None:
    network = Network(engine, now)
    async with Replica(database_url, network) as one, Replica(database_url, network) as two:
        ended = await asyncio.gather(*(replica.finish(KEYED) for replica in [one, two] * 25))
    assert len({each.id for each in ended}) == count(engine) == 1
    assert all(len(network.calls(ended[0].id, name, Operation.TRY)) == 1 for name in BRANCHES)
    network.check(ended[0].id)


@in_virtual_time
async def test_many_keys_at_once_on_two_replicas_begin_one_transaction_each(database_url: str, engine: Engine) -> None:
    network = Network(engine, now)
    keyed = [begin_of(idempotency_key=f"order-{n}", identity=Identity(text="a")) for n in range(20)]
    async with Replica(database_url, network) as one, Replica(database_url, network) as two:
        ended = await asyncio.gather(*map(one.finish, keyed), *map(two.finish, reversed(keyed)))
    assert len({each.id for each in ended}) == count(engine) == 20
    assert {each.phase for each in ended} == {"confirmed"}


@in_virtual_time
async def test_a_key_in_use_for_another_request_is_a_conflict_and_changes_nothing(
    database_url: str, engine: Engine
) -> None:
    async with Replica(database_url, Network(engine, now)) as replica:
        other = begin_of("car", idempotency_key="order-1", identity=Identity(text="b"))
        first, second = await settled(replica.coordinator.begin(KEYED), replica.coordinator.begin(other))
        assert isinstance(second, IdempotencyKeyConflictError)
        assert second.transaction_id == first.id
    assert count(engine) == 1


@in_virtual_time
async def test_more_than_inflight_max_is_refused_and_not_recorded(database_url: str, engine: Engine) -> None:
    network = Network(engine, now, {("car", Operation.TRY): [SILENT]})
    async with Replica(database_url, network, inflight_max=3, recovers=False) as replica:
        begun = await settled(*(replica.coordinator.begin(begin_of("car")) for _ in range(5)))
        assert [type(each) for each in begun[3:]] == [OverloadedError] * 2
        assert count(engine) == 3
        with pytest.raises(OverloadedError):
            await replica.coordinator.begin(begin_of("flight"))
    assert count(engine) == 3


@in_virtual_time
async def test_a_key_that_has_begun_is_answered_even_when_all_places_are_taken(
    database_url: str, engine: Engine
) -> None:
    network = Network(engine, now, {("car", Operation.TRY): [SILENT]})
    async with Replica(database_url, network, inflight_max=1, recovers=False) as replica:
        first = await replica.coordinator.begin(begin_of("car", idempotency_key="k", identity=Identity(text="h")))
        again = await replica.coordinator.begin(begin_of("car", idempotency_key="k", identity=Identity(text="h")))
        assert again.id == first.id
        with pytest.raises(OverloadedError):
            await replica.coordinator.begin(begin_of("car", idempotency_key="other", identity=Identity(text="h")))
    assert count(engine) == 1


@in_virtual_time
async def test_what_hangs_takes_nobodys_place(database_url: str, engine: Engine) -> None:
    network = Network(engine, now, {("car", Operation.CONFIRM): [Reply(status=409, effect=False), SILENT]})
    async with Replica(database_url, network, inflight_max=1, recovers=False) as replica:
        hung = await replica.coordinator.begin(begin_of("car"))
        await replica.coordinator.wait(hung.id, lambda transaction: transaction.hung_since is not None, 60)
        begun = await replica.coordinator.begin(begin_of("flight"))
        assert (await replica.coordinator.wait(begun.id, lambda transaction: transaction.finished, 60)).finished
