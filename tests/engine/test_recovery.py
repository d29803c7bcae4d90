"""Recovery claims what is due, and one odd row keeps nobody from anything."""

import logging
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import Engine, text

from app.engine import recovery
from app.engine.coordinator import Begin
from app.engine.memory_budget import MemoryBudget
from app.engine.run import Place
from app.storage import queries, transactions
from app.storage.errors import DatabaseUnavailableError, UnreadableRowError
from holdfast.json_text import text_of
from holdfast.wire import Operation
from tests.harness.network import SILENT, Network, Reply
from tests.harness.replica import Replica, begin_of, make_schema, stored
from tests.harness.virtual_time import in_virtual_time, now, pass_time, until

TRY, CONFIRM = Operation.TRY, Operation.CONFIRM
ODD = [
    "UPDATE transactions SET progress = '{' WHERE id = :id",
    "UPDATE transactions SET progress = '[]' WHERE id = :id",
    """UPDATE transactions SET progress = '{"reason": null, "branches": {}}' WHERE id = :id""",
    """UPDATE transactions SET progress = '{"reason": null, "branches": [{"phase": "napping"}, {}]}' WHERE id = :id""",
    """UPDATE transactions SET progress = '{"reason": null, "branches": [{"mood": 1}, {}, {}]}' WHERE id = :id""",
    "UPDATE transactions SET decision = 'perhaps' WHERE id = :id",
    "UPDATE branches SET definition = 'null' WHERE transaction_id = :id",
    "DELETE FROM branches WHERE transaction_id = :id AND position > 0",
    "DELETE FROM branches WHERE transaction_id = :id",
]


async def left_behind(
    database_url: str, network: Network, count: int, begin: Begin | None = None, silent: str = "car"
) -> list[str]:
    """Transactions of a process that was killed while it waited for a Try, the car's unless another is named."""
    begin = begin or begin_of()
    script, network.script = network.script, {(silent, TRY): [SILENT]}
    asked_before = len(network.asked)
    async with Replica(database_url, network, recovers=False) as replica:
        begun = [await replica.coordinator.begin(begin) for _ in range(count)]
        await until(lambda: len(network.asked) == asked_before + len(begin.branches) * count)
    network.script = script
    return [each.id for each in begun]


def place_of(replica: Replica, transaction_id: str) -> Place:
    run = replica.runs.get(transaction_id)
    assert run is not None
    return run.place


@pytest.fixture
def small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recovery, "BATCH_MAX", 4)
    monkeypatch.setattr(recovery, "PARALLEL_MAX", 6)


@in_virtual_time
async def test_it_claims_what_is_due_and_nothing_before(database_url: str, engine: Engine) -> None:
    network = Network(engine, now)
    ids = await left_behind(database_url, network, 2)
    async with Replica(database_url, network, recovers=False) as replica:
        assert await replica.recovery.run_once() == 0  # somebody has the lease
        await pass_time(2.0)
        assert await replica.recovery.run_once() == 2
        assert await replica.recovery.run_once() == 0
        for id_ in ids:
            await replica.end_of(id_)
    for id_ in ids:
        network.check(id_)


@in_virtual_time
async def test_it_claims_batch_by_batch_and_never_too_many(
    database_url: str, engine: Engine, small_limits: None
) -> None:
    network = Network(engine, now, {("car", TRY): [SILENT, Reply(delay_s=0.5)]})
    ids = await left_behind(database_url, network, 15)
    async with Replica(database_url, network, recovers=False) as replica:
        await pass_time(2.0)
        assert [await replica.recovery.run_once() for _ in range(3)] == [4, 2, 0]
        most = 0
        await replica.recovery.start()
        while any(not stored(engine, id_).finished for id_ in ids):
            most = max(most, len(replica.runs))
            await pass_time(0.1)
    assert 4 <= most <= 6
    for id_ in ids:
        network.check(id_)


@in_virtual_time
async def test_who_keeps_everybody_waiting_does_not_keep_the_others(
    database_url: str, engine: Engine, small_limits: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The car answers nothing for a long time, and everything that waits for it is due first.

    The flight has answered all of those, so it isn't to blame.
    """
    monkeypatch.setattr(recovery, "SLOW_MAX", 3)
    network = Network(engine, now, {("car", TRY): [SILENT]})
    without_the_car = await left_behind(database_url, network, 4, begin_of("hotel"), "hotel")
    without_the_car += await left_behind(database_url, network, 4, begin_of("flight"), "flight")
    with_the_car = await left_behind(database_url, network, 60, begin_of("car", "flight"))
    with engine.execution_options(holdfast_writes=True).begin() as connection:
        first = text("UPDATE transactions SET wake_at = wake_at - 1 WHERE id = :id")
        connection.execute(first, [{"id": id_} for id_ in with_the_car])
    async with Replica(database_url, network) as replica:
        started = now()
        for id_ in without_the_car:
            assert (await replica.end_of(id_)).outcome == "confirmed"
        assert now() - started < 6.0
        for id_ in with_the_car:
            assert (await replica.end_of(id_)).outcome == "cancelled"
    for id_ in (*with_the_car, *without_the_car):
        network.check(id_)


@in_virtual_time
async def test_what_became_hung_after_its_claim_gives_its_place_to_what_waits(
    database_url: str, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The car refuses the Confirm, so that all places are taken by what hangs, and doesn't answer the next one."""
    monkeypatch.setattr(recovery, "ADOPTED_MAX", 3)
    network = Network(engine, now)
    hanging = await left_behind(database_url, network, 3, begin_of("car"))
    await pass_time(0.1)  # so that these are due first
    waiting = await left_behind(database_url, network, 3, begin_of("hotel"), "hotel")
    network.script = {("car", CONFIRM): [Reply(status=409), SILENT], ("hotel", CONFIRM): [SILENT]}
    async with Replica(database_url, network, recovers=False) as replica:
        await pass_time(2.0)
        assert await replica.recovery.run_once() == 3
        await until(lambda: all(place_of(replica, id_) is Place.HUNG for id_ in hanging))
        assert await replica.recovery.run_once() == 3
        assert all(place_of(replica, id_) is Place.ADOPTED for id_ in waiting)


@in_virtual_time
async def test_what_hangs_no_longer_counts_again_as_what_it_was(database_url: str, engine: Engine) -> None:
    """The car doesn't answer its Try until somebody hears of it, and then it does, while the hotel is still silent."""
    unanswered = Reply(status=503, delay_s=0.01)
    network = Network(engine, now, {("car", TRY): [unanswered], ("hotel", TRY): [SILENT]})
    quick: dict[str, Any] = {"hung_attempts": 1, "hung_after_s": 0.005, "retry_cap_s": 0.2}
    async with Replica(database_url, network, recovers=False, **quick) as first:
        begun = await first.coordinator.begin(begin_of("car", "hotel"))
        assert place_of(first, begun.id) is Place.BEGUN
        await until(lambda: place_of(first, begun.id) is Place.HUNG)
        network.script[("car", TRY)] = [Reply()]
        await until(lambda: stored(engine, begun.id).hung_since is None)
        assert place_of(first, begun.id) is Place.BEGUN
        assert not first.runs.context.places[Place.HUNG]
    network.script = {("car", TRY): [unanswered], ("hotel", TRY): [SILENT]}
    async with Replica(database_url, network, recovers=False, **quick) as second:
        other = await second.coordinator.begin(begin_of("car", "hotel"))
        await until(lambda: stored(engine, other.id).hung_since is not None)
    async with Replica(database_url, network, recovers=False, **quick) as third:
        await pass_time(2.0)
        assert await third.recovery.run_once() == 2
        assert place_of(third, other.id) is Place.HUNG
        network.script[("car", TRY)] = [Reply()]
        await until(lambda: stored(engine, other.id).hung_since is None)
        assert place_of(third, other.id) is Place.ADOPTED


@in_virtual_time
async def test_what_hangs_and_is_slow_postpones_nothing_that_only_waits(
    database_url: str, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recovery, "SLOW_MAX", 3)
    monkeypatch.setattr(recovery, "BATCH_MAX", 3)
    network = Network(engine, now)
    hanging = await left_behind(database_url, network, 3, begin_of("car"))
    await pass_time(0.1)  # so that these are due first
    (waiting,) = await left_behind(database_url, network, 1, begin_of("car"))
    network.script = {("car", CONFIRM): [Reply(status=409), SILENT]}
    async with Replica(database_url, network, recovers=False) as replica:
        await pass_time(2.0)
        assert await replica.recovery.run_once() == 3
        await until(lambda: all(place_of(replica, id_) is Place.HUNG for id_ in hanging))
        await pass_time(recovery.SLOW_AFTER_S)
        assert all(place_of(replica, id_) is Place.HUNG for id_ in hanging)
        assert await replica.recovery.run_once() == 1
        assert place_of(replica, waiting) is Place.ADOPTED


@in_virtual_time
async def test_two_replicas_share_what_is_due(database_url: str, engine: Engine, small_limits: None) -> None:
    network = Network(engine, now)
    ids = await left_behind(database_url, network, 12)
    async with Replica(database_url, network) as one, Replica(database_url, network) as two:
        for id_ in ids:
            await one.end_of(id_)
        shares = [int(replica.metrics.claimed._value.get()) for replica in (one, two)]
    assert sum(shares) == 12
    assert min(shares) > 0
    for id_ in ids:
        network.check(id_)


@in_virtual_time
async def test_it_wakes_when_the_next_is_due(database_url: str, engine: Engine) -> None:
    network = Network(engine, now)
    (id_,) = await left_behind(database_url, network, 1)
    with engine.connect() as connection:
        due_at = transactions.next_wake_at(connection)
    assert due_at == pytest.approx(now() + 1.5, abs=0.1)
    network.script = {("car", TRY): [SILENT]}
    async with Replica(database_url, network) as replica:
        await until(lambda: len(replica.runs) == 1)
        assert now() == pytest.approx(due_at, abs=0.05), "and not a full pause after its last look"
        await replica.end_of(id_)


@in_virtual_time
async def test_a_database_that_fails_is_a_warning_and_recovery_goes_on(
    database_url: str, engine: Engine, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = Network(engine, now)
    (id_,) = await left_behind(database_url, network, 1)

    async def fail(*_: object) -> None:
        raise DatabaseUnavailableError

    async with Replica(database_url, network, recovers=False) as replica:
        with monkeypatch.context() as patched:
            patched.setattr(replica.journal, "write", fail)
            await replica.recovery.start()
            await pass_time(5.0)
        (failed, *_) = [record for record in caplog.records if "event=recovery_failed" in record.getMessage()]
        assert (failed.levelno, failed.exc_info) == (logging.WARNING, None), "no defect, so no traceback"
        assert (await replica.end_of(id_)).outcome == "confirmed"


@pytest.mark.parametrize("damage", ODD)
@in_virtual_time
async def test_an_odd_row_keeps_nobody_from_anything(
    damage: str, sqlite_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    await check_odd_row(damage, sqlite_url, caplog)


@in_virtual_time
async def test_an_odd_row_keeps_nobody_from_anything_on_postgresql(
    postgres_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    await check_odd_row(ODD[0], postgres_url, caplog)


async def check_odd_row(damage: str, database_url: str, caplog: pytest.LogCaptureFixture) -> None:
    engine = make_schema(database_url)
    network = Network(engine, now)
    first, odd, *others = await left_behind(database_url, network, 4)
    with engine.execution_options(holdfast_writes=True).begin() as connection:
        assert connection.execute(text(damage), {"id": odd}).rowcount >= 1
    with caplog.at_level(logging.ERROR):
        async with Replica(database_url, network) as replica:
            for id_ in (first, *others):
                assert (await replica.end_of(id_)).phase == "confirmed"
    assert any(odd in message and "row_unreadable" in message for message in caplog.messages)
    with engine.connect() as connection:
        listed = queries.list_newest(connection, queries.Filter(), 10, None).finish().transactions
        assert {each.id for each in listed} == {first, *others}
        assert queries.count_unfinished(connection) == 1  # it is still there, and still counts
        with pytest.raises(UnreadableRowError, match=odd):
            transactions.find(connection, odd).finish()
    engine.dispose()


@in_virtual_time
async def test_a_row_in_a_newer_format_is_left_to_those_that_wrote_it(database_url: str, engine: Engine) -> None:
    """It is due first, and this version neither leases it nor looks for work more often because of it."""
    network = Network(engine, now)
    newer, *others = await left_behind(database_url, network, 4)
    with engine.execution_options(holdfast_writes=True).begin() as connection:
        changed = text("UPDATE transactions SET format = 99, wake_at = wake_at - 1 WHERE id = :id")
        assert connection.execute(changed, {"id": newer}).rowcount == 1
        row = text("SELECT version, wake_at FROM transactions WHERE id = :id")
        before = connection.execute(row, {"id": newer}).one()
    async with Replica(database_url, network) as replica:
        for id_ in others:
            assert (await replica.end_of(id_)).phase == "confirmed"
        await pass_time(60.0)
        with pytest.raises(UnreadableRowError, match="format 99"):
            await replica.coordinator.find(newer)
    with engine.connect() as connection:
        assert connection.execute(row, {"id": newer}).one() == before
        assert transactions.next_wake_at(connection) is None
        assert queries.count_unfinished(connection) == 1  # it still counts


@in_virtual_time
async def test_recovery_holds_no_more_in_memory_than_its_budget(database_url: str, engine: Engine) -> None:
    """Large transactions of a dead process are taken up a few at a time, and all of them in the end."""
    network = Network(engine, now)
    large = begin_of("car")
    payload = text_of("x" * 300_000)
    large = replace(large, branches=tuple(replace(branch, payload=payload) for branch in large.branches))
    ids = await left_behind(database_url, network, 10, large)
    network.script = {("car", TRY): [Reply(delay_s=0.5)]}
    budget = 1_200_000
    async with Replica(database_url, network, body_max_bytes=200_000, memory_max_bytes=budget) as replica:
        most = 0
        while any(not stored(engine, id_).finished for id_ in ids):
            most = max(most, replica.memory.used)
            await pass_time(0.05)
        assert 600_000 < most < budget + 310_000, "within the budget, but for the last one that fits in"
        assert replica.memory.used == 0
    for id_ in ids:
        network.check(id_)


def test_hung_transactions_leave_memory_to_the_others() -> None:
    memory = MemoryBudget(1000)
    memory.hold(875)
    assert (memory.left(hung=True), memory.left(hung=False)) == (0, 125)
    assert not memory.admits(0)
