"""Commands: wherever the transaction is worked on, or rests, and whoever else is at it: answered, and once durable."""

import asyncio

import pytest
from sqlalchemy import Engine

from app.engine.errors import ObjectedError, UnknownTransactionError
from app.protocol.messages import BranchResolved, CancelRequested, Command, RetryRequested
from app.protocol.values import Settled, Transaction
from app.storage import transactions
from app.storage.errors import DatabaseUnavailableError
from holdfast.wire import Decision, Operation
from tests.harness.network import SILENT, Network, Reply
from tests.harness.replica import CALL_TIMEOUT_S, Replica, begin_of, settled, stored
from tests.harness.transactions import found
from tests.harness.virtual_time import in_virtual_time, now, pass_time, until

TRY, CONFIRM, CANCEL = Operation.TRY, Operation.CONFIRM, Operation.CANCEL
LATER = Reply(status=503, headers={"Retry-After": "12"})
RESOLVE = BranchResolved(branch="car", settled=Settled.CANCELLED, by="ops", reason="sold by phone")


def claimed_by_a_stranger(engine: Engine, transaction_id: str) -> Transaction:
    with engine.execution_options(holdfast_writes=True).begin() as connection:
        claim = transactions.Claim(due_by=None, lease_until=now() + 1.5, transaction_id=transaction_id)
        (claimed,) = transactions.claim(connection, [claim])
    (taken,) = found(engine, transactions.find_claimed, claimed)
    assert isinstance(taken, transactions.Taken)
    return taken.transaction


@in_virtual_time
async def test_cancel_while_a_try_is_under_way(database_url: str, engine: Engine) -> None:
    network = Network(engine, now, {("car", TRY): [SILENT]})
    async with Replica(database_url, network) as replica:
        begun = await replica.coordinator.begin(begin_of())
        await until(lambda: len(network.asked) == 3)
        answer = await replica.command(begun.id, CancelRequested())
        assert (answer.decision, stored(engine, begun.id).decision) == (Decision.CANCEL, Decision.CANCEL)
        ended = await replica.end_of(begun.id)
        again = await replica.command(begun.id, CancelRequested())
    assert (again.phase, again.reason) == (ended.phase, ended.reason)
    assert ended.reason is not None
    assert (ended.phase, ended.reason.code) == ("cancelled", "requested")
    network.check(begun.id)


@in_virtual_time
async def test_cancel_of_an_undecided_transaction_that_rests(database_url: str, engine: Engine) -> None:
    network = Network(engine, now, {("car", TRY): [LATER]})
    async with Replica(database_url, network) as replica:
        begun = await replica.coordinator.begin(begin_of())
        await until(lambda: len(replica.runs) == 0)
        began = now()
        answer = await replica.command(begun.id, CancelRequested())
        assert answer.decision is Decision.CANCEL
        await replica.end_of(begun.id)
        assert now() - began < 0.1
    network.check(begun.id)


@in_virtual_time
async def test_retry_of_a_hung_transaction_calls_at_once(database_url: str, engine: Engine) -> None:
    network = Network(engine, now, {("car", CONFIRM): [Reply(status=503)]})
    async with Replica(database_url, network) as replica:
        begun = await replica.coordinator.begin(begin_of())
        await pass_time(25.0)
        await until(lambda: len(replica.runs) == 0)
        assert stored(engine, begun.id).hung_reason == "confirm_unanswered"
        network.script = {}
        began = now()
        await replica.command(begun.id, RetryRequested())
        await replica.end_of(begun.id)
        assert now() - began < 0.1
    network.check(begun.id)


@in_virtual_time
@pytest.mark.parametrize(("command", "outcome"), [(RetryRequested(), "confirmed"), (CancelRequested(), "cancelled")])
async def test_a_hung_transaction_that_is_undecided_obeys_at_once(
    database_url: str, engine: Engine, command: Command, outcome: str
) -> None:
    network = Network(engine, now, {("car", TRY): [Reply(status=503)]})
    async with Replica(database_url, network) as replica:
        begun = await replica.coordinator.begin(begin_of(timeout_s=86_400.0))
        await pass_time(60.0)
        await until(lambda: len(replica.runs) == 0)
        assert stored(engine, begun.id).hung_reason == "try_unanswered"
        network.script = {}
        began = now()
        await replica.command(begun.id, command)
        ended = await replica.end_of(begun.id)
        assert (ended.outcome, ended.hung_since) == (outcome, None)
        assert now() - began < 0.1
    network.check(begun.id)


@in_virtual_time
async def test_a_hung_transaction_that_is_undecided_is_cancelled_at_its_deadline(
    database_url: str, engine: Engine
) -> None:
    """The next Try is due long after it, and the transaction is left to recovery until then."""
    pauses = [Reply(status=503, headers={"Retry-After": after_s}) for after_s in ("10", "10", "10", "3600")]
    network = Network(engine, now, {("car", TRY): pauses})
    async with Replica(database_url, network) as replica:
        begun = await replica.coordinator.begin(begin_of(timeout_s=120.0))
        await replica.coordinator.wait(begun.id, lambda transaction: transaction.hung_since is not None, 60.0)
        await pass_time(30.0)
        assert len(replica.runs) == 0
        ended = await replica.end_of(begun.id)
        assert ended.reason is not None
        assert (ended.reason.code, ended.hung_since) == ("timed_out", None)
        assert ended.decided_at is not None
        assert ended.decided_at - begun.deadline < 0.1
    network.check(begun.id)


@in_virtual_time
async def test_a_command_that_meets_recovery_is_for_the_run_that_has_started(database_url: str, engine: Engine) -> None:
    """It saw a transaction that nobody was working on, and waits neither for that run's end nor for its calls."""
    network = Network(engine, now, {("car", TRY): [LATER, SILENT]})
    async with Replica(database_url, network, recovers=False) as replica:
        begun = await replica.coordinator.begin(begin_of())
        await until(lambda: len(replica.runs) == 0)
        await pass_time(13.0)
        find = replica.runs.find

        async def find_just_before_recovery(transaction_id: str) -> Transaction:
            seen = await find(transaction_id)
            await replica.recovery.run_once()
            return seen

        replica.runs.find = find_just_before_recovery  # type: ignore[method-assign]
        began = now()
        answer = await replica.command(begun.id, CancelRequested())
        assert answer.decision is Decision.CANCEL
        assert now() == began
        await replica.end_of(begun.id)
    network.check(begun.id)


@in_virtual_time
async def test_commands_at_once_take_the_transaction_over_once(database_url: str, engine: Engine) -> None:
    """Or the second would take it away from the run of the first, and both would have to try again."""
    network = Network(engine, now, {("car", TRY): [Reply(status=503, headers={"Retry-After": "20"}), SILENT]})
    async with Replica(database_url, network, recovers=False) as replica:
        begun = await replica.coordinator.begin(begin_of())
        await until(lambda: len(replica.runs) == 0)
        began, version = now(), stored(engine, begun.id).version
        answers = await asyncio.gather(*(replica.command(begun.id, RetryRequested()) for _ in range(3)))
        assert {answer.id for answer in answers} == {begun.id}
        assert now() == began, "each at once"
        assert stored(engine, begun.id).version == version + 1 + 3, (
            "a claim, and a save for each, which the record needs"
        )


@in_virtual_time
async def test_a_person_resolves_a_branch_that_hangs(database_url: str, engine: Engine) -> None:
    network = Network(engine, now, {("car", CONFIRM): [Reply(status=410)]})
    async with Replica(database_url, network) as replica:
        begun = await replica.coordinator.begin(begin_of())
        await until(lambda: stored(engine, begun.id).hung_since is not None)
        ended = await replica.command(begun.id, RESOLVE)
        assert (ended.finished, ended.outcome) == (True, "mixed")
        with pytest.raises(ObjectedError, match="branch-finished"):
            await replica.command(begun.id, RESOLVE)
    kept = stored(engine, begun.id)
    assert kept.branches[2].resolution == ended.branches[2].resolution
    assert (kept.hung_since, kept.wake_at) == (None, None)


@in_virtual_time
async def test_what_the_transaction_does_not_allow_is_objected_to(database_url: str, engine: Engine) -> None:
    network = Network(engine, now, {("car", TRY): [SILENT], ("hotel", CONFIRM): [Reply(delay_s=1.0)]})
    async with Replica(database_url, network) as replica:
        undecided = await replica.coordinator.begin(begin_of("car"))
        decided = await replica.coordinator.begin(begin_of("hotel"))
        await until(lambda: stored(engine, decided.id).decision is Decision.CONFIRM)
        commands: list[tuple[Transaction, Command]] = [
            (undecided, RESOLVE),
            (decided, CancelRequested()),
            (decided, RESOLVE),
        ]
        errors = await settled(*(replica.command(each.id, command) for each, command in commands))
        assert [str(error) for error in errors] == ["not-decided", "already-decided", "unknown-branch"]
        with pytest.raises(UnknownTransactionError):
            await replica.command("00000000-0000-7000-8000-000000000000", CancelRequested())
        await replica.end_of(decided.id)
    assert network.violations == []


@in_virtual_time
async def test_cancel_on_another_replica_than_the_one_that_works(database_url: str, engine: Engine) -> None:
    network = Network(engine, now, {("car", TRY): [SILENT]})
    async with Replica(database_url, network) as one, Replica(database_url, network) as two:
        client = asyncio.create_task(one.finish(begin_of()))
        await until(lambda: len(network.asked) == 3)
        answer = await two.command(network.asked[0].transaction_id, CancelRequested())
        assert answer.decision is Decision.CANCEL
        ended = await client
        await until(lambda: len(one.runs) + len(two.runs) == 0)
    assert ended.phase == "cancelled"
    network.check(ended.id)


@in_virtual_time
async def test_a_command_survives_that_the_transaction_was_taken_over(database_url: str, engine: Engine) -> None:
    network = Network(engine, now, {("car", TRY): [SILENT]})
    async with Replica(database_url, network, recovers=False) as replica:
        begun = await replica.coordinator.begin(begin_of())
        await until(lambda: len(network.asked) == 3)
        claimed_by_a_stranger(engine, begun.id)
        async with asyncio.timeout(CALL_TIMEOUT_S + 1.0):  # its own Try ends before anything overtakes it
            answer = await replica.command(begun.id, CancelRequested())
        assert (answer.decision, stored(engine, begun.id).decision) == (Decision.CANCEL, Decision.CANCEL)
        await replica.end_of(begun.id)
    network.check(begun.id)


@in_virtual_time
async def test_a_command_that_could_not_be_saved_is_told_so(
    database_url: str, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = Network(engine, now, {("car", TRY): [SILENT]})
    async with Replica(database_url, network) as replica:
        begun = await replica.coordinator.begin(begin_of())
        await until(lambda: len(network.asked) == 3)

        async def gone(*_: object) -> None:
            raise DatabaseUnavailableError("the database is gone")

        with monkeypatch.context() as broken:
            broken.setattr(replica.journal, "write", gone)
            async with asyncio.timeout(CALL_TIMEOUT_S + 1.0):
                (answer,) = await settled(replica.command(begun.id, CancelRequested()))
            assert isinstance(answer, DatabaseUnavailableError)
        assert stored(engine, begun.id).decision is Decision.UNDECIDED
        await replica.command(begun.id, CancelRequested())
        await replica.end_of(begun.id)
    network.check(begun.id)
