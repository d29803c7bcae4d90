"""What is unfinished is under way or hangs, and each kind has an index of its own: nothing may forget one of them."""

from dataclasses import replace
from typing import Final

import pytest
from sqlalchemy import Engine

from app.protocol.values import HungReason, Transaction
from app.storage import participants as participant_rows
from app.storage import queries
from app.storage import transactions as transaction_rows
from app.storage.participants import RegisteredParticipant
from holdfast.wire import Decision
from tests.harness.transactions import CAR, found, recorded, transaction, written

NOW: Final = 50.0
FINISHED: Final = transaction(9, decision=Decision.CANCEL, finished_at=9.5, wake_at=None)
UNDER_WAY: Final = transaction(1)
HUNG: Final = transaction(
    2,
    replace(CAR, hung_reason=HungReason.CONFIRM_UNANSWERED),
    decision=Decision.CONFIRM,
    decided_at=3.0,
    hung_since=4.0,
)


@pytest.fixture(params=[UNDER_WAY, HUNG], ids=["under way", "hung"])
def unfinished(request: pytest.FixtureRequest, engine: Engine) -> Transaction:
    """The only transaction in the database that is not finished; it needs the car."""
    kind: Transaction = request.param
    recorded(engine, kind, FINISHED)
    return kind


def test_a_participant_that_it_needs_is_not_deleted(unfinished: Transaction, engine: Engine) -> None:
    car = RegisteredParticipant(name="car", base_url="http://car", call_timeout_s=None, concurrency_max=1)
    written(engine, participant_rows.put_participants, participant_rows.Registration(participant=car))
    assert written(engine, participant_rows.delete_participants, participant_rows.Removal(name="car")) == [False]
    assert found(engine, participant_rows.list_participants) == [car]
    ended = replace(unfinished, finished_at=9.0, wake_at=None, hung_since=None, decision=Decision.CANCEL)
    written(engine, transaction_rows.save, transaction_rows.Save(before=unfinished, after=ended))
    assert written(engine, participant_rows.delete_participants, participant_rows.Removal(name="car")) == [True]


def test_it_is_counted(unfinished: Transaction, engine: Engine) -> None:
    assert found(engine, queries.count_unfinished) == 1


def test_recovery_wakes_for_it(unfinished: Transaction, engine: Engine) -> None:
    assert found(engine, transaction_rows.next_wake_at) == unfinished.wake_at


def test_it_is_due_at_once_when_its_process_is_known_to_be_gone(unfinished: Transaction, engine: Engine) -> None:
    assert written(engine, transaction_rows.release_leases, NOW) == [1]
    assert found(engine, transaction_rows.find, unfinished.id) == replace(unfinished, wake_at=NOW)


@pytest.mark.parametrize("hung", [None, False, True])
def test_it_is_claimed_as_what_it_is(unfinished: Transaction, hung: bool | None, engine: Engine) -> None:
    claim = transaction_rows.Claim(due_by=99.0, lease_until=1000.0, limit=9, hung=hung)
    (claimed,) = written(engine, transaction_rows.claim, claim)
    is_wanted = hung in (None, unfinished.hung_since is not None)
    assert [each.id for each in claimed] == ([unfinished.id] if is_wanted else [])


def test_the_first_of_both_kinds_wakes_recovery(engine: Engine) -> None:
    recorded(engine, UNDER_WAY, HUNG)
    assert found(engine, transaction_rows.next_wake_at) == UNDER_WAY.wake_at
    written(engine, transaction_rows.claim, transaction_rows.Claim(due_by=61.0, lease_until=1000.0, hung=False))
    assert found(engine, transaction_rows.next_wake_at) == HUNG.wake_at
