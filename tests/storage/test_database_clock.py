"""The database's clock, and what it refuses: a write that came too late while this process stood still."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import pytest
from sqlalchemy import Engine, event

from app.clock import elapsed_s
from app.storage import database_clock, transactions
from app.storage.errors import LateError, StaleError
from app.storage.group_commit import Journal
from tests.harness.databases import on_servers
from tests.harness.transactions import call, found, recorded, transaction
from tests.storage.test_group_commit import commits_of, outcomes_of_one_batch

PRECISION_S: Final = 0.01
HOUR_S: Final = 3600.0


def save(number: int, until: float | None) -> tuple[Any, transactions.Save]:
    """Saved with a call, by which it is seen that it was."""
    each = transaction(number)
    return transactions.save, transactions.Save(before=each, after=each, calls=(call(each, 1),), until=until)


def versions(engine: Engine, count: int) -> list[int]:
    return [found(engine, transactions.find, transaction(number).id).version for number in range(count)]


@contextmanager
def statements_of(journal: Journal) -> Iterator[list[str]]:
    """What is sent to the database meanwhile."""
    sent: list[str] = []

    def note(_c: Any, _cursor: Any, statement: str, *_: Any) -> None:
        sent.append(statement)

    event.listen(journal.engine, "before_cursor_execute", note)
    yield sent
    event.remove(journal.engine, "before_cursor_execute", note)


def test_it_tells_the_time_with_fractions_of_a_second(engine: Engine) -> None:
    with engine.connect() as connection:
        before = time.time()
        samples = [database_clock.ask(connection, elapsed_s) for _ in range(9)]
        after = time.time()
    assert all(before - PRECISION_S <= sample.time <= after + PRECISION_S for sample in samples)
    assert all(sample.asked_at <= sample.answered_at for sample in samples)
    assert any(sample.time % 1 for sample in samples)


@on_servers
@pytest.mark.parametrize("zone", ["+05:30", "-11:00"])
def test_the_time_zone_of_a_session_changes_nothing(zone: str, engine: Engine) -> None:
    name = {"postgresql": "SET TIME ZONE INTERVAL '{}' HOUR TO MINUTE", "mysql": "SET time_zone = '{}'"}
    with engine.connect() as connection:
        connection.exec_driver_sql(name[connection.dialect.name].format(zone))
        assert database_clock.ask(connection, elapsed_s).time == pytest.approx(time.time(), abs=1.0)


def test_it_goes_on_within_a_database_transaction(engine: Engine) -> None:
    with engine.connect() as connection:
        first = database_clock.ask(connection, elapsed_s)
        while elapsed_s() < first.answered_at + 2 * PRECISION_S:
            later = database_clock.ask(connection, elapsed_s)
    assert later.time > first.time


async def test_what_comes_too_late_by_the_databases_clock_is_not_written(journal: Journal, engine: Engine) -> None:
    recorded(engine, transaction(0))
    before, past = time.time(), time.time() - 0.1
    with pytest.raises(LateError) as refused:
        await journal.write(*save(0, past))
    assert refused.value.reached is not None
    assert past < refused.value.reached <= time.time() + PRECISION_S
    assert refused.value.reached >= before - PRECISION_S
    assert versions(engine, 1) == [1]
    assert (await journal.write(*save(0, time.time() + HOUR_S))).version == 2, "it is not stale"


async def test_the_others_of_its_batch_are_written_and_the_stale_are_stale(journal: Journal, engine: Engine) -> None:
    recorded(engine, *map(transaction, range(5)))
    claim = transactions.Claim(due_by=999.0, lease_until=1000.0, transaction_id=transaction(3).id)
    await journal.write(transactions.claim, claim)
    past, future = time.time() - 1.0, time.time() + HOUR_S
    limits = (future, past, None, past, future)
    with commits_of(journal) as commits:
        outcomes = await outcomes_of_one_batch(journal, *(save(number, limit) for number, limit in enumerate(limits)))
    assert [type(each).__name__ for each in outcomes] == [
        "Transaction",
        "LateError",
        "Transaction",
        "StaleError",
        "Transaction",
    ]
    assert isinstance(outcomes[3], StaleError), "whoever has lost it needs not know that it is late, too"
    assert (versions(engine, 5), len(commits)) == ([2, 1, 2, 2, 2], 2)


async def test_a_limit_costs_no_statement_of_its_own(journal: Journal, engine: Engine) -> None:
    recorded(engine, *map(transaction, range(2)))
    with statements_of(journal) as unlimited:
        await journal.write(*save(0, None))
    with statements_of(journal) as limited:
        await journal.write(*save(1, time.time() + HOUR_S))
    assert len(limited) == len(unlimited)
