"""The registry against begins that name its participants: of a begin and a delete at the same moment one has its way.

Two connections in a fixed order; a limit of a second shows that one of them waits for the other.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, delete
from sqlalchemy.exc import OperationalError

from app.storage import participants, tables, transactions
from app.storage.participants import RegisteredParticipant, Registration, Removal, delete_participants, put_participants
from app.storage.transactions import NewRecord, NotRegistered, Recorded
from holdfast.wire import Decision
from tests.harness.databases import engine_with_tables, on_servers
from tests.harness.transactions import found, recorded, transaction, written


@pytest.fixture
def engine(database_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    """Connections that wait a second for a lock, to a database in which car and hotel are registered."""
    for limit in ("LOCK_WAIT_MAX_S", "SQLITE_BUSY_S"):
        monkeypatch.setattr(f"app.storage.engines.{limit}", 1)
    engine = engine_with_tables(database_url)
    written(engine, put_participants, *map(entry, ("car", "hotel")))
    yield engine
    engine.dispose()


def entry(name: str) -> Registration:
    return Registration(
        participant=RegisteredParticipant(name=name, base_url="http://old", call_timeout_s=None, concurrency_max=1)
    )


def naming(number: int, *names: str, key: str | None = None) -> NewRecord:
    """A begin whose transaction needs these participants."""
    return NewRecord(transaction=transaction(number), idempotency_key=key, participants=frozenset(names or {"car"}))


def registered(engine: Engine) -> list[str]:
    return [each.name for each in found(engine, participants.list_participants)]


def begun(engine: Engine) -> int:
    with engine.connect() as connection:
        return len(connection.execute(tables.transactions.select()).all())


def waits(engine: Engine, function: Callable[..., Any], item: object) -> None:
    """Assert that this write gives up, because it waits for a connection that does nothing."""
    with ThreadPoolExecutor(1) as pool, pytest.raises(OperationalError):
        pool.submit(written, engine, function, item).result(timeout=30)


def test_a_delete_waits_for_a_begin_and_then_finds_its_transaction(engine: Engine) -> None:
    with writing(engine) as connection, connection.begin():
        (mine,) = transactions.record(connection, [naming(1)])
        waits(engine, delete_participants, Removal(name="car"))
    assert isinstance(mine, Recorded)
    assert written(engine, delete_participants, Removal(name="car")) == [False]
    assert registered(engine) == ["car", "hotel"]


def test_a_begin_waits_for_a_delete_and_then_records_nothing(engine: Engine) -> None:
    with writing(engine) as connection, connection.begin():
        assert delete_participants(connection, [Removal(name="car")]) == [True]
        waits(engine, transactions.record, naming(1))
    assert written(engine, transactions.record, naming(1, "hotel", "car")) == [NotRegistered(participant="car")]
    assert (registered(engine), begun(engine)) == (["hotel"], 0)


def test_whichever_comes_first_in_one_batch_has_its_way(engine: Engine) -> None:
    with writing(engine) as connection, connection.begin():
        transactions.record(connection, [naming(1)])
        assert delete_participants(connection, [Removal(name="car")]) == [False]
        assert delete_participants(connection, [Removal(name="hotel")]) == [True]
        assert transactions.record(connection, [naming(2, "hotel")]) == [NotRegistered(participant="hotel")]


@on_servers
def test_begins_of_one_participant_do_not_wait_for_each_other(engine: Engine) -> None:
    with writing(engine) as connection, connection.begin():
        transactions.record(connection, [naming(1)])
        (other,) = written(engine, transactions.record, naming(2))
    assert isinstance(other, Recorded)
    assert begun(engine) == 2


@on_servers
def test_what_is_in_use_is_not_deleted_and_no_begin_is_waited_for_to_say_so(engine: Engine) -> None:
    recorded(engine, transaction(1))
    with writing(engine) as connection, connection.begin():
        transactions.record(connection, [naming(2)])
        assert written(engine, delete_participants, Removal(name="car")) == [False]


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_on_postgresql_a_participant_moves_while_a_begin_names_it(engine: Engine) -> None:
    with writing(engine) as connection, connection.begin():
        transactions.record(connection, [naming(1)])
        assert written(engine, put_participants, entry("car")) == [False]


def test_a_participant_that_is_gone_fails_its_own_begins_alone(engine: Engine) -> None:
    written(engine, transactions.record, naming(1, key="known"))
    with writing(engine) as connection, connection.begin():  # as if its transaction had ended, and been forgotten
        connection.execute(delete(tables.participants).where(tables.participants.c.name == "car"))
    new = [naming(2, "hotel"), naming(3, key="k"), naming(4, "hotel", key="k"), naming(5, key="known")]
    answers = written(engine, transactions.record, *new)
    ids = [getattr(answer, "transaction_id", None) for answer in answers]
    assert ids == [transaction(2).id, None, transaction(4).id, transaction(1).id]
    assert answers[1] == NotRegistered(participant="car")
    assert begun(engine) == 3


def test_a_participant_is_deleted_once_its_transactions_have_ended(engine: Engine) -> None:
    recorded(engine, transaction(1, decision=Decision.CONFIRM, finished_at=2.0, wake_at=None))
    assert written(engine, delete_participants, Removal(name="car"), Removal(name="car"), Removal(name="nobody")) == [
        True,
        None,
        None,
    ]


def writing(engine: Engine) -> Connection:
    return engine.execution_options(holdfast_writes=True).connect()
