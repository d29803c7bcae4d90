"""Taken over, or cut off from the database: what a process still does then must do no harm to anybody."""

import pytest
from sqlalchemy import Engine

from app.calling.caller import Caller
from app.engine import recovery
from app.protocol.messages import CancelRequested
from app.protocol.values import BranchPhase
from app.storage import calls as call_rows
from app.storage.errors import DatabaseUnavailableError
from app.storage.transactions import Taken
from holdfast.wire import Answer, Decision, Operation
from tests.engine.test_commands import RESOLVE, claimed_by_a_stranger
from tests.harness.network import HOLDS, SILENT, Network, Reply
from tests.harness.replica import CALL_TIMEOUT_S, Replica, begin_of, stored
from tests.harness.virtual_time import in_virtual_time, now, pass_time, until

TRY, CONFIRM, CANCEL = Operation.TRY, Operation.CONFIRM, Operation.CANCEL
DOWN = Reply(status=503)


@in_virtual_time
async def test_a_branch_that_was_resolved_elsewhere_is_called_no_more(database_url: str, engine: Engine) -> None:
    network = Network(engine, now, {("car", CONFIRM): [DOWN]})
    async with (
        Replica(database_url, network, recovers=False) as one,
        Replica(database_url, network, recovers=False) as two,
    ):
        begun = await one.coordinator.begin(begin_of("car"))
        await until(lambda: bool(network.calls(begun.id, "car", CONFIRM)))
        resolved = await two.command(begun.id, RESOLVE)
        assert resolved.branches[0].phase is BranchPhase.RESOLVED
        asked = len(network.asked)
        await pass_time(30.0)
        assert len(network.asked) <= asked + 1, "one call may have been under way, none is begun"


@in_virtual_time
async def test_a_command_that_takes_over_sends_nothing_that_it_is_to_stop(database_url: str, engine: Engine) -> None:
    network = Network(engine, now, {("car", TRY): [SILENT]})
    async with (
        Replica(database_url, network, recovers=False) as one,
        Replica(database_url, network, recovers=False) as two,
    ):
        begun = await one.coordinator.begin(begin_of())
        await until(lambda: len(network.asked) == 3)
        cancelled = await two.command(begun.id, CancelRequested())
        assert cancelled.decision is Decision.CANCEL
        await two.end_of(begun.id)
        assert len([call for call in network.asked if call.operation is TRY]) == 3
    network.check(begun.id)


@in_virtual_time
async def test_no_cancel_overtakes_a_try_of_the_same_process_after_a_failed_save(
    database_url: str, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = Network(engine, now, {("car", TRY): [SILENT], ("hotel", TRY): [Reply(status=409, delay_s=0.5)]})
    async with Replica(database_url, network) as replica:
        begun = await replica.coordinator.begin(begin_of())
        await until(lambda: len(network.asked) == 3)
        (tried,) = network.calls(begun.id, "car", TRY)

        async def gone(*_: object) -> None:
            raise DatabaseUnavailableError("the database is gone")

        with monkeypatch.context() as broken:
            broken.setattr(replica.journal, "write", gone)
            await pass_time(1.0)  # the refusal can't be saved meanwhile
        await replica.command(begun.id, CancelRequested())
        await replica.end_of(begun.id)
        assert network.calls(begun.id, "car", CANCEL)[0].at >= tried.at + CALL_TIMEOUT_S
    network.check(begun.id)


@in_virtual_time
async def test_a_call_whose_outcome_can_not_be_told_is_repeated(
    database_url: str, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = Network(engine, now)
    broken = 2
    read = Caller._read

    def panics(*args: object) -> object:
        nonlocal broken
        broken -= 1
        if broken >= 0:
            raise OverflowError("date value out of range")
        return read(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(Caller, "_read", panics)
    async with Replica(database_url, network) as replica:
        ended = await replica.finish(begin_of("car"))
    assert (ended.phase, ended.branches[0].try_attempts) == ("confirmed", 3)
    network.check(ended.id)


@in_virtual_time
async def test_what_hangs_does_not_keep_others_from_being_claimed(
    database_url: str, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recovery, "PARALLEL_MAX", 2)
    later = Reply(status=202, headers={"Retry-After": "1"})
    network = Network(engine, now, {("car", CONFIRM): [SILENT], ("flight", TRY): [later, Reply()]})
    async with Replica(database_url, network) as replica:
        hung = [await replica.coordinator.begin(begin_of("car")) for _ in range(10)]
        await until(lambda: all(stored(engine, each.id).hung_since for each in hung))
        began = now()
        assert (await replica.finish(begin_of("flight"))).phase == "confirmed"
        assert now() - began < 5.0


@in_virtual_time
async def test_a_run_that_lost_its_lease_is_not_doubled_by_its_own_process(database_url: str, engine: Engine) -> None:
    network = Network(engine, now, {("car", TRY): [SILENT, HOLDS]})
    async with Replica(database_url, network) as replica:
        begun = await replica.coordinator.begin(begin_of())
        await until(lambda: len(network.asked) == 3)
        await replica.runs.adopt(Taken(transaction=stored(engine, begun.id), commands=()))
        assert len(replica.runs) == 1
        await replica.end_of(begun.id)
        assert len(network.calls(begun.id, "flight", TRY)) == 1
    network.check(begun.id)


@in_virtual_time
async def test_calls_that_end_after_the_lease_was_lost_are_in_the_history(database_url: str, engine: Engine) -> None:
    network = Network(engine, now, {("car", TRY): [SILENT]})
    async with Replica(database_url, network, recovers=False) as replica:
        begun = await replica.coordinator.begin(begin_of())
        await until(lambda: len(network.asked) == 3)
        claimed_by_a_stranger(engine, begun.id)
        await until(lambda: len(replica.runs) == 0)
        assert not [task for task in replica.runs._tasks if not task.done()]
    with engine.connect() as connection:
        calls = [call for _, call in call_rows.list_calls(connection, begun.id, 100, 0)]
    assert sorted((call.branch, call.operation, call.answer) for call in calls) == [
        ("car", TRY, Answer.UNANSWERED),
        ("flight", TRY, Answer.SUCCEEDED),
        ("hotel", TRY, Answer.SUCCEEDED),
    ]
