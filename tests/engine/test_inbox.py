"""Commands of a transaction that another replica is working on: its owner carries them out, and stays the owner."""

import asyncio
import itertools
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import Engine, select

from app.engine import commands as engine_commands
from app.engine.commands import SILENCE_S
from app.engine.errors import ObjectedError, OverloadedError
from app.engine.inbox import FORGOTTEN_S
from app.engine.notifications import POLL_S
from app.protocol.messages import CancelRequested, Command, RetryRequested
from app.storage import commands, tables, transactions
from app.storage.commands import Asked
from holdfast.wire import Decision, Operation
from tests.engine.test_commands import RESOLVE
from tests.harness.network import SILENT, Network, Reply
from tests.harness.replica import BRANCHES, CALL_TIMEOUT_S, Replica, begin_of, stored
from tests.harness.transactions import written
from tests.harness.virtual_time import in_virtual_time, now, pass_time, until

TRY, CONFIRM, CANCEL = Operation.TRY, Operation.CONFIRM, Operation.CANCEL
CANCELS = CancelRequested(detail="changed my mind", by="initiator at ::1")


def rows(engine: Engine) -> list[Any]:
    with engine.connect() as connection:
        return list(connection.execute(select(tables.commands).order_by(tables.commands.c.id)).all())


def outcomes(engine: Engine) -> list[str | None]:
    return [row.outcome for row in rows(engine)]


@in_virtual_time
async def test_the_owner_carries_it_out_and_stays_the_owner(database_url: str, engine: Engine) -> None:
    """No Cancel leaves before the Try ends that the owner is still making; whoever took over would send it at once."""
    network = Network(engine, now, {("car", TRY): [SILENT]})
    async with Replica(database_url, network) as one, Replica(database_url, network) as two:
        begun = await one.coordinator.begin(begin_of())
        await until(lambda: len(network.asked) == 3)
        began, version = now(), stored(engine, begun.id).version
        answer = await two.command(begun.id, CANCELS)
        assert now() - began <= 2 * POLL_S, "polled twice: once by the owner, once for the outcome"
        assert (answer.decision, stored(engine, begun.id).decision) == (Decision.CANCEL, Decision.CANCEL)
        assert stored(engine, begun.id).version == version + 1, "a save, and no claim"
        assert (len(one.runs), len(two.runs)) == (1, 0)
        await one.end_of(begun.id)
        (tried,), (cancelled,) = network.calls(begun.id, "car", TRY), network.calls(begun.id, "car", CANCEL)
        assert cancelled.at >= tried.at + CALL_TIMEOUT_S
        assert network.calls(begun.id, "hotel", CANCEL)[0].at < tried.at + CALL_TIMEOUT_S
    (row,) = rows(engine)
    assert (row.outcome, row.asked_by, row.reason) == ("applied", "initiator at ::1", "changed my mind")
    network.check(begun.id)


@in_virtual_time
async def test_replicas_that_notify_each_other_wait_for_no_poll(database_url: str, engine: Engine) -> None:
    network = Network(engine, now, {("car", TRY): [SILENT]})
    async with Replica(database_url, network) as one, Replica(database_url, network) as two:
        begun = await one.coordinator.begin(begin_of())
        await until(lambda: len(network.asked) == 3)
        await one.inbox.stop()
        one.told.clear()
        began = now()
        asking = asyncio.create_task(two.command(begun.id, CANCELS))
        await until(lambda: two.told == [begun.id])
        one.runs.heard(begun.id)
        await until(lambda: bool(one.told))
        assert one.told == [begun.id]
        two.runs.heard(begun.id)
        assert (await asking).decision is Decision.CANCEL
        assert now() - began < POLL_S
        await one.end_of(begun.id)
    network.check(begun.id)


@in_virtual_time
async def test_commands_of_all_replicas_are_each_heard_once(database_url: str, engine: Engine) -> None:
    network = Network(engine, now, {("car", CONFIRM): [Reply(status=503)], ("hotel", CONFIRM): [Reply(delay_s=1.0)]})
    async with (
        Replica(database_url, network) as one,
        Replica(database_url, network) as two,
        Replica(database_url, network) as three,
    ):
        begun = await one.coordinator.begin(begin_of())
        await until(lambda: len(network.calls(begun.id, "hotel", CONFIRM)) == 1)
        asked = [(replica, command) for replica in (one, two, three) for command in (RetryRequested(), RESOLVE)]
        answers = await asyncio.gather(*(each.command(begun.id, c) for each, c in asked), return_exceptions=True)
        resolved = [a for (_, command), a in zip(asked, answers, strict=True) if command is RESOLVE]
        assert sorted(str(a) for a in resolved if isinstance(a, ObjectedError)) == ["branch-finished"] * 2
        assert sum(not isinstance(a, Exception) for a in answers) == 4
        assert (await one.end_of(begun.id)).outcome == "mixed"
    assert sorted(filter(None, outcomes(engine)), key=str) == ["applied"] * (outcomes(engine).count("applied")) + [
        "branch-finished"
    ] * outcomes(engine).count("branch-finished")
    assert None not in outcomes(engine)


@in_virtual_time
async def test_what_the_owner_objects_to_is_objected_to_everywhere(database_url: str, engine: Engine) -> None:
    """The replica that was asked may have seen the state from before."""
    network = Network(engine, now, {("car", CONFIRM): [SILENT]})
    async with Replica(database_url, network) as one, Replica(database_url, network) as two:
        begun = await one.coordinator.begin(begin_of())
        before = begun
        await until(lambda: stored(engine, begun.id).decision is Decision.CONFIRM)

        async def outdated(transaction_id: str) -> Any:
            return before

        two.runs.find = outdated  # type: ignore[method-assign]
        version = stored(engine, begun.id).version
        with pytest.raises(ObjectedError, match="already-decided") as raised:
            await two.command(begun.id, CANCELS)
        assert raised.value.transaction.decision is Decision.CONFIRM
        assert stored(engine, begun.id).version == version + 1, "the objection was saved by the owner"
    assert outcomes(engine) == ["already-decided"]


@in_virtual_time
async def test_an_owner_that_is_silent_loses_the_transaction(database_url: str, engine: Engine) -> None:
    """Before its lease passes; and the run that takes over does first what was asked."""
    network = Network(engine, now, {("car", TRY): [SILENT]})
    options: dict[str, Any] = {"lease_s": 30.0, "recovers": False}
    async with Replica(database_url, network, **options) as one, Replica(database_url, network, **options) as two:
        begun = await one.coordinator.begin(begin_of())
        await until(lambda: len(network.asked) == 3)
        one.gate.kill()
        began = now()
        answer = await two.command(begun.id, CANCELS)
        assert answer.decision is Decision.CANCEL
        assert now() - began == pytest.approx(SILENCE_S, abs=0.1)
        await two.end_of(begun.id)
        assert len([call for call in network.asked if call.operation is TRY]) == 3, "no Try is repeated"
    assert outcomes(engine) == ["applied"]
    network.check(begun.id)


@pytest.mark.parametrize("heard_before", [transactions.find, commands.find_standing, transactions.claim])
@in_virtual_time
async def test_an_owner_that_answers_at_the_last_moment_keeps_the_transaction(
    heard_before: Any, database_url: str, engine: Engine
) -> None:
    """After the second of silence, before any of what the replica that was asked does to take the transaction over."""
    network = Network(engine, now, {("car", TRY): [SILENT]})
    options: dict[str, Any] = {"lease_s": 30.0, "recovers": False}
    async with Replica(database_url, network, **options) as one, Replica(database_url, network, **options) as two:
        begun = await one.coordinator.begin(begin_of())
        await until(lambda: len(network.asked) == 3)
        await one.inbox.stop()
        read, write = two.journal.read, two.journal.write
        asked_at = now()

        async def hear(function: Any) -> None:
            if function is heard_before and now() - asked_at >= SILENCE_S and None in outcomes(engine):
                one.runs.heard(begun.id)
                await until(lambda: outcomes(engine) == ["applied"])

        async def read_later(function: Any, *args: Any) -> Any:
            await hear(function)
            return await read(function, *args)

        async def write_later(function: Any, item: Any) -> Any:
            await hear(function)
            return await write(function, item)

        two.journal.read, two.journal.write = read_later, write_later  # type: ignore[method-assign]
        version = stored(engine, begun.id).version
        assert (await two.command(begun.id, CANCELS)).decision is Decision.CANCEL
        assert (stored(engine, begun.id).version, len(two.runs)) == (version + 1, 0)
        await one.end_of(begun.id)
    network.check(begun.id)


@in_virtual_time
async def test_a_command_whose_replica_dies_is_carried_out_all_the_same(database_url: str, engine: Engine) -> None:
    network = Network(engine, now, {("car", TRY): [SILENT]})
    async with Replica(database_url, network) as one, Replica(database_url, network) as two:
        begun = await one.coordinator.begin(begin_of())
        await until(lambda: len(network.asked) == 3)
        asking = asyncio.create_task(two.command(begun.id, CANCELS))
        await until(lambda: bool(rows(engine)))
        two.gate.kill()
        assert (await one.end_of(begun.id)).phase == "cancelled"
        asking.cancel()
    assert outcomes(engine) == ["applied"]
    network.check(begun.id)


@in_virtual_time
async def test_recovery_takes_the_commands_with_it(database_url: str, engine: Engine) -> None:
    """Both have died, the owner and whoever was asked."""
    network = Network(engine, now, {("car", TRY): [SILENT]})
    async with Replica(database_url, network) as one:
        begun = await one.coordinator.begin(begin_of())
        await until(lambda: len(network.asked) == 3)
        one.gate.kill()
    asked = Asked(id="c-1", transaction_id=begun.id, at=now(), command=CANCELS)
    written(engine, commands.ask, asked)
    async with Replica(database_url, network) as two:
        ended = await two.end_of(begun.id)
        assert len([call for call in network.asked if call.operation is TRY]) == 3
    assert ended.reason is not None
    assert (ended.phase, ended.reason.detail) == ("cancelled", "changed my mind")
    assert outcomes(engine) == ["applied"]


@in_virtual_time
async def test_a_transaction_that_ends_first_leaves_nothing_in_the_inbox(database_url: str, engine: Engine) -> None:
    network = Network(engine, now, {("car", CONFIRM): [Reply(delay_s=0.5)]})
    async with Replica(database_url, network) as one, Replica(database_url, network) as two:
        begun = await one.coordinator.begin(begin_of())
        await until(lambda: len(network.calls(begun.id, "car", CONFIRM)) == 1)
        await one.inbox.stop()
        with pytest.raises(ObjectedError, match="already-finished"):
            await two.command(begun.id, RetryRequested())
        assert stored(engine, begun.id).finished
    assert rows(engine) == []


@in_virtual_time
async def test_one_that_can_not_be_placed_has_no_effect_later(
    database_url: str, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_commands, "ROUNDS_MAX", 2)
    network = Network(engine, now, {("car", TRY): [SILENT]})
    async with Replica(database_url, network) as one, Replica(database_url, network, recovers=False) as two:
        begun = await one.coordinator.begin(begin_of())
        await until(lambda: len(network.asked) == 3)
        await one.inbox.stop()
        write = two.journal.write

        async def write_no_claim(function: Any, item: Any) -> Any:
            return [] if function is transactions.claim else await write(function, item)

        two.journal.write = write_no_claim  # type: ignore[method-assign]
        began = now()
        with pytest.raises(OverloadedError):
            await two.command(begun.id, CANCELS)
        assert now() - began < 4 * SILENCE_S
        assert rows(engine) == []
        assert stored(engine, begun.id).decision is Decision.UNDECIDED


@in_virtual_time
async def test_one_that_rests_is_taken_over_at_once(database_url: str, engine: Engine) -> None:
    network = Network(engine, now, {("car", TRY): [Reply(status=503, headers={"Retry-After": "12"})]})
    async with Replica(database_url, network) as one, Replica(database_url, network) as two:
        begun = await one.coordinator.begin(begin_of())
        await until(lambda: not len(one.runs))
        began = now()
        assert (await two.command(begun.id, CANCELS)).decision is Decision.CANCEL
        assert now() - began < 0.05
        await two.end_of(begun.id)
    assert rows(engine) == []
    network.check(begun.id)


@in_virtual_time
async def test_where_there_is_one_process_nothing_goes_into_the_inbox(database_url: str, engine: Engine) -> None:
    network = Network(engine, now, {("car", TRY): [SILENT]})
    async with Replica(database_url, network, alone=True, lease_s=30.0) as dead:
        begun = await dead.coordinator.begin(begin_of())
        await until(lambda: len(network.asked) == 3)
        dead.gate.kill()
    async with Replica(database_url, network, alone=True, lease_s=30.0) as alone:
        began = now()
        assert (await alone.command(begun.id, CANCELS)).decision is Decision.CANCEL
        assert now() - began < 0.05
        await alone.end_of(begun.id)
    assert rows(engine) == []


@in_virtual_time
async def test_what_nobody_waits_for_any_more_is_forgotten(database_url: str, engine: Engine) -> None:
    network = Network(engine, now)
    async with Replica(database_url, network) as one:
        ended = await one.finish(begin_of())
        written(engine, commands.ask, Asked(id="c-1", transaction_id=ended.id, at=now(), command=CANCELS))
        await pass_time(FORGOTTEN_S - 1.0)
        assert len(rows(engine)) == 1
        await pass_time(2.0)
        assert rows(engine) == []


@in_virtual_time
async def test_a_stop_gives_up_and_takes_the_command_back(database_url: str, engine: Engine) -> None:
    network = Network(engine, now, {("car", TRY): [SILENT]})
    async with Replica(database_url, network) as one, Replica(database_url, network, recovers=False) as two:
        begun = await one.coordinator.begin(begin_of())
        await until(lambda: len(network.asked) == 3)
        await one.inbox.stop()
        asking = asyncio.create_task(two.command(begun.id, CANCELS))
        await until(lambda: bool(rows(engine)))
        await two.runs.stop(0.0)
        with pytest.raises(OverloadedError):
            await asking
        assert rows(engine) == []


@pytest.mark.parametrize("command", [CANCELS, RESOLVE])
@in_virtual_time
async def test_one_that_is_withdrawn_while_its_owner_saves_it_changes_nothing(
    command: Command, database_url: str, engine: Engine
) -> None:
    """Cancel would have been carried out, resolve be objected to. The owner goes on, with what it knew."""
    network = Network(engine, now, {("car", TRY): [Reply(delay_s=1.0)]})
    options: dict[str, Any] = {"recovers": False}  # whoever lost it would leave it for good
    async with Replica(database_url, network, **options) as one, Replica(database_url, network, **options) as two:
        begun = await one.coordinator.begin(begin_of())
        await until(lambda: len(network.asked) == 3)
        write = one.journal.write

        async def withdrawn_first(function: Any, item: Any) -> Any:
            if function is transactions.save and item.heard and None in outcomes(engine):
                two.runs.stopping = True  # the replica that was asked withdraws it
                await until(lambda: rows(engine) == [])
            return await write(function, item)

        one.journal.write = withdrawn_first  # type: ignore[method-assign]

        async def found(transaction_id: str) -> Any:
            return begun if command is CANCELS else replace(begun, decision=Decision.CONFIRM, decided_at=now())

        two.runs.find = found  # type: ignore[method-assign]
        version = stored(engine, begun.id).version
        with pytest.raises((OverloadedError, ObjectedError)):
            await two.command(begun.id, command)
        assert stored(engine, begun.id).version == version
        ended = await one.end_of(begun.id)
    assert ended.phase == "confirmed"
    assert rows(engine) == []
    network.check(begun.id)


# --- whoever dies, wherever ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("victim", "points"), [("the owner", 4), ("who was asked", 2), ("who takes over", 6)])
@in_virtual_time
async def test_whoever_dies_at_whatever_point_a_command_is_carried_out_once_or_not_at_all(
    victim: str, points: int, database_url: str, engine: Engine
) -> None:
    """The crash matrix of the inbox: from the command on, one of the two is killed at each point that it passes."""
    answered = 0
    for number in itertools.count(1):
        network = Network(engine, now, {("car", TRY): [Reply(delay_s=1.0)]})
        async with Replica(database_url, network) as one, Replica(database_url, network) as two:
            begun = await one.coordinator.begin(begin_of())
            await until(lambda network=network: len(network.asked) == 3)  # type: ignore[misc]
            gate = one.gate if victim == "the owner" else two.gate
            gate.kill_at = len(gate.points) + number
            if victim == "who takes over":
                one.gate.freeze()
            asking = asyncio.create_task(two.command(begun.id, CANCELS))
            async with Replica(database_url, network) as three:
                ended = await three.end_of(begun.id)
                died = gate.died.is_set()
                if not two.gate.died.is_set():
                    (answer,) = await asyncio.gather(asking, return_exceptions=True)
                    if isinstance(answer, Exception):
                        assert isinstance(answer, ObjectedError), answer
                        assert ended.phase == "confirmed", answer
                    else:
                        answered += 1
                        assert ended.phase == "cancelled", "whoever was told so can rely on it"
            asking.cancel()
        network.check(begun.id)
        made = [row for row in rows(engine) if row.transaction_id == begun.id]
        assert len(made) <= 1
        if ended.phase == "cancelled" and made:
            assert made[0].outcome == "applied"
        if not died:
            break
    assert number > points
    assert answered
    assert set(BRANCHES) == {branch.name for branch in ended.branches}
