"""The inbox's rows: heard once, by the save that carries them out; nothing is forgotten that somebody waits for."""

import pytest
from sqlalchemy import Engine, update

from app.protocol.messages import BranchResolved, CancelRequested, Command, Objection, RetryRequested
from app.protocol.values import ReasonCode, Settled
from app.storage import commands, tables, transactions
from app.storage.commands import Asked, Heard, Standing
from app.storage.errors import StaleError
from app.storage.leases import Lease, take_lease
from app.storage.purge import Deletion, delete_finished
from holdfast.wire import Decision
from tests.harness.transactions import found, recorded, transaction, written

RESOLVED = BranchResolved(branch="car", settled=Settled.CANCELLED, by="operator at ::1", reason="sold by phone, née €")
COMMANDS = [
    CancelRequested(code=ReasonCode.OPERATOR, detail="cancelled by request", by="initiator at ::1"),
    CancelRequested(),
    RetryRequested(by="operator at ::1"),
    RESOLVED,
]


def asked(number: int, command: Command = RESOLVED, *, of: int = 1, at: float = 5.0) -> Asked:
    return Asked(id=f"c-{number}", transaction_id=transaction(of).id, at=at, command=command)


def waiting(engine: Engine, *of: int) -> list[str]:
    """The ids of what waits for the owners of these transactions."""
    ids = [transaction(number).id for number in of]
    found_ = found(engine, commands.find_waiting, ids)
    return [each.id for id_ in ids for each in found_[id_]]


def save(number: int, *heard: Heard) -> transactions.Save:
    return transactions.Save(before=transaction(number), after=transaction(number), heard=heard)


def standing(engine: Engine, number: int) -> Standing:
    result = found(engine, commands.find_standing, f"c-{number}")
    assert isinstance(result, Standing)
    return result


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_is_read_as_it_was_asked(engine: Engine, command: Command) -> None:
    recorded(engine, transaction(1))
    written(engine, commands.ask, asked(1, command))
    assert found(engine, commands.list_waiting, 10) == [asked(1, command)]
    assert found(engine, commands.find_waiting, [transaction(1).id])[transaction(1).id] == [asked(1, command)]
    assert standing(engine, 1) == Standing(heard=None, is_final=False)


def test_commands_come_oldest_first_and_to_their_own_transaction(engine: Engine) -> None:
    recorded(engine, *map(transaction, (1, 2, 3)))
    written(engine, commands.ask, asked(3), asked(1), asked(4, of=2), asked(2))
    assert waiting(engine, 1, 2, 3) == ["c-1", "c-2", "c-3", "c-4"]
    assert waiting(engine, 2) == ["c-4"]
    assert waiting(engine) == []
    assert [each.id for each in found(engine, commands.list_waiting, 2)] == ["c-1", "c-2"]


@pytest.mark.parametrize("objection", [None, *Objection])
def test_the_save_that_carries_it_out_writes_the_outcome(engine: Engine, objection: Objection | None) -> None:
    recorded(engine, transaction(1))
    written(engine, commands.ask, asked(1), asked(2))
    heard = Heard(id="c-1", objection=objection)
    written(engine, transactions.save, save(1, heard))
    assert standing(engine, 1) == Standing(heard=heard, is_final=False)
    assert waiting(engine, 1) == ["c-2"]


def test_nobody_hears_a_command_again(engine: Engine) -> None:
    """Nothing of such a step is kept, nor of its batch."""
    recorded(engine, transaction(1), transaction(2))
    written(engine, commands.ask, asked(1))
    written(engine, transactions.save, save(1, Heard(id="c-1", objection=None)))
    with pytest.raises(commands.WithdrawnError):
        written(engine, transactions.save, save(2, Heard(id="c-1", objection=Objection.ALREADY_DECIDED)))
    assert found(engine, transactions.find, transaction(2).id).version == 1
    assert standing(engine, 1).heard == Heard(id="c-1", objection=None)


@pytest.mark.parametrize("objection", [None, Objection.ALREADY_DECIDED])
def test_a_save_that_carries_out_what_was_withdrawn_is_told_which(engine: Engine, objection: Objection | None) -> None:
    recorded(engine, transaction(1))
    written(engine, commands.ask, asked(1), asked(2))
    assert written(engine, commands.withdraw, "c-2") == [True]
    heard = [Heard(id=id_, objection=objection) for id_ in ("c-1", "c-2")]
    with pytest.raises(commands.WithdrawnError) as raised:
        written(engine, transactions.save, save(1, *heard))
    assert raised.value.command_id == "c-2"
    assert waiting(engine, 1) == ["c-1"]
    assert found(engine, transactions.find, transaction(1).id).version == 1


def test_a_stale_save_hears_nothing(engine: Engine) -> None:
    recorded(engine, transaction(1))
    written(engine, commands.ask, asked(1))
    written(engine, transactions.save, save(1))
    with pytest.raises(StaleError):
        written(engine, transactions.save, save(1, Heard(id="c-1", objection=None)))
    assert waiting(engine, 1) == ["c-1"]


def test_a_claim_brings_what_waits_for_the_owner(engine: Engine) -> None:
    recorded(engine, transaction(1), transaction(2))
    written(engine, commands.ask, asked(1), asked(2))
    (claimed,) = written(engine, transactions.claim, transactions.Claim(due_by=999.0, lease_until=1000.0, limit=2))
    taken = found(engine, transactions.find_claimed, claimed)
    assert [(each.transaction.id, [one.id for one in each.commands]) for each in taken] == [
        (transaction(1).id, ["c-1", "c-2"]),
        (transaction(2).id, []),
    ]
    news = found(engine, transactions.find_news, transaction(1).id)
    assert (news.version, [each.id for each in news.commands]) == (2, ["c-1", "c-2"])
    assert found(engine, transactions.find_news, transaction(9).id).version is None


def test_a_transaction_is_claimed_only_as_it_was_seen(engine: Engine) -> None:
    recorded(engine, transaction(1))
    seen = transactions.Claim(due_by=None, lease_until=1000.0, transaction_id=transaction(1).id, version=1)
    assert [len(claimed) for claimed in written(engine, transactions.claim, seen)] == [1]
    assert written(engine, transactions.claim, seen) == [[]], "its version is 2 now"


def test_what_nobody_has_heard_can_be_withdrawn(engine: Engine) -> None:
    recorded(engine, transaction(1))
    written(engine, commands.ask, asked(1), asked(2))
    written(engine, transactions.save, save(1, Heard(id="c-2", objection=None)))
    assert written(engine, commands.withdraw, "c-1", "c-2", "c-3") == [True, False, False]
    assert waiting(engine, 1) == []
    assert standing(engine, 2).heard is not None
    assert standing(engine, 1) == Standing(heard=None, is_final=True)


def test_what_waits_for_a_transaction_that_is_final_waits_in_vain(engine: Engine) -> None:
    ended = transaction(2, wake_at=None, finished_at=9.0, decided_at=8.0, decision=Decision.CANCEL)
    recorded(engine, transaction(1), ended)
    gone, open_, old = asked(3, of=9), asked(1), asked(2, of=2)
    young, heard = asked(4, of=2, at=50.0), asked(5, of=2)
    written(engine, commands.ask, gone, open_, old, young, heard)
    written(
        engine,
        transactions.save,
        transactions.Save(before=ended, after=ended, heard=(Heard(id="c-5", objection=None),)),
    )
    assert standing(engine, 2).is_final
    assert written(engine, commands.remove_forgotten, 10.0) == [2]
    assert [each.id for each in found(engine, commands.list_waiting, 10)] == ["c-1", "c-4"]
    assert standing(engine, 5).heard is not None, "what came of a command is kept with its transaction"


def test_commands_are_purged_with_their_transaction(engine: Engine) -> None:
    ended = transaction(1, wake_at=None, finished_at=9.0, decided_at=8.0, decision=Decision.CANCEL)
    recorded(engine, ended, transaction(2))
    written(engine, commands.ask, asked(1), asked(2, of=2))
    lease = Lease(name="purge", holder="me", now=1.0, expires_at=99.0)
    written(engine, take_lease, lease)
    written(engine, delete_finished, Deletion(ids=[ended.id], finished_by=10.0, lease=lease))
    assert [each.id for each in found(engine, commands.list_waiting, 10)] == ["c-2"]


@pytest.mark.parametrize("document", ['{"type":"teleport"}', '{"type":"resolve","branch":"car","settled":"sold"}'])
def test_a_command_of_a_newer_version_is_left_to_it(
    engine: Engine, document: str, caplog: pytest.LogCaptureFixture
) -> None:
    recorded(engine, transaction(1))
    written(engine, commands.ask, asked(1), asked(2))
    with engine.begin() as connection:
        newer = update(tables.commands).where(tables.commands.c.id == "c-1")
        connection.execute(newer.values(command=document))
    assert waiting(engine, 1) == ["c-2"]
    assert "event=unreadable_command" in caplog.text
    assert transaction(1).id in caplog.text
