"""What must not become durable after a certain time: looked at right before COMMIT, and left out if it is late.

The clock is a number that writes of the batch itself move on, so that nothing depends on how fast a machine is.
"""

from collections.abc import Sequence
from typing import Any, Final

import pytest
from sqlalchemy import Connection, Engine, event

from app.storage import calls, transactions
from app.storage.errors import LateError, StaleError
from app.storage.group_commit import Journal
from tests.harness.transactions import call, found, recorded, transaction
from tests.storage.test_group_commit import commits_of, outcomes_of_one_batch, refuse_odd

STEP_S: Final = 10.0


class Clock:
    """Goes on by ten seconds each time that a batch is written which `pass_time` is in."""

    def __init__(self) -> None:
        self.now = 0.0

    def pass_time(self, _connection: Connection, items: Sequence[None]) -> Sequence[None]:
        self.now += STEP_S
        return items

    def save(self, number: int, not_after: float) -> tuple[Any, transactions.Save]:
        each = transaction(number)
        item = transactions.Save(before=each, after=each, calls=(call(each, 1),), is_late=lambda: self.now >= not_after)
        return transactions.save, item


def versions(engine: Engine, count: int) -> list[int]:
    return [found(engine, transactions.find, transaction(number).id).version for number in range(count)]


def saves(engine: Engine, count: int) -> list[int]:
    """How often each of them was saved, by the calls that were saved with it."""
    return [len(found(engine, calls.list_calls, transaction(number).id, 9, 0)) for number in range(count)]


async def test_what_is_late_is_not_written(journal: Journal, engine: Engine) -> None:
    recorded(engine, transaction(0))
    clock = Clock()
    clock.now = 5.0
    with commits_of(journal) as commits, pytest.raises(LateError):
        await journal.write(*clock.save(0, 5.0))
    assert (commits, versions(engine, 1), saves(engine, 1)) == ([], [1], [0])
    assert (await journal.write(*clock.save(0, 5.001))).version == 2, "it may be saved otherwise, and is not stale"


async def test_time_that_passes_while_the_batch_is_written_counts(journal: Journal, engine: Engine) -> None:
    """The statement itself was in time; what came behind it in the batch took long."""
    recorded(engine, *map(transaction, range(3)))
    clock = Clock()
    writes = [clock.save(0, 30.0), clock.save(1, 5.0), clock.save(2, 30.0), (clock.pass_time, None)]
    with commits_of(journal) as commits:
        one, late, other, passed = await outcomes_of_one_batch(journal, *writes)
    assert isinstance(late, LateError)
    assert (one.version, other.version, passed) == (2, 2, None)
    assert (versions(engine, 3), saves(engine, 3)) == ([2, 1, 2], [1, 0, 1])
    assert len(commits) == 2, "the one that held the others up, and all but the late one together"


async def test_what_becomes_late_while_the_batch_is_redone_is_left_out_as_well(
    journal: Journal, engine: Engine
) -> None:
    recorded(engine, *map(transaction, range(5)))
    clock = Clock()
    limits = (5.0, 15.0, 99.0, 5.0, 25.0)
    writes = [clock.save(number, limit) for number, limit in enumerate(limits)]
    with commits_of(journal) as commits:
        *outcomes, _ = await outcomes_of_one_batch(journal, *writes, (clock.pass_time, None))
    assert [isinstance(outcome, LateError) for outcome in outcomes] == [True, True, False, True, True]
    assert (versions(engine, 5), saves(engine, 5)) == ([1, 1, 2, 1, 1], [0, 0, 1, 0, 0])
    assert (clock.now, len(commits)) == (4 * STEP_S, 2)


async def test_a_batch_that_is_late_as_a_whole_is_not_written(journal: Journal, engine: Engine) -> None:
    recorded(engine, *map(transaction, range(3)))
    clock = Clock()
    clock.now = 7.0
    with commits_of(journal) as commits:
        outcomes = await outcomes_of_one_batch(journal, *(clock.save(number, 7.0) for number in range(3)))
    assert [type(outcome) for outcome in outcomes] == [LateError] * 3
    assert (len(commits), versions(engine, 3)) == (1, [1, 1, 1])


async def test_a_late_write_among_failing_and_stale_ones(journal: Journal, engine: Engine) -> None:
    """Each has its own outcome, whatever way the others make the batch take."""
    recorded(engine, *map(transaction, range(3)))
    claim = transactions.Claim(due_by=999.0, lease_until=1000.0, transaction_id=transaction(1).id)
    await journal.write(transactions.claim, claim)
    clock = Clock()
    clock.now = 7.0
    writes = [clock.save(0, 7.0), clock.save(1, 99.0), (refuse_odd, 2), clock.save(2, 99.0)]
    late, stale, good, saved = await outcomes_of_one_batch(journal, *writes)
    assert (type(late), type(stale), good, saved.version) == (LateError, StaleError, 20, 2)
    writes = [clock.save(0, 7.0), (refuse_odd, 3), (refuse_odd, 4)]
    late, bad, good = await outcomes_of_one_batch(journal, *writes)
    assert (type(late), str(bad), good) == (LateError, "odd", 40)
    assert (versions(engine, 3), saves(engine, 3)) == ([1, 2, 2], [0, 0, 1])


async def test_a_write_apart_from_the_others_can_be_late_too(journal: Journal, engine: Engine) -> None:
    recorded(engine, transaction(0))
    clock = Clock()
    clock.now = 5.0
    with pytest.raises(LateError):
        await journal.write_apart(*clock.save(0, 5.0))
    assert versions(engine, 1) == [1]
    assert (await journal.write_apart(*clock.save(0, 6.0))).version == 2


async def test_what_was_in_time_before_the_commit_stands(journal: Journal, engine: Engine) -> None:
    """A COMMIT can't be taken back, however long it takes: who asks about it is told that it is durable."""
    recorded(engine, transaction(0))
    clock = Clock()

    def stall(_connection: Connection) -> None:
        clock.now += STEP_S

    event.listen(journal.engine, "commit", stall)
    assert (await journal.write(*clock.save(0, 5.0))).version == 2
    assert (clock.now, versions(engine, 1)) == (STEP_S, [2])
