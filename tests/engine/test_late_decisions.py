"""A decision to confirm whose save stalls past the deadline or a hold's end: cancelled, and no Confirm ever left."""

import asyncio
from collections import Counter
from collections.abc import Sequence
from functools import wraps

import pytest
from sqlalchemy import Connection, Engine

from app.engine.run import PendingCommand, Run
from app.protocol.messages import Objection, Step
from app.protocol.values import BranchPhase, ReasonCode, Transaction
from app.storage import calls, commands, transactions
from app.storage.commands import Asked, Heard
from holdfast.wire import Decision, Operation
from tests.engine.test_commands import RESOLVE
from tests.harness.network import Network, Reply
from tests.harness.replica import BRANCHES, Replica, begin_of, stored
from tests.harness.transactions import written
from tests.harness.virtual_time import VirtualLoop, in_virtual_time, now

TRY, CONFIRM, CANCEL = Operation.TRY, Operation.CONFIRM, Operation.CANCEL


def stall_decisions(monkeypatch: pytest.MonkeyPatch, seconds: float) -> list[str]:
    """Have the writer take so long for each decision to confirm, between its statement and COMMIT; which they were."""
    loop, save, stalled = asyncio.get_running_loop(), transactions.save, list[str]()
    assert isinstance(loop, VirtualLoop)

    @wraps(save)
    def slow(connection: Connection, items: Sequence[transactions.Save]) -> list[Transaction]:
        saved = save(connection, items)
        for item in items:
            if item.before.decision is not item.after.decision is Decision.CONFIRM:
                stalled.append(item.after.id)
                loop.stall(seconds)
        return saved

    monkeypatch.setattr(transactions, "save", slow)
    return stalled


def check_cancelled(engine: Engine, network: Network, ended: Transaction) -> None:
    """Nobody was ever told to confirm, and the history has each call once."""
    assert ended.decision is stored(engine, ended.id).decision is Decision.CANCEL
    expected = Counter((name, operation) for name in BRANCHES for operation in (TRY, CANCEL))
    assert Counter((call.branch, call.operation) for call in network.asked) == expected
    with engine.connect() as connection:
        listed = Counter((call.branch, call.operation) for _, call in calls.list_calls(connection, ended.id, 100, 0))
    assert listed == expected
    network.check(ended.id)


@in_virtual_time
async def test_past_the_deadline(database_url: str, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    network = Network(engine, now)
    async with Replica(database_url, network) as replica:
        stalled = stall_decisions(monkeypatch, 5.0)
        ended = await replica.finish(begin_of(timeout_s=5.0))
        assert stalled == [ended.id], "it was to be confirmed, once"
    assert ended.reason is not None
    assert (ended.reason.code, ended.reason.branch) == (ReasonCode.TIMED_OUT, None)
    assert ended.decided_at == ended.deadline
    check_cancelled(engine, network, ended)


@in_virtual_time
async def test_past_the_end_of_a_hold(database_url: str, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Less what is taken off so that Confirm arrives in time: a tenth of ten seconds."""
    network = Network(engine, now, {("hotel", TRY): [Reply(headers={"Tcc-Hold-Ttl": "10"})]})
    async with Replica(database_url, network) as replica:
        stalled = stall_decisions(monkeypatch, 9.0)
        ended = await replica.finish(begin_of())
        assert stalled == [ended.id]
    assert ended.reason is not None
    assert (ended.reason.code, ended.reason.branch) == (ReasonCode.HOLD_EXPIRED, "hotel")
    check_cancelled(engine, network, ended)


@pytest.mark.parametrize("headers", [{}, {"Tcc-Hold-Ttl": "5.5"}])
@in_virtual_time
async def test_a_stall_that_ends_in_time_does_no_harm(
    headers: dict[str, str], database_url: str, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = Network(engine, now, {("hotel", TRY): [Reply(headers=headers)]})
    async with Replica(database_url, network) as replica:
        stalled = stall_decisions(monkeypatch, 4.9)
        ended = await replica.finish(begin_of(timeout_s=5.0))
        assert stalled == [ended.id]
    assert (ended.phase, ended.decided_at) == ("confirmed", ended.created_at)
    network.check(ended.id)


@in_virtual_time
async def test_after_a_crash_as_well(database_url: str, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Recovery decides what the replica before it had not: it is held to the same limit."""
    network = Network(engine, now, {("car", TRY): [Reply(delay_s=1.0)]})
    async with Replica(database_url, network, recovers=False) as dying:
        begun = await dying.coordinator.begin(begin_of(timeout_s=10.0))
    async with Replica(database_url, network) as replica:
        stalled = stall_decisions(monkeypatch, 10.0)
        ended = await replica.end_of(begun.id)
        assert stalled == [ended.id]
    assert ended.reason is not None
    assert ended.reason.code is ReasonCode.TIMED_OUT
    assert {call.operation for call in network.asked} == {TRY, CANCEL}
    network.check(ended.id)


@in_virtual_time
async def test_others_of_the_same_batch_are_confirmed(
    database_url: str, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = Network(engine, now)
    async with Replica(database_url, network) as replica:
        stalled = stall_decisions(monkeypatch, 1.0)
        hurried, *patient = await asyncio.gather(
            *(replica.coordinator.begin(begin_of(timeout_s=timeout_s)) for timeout_s in (1.0, 300.0, 300.0))
        )
        ended = [await replica.end_of(begun.id) for begun in (hurried, *patient)]
        assert set(stalled) == {each.id for each in ended}
    assert [each.phase for each in ended] == ["cancelled", "confirmed", "confirmed"]
    for each in ended:
        network.check(each.id)


@in_virtual_time
async def test_what_was_objected_to_in_the_same_step_is_saved_with_the_next(
    database_url: str, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A command of the inbox is heard once: its outcome is not lost with the save that came too late."""
    network, something = Network(engine, now), Run._something
    asked: list[Asked] = []

    async def with_a_command(self: Run, step: Step) -> None:
        await something(self, step)
        held = sum(branch.phase is BranchPhase.HELD for branch in self.latest.branches) + len(self._answers)
        if held == len(BRANCHES) and not asked:
            asked.append(Asked(id="c-1", transaction_id=self.saved.id, at=now(), command=RESOLVE))
            written(engine, commands.ask, *asked)
            self.ask(PendingCommand(command=RESOLVE, id="c-1"))

    monkeypatch.setattr(Run, "_something", with_a_command)
    async with Replica(database_url, network) as replica:
        stalled = stall_decisions(monkeypatch, 5.0)
        ended = await replica.finish(begin_of(timeout_s=5.0))
        assert stalled == [ended.id]
    with engine.connect() as connection:
        standing = commands.find_standing(connection, "c-1")
    assert standing.heard == Heard(id="c-1", objection=Objection.NOT_DECIDED)
    check_cancelled(engine, network, ended)
