"""The call history has every call once, whenever it ended: during a save, after one, or when the run was over."""

from collections.abc import Callable, Sequence
from typing import Any, Final

import pytest
from sqlalchemy import Engine

from app.protocol.messages import CancelRequested
from app.storage import calls as call_rows
from app.storage import transactions as transaction_rows
from app.storage.errors import DatabaseUnavailableError
from holdfast.wire import Operation
from tests.engine.test_run import break_for
from tests.harness.network import Network, Reply
from tests.harness.replica import Replica, begin_of
from tests.harness.virtual_time import in_virtual_time, now, pass_time, until

TRY, CONFIRM = Operation.TRY, Operation.CONFIRM
WAY_S: Final = 0.2
"""How long a write takes on its way to the database, and its outcome on the way back."""
EARLY: Final = Reply(delay_s=0.15)
LATE: Final = Reply(delay_s=0.35)


class SlowWrites:
    """Makes the writes of `function` take their time; `ended_meanwhile` counts the calls that ended during each."""

    def __init__(self, replica: Replica, function: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ended_meanwhile: list[int] = []
        self._node = replica
        self._function = function
        self._write = replica.journal.write
        monkeypatch.setattr(replica.journal, "write", self.write)

    async def write(self, function: Callable[..., Sequence[Any]], item: Any) -> Any:
        if function is not self._function:
            return await self._write(function, item)
        runs = self._node.runs._runs.copy()
        before = sum(len(run.history) for run in runs.values())
        await pass_time(WAY_S)
        result = await self._write(function, item)
        await pass_time(WAY_S)
        self.ended_meanwhile.append(sum(len(run.history) for run in runs.values()) - before)
        return result


def check_history(engine: Engine, network: Network, transaction_id: str) -> None:
    """Every call that a participant got is in the history, once."""
    with engine.connect() as connection:
        calls = [call for _, call in call_rows.list_calls(connection, transaction_id, 1000, 0)]
    asked = [each for each in network.asked if each.transaction_id == transaction_id]
    assert sorted((call.branch, call.operation, call.attempt) for call in calls) == sorted(
        (each.branch, each.operation, each.attempt) for each in asked
    )


@pytest.mark.parametrize("first", [Reply(status=409), Reply(status=503)], ids=["the decision", "an attempt"])
@in_virtual_time
async def test_a_call_that_ends_during_a_save(
    first: Reply, database_url: str, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the hotel answers first brings a save about, and the others' calls end while it is under way."""
    network = Network(engine, now, {("hotel", TRY): [first, Reply()], ("flight", TRY): [EARLY], ("car", TRY): [LATE]})
    async with Replica(database_url, network) as replica:
        saves = SlowWrites(replica, transaction_rows.save, monkeypatch)
        begun = await replica.coordinator.begin(begin_of())
        ended = await replica.end_of(begun.id)
    assert max(saves.ended_meanwhile) > 0
    network.check(ended.id)
    check_history(engine, network, ended.id)


@in_virtual_time
async def test_a_call_that_ends_while_its_broken_transaction_is_set_aside(
    database_url: str, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken: set[str] = set()
    break_for(monkeypatch, lambda transaction: transaction.id in broken)
    network = Network(engine, now, {("flight", TRY): [EARLY], ("car", TRY): [LATE]})
    async with Replica(database_url, network) as replica:
        saves = SlowWrites(replica, transaction_rows.save, monkeypatch)
        begun = await replica.coordinator.begin(begin_of())
        broken.add(begun.id)
        await until(lambda: bool(saves.ended_meanwhile))
        assert saves.ended_meanwhile == [2]
        broken.clear()
        ended = await replica.end_of(begun.id)
    network.check(ended.id)
    check_history(engine, network, ended.id)


@in_virtual_time
async def test_a_call_that_ends_when_another_replica_has_the_transaction(database_url: str, engine: Engine) -> None:
    network = Network(engine, now, {("car", TRY): [Reply(delay_s=1.0)]})
    async with Replica(database_url, network) as one, Replica(database_url, network) as two:
        begun = await one.coordinator.begin(begin_of())
        await until(lambda: len(network.asked) == 3)
        await two.command(begun.id, CancelRequested())
        ended = await two.end_of(begun.id)
        await until(lambda: len(one.runs) == 0)
    check_history(engine, network, ended.id)


@in_virtual_time
async def test_a_stop_while_the_last_calls_are_written(
    database_url: str, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The save failed, so the calls are written by themselves; what is handed over then has them no more."""
    network = Network(engine, now, {("hotel", TRY): [Reply(status=409)], ("car", TRY): [EARLY]})
    async with Replica(database_url, network, recovers=False) as replica:
        writes = SlowWrites(replica, call_rows.add_calls, monkeypatch)
        begun = await replica.coordinator.begin(begin_of())
        write = replica.journal.write

        async def fail_the_first_save(function: Any, item: Any) -> Any:
            if function is not transaction_rows.save:
                return await write(function, item)
            monkeypatch.setattr(replica.journal, "write", write)
            raise DatabaseUnavailableError("the database is gone")

        monkeypatch.setattr(replica.journal, "write", fail_the_first_save)
        await pass_time(EARLY.delay_s + WAY_S / 2)
        await replica.runs.stop(0.0)
        assert writes.ended_meanwhile == [0]
    check_history(engine, network, begun.id)
